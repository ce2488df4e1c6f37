package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/rs/zerolog"
)

// in runs a test in fake time.
func in(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestBrokerDies(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		before := map[string]int{}
		for id := range r.edges {
			before[id] = r.probed(id, "b1")
		}
		r.broker("b1", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused) // a client's dial failed
		r.pass(time.Second)
		for id := range r.edges {
			if r.probed(id, "b1") == before[id] {
				t.Errorf("%s has not probed within 1 s of another edge's failed dial", id)
			}
		}
		down := r.verdict("b1")
		if down.State != registry.BrokerDown {
			t.Fatalf("1 s after a refused dial: %+v\n%s", down, r)
		}
		if ago := time.Since(down.Since); ago < 0 || ago > time.Second {
			t.Errorf("down since %v ago", ago)
		}
		if down.Reason != "down at 2 of 3 edges: connection refused" && down.Reason != "down at 3 of 3 edges: connection refused" {
			t.Errorf("reason %q", down.Reason)
		}
		r.is("b1", registry.BrokerLost, 2*rehome)
		if d := r.verdict("b1").Since.Sub(down.Since); d < rehome || d > rehome+2*turnEvery {
			t.Errorf("lost %v after down", d)
		}
		if r.verdict("b2").State != "" {
			t.Errorf("b2: %+v", r.verdict("b2"))
		}
		r.stays("b1", time.Minute)

		r.broker("b1", "")
		if d := r.is("b1", registry.BrokerUp, time.Minute); d > 5*time.Second {
			t.Errorf("up %v after its return", d)
		}
		r.stays("b1", time.Minute)
	})
}

func TestBrokerHangsAndOnlyItsProberNotices(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		probing := 0
		r.pass(10 * time.Second)
		before := map[string]int{}
		for id := range r.edges {
			before[id] = r.probed(id, "b1")
		}
		r.pass(10 * time.Second)
		for id := range r.edges {
			if n := r.probed(id, "b1") - before[id]; n > 0 {
				probing++
				if n < 4 || n > 6 {
					t.Errorf("%s made %d probes in 10 s", id, n)
				}
			}
		}
		if probing != 1 {
			t.Errorf("%d edges probe a broker that is well", probing)
		}
		r.broker("b1", "hangs")
		if d := r.is("b1", registry.BrokerDown, time.Minute); d < 6*time.Second || d > 14*time.Second {
			t.Errorf("down %v after it hung", d)
		}
	})
}

func TestShortFreezeIsNoVerdict(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		for range 20 {
			r.broker("b1", "hangs")
			r.edges["e2"].agent.Doubt(b1, nil)
			r.stays("b1", 3*time.Second)
			r.broker("b1", "")
			r.stays("b1", 10*time.Second)
		}
	})
}

func TestFlappingDoesNotFlapVerdicts(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		r.broker("b1", "flaps")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.stays("b1", 3*time.Minute)
		if r.verdict("b1").State != "" {
			t.Errorf("flapping: %+v", r.verdict("b1"))
		}
	})
}

func TestOneEdgeAloneBringsNobodyDown(t *testing.T) {
	for _, does := range []string{"hangs", "refuses"} {
		in(t, func(t *testing.T) {
			r := newRig(t, nil, "e1", "e2", "e3")
			r.settled()
			r.between("e2", "b1", does)
			r.edges["e2"].agent.Doubt(b1, errRefused)
			r.stays("b1", 3*time.Minute)
			if st := r.edges["e2"].agent.Status(); st.Brokers[0].Report.Up {
				t.Errorf("e2 does not see what it cannot reach: %+v", st)
			}
			// Nor does it trouble the others for ever.
			before := r.probed("e1", "b1") + r.probed("e3", "b1")
			r.pass(time.Minute)
			if n := r.probed("e1", "b1") + r.probed("e3", "b1") - before; n > 35 {
				t.Errorf("the others made %d probes in a minute", n)
			}
		})
	}
}

func TestEveryMessageLost(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		for _, e := range r.edges {
			e.bus.set(true)
		}
		r.broker("b1", "hangs")
		r.edges["e3"].agent.Doubt(b1, errRefused)
		if d := r.is("b1", registry.BrokerDown, time.Minute); d > 25*time.Second {
			t.Errorf("without a bus: down after %v", d)
		}
	})
}

func TestANewMeshWaitsBeforeItsFirstDown(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.broker("b1", "refuses")
		start := time.Now()
		r.start("e1")
		r.is("b1", registry.BrokerDown, time.Minute)
		if d := time.Since(start); d < registry.SessionTTL || d > registry.SessionTTL+time.Second {
			t.Errorf("first down after %v", d)
		}
	})
}

func TestAFreshLeaderWaits(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1")
		r.settled()
		r.edges["e1"].leave()
		r.pass(time.Minute)
		start := time.Now()
		r.start("e2")
		r.broker("b1", "refuses")
		r.edges["e2"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, time.Minute)
		if d := time.Since(start); d < registry.SessionTTL {
			t.Errorf("first down after %v", d)
		}
	})
}

func TestSettleIsConfigurable(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{{0, registry.SessionTTL}, {-1, 0}, {time.Second, time.Second}} {
		if got := (&Config{Settle: tt.set}).settle(); got != tt.want {
			t.Errorf("Settle %v: %v", tt.set, got)
		}
	}
}

func TestLeaderDiesAndTheNextKeepsSince(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, func(p *registry.Pool) { p.RehomeAfter = time.Minute }, "e1", "e2", "e3")
		r.settled()
		r.broker("b1", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, 2*time.Second)
		down := r.verdict("b1")
		r.pass(5 * time.Second)
		old := r.leader()
		old.crash()
		delete(r.edges, old.id)
		r.until(registry.SessionTTL+time.Second, "another leads", func() bool { return r.leader() != nil })
		if got := r.verdict("b1"); got != down {
			t.Errorf("the new leader wrote %+v over %+v", got, down)
		}
		r.is("b1", registry.BrokerLost, 2*time.Minute)
		if d := r.verdict("b1").Since.Sub(down.Since); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("lost %v after down", d)
		}
	})
}

func TestLeaderLeavesInOrder(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		old := r.leader()
		old.leave()
		delete(r.edges, old.id)
		if d := r.until(registry.SessionTTL, "another leads", func() bool { return r.leader() != nil }); d > time.Second {
			t.Errorf("another leads after %v", d)
		}
		// It has watched for long: it need not wait.
		r.broker("b1", "refuses")
		for _, e := range r.edges {
			e.agent.Doubt(b1, errRefused)
		}
		r.is("b1", registry.BrokerDown, time.Second)
	})
}

func TestALeaderThatIsNoneStepsDown(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		old := r.leader()
		old.mu.Lock()
		old.deposed = 1
		old.mu.Unlock()
		r.broker("b1", "refuses")
		old.agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, 5*time.Second)
		if now := r.leader(); now == old {
			t.Errorf("%s leads on", old.id)
		}
	})
}

func TestABrokerThatMovesIsProbedAtOnce(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, func(p *registry.Pool) { p.Probe.Interval = time.Hour }, "e1", "e2")
		r.settled()
		before := r.probed("e1", "b1") + r.probed("e2", "b1")
		pool := *r.edges["e1"].source.State().Pools["p"]
		pool.Brokers = slices.Clone(pool.Brokers)
		pool.Brokers[0].Address = "elsewhere:1883"
		if err := r.store.PutPool(t.Context(), &pool, pool.Revision); err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		if n := r.probed("e1", "b1") + r.probed("e2", "b1") - before; n != 2 {
			t.Errorf("%d probes, want one of each edge", n)
		}
	})
}

func TestAnEdgeThatLeftInOrderNoLongerCounts(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		r.between("e1", "b1", "hangs")
		r.between("e2", "b1", "hangs")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, time.Minute)
		r.edges["e2"].leave()
		delete(r.edges, "e2")
		r.is("b1", registry.BrokerUp, time.Second)
	})
}

func TestAnEdgeThatCrashedCountsForAMinute(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		r.between("e1", "b1", "hangs")
		r.between("e2", "b1", "hangs")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, time.Minute)
		r.is("b1", registry.BrokerLost, time.Minute)
		r.edges["e2"].crash()
		delete(r.edges, "e2")
		r.stays("b1", registry.SessionTTL+remember-time.Second)
		r.is("b1", registry.BrokerUp, 2*time.Second)
	})
}

func TestEdgesRestartWhileABrokerIsDown(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2", "e3")
		r.settled()
		r.broker("b1", "hangs")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerLost, time.Minute)
		r.pass(5 * time.Second)
		lost := r.verdict("b1")
		for _, id := range []string{"e1", "e2", "e3"} { // one after the other
			r.edges[id].leave()
			r.start(id)
			r.pass(10 * time.Second)
			if got := r.verdict("b1"); got != lost {
				t.Fatalf("%s restarted: %+v became %+v", id, lost, got)
			}
		}
	})
}

func TestSessionLostAndFoundAgain(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2")
		r.settled()
		r.broker("b1", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, 2*time.Second)
		e := r.edges["e1"]
		e.mu.Lock()
		was := e.session
		e.mu.Unlock()
		close(was.lost)
		r.until(5*time.Second, "e1 joined again and reported again", func() bool {
			s := r.edges["e2"].source.State()
			return e.agent.Status().Registered && e.newest() != was && !s.Health["e1"].Brokers[b1].Up && len(s.Health["e1"].Brokers) > 0
		})
		if v := r.verdict("b1"); !isDown(v) {
			t.Errorf("a lost session lifted the verdict: %+v", v)
		}
	})
}

func TestConfigurationChanges(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2")
		r.settled()
		r.broker("b1", "refuses")
		r.broker("b2", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerLost, time.Minute)
		r.is("b2", registry.BrokerLost, time.Minute)

		// b1 goes: so does its verdict, its probes and its reports.
		pool := *r.edges["e1"].source.State().Pools["p"]
		guard := pool.Revision
		pool.Brokers = pool.Brokers[1:]
		if err := r.store.PutPool(t.Context(), &pool, guard); err != nil {
			t.Fatal(err)
		}
		r.is("b1", "", time.Second)
		r.pass(5 * time.Second)
		before := r.probed("e1", "b1") + r.probed("e2", "b1")
		r.pass(time.Minute)
		if n := r.probed("e1", "b1") + r.probed("e2", "b1"); n != before {
			t.Errorf("%d probes of a broker that is not configured", n-before)
		}
		if st := r.edges["e1"].agent.Status(); len(st.Brokers) != 1 || st.Brokers[0].Ref.Broker != "b2" {
			t.Errorf("%+v", st)
		}
		if h := r.edges["e2"].source.State().Health["e1"]; len(h.Brokers) != 1 {
			t.Errorf("e1 reports %+v", h)
		}

		// b2 is probed no more: its verdict is lifted, and nothing brings it down.
		pool.Probe.Kind = registry.ProbeNone
		guard = r.edges["e1"].source.State().Pools["p"].Revision
		if err := r.store.PutPool(t.Context(), &pool, guard); err != nil {
			t.Fatal(err)
		}
		r.is("b2", registry.BrokerUp, time.Second)
		before = r.probed("e1", "b2")
		for range 10 {
			r.edges["e1"].agent.Doubt(registry.BrokerRef{Pool: "p", Broker: "b2"}, errRefused)
			r.stays("b2", time.Second)
		}
		if n := r.probed("e1", "b2"); n != before {
			t.Errorf("%d probes in a pool that has none", n-before)
		}
	})
}

func TestProbesAreBounded(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, func(p *registry.Pool) {
			p.Brokers = nil
			for i := range 40 {
				p.Brokers = append(p.Brokers, registry.Broker{ID: "b" + string(rune('a'+i/26)) + string(rune('a'+i%26))})
			}
		})
		for i := range 40 {
			r.broker("b"+string(rune('a'+i/26))+string(rune('a'+i%26)), "hangs")
		}
		r.start("e1")
		r.pass(2 * time.Minute)
		if r.most != 4 { // Config.Concurrency
			t.Errorf("%d probes at once, bound 4", r.most)
		}
		for _, b := range r.edges["e1"].agent.Status().Brokers {
			if !b.Judged || b.Report.Up {
				t.Errorf("starved: %+v", b)
			}
		}
	})
}

func TestDoubtsOfStrangersAndOfUnknownBrokers(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1", "e2")
		r.settled()
		r.edges["e1"].agent.Doubt(registry.BrokerRef{Pool: "q", Broker: "b1"}, errRefused)
		forger := r.hub.Bus("forger")
		defer forger.Close()
		before := r.probed("e1", "b2")
		for range 1000 {
			_ = forger.Publish(registry.Message{Doubt: &registry.BrokerRef{Pool: "p", Broker: "b2"}})
			_ = forger.Publish(registry.Message{Doubt: &registry.BrokerRef{Pool: "p", Broker: "nobody"}})
			_ = forger.Publish(registry.Message{Health: &registry.Health{Edge: "e2", Seq: 1 << 63, Brokers: map[registry.BrokerRef]registry.Report{b1: {}}}})
			_ = forger.Publish(registry.Message{Health: &registry.Health{Edge: "forger", Seq: 1 << 63, Brokers: map[registry.BrokerRef]registry.Report{b1: {}}}})
			r.pass(10 * time.Millisecond)
		}
		if n := r.probed("e1", "b2") - before; n > 45 { // 10 s, a probe in 250 ms at most, and duty
			t.Errorf("a flood of doubts made %d probes in 10 s", n)
		}
		r.stays("b1", 10*time.Second)
		r.stays("b2", time.Second)
	})
}

func TestStatus(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, "e1")
		if st := r.edges["e1"].agent.Status(); st.Current || st.Registered || st.Leader || st.Brokers != nil {
			t.Errorf("at first: %+v", st)
		}
		r.settled()
		st := r.edges["e1"].agent.Status()
		if !st.Current || !st.Registered || !st.Leader || len(st.Brokers) != 2 || st.Brokers[0].Ref != b1 {
			t.Fatalf("in the end: %+v", st)
		}
		if b := st.Brokers[0]; !b.Judged || !b.Report.Up || !b.Settled || !b.Duty || b.Local {
			t.Errorf("b1: %+v", b)
		}
		r.edges["e1"].leave()
		if s := r.edges["e1"].agent.Status(); s.Registered || s.Leader {
			t.Errorf("after leaving: %+v", s)
		}
	})
}

// apart is a store that lets nobody join.
type apart struct {
	registry.Store
	mu  sync.Mutex
	err error
}

func (s *apart) Join(ctx context.Context, e registry.Edge) (registry.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return s.Store.Join(ctx, e)
}

func (s *apart) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// An edge whose id another one has is told so: in the log, once a minute, and in its status. A store that is away is others' news.
func TestAnEdgeThatCannotJoinSaysSo(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil)
		inUse := errors.New("edge id in use")
		store := &apart{Store: r.store.Client(), err: fmt.Errorf("%w: no answer", registry.ErrUnavailable)}
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		cache := registry.NewCache(registry.CacheConfig{Store: store})
		agent := New(Config{Edge: registry.Edge{ID: "e1"}, Store: store, Source: cache, Prober: prober{r, "e1"}, Log: zerolog.New(&log).Level(zerolog.WarnLevel)})
		var running sync.WaitGroup
		running.Go(func() { _ = cache.Run(ctx) })
		running.Go(func() { _ = agent.Run(ctx) })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if st := agent.Status(); log.Len() > 0 || st.Registered || !errors.Is(st.Apart, registry.ErrUnavailable) {
			t.Errorf("without a store: status %+v, log %s", st, &log)
		}
		store.set(inUse)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), inUse.Error()); n < 9 || n > 11 {
			t.Errorf("%d lines in ten minutes:\n%s", n, &log)
		}
		if st := agent.Status(); st.Registered || st.Apart != inUse {
			t.Errorf("another has the id: status %+v", st)
		}
		store.set(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if st := agent.Status(); !st.Registered || st.Apart != nil {
			t.Errorf("in the end: status %+v", st)
		}
		cancel()
		running.Wait()
		store.Close()
	})
}
