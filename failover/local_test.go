package failover

import (
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// routed waits until the named edges route by a verdict on b1.
func (r *rig) routed(want registry.BrokerState, most time.Duration, ids ...string) time.Duration {
	r.t.Helper()
	return r.until(most, "routed by "+string(want), func() bool {
		for _, id := range ids {
			if r.edges[id].routed("b1") != want {
				return false
			}
		}
		return true
	})
}

// routedStays expects that edges route by the same verdict on b1 all the time.
func (r *rig) routedStays(want registry.BrokerState, d time.Duration, ids ...string) {
	r.t.Helper()
	for range int(d / (100 * time.Millisecond)) {
		r.pass(100 * time.Millisecond)
		for _, id := range ids {
			if got := r.edges[id].routed("b1"); got != want {
				r.t.Fatalf("%s routes by %s, want %s\n%s", id, got, want, r)
			}
		}
	}
}

func (r *rig) busAway(cut bool, ids ...string) {
	for _, id := range ids {
		r.edges[id].bus.set(cut)
	}
}

var all = []string{"e1", "e2", "e3"}

// backAfter is how long a cache may take to notice that its store is back, and a little more.
const backAfter = 10 * time.Second

func TestStoreAwayFreezesVerdicts(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.busAway(true, all...)
		r.broker("b1", "hangs")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.routedStays(registry.BrokerUp, 2*time.Minute, all...)
		for _, id := range all {
			if st := r.edges[id].agent.Status(); st.Current || st.Brokers[0].Report.Up {
				t.Errorf("%s: %+v", id, st)
			}
			if n := r.edges[id].changed(); n != 0 {
				t.Errorf("%s: %d changes of nothing", id, n)
			}
		}

		// Back to normal: the leader says what all have seen.
		r.storeAway(false)
		r.busAway(false, all...)
		r.is("b1", registry.BrokerDown, registry.SessionTTL+backAfter)
		r.routed(registry.BrokerDown, time.Second, all...)
	})
}

func TestStoreAwayAndBackChangesNothing(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		before := r.edges["e1"].source.State()
		r.storeAway(true)
		r.busAway(true, all...)
		r.pass(20 * time.Second)
		r.storeAway(false)
		r.pass(time.Minute)
		if after := r.edges["e1"].source.State(); len(after.Verdicts) != 0 || after.Leader != before.Leader {
			t.Errorf("%+v", after)
		}
	})
}

func TestAloneARefusalIsBelieved(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.busAway(true, all...)
		r.pass(2 * awayAfter)
		r.broker("b1", "refuses")
		e := r.edges["e1"]
		e.agent.Doubt(b1, errRefused)
		if d := r.routed(registry.BrokerDown, 5*time.Second, "e1"); d > time.Second {
			t.Errorf("down after %v", d)
		}
		if d := r.routed(registry.BrokerLost, 2*rehome, "e1"); d < rehome-time.Second || d > rehome+time.Second {
			t.Errorf("lost %v after down", d)
		}
		if e.changed() != 2 {
			t.Errorf("%d changes, want 2: down and lost", e.changed())
		}
		if v := e.agent.Overlay(e.source.State()).Verdicts[b1]; v.Revision != 0 {
			t.Errorf("a verdict of its own has revision %d", v.Revision)
		}
		if len(e.source.State().Verdicts) != 0 {
			t.Error("the overlay changed the State")
		}
		r.broker("b1", "hangs") // refused first, silent then: not up, for certain
		r.routedStays(registry.BrokerLost, 30*time.Second, "e1")
		r.broker("b1", "")
		r.routed(registry.BrokerUp, 10*time.Second, all...)
		if s := e.source.State(); e.agent.Overlay(s) != s {
			t.Error("an overlay without verdicts of its own is not the State itself")
		}
	})
}

func TestAMajorityAgreesOverTheBus(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.pass(10 * time.Second)
		r.broker("b1", "hangs")
		r.edges["e2"].agent.Doubt(b1, errRefused)
		r.routed(registry.BrokerDown, 20*time.Second, all...)
		r.routed(registry.BrokerLost, rehome+2*time.Second, all...)
		r.broker("b1", "")
		r.routed(registry.BrokerUp, 10*time.Second, all...)

		// One edge's trouble is not the mesh's, once all have seen the broker back.
		r.pass(10 * time.Second)
		r.between("e3", "b1", "refuses")
		r.edges["e3"].agent.Doubt(b1, errRefused)
		r.routedStays(registry.BrokerUp, time.Minute, all...)
	})
}

func TestAMinorityDoesNotDecide(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.busAway(true, "e1")
		r.pass(10 * time.Second)
		r.broker("b1", "hangs")
		for _, id := range all {
			r.edges[id].agent.Doubt(b1, errRefused)
		}
		r.routed(registry.BrokerDown, 20*time.Second, "e2", "e3")
		r.routedStays(registry.BrokerUp, time.Minute, "e1")
	})
}

// An edge that alone has lost the store hears no repeated reports: the others are well.
func TestTheOneWithoutAStoreDoesNotDecide(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.edges["e1"].storeAway(true)
		r.pass(10 * time.Second)
		r.between("e1", "b1", "hangs")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.routedStays(registry.BrokerUp, time.Minute, all...)
	})
}

func TestAFrozenDownIsLiftedByAMajority(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, func(p *registry.Pool) { p.RehomeAfter = time.Hour }, all...)
		r.settled()
		r.broker("b1", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.is("b1", registry.BrokerDown, 2*time.Second)
		r.storeAway(true)
		r.busAway(true, all...)
		r.broker("b1", "")
		r.routedStays(registry.BrokerDown, 30*time.Second, all...) // alone, nobody knows
		r.busAway(false, all...)
		r.routed(registry.BrokerUp, 10*time.Second, all...)
		r.storeAway(false)
		r.is("b1", registry.BrokerUp, registry.SessionTTL+backAfter)
		r.routedStays(registry.BrokerUp, time.Minute, all...)
	})
}

func TestLocalVerdictsLastUntilTheLeaderHasSpoken(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.broker("b1", "refuses")
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.routed(registry.BrokerLost, time.Minute, all...)
		r.storeAway(false)
		// From here on nobody may take the broker for healthy.
		for range 600 {
			r.pass(100 * time.Millisecond)
			for _, id := range all {
				if got := r.edges[id].routed("b1"); got == registry.BrokerUp {
					t.Fatalf("%s routes to a dead broker\n%s", id, r)
				}
			}
		}
		if v := r.verdict("b1"); v.State != registry.BrokerLost {
			t.Errorf("a minute later: %+v", v)
		}
		for _, id := range all {
			if st := r.edges[id].agent.Status(); st.Brokers[0].Local {
				t.Errorf("%s still decides for itself: %+v", id, st)
			}
		}
	})
}

func TestLocalVerdictsEndWithoutALeader(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, nil, all...)
		r.settled()
		r.storeAway(true)
		r.busAway(true, all...)
		r.between("e1", "b1", "refuses") // e1 alone was refused, so the leader will never say so
		r.edges["e1"].agent.Doubt(b1, errRefused)
		r.routed(registry.BrokerLost, time.Minute, "e1")
		r.storeAway(false)
		r.busAway(false, all...)
		r.routed(registry.BrokerUp, registry.SessionTTL+overlayGrace+backAfter, all...)
	})
}
