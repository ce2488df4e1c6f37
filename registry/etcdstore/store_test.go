package etcdstore

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/embedded"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

// patience is how long a test waits for what should take well under a second.
const patience = 20 * time.Second

// A server is an etcd that a test may stop and start, on one port and one directory.
type server struct {
	mu   sync.Mutex
	dir  string
	addr string
	etcd *embedded.Etcd
}

func startServer(dir string) (*server, error) {
	s := &server{dir: dir, addr: "127.0.0.1:0"}
	if err := s.start(); err != nil {
		return nil, err
	}
	s.addr = strings.TrimPrefix(s.url(), "http://")
	return s, nil
}

func (s *server) start() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.etcd, err = embedded.StartEtcd(embedded.EtcdConfig{Dir: s.dir, ClientAddr: s.addr, NoSync: true})
	return err
}

func (s *server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.etcd.Close()
}

func (s *server) url() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.etcd.URL()
}

// ownServer starts a server for one test, which may do with it as it likes.
func ownServer(t testing.TB) *server {
	t.Helper()
	s, err := startServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) Stop(t *testing.T) {
	t.Helper()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

func (s *server) Start(t *testing.T) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// raw returns a client of etcd itself.
func (s *server) raw(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.url()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *server) Compact(t *testing.T) {
	t.Helper()
	c := s.raw(t)
	head, err := c.Get(within(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(within(t), head.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// shared is the server of all tests that need none of their own.
var shared *server

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests that run side by side wait for leases and timeouts, not for processors.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "etcdstore")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if shared, err = startServer(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Some goroutines of the server outlive it for a few seconds.
	for end := time.Now().Add(30 * time.Second); code == 0; {
		if err = goleak.Find(); err == nil {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

var meshes atomic.Int64

func newMesh() string { return fmt.Sprint("mesh-", meshes.Add(1)) }

// open returns a client of a mesh, which the test's end closes.
func open(t testing.TB, s *server, mesh string, set ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Endpoints: []string{s.url()}, Mesh: mesh}
	for _, f := range set {
		f(&cfg)
	}
	st, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return st
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// withinBrief is for what is to fail by its deadline.
func withinBrief(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestStore(t *testing.T) {
	registrytest.TestStore(t, func(*testing.T) registrytest.Fixture {
		mesh := newMesh()
		return registrytest.Fixture{
			Open: func(t *testing.T) registry.Store {
				s, err := Open(Config{Endpoints: []string{shared.url()}, Mesh: mesh})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			MinLease: 2 * time.Second,
			Stop:     shared.Stop, Start: shared.Start, Compact: shared.Compact,
		}
	})
}

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
