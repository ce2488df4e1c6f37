package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A Judge counts what the edges of a mesh report. It remembers who was there lately, and each one's last report, so that an edge
// that dies does not take its testimony along. It has no clock and no lock. The zero value is ready.
type Judge struct {
	voters map[string]*voter
}

// voter is an edge that counts.
type voter struct {
	leased  bool // registered now
	leaving bool
	started time.Time // of the life that is, or was last, registered
	gone    time.Time // when it was first seen missing, if not leased
	health  registry.Health
	heard   time.Time // when it last spoke on the bus
}

// Observe takes in a State: who is registered, and what was reported through the store. It returns the brokers that an edge
// newly says are down.
func (j *Judge) Observe(s *registry.State, now time.Time) (fell []registry.BrokerRef) {
	if j.voters == nil {
		j.voters = make(map[string]*voter)
	}
	for id, e := range s.Edges {
		v := j.voters[id]
		if v == nil {
			v = &voter{}
			j.voters[id] = v
		}
		v.leased, v.leaving = true, e.Leaving
		if !v.started.Equal(e.Started) { // another life, which may count anew; what the former said stands until it speaks
			v.started, v.health.Seq = e.Started, 0
		}
		if h, ok := s.Health[id]; ok {
			fell = append(fell, v.take(h)...)
		}
	}
	for id, v := range j.voters {
		if _, ok := s.Edges[id]; !ok && v.leased {
			v.leased, v.gone = false, now
		}
	}
	j.forget(now)
	return fell
}

// forget drops those who no longer count.
func (j *Judge) forget(now time.Time) {
	maps.DeleteFunc(j.voters, func(_ string, v *voter) bool { return !v.leased && (v.leaving || now.Sub(v.gone) >= remember) })
}

// Hear takes in a report that came over the bus, which hurries and decides nothing: it is believed of edges that are
// registered only, and an older one than is known is dropped. It returns the brokers that the edge newly says are down.
func (j *Judge) Hear(h registry.Health, now time.Time) (fell []registry.BrokerRef) {
	v := j.voters[h.Edge]
	if v == nil || h.Seq < v.health.Seq {
		return nil
	}
	v.heard = now
	return v.take(h)
}

// take keeps the newest report.
func (v *voter) take(h registry.Health) (fell []registry.BrokerRef) {
	if h.Seq <= v.health.Seq {
		return nil
	}
	for ref, r := range h.Brokers {
		if was, ok := v.health.Brokers[ref]; !r.Up && (!ok || was.Up) {
			fell = append(fell, ref)
		}
	}
	v.health = h
	return fell
}

// A Ballot is a count of edges about one broker.
type Ballot struct {
	Counted  int
	Down, Up int  // how many of them report so; the others report nothing
	Complete bool // whoever reports nothing has had the time to: silence means not down. Otherwise it means nothing
	Reason   string
}

// majorityDown reports whether more than half of the edges say down.
func (b Ballot) majorityDown() bool { return 2*b.Down > b.Counted }

// Count is the ballot of the edges that were leased within the last minute and did not leave in order, each with its last report.
func (j *Judge) Count(ref registry.BrokerRef, now time.Time) Ballot {
	j.forget(now)
	return j.count(ref, func(v *voter) (counts, speaks bool) { return !v.leaving, true })
}

// CountHeard is the ballot of the last edges that the store knew, when the store is away: all of them count, but only those that
// the bus was heard of lately, and self, speak. ok is false when they are no majority: then nobody may speak for the mesh.
func (j *Judge) CountHeard(ref registry.BrokerRef, self string, now time.Time) (b Ballot, ok bool) {
	speakers := 0
	b = j.count(ref, func(v *voter) (counts, speaks bool) {
		if !v.leased || v.leaving {
			return false, false
		}
		speaks = v == j.voters[self] || !v.heard.IsZero() && now.Sub(v.heard) < freshFor
		if speaks {
			speakers++
		}
		return true, speaks
	})
	return b, 2*speakers > b.Counted
}

func (j *Judge) count(ref registry.BrokerRef, role func(*voter) (counts, speaks bool)) Ballot {
	var b Ballot
	for _, id := range slices.Sorted(maps.Keys(j.voters)) { // in order: the reason of equal ballots is the same
		v := j.voters[id]
		counts, speaks := role(v)
		if !counts {
			continue
		}
		b.Counted++
		r, reported := v.health.Brokers[ref]
		switch {
		case !speaks || !reported:
		case r.Up:
			b.Up++
		default:
			b.Down++
			if b.Reason == "" {
				b.Reason = r.Reason
			}
		}
	}
	return b
}

// Decide says what a broker's verdict should be after a ballot, when stood is the one that stands. The result equals stood if
// it should stay.
//
//	       more than half say down              rehome after Since, they still do
//	up ──────────────────────────────▶ down ──────────────────────────────────────▶ lost
//	▲                                    │                                            │
//	└────────────────────────────────────┴────────────────────────────────────────────┘
//	                        that majority is gone
//
// A majority is gone when silence has a meaning (Complete) or more than half say up.
func (b Ballot) Decide(stood registry.Verdict, rehome time.Duration, now time.Time) registry.Verdict {
	isDown := stood.State == registry.BrokerDown || stood.State == registry.BrokerLost
	switch {
	case b.majorityDown() && !isDown:
		return registry.Verdict{State: registry.BrokerDown, Since: now, Reason: b.says("down", b.Down)}
	case b.majorityDown() && stood.Since.Sub(now) > skew:
		// A leader whose clock was far ahead wrote this. Kept, it would hold recorded keys back until that time comes.
		stood.Since = now
		return stood
	case b.majorityDown() && stood.State == registry.BrokerDown && now.Sub(stood.Since) >= rehome:
		return registry.Verdict{State: registry.BrokerLost, Since: now, Reason: b.says("down", b.Down)}
	case !b.majorityDown() && isDown && (b.Complete || 2*b.Up > b.Counted):
		return registry.Verdict{State: registry.BrokerUp, Since: now, Reason: b.says("up", b.Up)}
	}
	return stood
}

func (b Ballot) says(what string, n int) string {
	s := fmt.Sprintf("%s at %d of %d edges", what, n, b.Counted)
	if what == "down" && b.Reason != "" {
		s += ": " + b.Reason
	}
	return s
}
