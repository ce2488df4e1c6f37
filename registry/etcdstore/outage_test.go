package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/embedded"
)

// A gate passes connections on to a server, until it is shut: then they stay open and nothing moves, as behind a firewall
// that drops, or before a machine that hangs.
type gate struct {
	l      net.Listener
	target string

	mu    sync.Mutex
	open  chan struct{} // closed while the gate is open
	conns []net.Conn
	wg    sync.WaitGroup
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, target: target, open: make(chan struct{})}
	close(g.open)
	g.wg.Go(g.accept)
	t.Cleanup(func() {
		l.Close()
		g.set(true)
		g.mu.Lock()
		for _, c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

func (g *gate) accept() {
	for {
		in, err := g.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", g.target)
		if err != nil {
			in.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, in, out)
		g.mu.Unlock()
		g.wg.Go(func() { g.copy(in, out) })
		g.wg.Go(func() { g.copy(out, in) })
	}
}

func (g *gate) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if !open {
			g.open = make(chan struct{})
		}
	default:
		if open {
			close(g.open)
		}
	}
}

// watching runs a watch and reports its end; seen is told every batch.
func watching(t *testing.T, s *Store, from int64, seen func(registry.Batch)) <-chan error {
	t.Helper()
	ctx := within(t)
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, from, func(b registry.Batch) error {
			seen(b)
			return nil
		})
	}()
	return ended
}

// untilListed starts a watch and returns once it has listed.
func untilListed(t *testing.T, s *Store) <-chan error {
	t.Helper()
	listed := make(chan struct{})
	ended := watching(t, s, 0, func(b registry.Batch) {
		if b.Done {
			close(listed)
		}
	})
	select {
	case <-listed:
	case err := <-ended:
		t.Fatal(err)
	}
	return ended
}

// A connection on which nothing moves is noticed as a closed one is, if later.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.TrimPrefix(shared.url(), "http://"))
	s := open(t, shared, newMesh(), func(c *Config) { c.Endpoints = []string{"http://" + g.l.Addr().String()} })
	commit(t, s, create("k", "b1"))
	ended := untilListed(t, s)
	ses, err := s.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	g.set(false)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, "p", "k"); !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get: %v, want ErrUnavailable by the deadline", err)
	}
	if _, err := ses.Campaign(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Campaign: %v, want the deadline", err)
	}
	if err := <-ended; !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("the watch: %v, want ErrUnavailable", err)
	}
	g.set(true)
	if a, err := s.Get(within(t), "p", "k"); err != nil || a.Broker != "b1" {
		t.Errorf("afterwards: %+v, %v", a, err)
	}
	if err := ses.Close(within(t)); err != nil {
		t.Errorf("the session's end: %v", err)
	}
}

// An edge starts without etcd, and finds it when it is there.
func TestStartWithoutServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := open(t, shared, "m", func(c *Config) { c.Endpoints = []string{"http://" + addr} })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Commit(ctx, []registry.Write{create("k", "b1")}); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("without a server: %v, want ErrUnavailable", err)
	}
	e, err := embedded.StartEtcd(embedded.EtcdConfig{Dir: t.TempDir(), ClientAddr: addr, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if _, err := s.Commit(within(t), []registry.Write{create("k", "b1")}); err != nil {
		t.Errorf("with one: %v", err)
	}
}

// Another store on the same port: restored from a backup, or new. Whoever resumes is told, whatever its revision.
func TestResetStore(t *testing.T) {
	t.Parallel()
	own := ownServer(t)
	s := open(t, own, "m")
	w := create("old", "b1")
	w.Lease = time.Hour
	from := commit(t, s, w)[0].Revision
	ended := untilListed(t, s)

	own.Stop(t)
	if err := <-ended; !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("the watch: %v, want ErrUnavailable", err)
	}
	own.dir = t.TempDir()
	own.Start(t)
	raw := own.raw(t)
	for i := range from + 50 { // its revisions get ahead of ours
		if _, err := raw.Put(within(t), "foreign", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []int64{0, from, 1} { // 0: for another reason, and told once
		if err := s.Watch(within(t), from, func(registry.Batch) error { return nil }); !errors.Is(err, registry.ErrReset) {
			t.Errorf("a watch from %d: %v, want ErrReset", from, err)
		}
	}
	// The list is that of the new store; leases of the old one are not used; the schema is written again.
	seen := make(chan registry.Batch, 100)
	watching(t, s, 0, func(b registry.Batch) { seen <- b })
	if b := <-seen; !b.Done || len(b.Changes) != 0 {
		t.Errorf("the new store lists %+v", b)
	}
	w.Key = "new"
	commit(t, s, w)
	for b := range seen {
		if len(b.Changes) == 1 && b.Changes[0].Name == "new" {
			break
		}
	}
	if res, err := raw.Get(within(t), s.keys.schema()); err != nil || len(res.Kvs) != 1 {
		t.Errorf("the new store's schema: %+v, %v", res, err)
	}
	if err := s.Watch(within(t), 1<<30, func(registry.Batch) error { return io.EOF }); !errors.Is(err, registry.ErrReset) {
		t.Errorf("a watch from a revision not yet reached: %v, want ErrReset", err)
	}
}

func TestFullStore(t *testing.T) {
	t.Parallel()
	e, err := embedded.StartEtcd(embedded.EtcdConfig{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", Quota: 1 << 20, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	s := open(t, shared, "m", func(c *Config) { c.Endpoints = []string{e.URL()} })
	for i := 0; err == nil; i++ {
		if i == 2000 { // etcd looks at its size ten times a second
			t.Fatal("a store of 1 MiB took 120 MB")
		}
		_, err = s.Commit(within(t), []registry.Write{create(fmt.Sprint(i)+strings.Repeat("/", 60_000), "b1")})
	}
	if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "defragment") || !strings.Contains(err.Error(), "--quota-backend-bytes") {
		t.Errorf("a full store: %v, want ErrUnavailable and what to do", err)
	}
	if a, err := s.Get(within(t), "p", "0"+strings.Repeat("/", 60_000)); err != nil || a.Broker != "b1" {
		t.Errorf("reading from it: %+v, %v", a, err)
	}
}
