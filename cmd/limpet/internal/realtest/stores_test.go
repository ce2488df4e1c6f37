package realtest

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStoreFaults stops the real servers under a mesh: etcd, then NATS, then both; then both stand still without a word.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "faults")
	brokers := demoBrokers(t, m.dir, 3)
	counting, seen := countingBrokers(t, 3)
	real := poolText{"default", "", entries(brokers, "proxy_protocol: v2")}
	m.stores.apply(t, m.dir, m.name, real, poolText{"counting", "", entries(counting, "")})
	m.startEdges(t, "default", "counting")

	f := &faults{m: m, seen: seen, known: map[string]string{}}
	f.meet(t)
	// Known clients must come home by their record: with other weights they would be placed elsewhere.
	heavy := poolText{"counting", "", []string{counting[0].entry("weight: 1000"), counting[1].entry(""), counting[2].entry("")}}
	pools := m.stores.apply(t, m.dir, m.name, real, heavy)
	place, moved := placementOf(pools, "counting"), 0
	for id, broker := range f.known {
		if place.of(id) != broker {
			moved++
		}
	}
	if moved < len(f.known)/3 {
		t.Fatalf("only %d of %d known clients would be placed elsewhere", moved, len(f.known))
	}
	until(t, patience, "all edges have the new weights", func() (bool, any) {
		var at []string
		for _, e := range m.edges {
			at = append(at, fmt.Sprint(e.metric(t, "limpet_cache_revision"), e.metric(t, "limpet_cache_current")))
		}
		return at[0] == at[1] && at[1] == at[2], at
	})

	talk := newConversation(t, m)
	for _, fault := range []fault{
		{name: "etcd killed", etcd: true},
		{name: "NATS killed", nats: true},
		{name: "etcd and NATS killed", etcd: true, nats: true},
		{name: "etcd and NATS frozen", etcd: true, nats: true, frozen: true},
	} {
		t.Run(fault.name, func(t *testing.T) { f.run(t, fault, talk) })
	}
	talk.stop(t)
}

// fault says what happens to the stores.
type fault struct {
	name       string
	etcd, nats bool // which of them
	frozen     bool // they are there, and do nothing
}

func (f fault) begin(s *stores) {
	for p, concerned := range map[*proc]bool{s.etcd: f.etcd, s.nats: f.nats} {
		switch {
		case concerned && f.frozen:
			p.freeze()
		case concerned:
			p.kill()
		}
	}
}

func (f fault) end(t *testing.T, s *stores) {
	t.Helper()
	for p, concerned := range map[*proc]bool{s.etcd: f.etcd, s.nats: f.nats} {
		switch {
		case concerned && f.frozen:
			p.thaw()
		case concerned:
			p.start(t)
		}
	}
}

// faults keeps count of the clients of the counting pool over all faults.
type faults struct {
	m     *mesh
	seen  *ledger
	known map[string]string // client ID to the broker that has its session
	round int
}

const eachRound = 60

// meet makes clients known while all is well.
func (f *faults) meet(t *testing.T) {
	for i := range eachRound {
		f.connect(t, f.m.edges[i%3], fmt.Sprintf("known-%d", i), false)
	}
	home, _ := f.seen.judge("known-")
	for id, broker := range home {
		f.known[id] = broker
	}
	awaitRecords(t, f.m.store, "counting", f.known)
}

func (f *faults) connect(t *testing.T, e *edgeProc, id string, wantSession bool) {
	t.Helper()
	c, present, err := rawConnect(e.at["counting"], id, false, patience)
	if err != nil {
		t.Fatal(err)
	}
	hangUp(c)
	if present != wantSession {
		t.Fatalf("%s at %s: Session Present %v; it was accepted at %v", id, e.id, present, f.seen.homes(id))
	}
}

func (f *faults) run(t *testing.T, what fault, talk *conversation) {
	f.round++
	what.begin(f.m.stores)
	gone := talk.count()
	// At once, while the edges may not have noticed, and again when they say that they have.
	f.visit(t, fmt.Sprintf("fresh-%d-a", f.round))
	for _, e := range f.m.edges {
		if what.etcd {
			e.awaitCheck(t, patience, "store ", "degraded")
		}
		if what.nats {
			e.awaitCheck(t, patience, "bus ", "degraded")
		}
		if status, _, err := e.get("/readyz"); err != nil || status != 200 {
			t.Errorf("%s: /readyz %d %v, want 200 while clients are served", e.id, status, err)
		}
	}
	f.visit(t, fmt.Sprintf("fresh-%d-b", f.round))
	talk.goesOn(t, gone)

	var late *edgeProc
	if what.etcd {
		late = f.startBlind(t)
	}
	what.end(t, f.m.stores)
	back := time.Now()
	f.m.awaitReady(t, 2*patience)
	t.Logf("all edges were well %v after the return", time.Since(back).Round(time.Millisecond))
	awaitRecords(t, f.m.store, "counting", f.known)
	if late != nil {
		late.awaitReady(t, 2*patience)
		n := 0
		for id := range f.known {
			if n++; n <= eachRound {
				f.connect(t, late, id, true)
			}
		}
		if err := late.terminate(t); err != nil {
			t.Errorf("%s ended with %v", late.id, err)
		}
	}
	for id := range f.known {
		if at := f.seen.homes(id); len(at) != 1 {
			t.Errorf("%s was accepted at %v", id, at)
		}
	}
}

// visit brings the known clients home, and new ones by all edges.
func (f *faults) visit(t *testing.T, prefix string) {
	t.Helper()
	i := 0
	for id, broker := range f.known {
		i++
		f.connect(t, f.m.edges[i%3], id, true)
		if at := f.seen.homes(id); len(at) != 1 || at[0] != broker {
			t.Fatalf("%s belongs to %s, was accepted at %v", id, broker, at)
		}
	}
	for i := range eachRound {
		id := fmt.Sprintf("%s-%d", prefix, i)
		for k := range 3 {
			f.connect(t, f.m.edges[(i+k)%3], id, k > 0)
		}
		at := f.seen.homes(id)
		if len(at) != 1 {
			t.Fatalf("%s was accepted at %v", id, at)
		}
		f.known[id] = at[0]
	}
}

// startBlind starts an edge that cannot see etcd: it says so.
func (f *faults) startBlind(t *testing.T) *edgeProc {
	t.Helper()
	e := f.m.newEdge(t, fmt.Sprintf("blind-%d", f.round), f.m.stores.etcdURL, "default", "counting")
	e.accepting(t)
	e.lineWith(t, patience, "degraded")
	e.awaitCheck(t, patience, "store ", "degraded")
	if status, _, err := e.get("/livez"); err != nil || status != 200 {
		t.Errorf("%s: /livez %d %v", e.id, status, err)
	}
	// Nobody has told it of a broker, and it says that to clients too.
	if c, _, err := rawConnect(e.at["counting"], "too-early", true, patience); err == nil {
		t.Error("an edge that knows no broker accepted a client")
		c.Close()
	}
	return e
}

// conversation is a publisher and a subscriber at different edges, who must not notice anything.
type conversation struct {
	sub, pub client
	sent     atomic.Int64
	quit     chan struct{}
	wg       sync.WaitGroup
	mu       sync.Mutex
	err      error
}

func newConversation(t *testing.T, m *mesh) *conversation {
	t.Helper()
	c := &conversation{quit: make(chan struct{})}
	var err error
	if c.sub, _, err = connectV5(m.edges[0], "wss", options{id: "listener"}); err != nil {
		t.Fatal(err)
	}
	if err := c.sub.subscribe("talk", 2); err != nil {
		t.Fatal(err)
	}
	if c.pub, _, err = connectV3(m.edges[1], "tcp", options{id: "speaker"}); err != nil {
		t.Fatal(err)
	}
	c.wg.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-c.quit:
				tick.Stop()
				return
			case <-tick.C:
			}
			n := c.sent.Load()
			if err := c.pub.publish(message{"talk", fmt.Sprint(n), byte(1 + n%2), false}); err != nil {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
				return
			}
			c.sent.Add(1)
		}
	})
	return c
}

func (c *conversation) count() int { return len(c.sub.inbox().messages()) }

// goesOn waits until more messages have come than there were.
func (c *conversation) goesOn(t *testing.T, before int) {
	t.Helper()
	until(t, patience, "messages go on", func() (bool, any) {
		n := c.count()
		return n >= before+10, fmt.Sprintf("%d, were %d", n, before)
	})
}

// stop ends it, and looks whether every message came once and in order.
func (c *conversation) stop(t *testing.T) {
	t.Helper()
	close(c.quit)
	c.wg.Wait()
	if c.err != nil {
		t.Errorf("publisher: %v", c.err)
	}
	sent := int(c.sent.Load())
	until(t, patience, "all messages", func() (bool, any) { return c.count() >= sent, fmt.Sprint(c.count(), " of ", sent) })
	var got, want strings.Builder
	for i, m := range c.sub.inbox().messages() {
		fmt.Fprint(&got, m.payload, " ")
		fmt.Fprint(&want, i, " ")
	}
	if got.String() != want.String() || c.count() != sent {
		t.Errorf("%d messages were sent, these came: %s", sent, got.String())
	}
	c.sub.leave()
	c.pub.leave()
}
