package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/registry"
)

func parse(t *testing.T, text string) []registry.Pool {
	t.Helper()
	m, err := config.ParseMesh("mesh.yaml", []byte("mesh: m\npools:\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return m.Pools
}

const (
	poolA  = "- {name: a, brokers: [{id: b1, address: 'h:1'}, {id: b2, address: 'h:2', weight: 3}]}\n"
	poolA2 = "- {name: a, ttl: 1h, sessions: replicated, brokers: [{id: b1, address: 'h:9', transport: tls, tls: {ca: /ca}}, {id: b3, address: 'h:3', weight: 2, proxy_protocol: v2}]}\n"
	pruned = "edges end any other pool that they still know\n"
	poolB  = "- {name: b, policy: hash, probe: {fall: 5}, brokers: [{id: b1, address: 'h:1'}]}\n"
)

// Each step applies a file to what the steps before it left.
func TestApply(t *testing.T) {
	store := registry.NewMemory()
	for _, step := range []struct {
		name        string
		file        string
		diff, prune bool
		out         string
		code        int
		left        string // in the store, "" = the file
	}{
		{"first", poolA, false, false, "pool a: created (2 brokers)\n  brokers[b1]: added, h:1\n  brokers[b2]: added, h:2, weight 3\n", 0, ""},
		{"again", poolA, false, false, "pool a: unchanged\n", 0, ""},
		{"nothing differs", poolA, true, false, "pool a: unchanged\n", 0, ""},
		{
			"differences", poolA2 + poolB, true, false,
			"pool a: would be changed\n  sessions: default → replicated\n  ttl: default → 1h\n  brokers[b1].address: h:1 → h:9\n  brokers[b1].transport: default → tls\n  brokers[b1].tls.ca: default → /ca\n" +
				"  brokers[b3]: added, h:3, weight 2, proxy_protocol v2\n  brokers[b2]: removed, was h:2, weight 3\n" +
				"pool b: would be created (1 broker)\n  policy: hash\n  probe.fall: 5\n  brokers[b1]: added, h:1\n",
			codeDiffers, poolA,
		},
		{
			"changes", poolA2 + poolB, false, false,
			"pool a: changed\n  sessions: default → replicated\n  ttl: default → 1h\n  brokers[b1].address: h:1 → h:9\n  brokers[b1].transport: default → tls\n  brokers[b1].tls.ca: default → /ca\n" +
				"  brokers[b3]: added, h:3, weight 2, proxy_protocol v2\n  brokers[b2]: removed, was h:2, weight 3\n" +
				"pool b: created (1 broker)\n  policy: hash\n  probe.fall: 5\n  brokers[b1]: added, h:1\n",
			0, "",
		},
		{"a pool left out", poolA2, false, false, "pool a: unchanged\npool b: not in the file, left alone (--prune deletes it)\n", 0, poolA2 + poolB},
		{"prune, dry", poolA2, true, true, "pool b: would be deleted\npool a: unchanged\n", codeDiffers, poolA2 + poolB},
		{"prune", poolA2, false, true, "pool b: deleted\npool a: unchanged\n" + pruned, 0, ""},
		{"prune again", poolA2, false, true, "pool a: unchanged\n" + pruned, 0, ""},
	} {
		t.Run(step.name, func(t *testing.T) {
			var out bytes.Buffer
			a := applier{mesh: "m", pools: parse(t, step.file), diff: step.diff, prune: step.prune, out: &out}
			err := a.apply(t.Context(), store)
			code := 0
			if e, ok := errors.AsType[*exitError](err); ok {
				code = e.code
			} else if err != nil {
				t.Fatal(err)
			}
			if code != step.code || out.String() != step.out {
				t.Errorf("exit %d, printed\n%s\nwant exit %d,\n%s", code, out.String(), step.code, step.out)
			}
			left := step.left
			if left == "" {
				left = step.file
			}
			stands(t, store, left)
		})
	}
}

// An edge keeps the pools of a store that was reset; apply --prune ends those that the file does not have, though the store holds none.
func TestApplyPrunesWhatAResetLeft(t *testing.T) {
	old, fresh := registry.NewMemory(), registry.NewMemory()
	for i := range 2 {
		if err := old.PutPool(t.Context(), &parse(t, poolA+poolB)[i], 0); err != nil {
			t.Fatal(err)
		}
	}
	store := &replacedStore{Store: old, by: fresh}
	cache := registry.NewCache(registry.CacheConfig{Store: store})
	ctx, stop := context.WithCancel(t.Context())
	running := make(chan error, 1)
	go func() { running <- cache.Run(ctx) }()
	defer func() {
		stop()
		<-running
		old.Close()
		fresh.Close()
	}()
	until := func(what string, pools, former int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			st := cache.State()
			if len(st.Pools) == pools && len(st.Former) == former {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: pools %v, former %v", what, st.Pools, st.Former)
			}
		}
	}
	apply := func(diff, prune bool, want string) {
		t.Helper()
		var out bytes.Buffer
		a := applier{mesh: "m", pools: parse(t, poolA), diff: diff, prune: prune, out: &out}
		if err := a.apply(t.Context(), fresh); err != nil || !strings.HasSuffix(out.String(), want) {
			t.Fatalf("%v, printed %s", err, out.String())
		}
	}
	until("at first", 2, 0)
	old.Close()
	until("after the reset", 2, 2)
	apply(false, false, "added, h:2, weight 3\n")
	until("after apply", 2, 1)
	apply(true, true, "pool a: unchanged\n")
	until("after apply --diff --prune", 2, 1)
	apply(false, true, "pool a: unchanged\n"+pruned)
	until("after apply --prune", 1, 0)
}

// replacedStore is another store, a reset, once it is closed.
type replacedStore struct {
	registry.Store
	by    registry.Store
	reset bool
}

func (r *replacedStore) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	if r.reset {
		return r.by.Watch(ctx, from, fn)
	}
	err := r.Store.Watch(ctx, from, fn)
	if ctx.Err() == nil {
		r.reset = true
		return fmt.Errorf("%w: replaced (%w)", registry.ErrReset, err)
	}
	return err
}

// stands compares the stored pools with a file.
func stands(t *testing.T, store registry.Store, file string) {
	t.Helper()
	state, err := storedPools(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	stored := state.Pools
	want := map[string]*registry.Pool{}
	for _, p := range parse(t, file) {
		want[p.Name] = &p
	}
	for _, p := range stored {
		if p.Revision == 0 {
			t.Errorf("pool %s has no revision", p.Name)
		}
		c := *p
		c.Revision = 0
		stored[p.Name] = &c
	}
	if !reflect.DeepEqual(stored, want) {
		t.Errorf("stored %+v, want %+v", stored, want)
	}
}

// racingStore lets somebody else write a pool just before the first so many writes.
type racingStore struct {
	registry.Store
	races int
	other func()
}

func (r *racingStore) PutPool(ctx context.Context, p *registry.Pool, guard int64) error {
	if r.races > 0 {
		r.races--
		r.other()
	}
	return r.Store.PutPool(ctx, p, guard)
}

func TestApplyReadsAgainAfterAConflict(t *testing.T) {
	for _, c := range []struct {
		races    int
		conflict bool
	}{{1, false}, {applyAttempts - 1, false}, {applyAttempts, true}} {
		store := registry.NewMemory()
		theirs := parse(t, poolA)[0]
		if err := store.PutPool(t.Context(), &theirs, 0); err != nil {
			t.Fatal(err)
		}
		race := &racingStore{Store: store, races: c.races}
		race.other = func() {
			stored, err := storedPools(t.Context(), store)
			if err != nil {
				t.Fatal(err)
			}
			theirs.TTL += time.Hour
			if err := store.PutPool(t.Context(), &theirs, stored.Pools["a"].Revision); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		a := applier{mesh: "m", pools: parse(t, poolA2+poolB), out: &out}
		err := a.apply(t.Context(), race)
		if errors.Is(err, registry.ErrConflict) != c.conflict || !c.conflict && err != nil {
			t.Errorf("%d races: %v", c.races, err)
		}
		if c.conflict {
			if !strings.Contains(err.Error(), "try again") || out.Len() > 0 {
				t.Errorf("%d races: error %v, printed %s", c.races, err, out.String())
			}
			continue
		}
		stands(t, store, poolA2+poolB)
		// What is told is the change of what the others wrote, once.
		if !strings.HasPrefix(out.String(), "pool a: changed\n") || strings.Count(out.String(), "pool a") != 1 || strings.Count(out.String(), "pool b") != 1 {
			t.Errorf("%d races: printed\n%s", c.races, out.String())
		}
	}
}

// spoilingStore lists one pool as a value that does not read, until it is written or deleted with the guard of that value.
type spoilingStore struct {
	registry.Store
	name     string
	revision int64 // 0 = mended
}

func (s *spoilingStore) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	return s.Store.Watch(ctx, from, func(b registry.Batch) error {
		if b.List && s.revision != 0 {
			b.Changes = append(b.Changes, registry.Change{Kind: registry.KindPool, Name: s.name, Revision: s.revision, Unreadable: "version 2"})
		}
		return fn(b)
	})
}

func (s *spoilingStore) mend(name string, guard int64) int64 {
	if name == s.name && guard == s.revision {
		guard, s.revision = 0, 0
	}
	return guard
}

func (s *spoilingStore) PutPool(ctx context.Context, p *registry.Pool, guard int64) error {
	return s.Store.PutPool(ctx, p, s.mend(p.Name, guard))
}

func (s *spoilingStore) DeletePool(ctx context.Context, name string, guard int64) error {
	if s.mend(name, guard); s.revision == 0 {
		return nil
	}
	return s.Store.DeletePool(ctx, name, guard)
}

// A pool that does not read is replaced, or deleted, by its revision, and apply says what it did away with.
func TestApplyOverAPoolThatDoesNotRead(t *testing.T) {
	for _, c := range []struct {
		spoilt      string
		diff, prune bool
		out         string
		code        int
		mended      bool
	}{
		{"a", true, false, "pool a: would be replaced, since what is stored does not read (revision 77: version 2)\n  brokers[b1]: added, h:1\n  brokers[b2]: added, h:2, weight 3\n", codeDiffers, false},
		{"a", false, false, "pool a: replaced, since what is stored does not read (revision 77: version 2)\n  brokers[b1]: added, h:1\n  brokers[b2]: added, h:2, weight 3\n", 0, true},
		{"z", false, false, "pool a: created (2 brokers)\n  brokers[b1]: added, h:1\n  brokers[b2]: added, h:2, weight 3\npool z: not in the file, left alone (--prune deletes it)\n", 0, false},
		{"z", false, true, "pool a: created (2 brokers)\n  brokers[b1]: added, h:1\n  brokers[b2]: added, h:2, weight 3\npool z: deleted; it did not read (revision 77: version 2)\n" + pruned, 0, true},
	} {
		mem := registry.NewMemory()
		store := &spoilingStore{Store: mem, name: c.spoilt, revision: 77}
		var out bytes.Buffer
		a := applier{mesh: "m", pools: parse(t, poolA), diff: c.diff, prune: c.prune, out: &out}
		err := a.apply(t.Context(), store)
		code := 0
		if e, ok := errors.AsType[*exitError](err); ok {
			code = e.code
		} else if err != nil {
			t.Errorf("pool %s: %v", c.spoilt, err)
		}
		if code != c.code || out.String() != c.out || (store.revision == 0) != c.mended {
			t.Errorf("exit %d, mended %v, printed\n%s\nwant exit %d,\n%s", code, store.revision == 0, out.String(), c.code, c.out)
		}
		if !c.diff {
			stands(t, mem, poolA)
		}
		mem.Close()
	}
}

func TestApplyOfABadFile(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "mesh.yaml"), "mesh: m\npools: [{name: p, brokers: [{id: b, adress: 'h:1'}], ttl: 5}]\n")
	expect(t, dir, []string{"apply", "-f", file}, codeFailed, "",
		"limpet: D/mesh.yaml:2:29: pools[0].brokers[0].address: required field is missing\n"+
			"limpet: D/mesh.yaml:2:37: pools[0].brokers[0].adress: unknown field: did you mean \"address\"?\n"+
			"limpet: D/mesh.yaml:2:59: pools[0].ttl: expected a duration from 1s to 87600h, such as 10s or 1h30m, found \"5\": did you mean \"5s\"?\n")
	expect(t, dir, []string{"apply", "-f", filepath.Join(dir, "none.yaml")}, codeFailed, "", "limpet: open D/none.yaml: no such file or directory\n")
	good := write(t, filepath.Join(dir, "good.yaml"), "mesh: m\npools: [{name: p, brokers: [{id: b, address: 'h:1'}]}]\n")
	expect(t, dir, []string{"apply", "-f", good, "--etcd-user", "u", "--etcd-password-file", filepath.Join(dir, "none")}, codeFailed, "",
		"limpet: --etcd-password-file: open D/none: no such file or directory\n")
}

func TestApplyWithoutEtcd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := write(t, filepath.Join(t.TempDir(), "mesh.yaml"), "mesh: m\npools: [{name: p, brokers: [{id: b, address: 'h:1'}]}]\n")
	url := "http://" + l.Addr().String()
	code, stdout, stderr := limpet(t, "apply", "-f", file, "--etcd", url, "--timeout", "200ms")
	if code != codeFailed || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "limpet: no answer from etcd after ") ||
		!strings.Contains(stderr, ": start it, or correct --etcd, or raise --timeout (") || !strings.Contains(stderr, "etcd at "+url+": ") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// What is told is the time that it took, and a longer --timeout is no advice where it was not what ended the wait.
func TestExplainTellsTheTimeItTook(t *testing.T) {
	e := etcdFlags{timeout: 5 * time.Second}
	err := fmt.Errorf("%w: etcd at http://h:1: watch: cannot connect: refused: %w", registry.ErrUnavailable, context.DeadlineExceeded)
	for after, want := range map[time.Duration]string{
		3*time.Second + 4*time.Millisecond: "no answer from etcd after 3s: start it, or correct --etcd (" + err.Error() + ")",
		5*time.Second + 4*time.Millisecond: "no answer from etcd after 5s: start it, or correct --etcd, or raise --timeout (" + err.Error() + ")",
	} {
		if got := e.explain(err, after).Error(); got != want {
			t.Errorf("after %v:\n%s\nwant\n%s", after, got, want)
		}
	}
	if got := e.explain(registry.ErrConflict, time.Second); got != registry.ErrConflict {
		t.Errorf("%v", got)
	}
}
