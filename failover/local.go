package failover

import (
	"maps"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// While the store is away nobody can write a verdict, and those that stand freeze. Each edge then decides for itself, by the same
// rules (Ballot.Decide), when it may:
//
//   - If the bus brings the reports of a majority of the last known edges, they decide, and all who hear them decide alike.
//   - Alone, an edge believes only a host that refuses connections: there is no session to come home to. What merely does not
//     answer may be the edge's own bad luck.
//
// When the store is back, a local verdict stands until the leader has spoken, or has had the time to.

// local is a verdict of this edge's own.
type local struct {
	verdict registry.Verdict // Revision 0
	base    int64            // revision of the stored verdict that it overrides; 0 = none
}

func isDown(v registry.Verdict) bool {
	return v.State == registry.BrokerDown || v.State == registry.BrokerLost
}

// same reports whether two verdicts say the same; none means up.
func same(a, b registry.Verdict) bool {
	return isDown(a) == isDown(b) && (a.State == b.State || !isDown(a))
}

// decideLocally brings the local verdicts up to date, and reports whether they changed. mu is held.
func (m *monitor) decideLocally(now time.Time) bool {
	if m.state == nil || m.current && len(m.local) == 0 {
		return false
	}
	next := make(map[registry.BrokerRef]local, len(m.local))
	for ref, g := range m.watched {
		stored := m.state.Verdicts[ref]
		l, mine := m.local[ref]
		if m.current {
			up, judged := g.patrol.det.Up(), g.patrol.det.judged
			if mine && !(judged && up && isDown(l.verdict)) && l.outlives(stored) && now.Sub(m.since) < m.settle+overlayGrace {
				next[ref] = l
			}
			continue
		}
		stood := stored
		if mine {
			stood = l.verdict
		}
		pool := m.state.Pools[ref.Pool]
		v := m.ballotAway(g, mine, now).Decide(stood, pool.RehomeDelay(), now)
		v.Revision = 0
		if same(v, stored) {
			continue
		}
		if !mine {
			l.base = stored.Revision
		}
		l.verdict = v
		next[ref] = l
	}
	if maps.Equal(next, m.local) {
		return false
	}
	for ref, l := range next {
		if m.local[ref] != l {
			m.log.Warn().Str("edge", m.edge).Str("pool", ref.Pool).Str("broker", ref.Broker).
				Str("verdict", string(l.verdict.State)).Str("reason", l.verdict.Reason).Msg("decided without the store")
		}
	}
	m.local = next
	return true
}

// outlives reports whether a local verdict stands beside a stored one of a store that is back: the leader has not spoken
// since, or has only begun to agree.
func (l local) outlives(stored registry.Verdict) bool {
	return stored.Revision == l.base || l.verdict.State == registry.BrokerLost && stored.State == registry.BrokerDown
}

// ballotAway is who decides on a broker while the store is away. mu is held.
func (m *monitor) ballotAway(g *guard, mine bool, now time.Time) Ballot {
	if b, ok := m.votes.CountHeard(g.ref, m.edge, now); ok {
		return b
	}
	return ballotAlone(&g.patrol.det, mine)
}

// ballotAlone is the ballot of an edge that hears nobody: it says down of a host that refuses, and up of a broker only if mine
// says that the verdict is its own.
func ballotAlone(d *Detector, mine bool) Ballot {
	b := Ballot{Counted: 1}
	r, judged := d.Report()
	switch {
	case d.Refused():
		b.Down, b.Reason = 1, r.Reason
	case judged && r.Up && mine:
		b.Up = 1
	}
	return b
}

// overlay returns the State that routing should use: s, with the verdicts of this edge's own where it has any.
func (m *monitor) overlay(s *registry.State) *registry.State {
	m.mu.Lock()
	own := m.local // never modified
	m.mu.Unlock()
	if s == nil || len(own) == 0 {
		return s
	}
	next := *s
	if next.Verdicts = maps.Clone(s.Verdicts); next.Verdicts == nil {
		next.Verdicts = make(map[registry.BrokerRef]registry.Verdict, len(own))
	}
	for ref, l := range own {
		next.Verdicts[ref] = l.verdict
	}
	return &next
}
