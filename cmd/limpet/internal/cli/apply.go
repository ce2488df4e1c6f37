package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry"
)

// applyAttempts bounds how often a plan is made anew because somebody else wrote meanwhile.
const applyAttempts = 3

func applyCommand() *cobra.Command {
	var (
		etcd etcdFlags
		file string
		mesh string
		a    applier
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Write the pools of a mesh file to etcd",
		Long: `Apply compares the pools of a mesh file with those in etcd, writes those that
differ, and prints what changed. A write is guarded: if somebody else has
written the pool meanwhile, it is read and compared again. Pools that the file
does not have stay as they are, unless --prune is given: that also ends those
which edges have kept although etcd has lost them. What operators decided about
brokers (drain, out) is never touched.`,
		Example: "  limpet apply -f mesh.yaml --etcd http://127.0.0.1:2379 --diff",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef(cmd, "-f: expected a mesh file")
			}
			if mesh != "" && !registry.ValidName(mesh) {
				return usagef(cmd, "--mesh: expected a name of letters a-z, digits and '-', found %q", mesh)
			}
			if err := etcd.validate(cmd); err != nil {
				return err
			}
			m, err := config.LoadMesh(file)
			if err != nil {
				return err
			}
			a.mesh, a.pools, a.out = cmp.Or(mesh, m.Name), m.Pools, cmd.OutOrStdout()
			store, err := etcd.open(a.mesh)
			if err != nil {
				return err // nothing was asked of etcd yet
			}
			begun := time.Now()
			ctx, cancel := context.WithTimeout(cmd.Context(), etcd.timeout)
			defer cancel()
			return errors.Join(etcd.explain(a.apply(ctx, store), time.Since(begun)), store.Close())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "mesh `FILE`")
	f.StringVar(&mesh, "mesh", "", "`NAME` of the mesh to write, instead of the file's")
	f.BoolVar(&a.diff, "diff", false, "write nothing; exit 3 if something would change")
	f.BoolVar(&a.prune, "prune", false, "end pools that the file does not have")
	etcd.register(cmd)
	return cmd
}

// applier brings the stored pools of a mesh to what a file says.
type applier struct {
	mesh        string
	pools       []registry.Pool
	diff, prune bool
	out         io.Writer
}

// poolChange is what has to happen to one pool.
type poolChange struct {
	name   string
	stored *registry.Pool       // nil: create
	spoilt *registry.Unreadable // what is stored and does not read: replace it, whatever it was
	want   *registry.Pool       // nil: delete, or leave alone
	kept   bool                 // not in the file, and not to be deleted
	fields []string             // of a pool that is there on both sides: "ttl: 1h → 2h"
}

// differs reports whether something has to be written.
func (c *poolChange) differs() bool {
	return !c.kept && (c.stored == nil || c.want == nil || len(c.fields) > 0)
}

// guard is the revision that the change rests on.
func (c *poolChange) guard() int64 {
	switch {
	case c.stored != nil:
		return c.stored.Revision
	case c.spoilt != nil:
		return c.spoilt.Revision
	}
	return 0
}

func (a *applier) apply(ctx context.Context, store registry.Store) error {
	done := map[string]bool{} // written, and told of
	for attempt := 1; ; attempt++ {
		stored, err := storedPools(ctx, store)
		for ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) { // it was slow, and there is time left
			stored, err = storedPools(ctx, store)
		}
		if err != nil {
			return err
		}
		plan := a.plan(stored)
		err = a.write(ctx, store, plan, done)
		switch {
		case errors.Is(err, registry.ErrConflict) && attempt < applyAttempts:
			continue
		case errors.Is(err, registry.ErrConflict):
			return fmt.Errorf("somebody else keeps writing to mesh %s: nothing was lost, try again (%w)", a.mesh, err)
		case err != nil:
			return err
		}
		// Edges may know pools that this store never had, or has lost: only they can end them.
		if a.prune && !a.diff {
			if err := store.Prune(ctx); err != nil {
				return err
			}
		}
		return a.finish(plan, done)
	}
}

// storedPools lists the pools of the mesh once: State.Pools, and those that do not read.
func storedPools(ctx context.Context, store registry.Store) (*registry.State, error) {
	state := &registry.State{}
	listed := errors.New("listed")
	err := store.Watch(ctx, 0, func(b registry.Batch) error {
		state = state.Apply(b.Changes, b.Revision)
		if b.Done {
			return listed
		}
		return nil
	})
	if !errors.Is(err, listed) {
		return nil, err
	}
	return state, nil
}

// plan compares the file with the store, pool by pool in order of name.
func (a *applier) plan(stored *registry.State) []*poolChange {
	var plan []*poolChange
	for i := range a.pools {
		want := &a.pools[i]
		c := &poolChange{name: want.Name, want: want, stored: stored.Pools[want.Name]}
		if c.stored != nil {
			c.fields = fieldChanges(c.stored, want)
		} else if u, ok := stored.Unreadable[registry.Subject{Kind: registry.KindPool, Name: want.Name}]; ok {
			c.spoilt = &u
		}
		plan = append(plan, c)
	}
	foreign := func(name string) bool {
		return !slices.ContainsFunc(a.pools, func(want registry.Pool) bool { return want.Name == name })
	}
	for name, p := range stored.Pools {
		if foreign(name) {
			plan = append(plan, &poolChange{name: name, stored: p, kept: !a.prune})
		}
	}
	for about, u := range stored.Unreadable {
		if about.Kind == registry.KindPool && foreign(about.Name) {
			plan = append(plan, &poolChange{name: about.Name, spoilt: &u, kept: !a.prune})
		}
	}
	slices.SortFunc(plan, func(a, b *poolChange) int { return cmp.Compare(a.name, b.name) })
	return plan
}

// write does what the plan says, and tells of each pool once it is done.
func (a *applier) write(ctx context.Context, store registry.Store, plan []*poolChange, done map[string]bool) error {
	for _, c := range plan {
		if !c.differs() {
			continue
		}
		var err error
		switch {
		case a.diff:
		case c.want == nil:
			err = store.DeletePool(ctx, c.name, c.guard())
		default:
			err = store.PutPool(ctx, c.want, c.guard())
		}
		if err != nil {
			return fmt.Errorf("pool %s: %w", c.name, err)
		}
		done[c.name] = true
		a.tell(c)
	}
	return nil
}

// tell prints one change.
func (a *applier) tell(c *poolChange) {
	would := ""
	if a.diff {
		would = "would be "
	}
	switch {
	case c.want == nil && c.spoilt != nil:
		fmt.Fprintf(a.out, "pool %s: %sdeleted; it did not read (revision %d: %s)\n", c.name, would, c.spoilt.Revision, c.spoilt.Reason)
	case c.want == nil:
		fmt.Fprintf(a.out, "pool %s: %sdeleted\n", c.name, would)
	case c.stored == nil:
		if c.spoilt != nil {
			fmt.Fprintf(a.out, "pool %s: %sreplaced, since what is stored does not read (revision %d: %s)\n", c.name, would, c.spoilt.Revision, c.spoilt.Reason)
		} else {
			fmt.Fprintf(a.out, "pool %s: %screated (%s)\n", c.name, would, plural(len(c.want.Brokers), "broker"))
		}
		for _, line := range fieldChanges(nil, c.want) {
			fmt.Fprintf(a.out, "  %s\n", line)
		}
	default:
		fmt.Fprintf(a.out, "pool %s: %schanged\n", c.name, would)
		for _, line := range c.fields {
			fmt.Fprintf(a.out, "  %s\n", line)
		}
	}
}

// finish prints what stays as it is, and decides what --diff returns.
func (a *applier) finish(plan []*poolChange, done map[string]bool) error {
	for _, c := range plan {
		switch {
		case done[c.name]:
		case c.kept:
			fmt.Fprintf(a.out, "pool %s: not in the file, left alone (--prune deletes it)\n", c.name)
		default:
			fmt.Fprintf(a.out, "pool %s: unchanged\n", c.name)
		}
	}
	if a.prune && !a.diff {
		fmt.Fprintln(a.out, "edges end any other pool that they still know")
	}
	if a.diff && len(done) > 0 {
		return &exitError{code: codeDiffers}
	}
	return nil
}

// fieldChanges lists what differs between two pools of one name: brokers that come and go as a line each, else field by field.
// A nil from is a pool that was not there.
func fieldChanges(from, to *registry.Pool) []string {
	fresh := from == nil
	if fresh {
		from = &registry.Pool{}
	}
	old, now := map[string]string{}, map[string]string{}
	var order []string
	for _, f := range config.PoolFields(to) {
		now[f.Path] = f.Value
		order = append(order, f.Path)
	}
	for _, f := range config.PoolFields(from) {
		old[f.Path] = f.Value
		if _, still := now[f.Path]; !still {
			order = append(order, f.Path)
		}
	}
	var lines []string
	told := map[string]bool{}
	for _, path := range order {
		id := brokerOf(path)
		switch was, is := old[path], now[path]; {
		case id != "" && from.Broker(id) == nil:
			if !told[id] {
				lines = append(lines, fmt.Sprintf("brokers[%s]: added, %s", id, describe(to, id)))
			}
			told[id] = true
		case id != "" && to.Broker(id) == nil:
			if !told[id] {
				lines = append(lines, fmt.Sprintf("brokers[%s]: removed, was %s", id, describe(from, id)))
			}
			told[id] = true
		case fresh:
			lines = append(lines, path+": "+is)
		case was != is:
			lines = append(lines, fmt.Sprintf("%s: %s → %s", path, cmp.Or(was, "default"), cmp.Or(is, "default")))
		}
	}
	return lines
}

// brokerOf returns the ID in a path of a broker's field, else "".
func brokerOf(path string) string {
	rest, ok := strings.CutPrefix(path, "brokers[")
	if !ok {
		return ""
	}
	id, _, _ := strings.Cut(rest, "]")
	return id
}

// describe is a broker in one line: its address, then whatever else is set.
func describe(p *registry.Pool, id string) string {
	var parts []string
	for _, f := range config.PoolFields(p) {
		if name, ok := strings.CutPrefix(f.Path, "brokers["+id+"]."); ok && name == "address" {
			parts = append(parts, f.Value)
		} else if ok {
			parts = append(parts, name+" "+f.Value)
		}
	}
	return strings.Join(parts, ", ")
}
