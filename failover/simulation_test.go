package failover

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// TestSimulation lets random faults loose on a mesh for ten minutes, heals all links, and expects that the verdicts come to say what is so.
// Meanwhile the rig looks after the verdicts' order.
func TestSimulation(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			in(t, func(t *testing.T) { simulate(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func simulate(t *testing.T, rnd *rand.Rand) {
	r := newRig(t, nil, all...)
	r.settled()
	does := []string{"", "", "", "refuses", "hangs", "flaps"}
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	story := ""
	for range 60 {
		id := pick(all)
		e := r.edges[id]
		switch n := rnd.IntN(12); {
		case n < 4:
			d := pick(does)
			story += fmt.Sprintf("b1 %s; ", d)
			r.broker("b1", d)
		case n < 6:
			d := pick(does)
			story += fmt.Sprintf("%s–b1 %s; ", id, d)
			r.between(id, "b1", d)
		case n < 7:
			away := rnd.IntN(2) == 0
			story += fmt.Sprintf("store away %v; ", away)
			r.storeAway(away)
		case n < 8:
			away := rnd.IntN(2) == 0
			story += fmt.Sprintf("%s–store away %v; ", id, away)
			e.storeAway(away)
		case n < 9:
			away := rnd.IntN(2) == 0
			story += fmt.Sprintf("%s–bus away %v; ", id, away)
			e.bus.set(away)
		case n < 10:
			story += id + " restarts; "
			e.leave()
			r.start(id)
		case n < 11:
			story += id + " crashes; "
			e.crash()
			r.start(id)
		default:
			story += id + " doubts; "
			e.agent.Doubt(b1, errRefused)
		}
		r.pass(time.Duration(rnd.IntN(20_000)) * time.Millisecond)
		if t.Failed() {
			t.Fatalf("%s\n%s", story, r)
		}
	}

	r.storeAway(false)
	end := pick([]string{"", "refuses", "hangs"})
	r.broker("b1", end)
	r.mu.Lock()
	clear(r.cut)
	r.mu.Unlock()
	for _, e := range r.edges {
		e.bus.set(false)
		e.agent.Doubt(b1, errRefused)
	}
	want := registry.BrokerUp
	if end != "" {
		want = registry.BrokerLost
	}
	r.pass(30 * time.Second) // what stands may happen to be right, and not be the last word
	const heal = remember + 2*registry.SessionTTL + 30*time.Second
	r.until(heal, "routed by "+string(want)+"\n"+story, func() bool {
		for _, e := range r.edges {
			if st := e.agent.Status(); e.routed("b1") != want || e.routed("b2") != registry.BrokerUp || st.Brokers[0].Local || !st.Registered {
				return false
			}
		}
		return r.leader() != nil
	})
	r.stays("b1", time.Minute)
}
