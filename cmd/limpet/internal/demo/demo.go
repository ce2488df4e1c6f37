// Package demo is `limpet demo`: a whole mesh on one machine, a story that it proves while it tells it, and a place to play.
//
//	err := demo.Run(ctx, demo.Options{Out: os.Stdout, Once: true})
//
// It runs etcd, NATS, three brokers (package demo/broker) and three edges, each a process of this same program, so that any of
// them can be killed or frozen by itself:
//
//	demo ── supervisor ──┬── etcd    limpet store --only etcd
//	                     ├── nats    limpet store --only nats
//	                     ├── b1..b3  limpet demo-broker
//	                     └── e1..e3  limpet edge
//
// The edges have the standard ports on 127.0.0.1, .2 and .3, or others where those are taken (ports.go). Certificates,
// configurations and logs are in a temporary directory, which goes when the demo ends; if it fails, its logs stay; if it is
// killed, its directory goes with the next demo (sweep.go). Every process hangs on a leash (leash.go) and ends with the demo,
// however that ends.
//
// The story (story.go, a file for each chapter) is told by some two dozen clients of our own (actor, conn): each of its
// claims is checked for each client, and listed at the end as held or broken, and by whom.
//
// It is for one machine and one user: everything listens on loopback, nobody is asked for a password, and nothing that the
// brokers know survives them.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options say how the demo runs.
type Options struct {
	Out     io.Writer // for the story; drawn in place if it is a terminal
	Once    bool      // end after the story; an error unless every claim held
	Idle    bool      // no story
	State   string    // file for the addresses and processes, as State; "" = none
	Clients int       // of the story; 0 = DefaultClients
	Shifted bool      // leave the standard ports alone
	// Standalone switches the sharing between the brokers off. The story is about brokers that share, so it needs Idle.
	Standalone bool
}

// The story's clients.
const (
	DefaultClients = 24
	MinClients     = 9   // so that every broker and edge has some, as a rule
	MaxClients     = 500 // it is no load test
)

// Run runs the demo until ctx ends or, with Once, until its story does. It returns after every process has ended and,
// unless it failed, every file but Options.State is gone.
func Run(ctx context.Context, o Options) (err error) {
	if o.Clients == 0 {
		o.Clients = DefaultClients
	}
	if o.State != "" {
		if o.State, err = filepath.Abs(o.State); err != nil {
			return err
		}
		if err := creatable(o.State); err != nil {
			return err
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return err
	}
	defer func() { err = tidy(dir, err) }()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := newScreen(o.Out, func(err error) { cancel(fmt.Errorf("%w: %w", errUnread, err)) })
	m, err := newMesh(exe, dir, o.Shifted, o.Standalone)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()

	d := &demo{Options: o, mesh: m, out: out, ctx: ctx, stop: cancel}
	if err := d.start(); err != nil {
		return d.interrupted(err)
	}
	return d.interrupted(d.run())
}

// demo is one run.
type demo struct {
	Options
	mesh *mesh
	out  *screen
	ctx  context.Context
	stop context.CancelCauseFunc

	mu sync.Mutex // one save at a time
}

// start brings the mesh up, and only then says where it is: who waits for the state file finds a mesh that serves.
func (d *demo) start() error {
	began := time.Now()
	d.out.line("%s", d.out.bold("limpet demo"))
	for _, dir := range sweep(os.TempDir()) {
		d.out.line("Removed what a demo that was killed had left in %s.", dir)
	}
	d.out.line("Starting etcd, NATS, %d brokers and %d edges, a process each.", brokers, edges)
	if err := d.mesh.start(d.ctx); err != nil {
		return err
	}
	d.mesh.sup.onChange(d.save)
	d.save()
	d.out.line("All of them serve %s", d.out.faint("("+seconds(time.Since(began))+")"))
	return nil
}

// errInterrupted is what Run returns when it was stopped before it could say whether the story holds.
var errInterrupted = errors.New("demo: stopped before the end of its story")

// errUnread is returned when the output is closed.
var errUnread = errors.New("demo: nobody reads the story")

// interrupted turns the error of what ctx has ended into its cause; that the user ends a demo is no error.
func (d *demo) interrupted(err error) error {
	switch cause := context.Cause(d.ctx); {
	case cause == nil:
		return err
	case err == nil && errors.Is(cause, context.Canceled):
		return nil
	case !errors.Is(cause, context.Canceled):
		return cause
	case d.Once:
		return errInterrupted
	case errors.Is(err, errBroken):
		return err
	}
	return nil
}

// run shows the mesh, tells the story and stays.
func (d *demo) run() error {
	d.addresses()
	var broken error
	if !d.Idle {
		s := &story{mesh: d.mesh, out: d.out}
		broken = s.tell(d.ctx, d.Clients)
		if d.Once || broken != nil && !errors.Is(broken, errBroken) {
			return broken
		}
	}
	d.stay()
	return broken
}

// stay tells of processes that come and go, until the demo ends.
func (d *demo) stay() {
	d.play()
	for len(d.mesh.sup.news) > 0 { // of the story
		<-d.mesh.sup.news
	}
	for {
		select {
		case n := <-d.mesh.sup.news:
			if n.how == "" {
				d.out.line("%s is back, as process %d.", n.child.name, n.pid)
				continue
			}
			d.out.line("%s, process %d, is gone (%s). To bring it back:", n.child.name, n.pid, n.how)
			d.out.line("%s%s", indent, quote(n.child.command()))
		case <-d.ctx.Done():
			d.out.line("")
			d.out.line("Stopping everything in order.")
			return
		}
	}
}

// save writes the state file, whose directory was writable a moment ago.
func (d *demo) save() {
	if d.State == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mesh.state().write(d.State); err != nil {
		d.stop(err)
	}
}

// creatable reports whether a file can be written where path says. One that is there is of an earlier demo, and misleads.
func creatable(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--state: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// tidy removes the demo's directory, but leaves the logs of one that failed.
func tidy(dir string, err error) error {
	if err == nil || errors.Is(err, errInterrupted) || errors.Is(err, errUnread) {
		return errors.Join(err, os.RemoveAll(dir))
	}
	const logs = "logs"
	entries, reading := os.ReadDir(dir)
	err = errors.Join(err, reading)
	kept := false
	for _, e := range entries {
		if e.Name() == logs {
			kept = true
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if !kept {
		return errors.Join(err, os.Remove(dir))
	}
	return fmt.Errorf("%w\nthe logs of its processes are in %s", err, filepath.Join(dir, logs))
}
