package registrytest

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A BusFixture is one mesh's bus, silent so far, and what a test may do to it.
type BusFixture struct {
	// Open returns the bus as that edge has it. The test closes it.
	Open func(t *testing.T, edge string) registry.Bus
	// Inject sends a payload that no edge wrote, on every subject (or whatever carries the mesh's messages)
	// that the buses listen to. nil: there is no wire.
	Inject func(t *testing.T, payload []byte)
	// Stop makes the bus's server unreachable, Start brings it back. nil: cannot be done.
	Stop, Start func(t *testing.T)
}

type busTest struct {
	name   string
	needs  func(BusFixture) bool
	verify func(t *testing.T, fx BusFixture)
}

var busTests = []busTest{
	{name: "OthersHear", verify: testBusOthersHear},
	{name: "EveryField", verify: testBusEveryField},
	{name: "Malformed", verify: testBusMalformed},
	{name: "Cancel", verify: testBusCancel},
	{name: "Closed", verify: testBusClosed},
	{name: "Flood", verify: testBusFlood},
	{name: "Garbage", needs: func(fx BusFixture) bool { return fx.Inject != nil }, verify: testBusGarbage},
	{name: "Outage", needs: func(fx BusFixture) bool { return fx.Stop != nil }, verify: testBusOutage},
}

// TestBus runs the contract of registry.Bus. open is called once in each subtest; they run one after the other.
func TestBus(t *testing.T, open func(t *testing.T) BusFixture) {
	runBusTests(t, open, func(t *testing.T, test func(t *testing.T)) { test(t) })
}

// TestBusInFakeTime is TestBus with each subtest in a bubble of testing/synctest.
func TestBusInFakeTime(t *testing.T, open func(t *testing.T) BusFixture) {
	runBusTests(t, open, synctest.Test)
}

func runBusTests(t *testing.T, open func(t *testing.T) BusFixture, in func(t *testing.T, test func(*testing.T))) {
	for _, bt := range busTests {
		t.Run("Bus/"+bt.name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				fx := open(t)
				if bt.needs != nil && !bt.needs(fx) {
					t.Log("nothing to verify: the fixture cannot do that")
					return
				}
				bt.verify(t, fx)
			})
		})
	}
}

// An ear is a subscription that keeps what it hears.
type ear struct {
	bus    registry.Bus
	cancel func()

	mu    sync.Mutex
	heard []registry.Message
}

func listen(t *testing.T, b registry.Bus) *ear {
	t.Helper()
	e := &ear{bus: b}
	var err error
	e.cancel, err = b.Subscribe(func(m registry.Message) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.heard = append(e.heard, m)
	})
	if err != nil {
		t.Fatalf("Subscribe: %v", err)
	}
	return e
}

func openBus(t *testing.T, fx BusFixture, edge string) registry.Bus {
	t.Helper()
	b := fx.Open(t, edge)
	t.Cleanup(func() { b.Close() })
	return b
}

// find returns a message that was heard and that ok takes.
func (e *ear) find(ok func(m registry.Message) bool) (registry.Message, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.heard {
		if ok(m) {
			return m, true
		}
	}
	return registry.Message{}, false
}

func (e *ear) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.heard)
}

func doubt(broker string) registry.Message {
	return registry.Message{Doubt: &registry.BrokerRef{Pool: "p", Broker: broker}}
}

func isDoubt(broker string) func(m registry.Message) bool {
	return func(m registry.Message) bool { return m.Doubt != nil && m.Doubt.Broker == broker }
}

// connect publishes until every ear hears: a subscription may not be known to the server yet, and any message may be lost.
func connect(t *testing.T, from registry.Bus, to ...*ear) {
	t.Helper()
	for i, e := range to {
		broker := fmt.Sprintf("hello-%d-%d", i, e.count())
		eventually(t, "a message heard by every other edge", func() bool {
			_, ok := e.find(isDoubt(broker))
			if !ok {
				_ = from.Publish(doubt(broker)) // may fail while it reconnects
			}
			return ok
		})
	}
}

// deliver publishes until it is heard, and returns it as it was heard.
func deliver(t *testing.T, from registry.Bus, m registry.Message, to *ear, ok func(m registry.Message) bool) (got registry.Message) {
	t.Helper()
	eventually(t, "a message delivered", func() bool {
		var found bool
		if got, found = to.find(ok); !found {
			if err := from.Publish(m); err != nil {
				t.Fatalf("Publish: %v", err)
			}
		}
		return found
	})
	return got
}

func testBusOthersHear(t *testing.T, fx BusFixture) {
	a, b, c := openBus(t, fx, "e1"), openBus(t, fx, "e2"), openBus(t, fx, "e3")
	own, second, third, twice := listen(t, a), listen(t, b), listen(t, c), listen(t, b)
	connect(t, a, second, third, twice)
	connect(t, b, own, third)
	m := doubt("b1")
	m.From = "forged"
	for _, e := range []*ear{second, third, twice} {
		if got := deliver(t, a, m, e, isDoubt("b1")); got.From != "e1" {
			t.Errorf("a message of e1 came from %q", got.From)
		}
	}
	connect(t, b, own) // later than everything that e1 said
	if m, ok := own.find(func(m registry.Message) bool { return m.From == "e1" }); ok {
		t.Errorf("an edge hears itself: %+v", m)
	}
	for _, bus := range []registry.Bus{a, b, c} {
		if !bus.Connected() {
			t.Error("a bus that delivers is not Connected")
		}
	}
}

func testBusEveryField(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	e := listen(t, b)
	connect(t, a, e)
	now := time.Now().Truncate(time.Second).UTC()
	for i, n := range []registry.Notice{
		{Pool: "p", Key: "k", Revision: 7, Affinity: registry.Affinity{
			Broker: "b2", Home: "b1", Writer: "e1", Written: now, Expires: now.Add(time.Hour), Reason: "rehomed",
			Revision: 7, Extra: []byte{0xa0, 0x06, 0x05},
		}},
		{Pool: "p", Key: "deleted", Revision: 1 << 50},
		{Pool: "p", Key: "../*.>%\x00\xff日本", Revision: 8, Affinity: registry.Affinity{Broker: "b1", Revision: 8}},
		{Pool: "p", Key: strings.Repeat("\xfe", 65535), Revision: 9, Affinity: registry.Affinity{Broker: "b1", Revision: 9}},
	} {
		got := deliver(t, a, registry.Message{Notice: &n}, e, func(m registry.Message) bool { return m.Notice != nil && m.Notice.Revision == n.Revision })
		aff := got.Notice.Affinity
		if aff.Revision == 0 {
			aff.Revision = n.Affinity.Revision // the notice's own tells it
		}
		if got.Notice.Pool != n.Pool || got.Notice.Key != n.Key || !sameAffinity(aff, n.Affinity) || got.Health != nil || got.Doubt != nil {
			t.Errorf("notice %d: got %+v, want %+v", i, got.Notice, n)
		}
	}
	h := registry.Health{Edge: "e1", Seq: 1 << 40, Brokers: map[registry.BrokerRef]registry.Report{
		{Pool: "p", Broker: "b1"}: {Up: true, Since: now},
		{Pool: "q", Broker: "b1"}: {Since: now.Add(-time.Minute), Reason: "i/o timeout"},
	}}
	got := deliver(t, a, registry.Message{Health: &h}, e, func(m registry.Message) bool { return m.Health != nil })
	if !reflect.DeepEqual(utcHealth(*got.Health), h) || got.Notice != nil || got.Doubt != nil {
		t.Errorf("health: got %+v, want %+v", got.Health, h)
	}
	got = deliver(t, a, doubt("b9"), e, isDoubt("b9"))
	if *got.Doubt != (registry.BrokerRef{Pool: "p", Broker: "b9"}) || got.Notice != nil || got.Health != nil {
		t.Errorf("doubt: got %+v", got)
	}
}

func testBusMalformed(t *testing.T, fx BusFixture) {
	b := openBus(t, fx, "e1")
	if err := b.Publish(registry.Message{}); err == nil {
		t.Error("an empty message was published")
	}
	two := doubt("b1")
	two.Health = &registry.Health{Edge: "e1"}
	if err := b.Publish(two); err == nil {
		t.Error("a message of two kinds was published")
	}
}

func testBusCancel(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	gone, stays := listen(t, b), listen(t, b)
	connect(t, a, gone, stays)
	gone.cancel()
	before := gone.count()
	connect(t, a, stays)
	if after := gone.count(); after != before {
		t.Errorf("a cancelled subscription heard %d messages more", after-before)
	}
}

func testBusClosed(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	e := listen(t, b)
	connect(t, a, e)
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	before := e.count()
	if err := b.Publish(doubt("b1")); err == nil {
		t.Error("a closed bus took a message")
	}
	if _, err := b.Subscribe(func(registry.Message) {}); err == nil {
		t.Error("a closed bus took a subscription")
	}
	if b.Connected() {
		t.Error("a closed bus is Connected")
	}
	for range 10 {
		if err := a.Publish(doubt("b1")); err != nil {
			t.Errorf("Publish, another edge's bus being closed: %v", err)
		}
	}
	third := openBus(t, fx, "e3")
	connect(t, a, listen(t, third))
	if after := e.count(); after != before {
		t.Errorf("a closed bus delivered %d messages", after-before)
	}
	e.cancel() // harmless now
}

// A burst is delivered as far as it can be, and nobody waits for it.
func testBusFlood(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	e := listen(t, b)
	connect(t, a, e)
	publishMany(t, a, 20_000)
	connect(t, a, e)
}

// publishMany fails if it takes long: Publish must not wait for the network. Messages may be refused.
func publishMany(t *testing.T, b registry.Bus, n int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			_ = b.Publish(registry.Message{Notice: &registry.Notice{Pool: "p", Key: fmt.Sprintf("flood-%d", i), Revision: int64(i + 1)}})
		}
	}()
	closed(t, "done with publishing", done)
}

func testBusGarbage(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	e := listen(t, b)
	connect(t, a, e)
	before := e.count()
	for _, payload := range []string{
		"", "\x00", "\xff", "{}", `{"notice":{}}`, "hello", strings.Repeat("\x00", 100), strings.Repeat("\xff", 100_000),
		"\x01", "\x01\x02\x03", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", strings.Repeat("\x0a\x80", 1000), strings.Repeat("\x0a\x00", 50_000),
	} {
		fx.Inject(t, []byte(payload))
	}
	connect(t, a, e)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.heard[before:] {
		if m.Doubt == nil || m.From != "e1" {
			t.Errorf("garbage was delivered: %+v", m)
		}
	}
}

func testBusOutage(t *testing.T, fx BusFixture) {
	a, b := openBus(t, fx, "e1"), openBus(t, fx, "e2")
	e := listen(t, b)
	connect(t, a, e)
	fx.Stop(t)
	stopped := true
	start := func() {
		if stopped {
			stopped = false
			fx.Start(t)
		}
	}
	t.Cleanup(start)
	eventually(t, "the loss of the server noticed", func() bool { return !a.Connected() && !b.Connected() })
	publishMany(t, a, 20_000)
	late := openBus(t, fx, "e3") // an edge that starts without a server
	heard := listen(t, late)
	if late.Connected() {
		t.Error("a bus that never had a server is Connected")
	}
	start()
	eventually(t, "the buses connected again", func() bool { return a.Connected() && b.Connected() && late.Connected() })
	connect(t, a, e, heard)
}
