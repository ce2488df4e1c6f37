package natsbus

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/embedded"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

const patience = 20 * time.Second

// A server is a NATS that a test may stop and start on one port.
type server struct {
	mu   sync.Mutex
	nats *embedded.NATS
}

func startServer(cfg embedded.NATSConfig) (*server, error) {
	n, err := embedded.StartNATS(cfg)
	return &server{nats: n}, err
}

func (s *server) url() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nats.URL()
}

func (s *server) Stop(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.nats.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *server) Start(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := embedded.StartNATS(embedded.NATSConfig{Addr: strings.TrimPrefix(s.nats.URL(), "nats://")})
	if err != nil {
		t.Fatal(err)
	}
	s.nats = n
}

var shared *server

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if shared, err = startServer(embedded.NATSConfig{Addr: "127.0.0.1:0"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	err = shared.nats.Close()
	// Some goroutines of the server and of its clients outlive them for a moment.
	for end := time.Now().Add(30 * time.Second); code == 0 && err == nil; {
		if leak := goleak.Find(); leak == nil {
			break
		} else if time.Now().After(end) {
			err = leak
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var meshes atomic.Int64

func newMesh() string { return fmt.Sprint("mesh-", meshes.Add(1)) }

func open(t testing.TB, mesh, edge string, set ...func(*Config)) *Bus {
	t.Helper()
	cfg := Config{URLs: []string{shared.url()}, Mesh: mesh, Edge: edge}
	for _, f := range set {
		f(&cfg)
	}
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// stranger is a client of NATS itself.
func stranger(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(shared.url())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestBus(t *testing.T) {
	registrytest.TestBus(t, func(*testing.T) registrytest.BusFixture {
		mesh := newMesh()
		return registrytest.BusFixture{
			Open: func(t *testing.T, edge string) registry.Bus { return open(t, mesh, edge) },
			Inject: func(t *testing.T, payload []byte) {
				nc := stranger(t)
				for _, edge := range []string{"e1", "e2", "unheard-of"} {
					for _, kind := range []string{kindNotice, kindHealth, kindDoubt, "later"} {
						if err := nc.Publish("limpet."+mesh+"."+edge+"."+kind, payload); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := nc.Flush(); err != nil {
					t.Fatal(err)
				}
			},
			Stop: shared.Stop, Start: shared.Start,
		}
	})
}

// eventually polls until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// hear collects what a bus delivers.
func hear(t *testing.T, b *Bus) func() []registry.Message {
	t.Helper()
	var mu sync.Mutex
	var heard []registry.Message
	cancel, err := b.Subscribe(func(m registry.Message) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, m)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return func() []registry.Message {
		mu.Lock()
		defer mu.Unlock()
		return append([]registry.Message(nil), heard...)
	}
}

// Nobody speaks for another: the subject says who speaks, whatever the payload says, and what does not fit its subject is
// ignored and counted.
func TestForgedMessages(t *testing.T) {
	mesh := newMesh()
	b := open(t, mesh, "e1")
	heard := hear(t, b)
	if err := b.nc.FlushTimeout(patience); err != nil { // the server knows the subscription
		t.Fatal(err)
	}
	nc := stranger(t)
	notice := wire.AppendNotice(nil, registry.Notice{Pool: "p", Key: "k", Revision: 7, Affinity: registry.Affinity{Broker: "b9", Writer: "e1"}})
	later := bytes.Clone(notice)
	later[0]++
	ignored := []struct {
		subject string
		payload []byte
	}{
		{"E9.notice", notice},
		{"e_9.notice", notice},
		{strings.Repeat("e", 64) + ".notice", notice},
		{"e9.later", notice},
		{"e9.NOTICE", notice},
		{"e9.notice", later},
		{"e9.notice", nil},
		{"e9.notice", append(bytes.Clone(notice), make([]byte, maxPayload)...)},
		{"e9.notice", wire.AppendNotice(nil, registry.Notice{Pool: "../p", Key: "k", Revision: 7})},
		{"e9.notice", wire.AppendNotice(nil, registry.Notice{Pool: "p", Key: "k"})},
		{"e9.notice", wire.AppendNotice(nil, registry.Notice{Pool: "p", Key: "k", Revision: -7})},
		{"e9.doubt", wire.AppendDoubt(nil, registry.BrokerRef{Pool: "p", Broker: "b/../c"})},
		{"e9.health", []byte("\x01\x12\x02\xff\xff")},
	}
	for _, m := range ignored {
		if err := nc.Publish("limpet."+mesh+"."+m.subject, m.payload); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"limpet." + mesh + ".e1.notice", "limpet.other.e9.notice", "limpet." + mesh + ".e9.notice.more", "limpet." + mesh + ".e9", mesh + ".e9.notice"} {
		if err := nc.Publish(subject, notice); err != nil { // our own, and what we do not listen to
			t.Fatal(err)
		}
	}
	if err := nc.Publish("limpet."+mesh+".e9.notice", notice); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the one good message", func() bool { return len(heard()) > 0 })
	want := registry.Message{From: "e9", Notice: &registry.Notice{Pool: "p", Key: "k", Revision: 7, Affinity: registry.Affinity{Broker: "b9", Writer: "e1", Revision: 7}}}
	if got := heard(); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("heard %+v, want %+v", got, want)
	}
	if got := b.Stats(); got.Ignored != uint64(len(ignored)) || got.Received != 1 {
		t.Errorf("%+v, want %d ignored and 1 received", got, len(ignored))
	}
}

// A subscriber that is too slow loses messages, and they are counted; the bus goes on.
func TestSlowSubscriber(t *testing.T) {
	mesh := newMesh()
	a, b := open(t, mesh, "e1"), open(t, mesh, "e2")
	blocked := make(chan struct{})
	var last atomic.Int64
	cancel, err := b.Subscribe(func(m registry.Message) {
		<-blocked
		if m.Notice != nil {
			last.Store(m.Notice.Revision)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if err := b.nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	rev := int64(0)
	publish := func() {
		rev++
		for a.Publish(registry.Message{Notice: &registry.Notice{Pool: "p", Key: "k", Revision: rev}}) != nil {
			time.Sleep(time.Millisecond) // our own queue was full
		}
	}
	for range maxQueued + 100 {
		publish()
	}
	eventually(t, "messages dropped", func() bool {
		publish()
		return b.Stats().Dropped > 0
	})
	close(blocked)
	eventually(t, "the latest message", func() bool {
		publish()
		return last.Load() > maxQueued+100
	})
}

// What waits for a server that takes nothing is bounded, and nobody waits with it.
func TestQueueIsBounded(t *testing.T) {
	b := &Bus{prefix: "limpet.m.", edge: "e1", queue: make(chan message, maxQueued)}
	small := registry.Message{Doubt: &registry.BrokerRef{Pool: "p", Broker: "b"}}
	for i := range maxQueued {
		if err := b.Publish(small); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := b.Publish(small); !errors.Is(err, errFull) {
		t.Errorf("one too many: %v", err)
	}
	b = &Bus{prefix: "limpet.m.", edge: "e1", queue: make(chan message, maxQueued)}
	large := registry.Message{Notice: &registry.Notice{Pool: "p", Key: strings.Repeat("k", 200_000), Revision: 1}}
	n := 0
	for b.Publish(large) == nil {
		n++
	}
	if n == 0 || n > maxBytes/200_000 {
		t.Errorf("%d messages of 200 KB wait, want %d", n, maxBytes/200_000)
	}
	if got := b.stats.unsent.Load(); got != 1 {
		t.Errorf("%d were counted as lost, want 1", got)
	}
	if b.queued.Load() > maxBytes {
		t.Errorf("%d bytes wait", b.queued.Load())
	}
	for _, m := range []registry.Message{
		{Notice: &registry.Notice{Pool: "p", Key: strings.Repeat("k", maxPayload), Revision: 1}},
		{Notice: &registry.Notice{Pool: "P", Key: "k", Revision: 1}},
		{Notice: &registry.Notice{Pool: "p", Key: "k"}},
		{Doubt: &registry.BrokerRef{Pool: "p"}},
	} {
		if err := b.Publish(m); err == nil || errors.Is(err, errFull) {
			t.Errorf("a message that nobody would take: %v", err)
		}
	}
}

// A server that hangs takes nothing and says nothing. Publish and Close do not wait for it.
func TestServerThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		held = c
		// The greeting of a server, an answer to the first PING, and not a word more.
		fmt.Fprintf(c, "INFO {\"server_id\":\"x\",\"version\":\"2.9.0\",\"max_payload\":1048576,\"proto\":1,\"headers\":true}\r\n")
		buf := make([]byte, 4096)
		for got := ""; !strings.Contains(got, "PING\r\n"); {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			got += string(buf[:n])
		}
		fmt.Fprint(c, "PONG\r\n")
	})
	b := open(t, "m", "e1", func(c *Config) { c.URLs = []string{"nats://" + l.Addr().String()} })
	wg.Wait()
	l.Close()
	defer held.Close()
	if !b.Connected() {
		t.Fatal("the hanging server was not reached")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m := registry.Message{Notice: &registry.Notice{Pool: "p", Key: strings.Repeat("k", 50_000), Revision: 1}}
		for range 1000 { // 50 MB: more than any socket holds
			_ = b.Publish(m)
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Publish waits for the network")
	}
	eventually(t, "messages given up", func() bool { return b.Stats().Unsent > 0 })
	eventually(t, "the server given up", func() bool { return !b.Connected() })
}

func TestOpenRefuses(t *testing.T) {
	good := []string{"nats://127.0.0.1:1"}
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Mesh: "m", Edge: "e"}, "URLs"},
		{Config{URLs: good, Edge: "e"}, "mesh"},
		{Config{URLs: good, Mesh: "m.*", Edge: "e"}, "mesh"},
		{Config{URLs: good, Mesh: "m", Edge: ">"}, "edge"},
		{Config{URLs: []string{"127.0.0.1:4222"}, Mesh: "m", Edge: "e"}, "want nats://"},
		{Config{URLs: []string{"http://127.0.0.1:4222"}, Mesh: "m", Edge: "e"}, "want nats://"},
		{Config{URLs: []string{"nats://a:1,nats://b:1"}, Mesh: "m", Edge: "e"}, "want nats://"},
		{Config{URLs: good, Mesh: "m", Edge: "e", Username: "u"}, "password"},
		{Config{URLs: good, Mesh: "m", Edge: "e", TLS: TLS{CA: junk}}, "junk.pem"},
	} {
		b, err := Open(c.cfg)
		if err == nil {
			b.Close()
			t.Errorf("%+v was taken", c.cfg)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %q says nothing of %q", c.cfg, err, c.want)
		}
	}
}

// A wrong password is no reason to give up: it is said, and tried again.
func TestPassword(t *testing.T) {
	own, err := startServer(embedded.NATSConfig{Addr: "127.0.0.1:0", Username: "edge", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Stop(t) })
	var mu sync.Mutex
	var log bytes.Buffer
	wrong := open(t, "m", "e1", func(c *Config) {
		c.URLs, c.Username, c.Password = []string{own.url()}, "edge", "wrong"
		c.Logger = zerolog.New(zerolog.SyncWriter(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		})))
	})
	right := open(t, "m", "e2", func(c *Config) { c.URLs, c.Username, c.Password = []string{own.url()}, "edge", "secret" })
	eventually(t, "the right password", right.Connected)
	eventually(t, "a line on the wrong one", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(log.String(), "uthorization")
	})
	if wrong.Connected() || wrong.nc.IsClosed() {
		t.Errorf("with a wrong password the bus is %v", wrong.nc.Status())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// FuzzDecode feeds the bus what strangers may send. What it makes of it is what an edge could have said.
func FuzzDecode(f *testing.F) {
	now := time.Unix(1e9, 0)
	f.Add("e1", kindNotice, wire.AppendNotice(nil, registry.Notice{Pool: "p", Key: "k", Revision: 7, Affinity: registry.Affinity{Broker: "b", Written: now}}))
	f.Add("e1", kindHealth, wire.AppendHealth(nil, registry.Health{Seq: 1, Brokers: map[registry.BrokerRef]registry.Report{{Pool: "p", Broker: "b"}: {Since: now, Reason: "r"}}}))
	f.Add("e1", kindDoubt, wire.AppendDoubt(nil, registry.BrokerRef{Pool: "p", Broker: "b"}))
	f.Add("*", "later", []byte{1})
	f.Fuzz(func(t *testing.T, from, kind string, payload []byte) {
		var d wire.Decoder
		m, err := decode(&d, from, kind, payload)
		if err != nil {
			return
		}
		again, b, err := encode(m)
		if err != nil || again != kind || m.From != from || !registry.ValidName(from) {
			t.Fatalf("%q %q was read as %+v, which cannot be said: %v", from, kind, m, err)
		}
		m2, err := decode(&d, from, kind, b)
		if err != nil || !reflect.DeepEqual(m, m2) {
			t.Fatalf("%+v, said again: %+v, %v", m, m2, err)
		}
	})
}

func BenchmarkNoticeRoundTrip(b *testing.B) {
	mesh := newMesh()
	e1, e2 := open(b, mesh, "e1"), open(b, mesh, "e2")
	back := make(chan struct{}, 1)
	echo := func(from, to *Bus) func(registry.Message) {
		return func(m registry.Message) {
			if m.Notice == nil {
				return
			}
			if to == nil {
				back <- struct{}{}
			} else if err := to.Publish(m); err != nil {
				b.Error(err)
			}
		}
	}
	for _, s := range []struct {
		bus *Bus
		fn  func(registry.Message)
	}{{e2, echo(e1, e2)}, {e1, echo(e2, nil)}} {
		cancel, err := s.bus.Subscribe(s.fn)
		if err != nil {
			b.Fatal(err)
		}
		defer cancel()
		if err := s.bus.nc.FlushTimeout(patience); err != nil {
			b.Fatal(err)
		}
	}
	m := registry.Message{Notice: &registry.Notice{Pool: "p", Key: "thermostat-17", Revision: 7, Affinity: registry.Affinity{Broker: "b1", Home: "b1", Writer: "e1"}}}
	b.ReportAllocs()
	for b.Loop() {
		if err := e1.Publish(m); err != nil {
			b.Fatal(err)
		}
		<-back
	}
}
