package router

import (
	"slices"
	"strings"

	"github.com/limpet-mesh/limpet/registry"
)

// A View is the immutable picture that routing uses. It is safe for any number of goroutines.
type View struct {
	state *registry.State
	pools map[string]*pool
}

// pool is a registry.Pool with everything precomputed that a decision asks for.
type pool struct {
	config  *registry.Pool
	members map[string]*member
	seats   []seat          // of the members that get new keys, in order of ID
	facts   []registry.Fact // the pool's own revision: what the absence of a broker rests on
}

// member is a configured broker and what the mesh knows of it.
type member struct {
	broker   *registry.Broker
	standing standing
	facts    []registry.Fact // revisions of its pool, admin state and verdict
}

// standing is what a broker may do, out of its admin state and its verdict.
type standing uint8

const (
	serving  standing = iota // serves the keys it has and gets new ones
	draining                 // serves the keys it has
	waiting                  // down: its keys wait for it
	gone                     // lost or out: its keys are placed anew
)

// NewView returns the View of s, which must not change any more. A nil State is an empty mesh.
func NewView(s *registry.State) *View {
	if s == nil {
		s = &registry.State{}
	}
	v := &View{state: s, pools: make(map[string]*pool, len(s.Pools))}
	for name, p := range s.Pools {
		v.pools[name] = newPool(s, name, p)
	}
	return v
}

func newPool(s *registry.State, name string, config *registry.Pool) *pool {
	fact := registry.Fact{Kind: registry.KindPool, Pool: name, Name: name, Revision: config.Revision}
	p := &pool{
		config:  config,
		members: make(map[string]*member, len(config.Brokers)),
		facts:   []registry.Fact{fact},
	}
	for i := range config.Brokers {
		b := &config.Brokers[i]
		ref := registry.BrokerRef{Pool: name, Broker: b.ID}
		admin, verdict := s.Admin[ref], s.Verdicts[ref]
		m := &member{
			broker:   b,
			standing: stands(admin.State, verdict.State),
			facts: []registry.Fact{
				fact,
				{Kind: registry.KindAdmin, Pool: name, Name: b.ID, Revision: admin.Revision},
				{Kind: registry.KindVerdict, Pool: name, Name: b.ID, Revision: verdict.Revision},
			},
		}
		p.members[b.ID] = m
		if m.standing == serving {
			p.seats = append(p.seats, seat{seed: hash(b.ID), weight: uint64(max(b.Share(), 1)), member: m})
		}
	}
	slices.SortFunc(p.seats, func(a, b seat) int { return strings.Compare(a.member.broker.ID, b.member.broker.ID) })
	return p
}

// stands: what an operator took out is gone whatever its health; then health counts, then draining, which is also what a state that
// nobody here knows comes to (registry.AdminUnknown).
func stands(a registry.AdminState, v registry.BrokerState) standing {
	switch {
	case a == registry.AdminOut || v == registry.BrokerLost:
		return gone
	case v == registry.BrokerDown:
		return waiting
	case a == "" || a == registry.AdminReady:
		return serving
	}
	return draining
}

// Revision is that of the State which the View shows.
func (v *View) Revision() int64 { return v.state.Revision }

// Pool returns the configuration of a pool, or nil.
func (v *View) Pool(name string) *registry.Pool {
	if p := v.pools[name]; p != nil {
		return p.config
	}
	return nil
}

// Serves reports whether a broker may keep the clients that it has: it is configured, not out, and neither down nor lost.
func (v *View) Serves(ref registry.BrokerRef) bool {
	if p := v.pools[ref.Pool]; p != nil {
		if m := p.members[ref.Broker]; m != nil {
			return m.standing <= draining
		}
	}
	return false
}
