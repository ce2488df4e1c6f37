package edge

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

func TestOnlyLastingSessionsAreRecorded(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1")
	for _, c := range []struct {
		name    string
		connect *mqtt.Connect
		kept    bool
	}{
		{"3.1.1 persistent", persistent("p311"), true},
		{"3.1.1 clean", clean("c311"), false},
		{"5 with expiry", v5("p5", 60), true},
		{"5 without expiry", v5("c5", 0), false},
		{"5 for ever", v5("ever", 0xffffffff), true},
	} {
		id := string(c.connect.ClientID)
		e.connect(c.connect)
		home := m.home(id)
		if c.kept {
			a := m.record(id, registry.Affinity.Present)
			if a.Broker != home || a.Home != home || a.Writer != "e1" || a.Reason != "placement" {
				t.Errorf("%s: record %+v, client at %s", c.name, a, home)
			}
			if !a.Expires.After(time.Now().Add(registry.LeaseSlack)) {
				t.Errorf("%s: record expires at %v", c.name, a.Expires)
			}
		}
	}
	// The clean ones came before the last, which is recorded: their writes, had there been any, would be there.
	for _, id := range []string{"c311", "c5"} {
		if a, err := m.store.Get(m.ctx(), "default", id); err != nil || a.Present() {
			t.Errorf("clean session %s is recorded: %+v, %v", id, a, err)
		}
	}
}

func TestAnyEdgeBringsClientsHome(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e1, e2 := m.edge("e1"), m.edge("e2")
	for i := range 30 {
		id := fmt.Sprintf("dev-%d", i)
		s, ack := e1.connect(persistent(id))
		if ack.SessionPresent {
			t.Fatalf("%s: a new client has a session", id)
		}
		home := m.home(id)
		s.Close()
		eventually(t, "client gone", func() (bool, any) { return m.brokers[home].has(id) == 0, m.brokers[home].has(id) })
		if _, ack := e2.connect(persistent(id)); !ack.SessionPresent {
			t.Fatalf("%s: came back to a broker without its session", id)
		}
		if back := m.home(id); back != home {
			t.Fatalf("%s: home is %s, came to %s", id, home, back)
		}
	}
}

func TestARecordWinsOverPlacement(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1")
	for _, b := range []string{"b1", "b2", "b3"} {
		a := m.write("x", b)
		eventually(t, "cache has it", func() (bool, any) {
			got, _ := e.cache.Lookup("default", "x")
			return got.Revision == a.Revision, got
		})
		s, _ := e.connect(persistent("x"))
		if home := m.home("x"); home != b {
			t.Fatalf("recorded at %s, came to %s", b, home)
		}
		s.Close()
		eventually(t, "client gone", func() (bool, any) { return m.brokers[b].has("x") == 0, nil })
	}
}

func TestAChangedRecordMovesTheClient(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	s, _ := e.connect(v5("x", 600))
	home := m.home("x")
	m.record("x", registry.Affinity.Present)
	other := map[string]string{"b1": "b2", "b2": "b1"}[home]
	// The edge must know of its own write first, or it takes the change for the outcome of that.
	eventually(t, "committed", func() (bool, any) {
		return e.count("limpet_edge_commits_total", "committed") == 1, nil
	})
	m.write("x", other)
	if last := s.ends(); string(last) != string(mqtt.AppendDisconnect(nil, mqtt.V5, mqtt.UseAnotherServer)) {
		t.Errorf("last words %x", last)
	}
	e.logged(`"reason":"moved"`)
	e.connect(v5("x", 600))
	if at := m.home("x"); at != other {
		t.Errorf("moved to %s, came to %s", other, at)
	}
}

func TestAVanishedRecordIsWrittenAgain(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	e.connect(persistent("x"))
	first := m.record("x", registry.Affinity.Present)
	eventually(t, "committed", func() (bool, any) { return e.count("limpet_edge_commits_total", "committed") == 1, nil })
	m.write("x", "")
	again := m.record("x", func(a registry.Affinity) bool { return a.Present() && a.Revision > first.Revision })
	if again.Broker != first.Broker {
		t.Errorf("record %+v, was %+v", again, first)
	}
}

func TestDisconnectMayEndTheSession(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	s, _ := e.connect(v5("x", 600))
	m.record("x", registry.Affinity.Present)
	s.Write([]byte{0xe0, 7, 0, 5, 0x11, 0, 0, 0, 0}) // Session Expiry 0
	m.record("x", func(a registry.Affinity) bool { return !a.Present() })
}

func TestACleanConnectFollowsAndForgetsTheRecord(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1")
	for _, b := range []string{"b1", "b2", "b3"} {
		id := "was-at-" + b
		a := m.write(id, b)
		eventually(t, "cache has it", func() (bool, any) {
			got, _ := e.cache.Lookup("default", id)
			return got.Revision == a.Revision, got
		})
		e.connect(clean(id))
		if home := m.home(id); home != b {
			t.Errorf("the old session is at %s, the clean connect went to %s", b, home)
		}
		m.record(id, func(a registry.Affinity) bool { return !a.Present() })
	}
}

func TestAnAssignedIDIsLearned(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	for _, b := range m.brokers {
		b.assign = "made-by-" + b.id
	}
	e := m.edge("e1")
	s, ack := e.connect(v5("", 600))
	id := string(ack.AssignedClientID)
	home := strings.TrimPrefix(id, "made-by-")
	a := m.record(id, registry.Affinity.Present)
	if a.Broker != home || a.Reason != "assigned" {
		t.Errorf("record %+v of %s", a, id)
	}
	s.Close()
	if _, ack = e.connect(v5(id, 600)); !ack.SessionPresent {
		t.Error("came back by its assigned ID to a broker without its session")
	}
}

func TestADeadBrokersKeys(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1")
	s, _ := e.connect(v5("x", 600))
	home := m.home("x")
	m.record("x", registry.Affinity.Present)
	bystander := ""
	for i := 0; bystander == ""; i++ {
		id := fmt.Sprintf("by-%d", i)
		if d := e.view.Load().Route(router.Query{Pool: "default", Key: id}); d.Broker.ID != home {
			bystander = id
		}
	}
	by, _ := e.connect(persistent(bystander))

	ref := registry.BrokerRef{Pool: "default", Broker: home}
	m.brokers[home].kill()
	s.ends()
	s.Close()
	e.logged(`"reason":"broker_closed"`, `"key":"x"`)

	// Recorded: it waits for its home, and the dial that failed is told.
	again := e.dial()
	again.Write(mqtt.AppendConnect(nil, v5("x", 600)))
	if ack, err := again.connack(mqtt.V5); err != nil || ack.Code != mqtt.ServerUnavailable {
		t.Errorf("CONNACK %+v, %v", ack, err)
	}
	again.ends()
	e.logged(`"reason":"await_home"`)
	select {
	case got := <-e.doubts:
		if got != ref {
			t.Errorf("doubt about %v", got)
		}
	default:
		t.Error("nobody was told of the failed dial")
	}
	if e.count("limpet_edge_dial_failures_total", home, "default", "refused") != 1 {
		t.Error("the failed dial was not counted")
	}
	// New: the next choice has it.
	for i := range 20 {
		id := fmt.Sprintf("new-%d", i)
		e.connect(persistent(id))
		if at := m.home(id); at == home {
			t.Errorf("%s came to the dead broker", id)
		}
	}

	// Down, then lost, by the leader's word.
	session, err := m.store.Join(m.ctx(), registry.Edge{ID: "judge"})
	if err != nil {
		t.Fatal(err)
	}
	lead, err := session.Campaign(m.ctx())
	if err != nil {
		t.Fatal(err)
	}
	judge := func(st registry.BrokerState) {
		t.Helper()
		if err := lead.PutVerdict(m.ctx(), ref, registry.Verdict{State: st, Since: time.Now()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "verdict known", func() (bool, any) { return e.State().Verdicts[ref].State == st, nil })
	}
	judge(registry.BrokerDown)
	again = e.dial()
	again.Write(mqtt.AppendConnect(nil, v5("x", 600)))
	if ack, err := again.connack(mqtt.V5); err != nil || ack.Code != mqtt.ServerUnavailable {
		t.Errorf("CONNACK %+v, %v", ack, err)
	}
	judge(registry.BrokerLost)
	e.connect(v5("x", 600))
	a := m.record("x", func(a registry.Affinity) bool { return a.Broker != home })
	if a.Home != home || a.Reason != "rehomed" || a.Broker != m.home("x") {
		t.Errorf("re-placed: %+v", a)
	}
	if by.Close(); m.brokers[home].has(bystander) != 0 {
		t.Error("impossible")
	}
	if strings.Contains(e.log.String(), bystander) && strings.Contains(e.log.String(), `"reason":"broker_down","pool":"default","key":"`+bystander) {
		t.Error("a client of another broker was touched")
	}
}

func TestAFrozenBrokersClientsAreClosedByVerdict(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	var all []*session
	at := map[string]int{}
	for i := range 20 {
		id := fmt.Sprintf("dev-%d", i)
		s, _ := e.connect(v5(id, 0))
		all = append(all, s)
		at[m.home(id)]++
	}
	session, err := m.store.Join(m.ctx(), registry.Edge{ID: "judge"})
	if err != nil {
		t.Fatal(err)
	}
	lead, err := session.Campaign(m.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := lead.PutVerdict(m.ctx(), registry.BrokerRef{Pool: "default", Broker: "b1"}, registry.Verdict{State: registry.BrokerDown, Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b1's clients are closed", func() (bool, any) {
		n := e.count("limpet_edge_closed_total", "broker_down")
		return int(n) == at["b1"], n
	})
	if n := e.Live(); n != at["b2"] {
		t.Errorf("%d sessions live, want b2's %d", n, at["b2"])
	}
	for _, s := range all {
		s.Close()
	}
}

func TestFreshClientsPayNoStoreRoundTrip(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e := m.edge("e1")
	e.faults.Delay(5 * time.Second) // every call but the watch answers after 5 s
	began := time.Now()
	gets, commits := e.faults.Calls("Get"), e.faults.Calls("Commit")
	for i := range 50 {
		e.connect(persistent(fmt.Sprintf("fresh-%d", i)))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("50 connects one after the other took %v: somebody waits for the store", took)
	}
	if n := e.faults.Calls("Get") - gets; n != 0 {
		t.Errorf("%d questions to the store on the connect path", n)
	}
	eventually(t, "the writes are tried", func() (bool, any) { n := e.faults.Calls("Commit") - commits; return n > 0, n })
	e.faults.Delay(0)
	m.record("fresh-0", registry.Affinity.Present)
}

func TestStoreAway(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "b1", "b2", "b3")
	e1, e2 := m.edge("e1"), m.edge("e2")
	old, _ := e1.connect(persistent("old"))
	home := m.home("old")
	m.record("old", registry.Affinity.Present)
	eventually(t, "known to e2", func() (bool, any) { a, ok := e2.cache.Lookup("default", "old"); return ok, a })
	for _, e := range []*testEdge{e1, e2} {
		e.faults.Down(true)
		eventually(t, "away", func() (bool, any) { s := e.cache.Status(); return s.Away, s })
	}
	gets := e1.faults.Calls("Get") + e2.faults.Calls("Get")
	old.Close()
	eventually(t, "gone", func() (bool, any) { return m.brokers[home].has("old") == 0, nil })
	if _, ack := e2.connect(persistent("old")); !ack.SessionPresent {
		t.Error("a known client did not come home")
	}
	for i := range 100 {
		id := fmt.Sprintf("new-%d", i)
		s, _ := e1.connect(persistent(id))
		at := m.home(id)
		s.Close()
		eventually(t, "gone", func() (bool, any) { return m.brokers[at].has(id) == 0, nil })
		if _, ack := e2.connect(persistent(id)); !ack.SessionPresent {
			t.Fatalf("the edges do not agree on %s", id)
		}
	}
	if n := e1.faults.Calls("Get") + e2.faults.Calls("Get") - gets; n != 0 {
		t.Errorf("%d questions to a store that is known to be away", n)
	}
	e1.faults.Down(false)
	e2.faults.Down(false)
	for i := range 100 {
		id := fmt.Sprintf("new-%d", i)
		if a := m.record(id, registry.Affinity.Present); a.Broker != m.home(id) {
			t.Errorf("%s: record %+v, client at %s", id, a, m.home(id))
		}
	}
}

// Two edges meet each of many new keys in the same instant.
func TestAgreement(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	e1, e2 := m.edge("e1"), m.edge("e2")
	const keys = 300
	agree(t, m, e1, e2, keys)
	if n := e1.count("limpet_edge_moves_total") + e2.count("limpet_edge_moves_total"); n != 0 {
		t.Errorf("%v clients were moved although the edges' views are the same", n)
	}
}

// The same, where one edge does not know of a broker yet: the loser of the commit is moved.
func TestAgreementWithDifferentViews(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "b1", "b2", "b3")
	e1, e2 := m.edge("e1"), m.edge("e2")
	e2.faults.DelayWatch(3 * time.Second) // e2 lives in the past
	m.pool.Brokers = m.pool.Brokers[:2]
	var revision int64
	for _, p := range e1.State().Pools {
		revision = p.Revision
	}
	m.putPool(revision)
	eventually(t, "e1 sees two brokers", func() (bool, any) {
		n := len(e1.State().Pools["default"].Brokers)
		return n == 2, n
	})
	if n := len(e2.State().Pools["default"].Brokers); n != 3 {
		t.Fatalf("e2 sees %d brokers", n)
	}
	agree(t, m, e1, e2, 100)
	if n := e1.count("limpet_edge_moves_total") + e2.count("limpet_edge_moves_total"); n == 0 {
		t.Error("nobody was moved: the views did not differ")
	}
}

// agree lets clients connect at both edges at once, those that are sent away come back, and at the end each key has one home.
func agree(t *testing.T, m *mesh, e1, e2 *testEdge, keys int) {
	t.Helper()
	var wg sync.WaitGroup
	at := make(chan struct{}, 64)
	for i := range keys {
		id := fmt.Sprintf("race-%d", i)
		at <- struct{}{}
		wg.Go(func() {
			defer func() { <-at }()
			var pair sync.WaitGroup
			for _, e := range []*testEdge{e1, e2} {
				pair.Go(func() {
					c := e.dial()
					c.Write(mqtt.AppendConnect(nil, persistent(id)))
					if _, err := c.connack(mqtt.V311); err != nil {
						t.Errorf("%s: %v", id, err)
					}
				})
			}
			pair.Wait()
			eventually(t, "one home of "+id, func() (bool, any) {
				homes := map[string]int{}
				for _, b := range m.brokers {
					if n := b.has(id); n > 0 {
						homes[b.id] = n
					}
				}
				a, err := m.store.Get(context.Background(), "default", id)
				return err == nil && len(homes) == 1 && homes[a.Broker] > 0, fmt.Sprint(homes, a.Broker)
			})
		})
	}
	wg.Wait()
}

func TestDrain(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	var all []*session
	for i := range 50 {
		s, _ := e.connect(v5(fmt.Sprintf("dev-%d", i), 600))
		all = append(all, s)
	}
	idle := e.dial()
	idle.Write([]byte{0x10}) // no more than the beginning of a CONNECT
	if err := e.Drain(context.Background(), patience); err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		if last := s.ends(); string(last) != string(mqtt.AppendDisconnect(nil, mqtt.V5, mqtt.ServerShuttingDown)) {
			t.Fatalf("client %d: last words %x", i, last)
		}
	}
	e.end()
	<-e.ended
	idle.ends()
	if n := e.Live(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if n := e.count("limpet_edge_closed_total", "shutdown"); n < 50 {
		t.Errorf("%v closed by shutdown", n)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "b1")
	e := m.edge("e1", func(_ *Config, l *Listener) {
		l.Limits.ConnectTimeout = 500 * time.Millisecond
		l.Limits.ConnectSize = 70 << 10
	})
	nul := mqtt.AppendConnect(nil, v5("aXb", 60))
	nul[strings.Index(string(nul), "aXb")+1] = 0
	bad := mqtt.AppendConnect(nil, persistent("aXb"))
	bad[strings.Index(string(bad), "aXb")+1] = 0xff
	for _, c := range []struct {
		name, reason string
		input        []byte
		reply        []byte
	}{
		{"not CONNECT", "not_connect", []byte{0x30, 3, 0, 1, 'x'}, nil},
		{"HTTP", "not_connect", []byte("GET / HTTP/1.1\r\n\r\n"), nil},
		{"malformed remaining length", "malformed", []byte{0x10, 0xff, 0xff, 0xff, 0xff, 1}, nil},
		{"NUL in the client ID", "bad_client_id", nul, []byte{0x20, 3, 0, mqtt.ClientIDNotValid, 0}},
		{"ill-formed UTF-8 in the client ID", "bad_client_id", bad, []byte{0x20, 2, 0, 2}},
		{"unknown level", "unknown_version", []byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 6, 2, 0, 60, 0, 1, 'x'}, []byte{0x20, 3, 0, mqtt.UnsupportedVersion, 0}},
		{"above the bound", "too_large", []byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5}, []byte{0x20, 3, 0, mqtt.PacketTooLarge, 0}},
		{"silence", "connect_timeout", nil, nil},
		{"PROXY header from a stranger", "proxy_untrusted", []byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), nil},
	} {
		before := e.count("limpet_edge_closed_total", c.reason)
		s := e.dial()
		s.Write(c.input)
		if got := s.ends(); string(got) != string(c.reply) {
			t.Errorf("%s: got %x, want %x", c.name, got, c.reply)
		}
		s.Close()
		eventually(t, c.name+" is counted as "+c.reason, func() (bool, any) {
			n := e.count("limpet_edge_closed_total", c.reason)
			return n == before+1, n
		})
	}
	if n := m.brokers["b1"].connects; n != 0 {
		t.Errorf("%d of them reached a broker", n)
	}
	if n := e.faults.Calls("Commit"); n != 0 {
		t.Errorf("%d writes to the store", n)
	}
}

func TestOneByteASecondIsCutInTime(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "b1")
	e := m.edge("e1", func(_ *Config, l *Listener) { l.Limits.ConnectTimeout = 300 * time.Millisecond })
	s := e.dial()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, b := range mqtt.AppendConnect(nil, persistent(strings.Repeat("slow", 1000))) {
			if _, err := s.Write([]byte{b}); err != nil {
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-t.Context().Done():
				return
			}
		}
	}()
	s.ends()
	s.Close()
	<-done
	e.logged(`"reason":"connect_timeout"`)
}

func TestLongestClientID(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	id := strings.Repeat("x", 65_535)
	s, _ := e.connect(persistent(id))
	home := m.home(id)
	m.record(id, registry.Affinity.Present)
	s.Close()
	eventually(t, "gone", func() (bool, any) { return m.brokers[home].has(id) == 0, nil })
	if _, ack := e.connect(persistent(id)); !ack.SessionPresent {
		t.Error("not home")
	}
	if other := id[:65_534] + "y"; func() bool {
		e.connect(persistent(other))
		a := m.record(other, registry.Affinity.Present)
		return a.Writer == ""
	}() {
		t.Error("no writer")
	}
}

func TestTooManyConnections(t *testing.T) {
	m := newMesh(t, "b1")
	e := m.edge("e1", func(c *Config, _ *Listener) { c.MaxConnections = 2 })
	e.connect(persistent("1"))
	e.connect(persistent("2"))
	e.dial().ends()
	if n := e.count("limpet_edge_rejected_total", "mqtt", relay.ReasonOverload.String()); n != 1 {
		t.Errorf("%v rejected", n)
	}
	e.logged("no room for another client", `"most":2`)
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"naïve":                  "naïve",
		"a\nb\x1b[2J":            `a\nb\x1b[2J`,
		`back\slash`:             `back\\slash`,
		"ill\xffformed":          `ill\xffformed`,
		"\u202ereverse":          `\u202ereverse`,
		strings.Repeat("x", 300): strings.Repeat("x", 256) + "…+44",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}
