package failover

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"pgregory.net/rapid"
)

var b1 = registry.BrokerRef{Pool: "p", Broker: "b1"}

func TestDecide(t *testing.T) {
	const rehome = 10 * time.Second
	verdict := func(s registry.BrokerState, ago time.Duration) registry.Verdict {
		return registry.Verdict{State: s, Since: noon.Add(-ago), Reason: "earlier", Revision: 5}
	}
	none := registry.Verdict{}
	up, down, lost := verdict(registry.BrokerUp, time.Hour), verdict(registry.BrokerDown, 9*time.Second), verdict(registry.BrokerLost, time.Hour)
	for _, tt := range []struct {
		name   string
		ballot Ballot
		stood  registry.Verdict
		want   registry.BrokerState // "" = as it stood
		reason string
	}{
		{name: "nobody counts", ballot: Ballot{Complete: true}, stood: none},
		{name: "1 of 3", ballot: Ballot{Counted: 3, Down: 1, Complete: true}, stood: none},
		{name: "1 of 2 is no majority", ballot: Ballot{Counted: 2, Down: 1, Complete: true}, stood: none},
		{name: "2 of 4 is no majority", ballot: Ballot{Counted: 4, Down: 2, Up: 2, Complete: true}, stood: up},
		{name: "1 of 1", ballot: Ballot{Counted: 1, Down: 1, Reason: "x"}, stood: none, want: registry.BrokerDown, reason: "down at 1 of 1 edges: x"},
		{name: "2 of 3", ballot: Ballot{Counted: 3, Down: 2, Reason: "x"}, stood: up, want: registry.BrokerDown, reason: "down at 2 of 3 edges: x"},
		{name: "still down", ballot: Ballot{Counted: 3, Down: 2}, stood: down},
		{name: "down long enough", ballot: Ballot{Counted: 3, Down: 3}, stood: verdict(registry.BrokerDown, rehome), want: registry.BrokerLost, reason: "down at 3 of 3 edges"},
		{name: "still lost", ballot: Ballot{Counted: 3, Down: 2}, stood: lost},
		{name: "majority gone", ballot: Ballot{Counted: 3, Down: 1, Up: 1, Complete: true}, stood: down, want: registry.BrokerUp, reason: "up at 1 of 3 edges"},
		{name: "majority gone after lost", ballot: Ballot{Counted: 3, Up: 3, Complete: true}, stood: lost, want: registry.BrokerUp, reason: "up at 3 of 3 edges"},
		{name: "long enough, but the majority is gone", ballot: Ballot{Counted: 3, Down: 1, Complete: true}, stood: verdict(registry.BrokerDown, time.Hour), want: registry.BrokerUp, reason: "up at 0 of 3 edges"},
		{name: "silence means nothing yet", ballot: Ballot{Counted: 3, Down: 1, Up: 1}, stood: down},
		{name: "silence, and a majority up", ballot: Ballot{Counted: 3, Up: 2}, stood: down, want: registry.BrokerUp, reason: "up at 2 of 3 edges"},
		{name: "half say up", ballot: Ballot{Counted: 2, Up: 1, Down: 1}, stood: lost},
		{name: "a clock ahead", ballot: Ballot{Counted: 1, Down: 1}, stood: verdict(registry.BrokerDown, -time.Hour), want: registry.BrokerDown, reason: "earlier"},
		{name: "a clock a little ahead", ballot: Ballot{Counted: 1, Down: 1}, stood: verdict(registry.BrokerDown, -time.Second)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.ballot.Decide(tt.stood, rehome, noon)
			if tt.want == "" {
				if got != tt.stood {
					t.Errorf("%+v became %+v", tt.stood, got)
				}
				return
			}
			if got.State != tt.want || got.Since != noon || got.Reason != tt.reason {
				t.Errorf("got %+v, want %s since now: %s", got, tt.want, tt.reason)
			}
		})
	}
}

// More reports of down never make a verdict milder, whatever stands.
func TestDecideIsMonotone(t *testing.T) {
	severity := map[registry.BrokerState]int{"": 0, registry.BrokerUp: 0, registry.BrokerDown: 1, registry.BrokerLost: 2}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 9).Draw(t, "counted")
		down := rapid.IntRange(0, n).Draw(t, "down")
		up := rapid.IntRange(0, n-down).Draw(t, "up")
		b := Ballot{Counted: n, Down: down, Up: up, Complete: rapid.Bool().Draw(t, "complete")}
		worse := b
		if down == n {
			return
		}
		worse.Down++
		if down+up == n || up > 0 && rapid.Bool().Draw(t, "turned") {
			worse.Up--
		}
		stood := registry.Verdict{
			State: rapid.SampledFrom([]registry.BrokerState{"", registry.BrokerUp, registry.BrokerDown, registry.BrokerLost}).Draw(t, "stood"),
			Since: noon.Add(-time.Duration(rapid.Int64Range(-20, 20).Draw(t, "ago")) * time.Second),
		}
		got, gotWorse := b.Decide(stood, 10*time.Second, noon), worse.Decide(stood, 10*time.Second, noon)
		if severity[gotWorse.State] < severity[got.State] {
			t.Fatalf("%+v → %s, %+v → %s", b, got.State, worse, gotWorse.State)
		}
		if severity[got.State] > severity[stood.State] && 2*down <= n {
			t.Fatalf("%+v, no majority, %s → %s", b, stood.State, got.State)
		}
		if got.State == registry.BrokerLost && severity[stood.State] == 0 {
			t.Fatalf("%+v: lost without having been down", b)
		}
	})
}

// town is a State of edges, each with its report about b1: "up", "down", or "" for none.
func town(seq uint64, reports map[string]string) *registry.State {
	s := &registry.State{Revision: 1, Edges: map[string]registry.Edge{}, Health: map[string]registry.Health{}}
	for id, r := range reports {
		s.Edges[id] = registry.Edge{ID: id, Started: noon}
		if r != "" {
			s.Health[id] = says(id, seq, r)
		}
	}
	return s
}

func says(edge string, seq uint64, r string) registry.Health {
	return registry.Health{Edge: edge, Seq: seq, Brokers: map[registry.BrokerRef]registry.Report{b1: {Up: r == "up", Reason: "as " + edge + " sees it"}}}
}

func counts(t *testing.T, b Ballot, counted, down, up int) {
	t.Helper()
	if b.Counted != counted || b.Down != down || b.Up != up {
		t.Errorf("%d counted, %d down, %d up; want %d, %d, %d", b.Counted, b.Down, b.Up, counted, down, up)
	}
}

func TestJudgeCounts(t *testing.T) {
	var j Judge
	counts(t, j.Count(b1, noon), 0, 0, 0)
	fell := j.Observe(town(1, map[string]string{"e1": "up", "e2": "down", "e3": "", "e4": "down"}), noon)
	b := j.Count(b1, noon)
	counts(t, b, 4, 2, 1)
	if b.Reason != "as e2 sees it" || len(fell) != 2 {
		t.Errorf("reason %q, fell %v", b.Reason, fell)
	}
	counts(t, j.Count(registry.BrokerRef{Pool: "p", Broker: "b2"}, noon), 4, 0, 0)
	if fell = j.Observe(town(2, map[string]string{"e1": "up", "e2": "down", "e3": "down", "e4": "up"}), noon); len(fell) != 1 {
		t.Errorf("e3 alone is new: fell %v", fell)
	}
}

func TestJudgeRemembersTheDead(t *testing.T) {
	var j Judge
	j.Observe(town(1, map[string]string{"e1": "up", "e2": "down", "e3": "down"}), noon)
	rest := town(1, map[string]string{"e1": "up", "e3": "down"})
	j.Observe(rest, noon.Add(time.Hour)) // its lease has ended now, not when it was last looked at
	counts(t, j.Count(b1, noon.Add(time.Hour)), 3, 2, 1)
	j.Observe(rest, noon.Add(time.Hour+remember/2))
	counts(t, j.Count(b1, noon.Add(time.Hour+remember-1)), 3, 2, 1)
	counts(t, j.Count(b1, noon.Add(time.Hour+remember)), 2, 1, 1)
}

func TestJudgeForgetsWhoLeft(t *testing.T) {
	var j Judge
	s := town(1, map[string]string{"e1": "up", "e2": "down", "e3": "down"})
	j.Observe(s, noon)
	s = town(1, map[string]string{"e1": "up", "e2": "down", "e3": "down"})
	s.Edges["e3"] = registry.Edge{ID: "e3", Started: noon, Leaving: true}
	j.Observe(s, noon)
	counts(t, j.Count(b1, noon), 2, 1, 1)
	j.Observe(town(1, map[string]string{"e1": "up", "e2": "down"}), noon)
	counts(t, j.Count(b1, noon), 2, 1, 1)
}

func TestJudgeKeepsAReportOverALostLease(t *testing.T) {
	var j Judge
	j.Observe(town(1, map[string]string{"e1": "up", "e2": "down"}), noon)
	j.Observe(town(1, map[string]string{"e1": "up"}), noon)
	j.Observe(town(1, map[string]string{"e1": "up", "e2": ""}), noon.Add(time.Second)) // back, and has not reported yet
	counts(t, j.Count(b1, noon.Add(time.Hour)), 2, 1, 1)
}

func TestJudgeBelievesTheNewest(t *testing.T) {
	var j Judge
	s := town(5, map[string]string{"e1": "up"})
	j.Observe(s, noon)
	j.Hear(says("e1", 4, "down"), noon)
	counts(t, j.Count(b1, noon), 1, 0, 1)
	if fell := j.Hear(says("e1", 6, "down"), noon); len(fell) != 1 {
		t.Errorf("fell %v", fell)
	}
	counts(t, j.Count(b1, noon), 1, 1, 0)
	j.Observe(s, noon) // the store is behind the bus
	counts(t, j.Count(b1, noon), 1, 1, 0)
	j.Hear(says("stranger", 9, "down"), noon)
	counts(t, j.Count(b1, noon), 1, 1, 0)

	// A restarted edge whose clock was set back: the store's word about its new life is believed.
	s = town(2, map[string]string{"e1": ""})
	s.Edges["e1"] = registry.Edge{ID: "e1", Started: noon.Add(-time.Hour)}
	j.Observe(s, noon)
	counts(t, j.Count(b1, noon), 1, 1, 0)
	s.Health = map[string]registry.Health{"e1": says("e1", 2, "up")}
	j.Observe(s, noon)
	counts(t, j.Count(b1, noon), 1, 0, 1)
}

func TestJudgeCountsWhomItHears(t *testing.T) {
	var j Judge
	if _, ok := j.CountHeard(b1, "e1", noon); ok {
		t.Error("nobody is a majority of nobody")
	}
	s := town(1, map[string]string{"e1": "down", "e2": "down", "e3": "down", "e4": "down"})
	j.Observe(s, noon)
	b, ok := j.CountHeard(b1, "e1", noon) // what the store held before it went away is nobody's word now
	counts(t, b, 4, 1, 0)
	if ok {
		t.Error("one of four speaks for all")
	}
	j.Hear(says("e2", 1, "down"), noon)
	if _, ok = j.CountHeard(b1, "e1", noon); ok {
		t.Error("two of four speak for all")
	}
	j.Hear(says("e3", 2, "up"), noon)
	b, ok = j.CountHeard(b1, "e1", noon)
	counts(t, b, 4, 2, 1)
	if !ok {
		t.Error("three of four do not speak for all")
	}
	if _, ok = j.CountHeard(b1, "e1", noon.Add(freshFor)); ok {
		t.Error("reports do not grow old")
	}
}

func TestBallotAlone(t *testing.T) {
	for _, tt := range []struct {
		in       string // what the detector sees
		mine     bool
		down, up int
	}{
		{in: "rr", down: 1},
		{in: "r"},
		{in: "---"},
		{in: "rr-"},
		{in: "---rr", down: 1},
		{in: "+"},
		{in: "+", mine: true, up: 1},
		{in: "rr+", mine: true},
		{in: "rr++", mine: true, up: 1},
		{in: "", mine: true},
	} {
		d := Detector{Rise: 2, Fall: 3}
		for _, c := range tt.in {
			d.Observe(map[rune]Outcome{'+': OK, '-': Failed, 'r': Refused}[c], "x", noon)
		}
		b := ballotAlone(&d, tt.mine)
		if b.Down != tt.down || b.Up != tt.up || b.Counted != 1 || b.Complete {
			t.Errorf("%+v: %+v", tt, b)
		}
	}
}

func TestLocalOutlives(t *testing.T) {
	for _, tt := range []struct {
		own    registry.BrokerState
		stored registry.Verdict
		want   bool
	}{
		{registry.BrokerDown, registry.Verdict{Revision: 5}, true},                              // the leader has not spoken
		{registry.BrokerDown, registry.Verdict{Revision: 6, State: registry.BrokerDown}, false}, // it agrees
		{registry.BrokerDown, registry.Verdict{Revision: 6, State: registry.BrokerUp}, false},   // it knows better
		{registry.BrokerLost, registry.Verdict{Revision: 6, State: registry.BrokerDown}, true},  // it begins to agree
		{registry.BrokerLost, registry.Verdict{Revision: 7, State: registry.BrokerLost}, false},
		{registry.BrokerUp, registry.Verdict{Revision: 5, State: registry.BrokerDown}, true},
		{registry.BrokerUp, registry.Verdict{Revision: 6, State: registry.BrokerLost}, false},
	} {
		l := local{verdict: registry.Verdict{State: tt.own}, base: 5}
		if got := l.outlives(tt.stored); got != tt.want {
			t.Errorf("%s beside %+v: %v", tt.own, tt.stored, got)
		}
	}
}

func TestAppointed(t *testing.T) {
	s := town(1, map[string]string{"e1": "", "e2": "", "e3": ""})
	count := map[string]int{}
	for i := range 300 {
		ref := registry.BrokerRef{Pool: "p", Broker: fmt.Sprint("b", i)}
		who := ""
		for id := range s.Edges {
			if appointed(s, ref, id) {
				if who != "" {
					t.Fatalf("%s and %s both probe %v", who, id, ref)
				}
				who = id
			}
		}
		count[who]++
	}
	if len(count) != 3 || count["e1"] < 60 || count["e2"] < 60 || count["e3"] < 60 {
		t.Errorf("brokers per edge: %v", count)
	}
	if appointed(s, b1, "e1") && appointed(s, b1, "stranger") {
		t.Error("an edge that is not registered is appointed")
	}
	s.Edges = map[string]registry.Edge{"e1": {Leaving: true}}
	if !appointed(s, b1, "e1") || !appointed(s, b1, "e2") {
		t.Error("where nobody is registered, everybody probes")
	}
}

// A verdict that does not read is written anew: as what stood before, or removed where nothing did.
func TestTheLeaderMendsVerdicts(t *testing.T) {
	now := time.Now()
	down := registry.Verdict{State: registry.BrokerDown, Since: now, Reason: "r", Revision: 7}
	m := newMonitor(Config{Edge: registry.Edge{ID: "e1"}, Settle: time.Second})
	m.current, m.since = true, now
	m.state = &registry.State{
		Leader: "e1",
		Pools:  map[string]*registry.Pool{"p": {Name: "p", Brokers: []registry.Broker{{ID: "b1"}, {ID: "b2"}}}},
		Verdicts: map[registry.BrokerRef]registry.Verdict{
			{Pool: "p", Broker: "b1"}: down, {Pool: "p", Broker: "b2"}: {Revision: 8},
		},
	}
	if got := m.sentences(now); len(got) != 0 {
		t.Errorf("nothing is wrong: %+v", got)
	}
	m.state.Unreadable = map[registry.Subject]registry.Unreadable{
		{Kind: registry.KindVerdict, Pool: "p", Name: "b1"}: {Revision: 7}, {Kind: registry.KindVerdict, Pool: "p", Name: "b2"}: {Revision: 8},
	}
	first := sentence{ref: registry.BrokerRef{Pool: "p", Broker: "b1"}, verdict: down, base: 7}
	if got := m.sentences(now); !slices.Equal(got, []sentence{first}) {
		t.Errorf("before it may judge: %+v", got)
	}
	got := m.sentences(now.Add(time.Second)) // by when nobody says down
	want := sentence{ref: registry.BrokerRef{Pool: "p", Broker: "b2"}, verdict: registry.Verdict{Revision: 8}, remove: true, base: 8}
	if len(got) != 2 || got[0].ref != first.ref || got[0].verdict.State != registry.BrokerUp || got[1] != want {
		t.Errorf("when it may: %+v", got)
	}
}
