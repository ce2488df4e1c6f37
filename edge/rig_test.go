package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

// patience is how long a test waits for what should take milliseconds.
const patience = 10 * time.Second

// eventually polls until ok, and prints what was seen last if it never is.
func eventually(t testing.TB, what string, ok func() (bool, any)) {
	t.Helper()
	var seen any
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		good, s := ok()
		if good {
			return
		}
		seen = s
	}
	t.Fatalf("%s: not within %v; seen %v", what, patience, seen)
}

// fakeBroker accepts clients, remembers their sessions, and says nothing but CONNACK.
type fakeBroker struct {
	id string
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	live     map[string][]net.Conn
	sessions map[string]bool
	connects int
	silent   bool   // accept, and say nothing
	echo     bool   // say what is said
	assign   string // the ID given to clients without one
	props    []byte // CONNACK properties, v5
}

func newFakeBroker(t testing.TB, id string) *fakeBroker {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBroker{id: id, ln: ln, live: map[string][]net.Conn{}, sessions: map[string]bool{}}
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(b.kill)
	return b
}

func (b *fakeBroker) kill() {
	b.ln.Close()
	b.mu.Lock()
	for _, cs := range b.live {
		for _, c := range cs {
			c.Close()
		}
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *fakeBroker) serve(c net.Conn) {
	defer c.Close()
	var buf []byte
	p := make([]byte, 4096)
	var k mqtt.Connect
	for {
		n, err := c.Read(p)
		if err != nil {
			return
		}
		buf = append(buf, p[:n]...)
		if k, err = mqtt.ParseConnect(buf, 1<<20); err == nil {
			break
		}
	}
	id := string(k.ClientID)
	b.mu.Lock()
	b.connects++
	if b.silent {
		b.live[id] = append(b.live[id], c)
		b.mu.Unlock()
		io.Copy(io.Discard, c)
		return
	}
	reply := []byte{0x20, 2, 0, 0}
	if id == "" {
		id = b.assign
		if k.Version == mqtt.V5 {
			reply = append([]byte{0x20, byte(6 + len(id)), 0, 0, byte(3 + len(id)), 0x12, 0, byte(len(id))}, id...)
		}
	} else {
		if b.sessions[id] && !k.CleanStart {
			reply[2] = 1
		}
		if k.Version == mqtt.V5 {
			reply = append([]byte{0x20, byte(3 + len(b.props)), reply[2], 0, byte(len(b.props))}, b.props...)
		}
	}
	b.sessions[id] = k.Persistent()
	b.live[id] = append(b.live[id], c)
	to := io.Discard
	if b.echo {
		to = c
	}
	b.mu.Unlock()
	c.Write(reply)
	io.Copy(to, c)
	b.mu.Lock()
	b.live[id] = slices.DeleteFunc(b.live[id], func(x net.Conn) bool { return x == c })
	b.mu.Unlock()
}

func (b *fakeBroker) has(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.live[id])
}

// mesh is a store, a bus, brokers and edges in one process.
type mesh struct {
	t       testing.TB
	store   *registry.Memory
	bus     *registry.MemoryBus
	brokers map[string]*fakeBroker
	pool    registry.Pool
	dns     upstream.LookupNetIPer // nil = the system's
}

func newMesh(t testing.TB, ids ...string) *mesh {
	m := &mesh{t: t, store: registry.NewMemory(), bus: registry.NewMemoryBus(), brokers: map[string]*fakeBroker{}}
	t.Cleanup(func() { m.store.Close() })
	m.pool = registry.Pool{Name: "default", TTL: time.Hour}
	for _, id := range ids {
		b := newFakeBroker(t, id)
		m.brokers[id] = b
		m.pool.Brokers = append(m.pool.Brokers, registry.Broker{ID: id, Address: b.ln.Addr().String()})
	}
	m.putPool(0)
	return m
}

func (m *mesh) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	m.t.Cleanup(cancel)
	return ctx
}

func (m *mesh) putPool(guard int64) {
	m.t.Helper()
	p := m.pool
	if err := m.store.PutPool(m.ctx(), &p, guard); err != nil {
		m.t.Fatal(err)
	}
}

// record waits until the key's record is as ok says.
func (m *mesh) record(key string, ok func(registry.Affinity) bool) (a registry.Affinity) {
	m.t.Helper()
	eventually(m.t, "record of "+key, func() (bool, any) {
		var err error
		if a, err = m.store.Get(m.ctx(), "default", key); err != nil {
			m.t.Fatal(err)
		}
		return ok(a), a
	})
	return a
}

func (m *mesh) write(key, broker string) registry.Affinity {
	m.t.Helper()
	a := registry.Affinity{Broker: broker, Home: broker, Writer: "test", Reason: "placement", Expires: time.Now().Add(100 * time.Hour).Truncate(time.Second)}
	old, err := m.store.Get(m.ctx(), "default", key)
	if err != nil {
		m.t.Fatal(err)
	}
	w := registry.Write{Pool: "default", Key: key, Affinity: a, Guard: old.Revision, Lease: 100 * time.Hour}
	if broker == "" {
		w.Affinity = registry.Affinity{}
	}
	rs, err := m.store.Commit(m.ctx(), []registry.Write{w})
	if err != nil || rs[0].Status != registry.Committed {
		m.t.Fatal(rs, err)
	}
	a.Revision = rs[0].Revision
	return a
}

// testEdge is one edge of the mesh.
type testEdge struct {
	*Server
	mesh   *mesh
	faults *registrytest.Faulty
	cache  *registry.Cache
	addr   string
	log    *lines
	reg    *prometheus.Registry
	doubts chan registry.BrokerRef
	end    context.CancelFunc
	ended  chan struct{}
}

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type edgeOption func(*Config, *Listener)

// edge starts an edge and waits until its cache is current.
func (m *mesh) edge(id string, options ...edgeOption) *testEdge {
	m.t.Helper()
	e := &testEdge{
		mesh: m, log: &lines{}, reg: prometheus.NewRegistry(), doubts: make(chan registry.BrokerRef, 100), ended: make(chan struct{}),
		faults: registrytest.NewFaulty(m.store.Client),
	}
	bus := m.bus.Bus(id)
	log := zerolog.New(e.log)
	e.cache = registry.NewCache(registry.CacheConfig{Store: e.faults, Bus: bus, Logger: zerolog.Nop()})
	committer := registry.NewCommitter(registry.CommitterConfig{
		Store: e.faults, Bus: bus, Cache: e.cache, Logger: zerolog.Nop(), FlushTimeout: 500 * time.Millisecond,
	})
	resolver := upstream.NewResolver(upstream.ResolverConfig{Log: zerolog.Nop(), DNS: m.dns})
	conf := Config{
		ID: id, Cache: e.cache, Committer: committer, Resolver: resolver, Dialer: upstream.NewDialer(upstream.DialerConfig{Resolver: resolver, Log: zerolog.Nop()}),
		Log: log, Metrics: NewMetrics(e.reg),
		Doubt: func(ref registry.BrokerRef, err error) {
			if err == nil {
				return
			}
			select {
			case e.doubts <- ref:
			default:
			}
		},
	}
	ln := Listener{
		Pool: "default", Config: listen.Config{Name: "mqtt", Transport: listen.TCP, Address: "127.0.0.1:0"},
		Limits: relay.Limits{Linger: 300 * time.Millisecond},
	}
	for _, o := range options {
		o(&conf, &ln)
	}
	var err error
	if e.Server, err = New(conf); err != nil {
		m.t.Fatal(err)
	}
	e.cache.OnState(e.SetState)
	e.cache.OnAffinity(e.AffinityChanged)
	open, err := e.Listen(ln)
	if err != nil {
		m.t.Fatal(err)
	}
	e.addr = open.Addr().String()

	below, stopBelow := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{resolver.Run, e.cache.Run, committer.Run} {
		wg.Go(func() {
			if err := run(below); err != nil {
				m.t.Error(err)
			}
		})
	}
	top, stopTop := context.WithCancel(context.Background())
	e.end = stopTop
	go func() {
		defer close(e.ended)
		if err := e.Run(top); err != nil {
			m.t.Error(err)
		}
	}()
	m.t.Cleanup(func() {
		stopTop()
		<-e.ended
		stopBelow()
		wg.Wait()
		e.faults.Close()
		bus.Close()
	})
	eventually(m.t, "cache current", func() (bool, any) { return e.cache.Current(), e.cache.Status() })
	return e
}

// count is a counter's or gauge's value, found by name and label values.
func (e *testEdge) count(name string, labels ...string) float64 {
	e.mesh.t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		e.mesh.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, metric := range f.Metric {
			var have []string
			for _, l := range metric.Label {
				have = append(have, l.GetValue())
			}
			if slices.Equal(have, labels) {
				return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// session is a client's connection.
type session struct {
	t testing.TB
	net.Conn
}

func (e *testEdge) dial() *session {
	e.mesh.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.mesh.t.Fatal(err)
	}
	e.mesh.t.Cleanup(func() { c.Close() })
	return &session{e.mesh.t, c}
}

func persistent(id string) *mqtt.Connect {
	return &mqtt.Connect{Version: mqtt.V311, ClientID: []byte(id), KeepAlive: 60}
}

func v5(id string, expiry uint32) *mqtt.Connect {
	return &mqtt.Connect{Version: mqtt.V5, ClientID: []byte(id), KeepAlive: 60, HasSessionExpiry: true, SessionExpiry: expiry}
}

func clean(id string) *mqtt.Connect {
	return &mqtt.Connect{Version: mqtt.V311, ClientID: []byte(id), CleanStart: true, KeepAlive: 60}
}

// connect sends a CONNECT and returns the CONNACK.
func (e *testEdge) connect(k *mqtt.Connect) (*session, mqtt.Connack) {
	e.mesh.t.Helper()
	s := e.dial()
	s.Write(mqtt.AppendConnect(nil, k))
	ack, err := s.connack(k.Version)
	if err != nil {
		e.mesh.t.Fatalf("no CONNACK: %v\n%s", err, e.log)
	}
	return s, ack
}

func (s *session) connack(v mqtt.Version) (mqtt.Connack, error) {
	s.SetReadDeadline(time.Now().Add(patience))
	var buf []byte
	p := make([]byte, 256)
	for {
		n, err := s.Read(p)
		buf = append(buf, p[:n]...)
		if k, perr := mqtt.ParseConnack(buf, v); perr == nil {
			return k, nil
		}
		if err != nil {
			return mqtt.Connack{}, fmt.Errorf("%w after %x", err, buf)
		}
	}
}

// ends waits until the edge closes the connection, and returns what came before.
func (s *session) ends() []byte {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(patience))
	p, err := io.ReadAll(s)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		s.t.Fatalf("still open after %v; got %x", patience, p)
	}
	return p
}

// home is the broker that has exactly this client, waited for.
func (m *mesh) home(id string) string {
	m.t.Helper()
	var at []string
	eventually(m.t, "one broker has "+id, func() (bool, any) {
		at = at[:0]
		for _, b := range m.brokers {
			for range b.has(id) {
				at = append(at, b.id)
			}
		}
		return len(at) == 1, at
	})
	return at[0]
}

// logged waits for a closing line with a reason.
func (e *testEdge) logged(parts ...string) {
	e.mesh.t.Helper()
	eventually(e.mesh.t, fmt.Sprintf("log line with %q", parts), func() (bool, any) {
		for line := range strings.Lines(e.log.String()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true, nil
			}
		}
		return false, e.log.String()
	})
}

var _ relay.Owner = (*client)(nil)
