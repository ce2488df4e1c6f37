package edge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
)

// Whatever the tests have started has ended when the last of them has.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// overWebSocket makes the edge's listener one on which something precedes MQTT.
func overWebSocket(_ *Config, l *Listener) {
	l.Transport, l.WebSocket = listen.WS, listen.WebSocket{}
}

// dialWS is dial for such an edge.
func (e *testEdge) dialWS() (*session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+e.addr+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		return nil, err
	}
	e.mesh.t.Cleanup(func() { c.CloseNow() })
	return &session{e.mesh.t, websocket.NetConn(context.Background(), c, websocket.MessageBinary)}, nil
}

// stops ends the edge and fails if that takes as long as clients like.
func (e *testEdge) stops() {
	e.mesh.t.Helper()
	e.end()
	select {
	case <-e.ended:
	case <-time.After(patience):
		e.mesh.t.Fatalf("Run has not returned within %v of its context's end; %d sessions", patience, e.Live())
	}
}

// accounts are balanced, once every client has gone: all that came are closed, and nothing of them is left.
func (e *testEdge) balanced() {
	e.mesh.t.Helper()
	eventually(e.mesh.t, "nobody is left", func() (bool, any) { return e.Live() == 0, e.Live() })
	closed := 0.0
	for _, r := range relay.Reasons() {
		closed += e.count("limpet_edge_closed_total", r.String())
	}
	if accepted := e.count("limpet_edge_accepted_total", "mqtt"); accepted != closed {
		e.mesh.t.Errorf("%v accepted, %v closed", accepted, closed)
	}
	for i := range e.table.shards {
		s := &e.table.shards[i]
		s.mu.Lock()
		if len(s.byHash) > 0 || s.count != 0 {
			e.mesh.t.Errorf("the table holds %d keys, %d clients", len(s.byHash), s.count)
		}
		s.mu.Unlock()
	}
	e.mu.Lock()
	if len(e.streams) > 0 {
		e.mesh.t.Errorf("%d streams", len(e.streams))
	}
	e.mu.Unlock()
	if n := e.held.Used(); n != 0 {
		e.mesh.t.Errorf("%d bytes held", n)
	}
}

// Clients that no loop runs and nobody has routed yet do not keep an edge from ending.
func TestSilentStreamsEndWithTheEdge(t *testing.T) {
	m := newMesh(t, "b1")
	e := m.edge("e1", overWebSocket, func(_ *Config, l *Listener) { l.Limits.ConnectTimeout = time.Hour })
	var all []*session
	for range 5 {
		s, err := e.dialWS()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	eventually(t, "they are sessions", func() (bool, any) { return e.Live() == len(all), e.Live() })
	e.stops()
	for _, s := range all {
		s.ends()
	}
	e.balanced()
}

// An edge whose context ends at once, or in the middle of its start, ends without an error.
func TestEndAtTheStart(t *testing.T) {
	m := newMesh(t, "b1")
	for i := range 30 {
		e := m.edge(fmt.Sprintf("e%d", i), func(c *Config, _ *Listener) { c.Loops = 2 })
		e.stops()
	}
}

// Clients come and go at every moment of a session's life while brokers come and go: nothing of them is left.
func TestChurn(t *testing.T) {
	for name, option := range map[string]edgeOption{"loops": func(c *Config, _ *Listener) { c.Loops = 2 }, "streams": overWebSocket} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, "b1", "b2", "b3")
			e := m.edge("e1", option)
			ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() { m.unrest(ctx) })
			for i := range 8 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(i), 3))
					for ctx.Err() == nil {
						var s *session
						if name == "loops" {
							s = e.dial()
						} else if w, err := e.dialWS(); err == nil {
							s = w
						} else {
							continue
						}
						k := v5(fmt.Sprintf("dev-%d", rnd.IntN(20)), uint32(rnd.IntN(2)*60))
						p := mqtt.AppendConnect(nil, k)
						s.Write(p[:rnd.IntN(len(p)+1)])
						if rnd.IntN(3) > 0 {
							s.Write(p)
							s.SetReadDeadline(time.Now().Add(time.Duration(rnd.IntN(5)) * time.Millisecond))
							s.Read(make([]byte, 100))
						}
						if rnd.IntN(3) == 0 {
							s.Write([]byte{0xe0, 0})
						}
						s.Close()
					}
				})
			}
			wg.Wait()
			e.balanced()
			e.stops()
		})
	}
}

// unrest takes brokers out and back until ctx ends, and leaves them all ready.
func (m *mesh) unrest(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(5, 5))
	ids := []string{"b1", "b2", "b3"}
	for ctx.Err() == nil {
		state := []registry.AdminState{registry.AdminReady, registry.AdminDraining, registry.AdminOut}[rnd.IntN(3)]
		if err := m.store.SetAdmin(ctx, registry.BrokerRef{Pool: "default", Broker: ids[rnd.IntN(3)]}, state); err != nil && ctx.Err() == nil {
			m.t.Error(err)
		}
		if !sleep(ctx, time.Duration(rnd.IntN(3000))*time.Microsecond) {
			break
		}
	}
	for _, id := range ids {
		if err := m.store.SetAdmin(m.ctx(), registry.BrokerRef{Pool: "default", Broker: id}, registry.AdminReady); err != nil {
			m.t.Error(err)
		}
	}
}

// However connects and changes of the view meet: who is connected at the end is at a broker that may serve.
func TestNobodyStaysWhereHeMayNot(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1", func(c *Config, _ *Listener) { c.Loops = 2 })
	ref := registry.BrokerRef{Pool: "default", Broker: "b2"}
	for round := range 8 {
		var wg sync.WaitGroup
		var all [40]*session
		start := make(chan struct{})
		for i := range all {
			all[i] = e.dial()
			wg.Go(func() {
				<-start
				all[i].Write(mqtt.AppendConnect(nil, clean(fmt.Sprintf("dev-%d-%d", round, i))))
				all[i].connack(mqtt.V311)
			})
		}
		close(start)
		if err := m.store.SetAdmin(m.ctx(), ref, registry.AdminOut); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		eventually(t, "the edge knows", func() (bool, any) {
			return e.State().Admin[ref].State == registry.AdminOut, e.State().Admin
		})
		eventually(t, "b2 has nobody", func() (bool, any) {
			n := 0
			b := m.brokers["b2"]
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, cs := range b.live {
				n += len(cs)
			}
			return n == 0, n
		})
		eventually(t, "nor does the table say so", func() (bool, any) {
			n := 0
			e.table.each(func(c *client) {
				if at, _ := c.broker(); at == ref {
					n++ // it has been stopped, and may take the time of its last words
				}
			})
			return n == 0, n
		})
		for _, s := range all {
			s.Close()
		}
		if err := m.store.SetAdmin(m.ctx(), ref, registry.AdminReady); err != nil {
			t.Fatal(err)
		}
	}
	e.balanced()
}

// slowDNS answers when it is told to.
type slowDNS struct {
	asked  atomic.Int64
	answer chan struct{}
}

func (d *slowDNS) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	d.asked.Add(1)
	select {
	case <-d.answer:
		if strings.HasPrefix(host, "gone") {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// While a broker's name is looked up the view changes: the client goes where the new view says.
func TestTheViewChangesWhileANameIsLookedUp(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	dns := &slowDNS{answer: make(chan struct{})}
	m.dns = dns
	e := m.edge("e1")
	_, port, _ := net.SplitHostPort(m.pool.Brokers[0].Address)
	m.pool.Brokers[0].Address = "named.test:" + port
	m.putPool(e.State().Pools["default"].Revision)
	eventually(t, "the name is known", func() (bool, any) {
		at := e.State().Pools["default"].Brokers[0].Address
		return at == m.pool.Brokers[0].Address, at
	})
	if err := m.store.SetPin(m.ctx(), registry.PinRef{Pool: "default", Key: "x"}, "b1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pin known", func() (bool, any) { return len(e.State().Pins) == 1, e.State().Pins })
	s := e.dial()
	s.Write(mqtt.AppendConnect(nil, persistent("x")))
	gone := e.dial() // one that does not wait for the answer
	gone.Write(mqtt.AppendConnect(nil, persistent("x")))
	eventually(t, "the name is asked for", func() (bool, any) { return dns.asked.Load() > 0 && e.Live() == 2, e.Live() })
	gone.Close()
	eventually(t, "gone", func() (bool, any) { return e.Live() == 1, e.Live() })
	ref := registry.BrokerRef{Pool: "default", Broker: "b1"}
	if err := m.store.SetAdmin(m.ctx(), ref, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	eventually(t, "out", func() (bool, any) { return e.State().Admin[ref].State == registry.AdminOut, e.State().Admin })
	close(dns.answer)
	if _, err := s.connack(mqtt.V311); err != nil {
		t.Fatal(err, e.log)
	}
	if at := m.home("x"); at != "b2" {
		t.Errorf("came to %s", at)
	}
	s.Close()
	e.balanced()
}

// Clients go on coming while the edge drains: none is left when it has, and none is begun after.
func TestDrainWhileClientsCome(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	late := e.dial() // it does not say CONNECT before it is too late
	eventually(t, "the late one is accepted", func() (bool, any) { return e.Live() == 1, e.Live() })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var connected atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c, err := net.Dial("tcp", e.addr)
				if err != nil {
					return // the listener is closed
				}
				s := &session{t, c}
				s.Write(mqtt.AppendConnect(nil, persistent(fmt.Sprintf("dev-%d-%d", i, n))))
				if ack, err := s.connack(mqtt.V311); err == nil && ack.Code == 0 {
					connected.Add(1)
					wg.Go(func() {
						defer c.Close()
						s.ends()
					})
					continue
				}
				c.Close()
			}
		})
	}
	eventually(t, "some are there", func() (bool, any) { return connected.Load() > 50, connected.Load() })
	within(t, "drain", func() {
		if err := e.Drain(context.Background(), patience); err != nil {
			t.Error(err)
		}
	})
	if n := e.table.count(); n != 0 {
		t.Errorf("%d are routed after the drain", n)
	}
	late.Write(mqtt.AppendConnect(nil, persistent("late")))
	if ack, err := late.connack(mqtt.V311); err == nil && ack.Code == 0 {
		t.Error("a session was begun after the drain")
	}
	late.Close()
	cancel()
	wg.Wait()
	e.balanced()
	e.stops()
}

// A frozen broker, clients whose writes are stuck, and the verdict: SetState waits for none of them.
func TestSetStateWaitsForNobody(t *testing.T) {
	m := newMesh(t, "b1")
	e := m.edge("e1", overWebSocket, func(_ *Config, l *Listener) { l.Limits.Linger = patience })
	var all []*session
	for i := range 4 {
		s, err := e.dialWS()
		if err != nil {
			t.Fatal(err)
		}
		s.Write(mqtt.AppendConnect(nil, clean(fmt.Sprintf("dev-%d", i))))
		if _, err := s.connack(mqtt.V311); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	// What the clients do not read fills every buffer on the way to them.
	b := m.brokers["b1"]
	b.mu.Lock()
	for _, cs := range b.live {
		for _, c := range cs {
			b.wg.Go(func() {
				p := make([]byte, 64<<10)
				for { // until it is held back
					c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
					if _, err := c.Write(p); err != nil {
						return
					}
				}
			})
		}
	}
	b.mu.Unlock()
	last := int64(-1)
	eventually(t, "the flood stands still", func() (bool, any) {
		time.Sleep(50 * time.Millisecond)
		n := int64(e.counters.Bytes[relay.Broker].Load())
		still := n == last
		last = n
		return still, n
	})
	ref := registry.BrokerRef{Pool: "default", Broker: "b1"}
	if err := m.store.SetAdmin(m.ctx(), ref, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "told to all", func() (bool, any) {
		return e.cache.Status().Revision >= 2 && e.State().Admin[ref].State == registry.AdminOut, e.State().Admin
	})
	within(t, "the cache goes on", func() {
		if err := e.cache.Wait(m.ctx(), m.write("other", "b1").Revision); err != nil {
			t.Error(err)
		}
	})
	t.Logf("took %v", time.Since(began))
	for _, s := range all {
		s.Close()
	}
	e.balanced()
}
