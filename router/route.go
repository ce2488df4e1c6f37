package router

import "github.com/limpet-mesh/limpet/registry"

// Query asks for the broker of one connection.
type Query struct {
	Pool, Key string
	Record    registry.Affinity // what is recorded for the key; zero = nothing
	Avoid     []string          // IDs of brokers that failed for this very connection
}

// Decision is the answer to a Query.
type Decision struct {
	Broker  *registry.Broker // nil = refused
	Pool    *registry.Pool   // nil = no such pool
	Why     Why              // of Broker
	Refusal Refusal          // why there is no Broker
	// Replace says that Query.Record names another broker and is to be replaced once Broker has accepted the client,
	// guarded by Record.Revision and by Facts.
	Replace bool
	// Facts are what the replacement rests on: for a key that was re-placed, the revisions of its pool and of the admin
	// state and the verdict of the broker that the record names (of the pool alone when that broker is not configured);
	// for a pinned key, those of the pin's broker. Nil without Replace. Shared: not to be modified.
	Facts []registry.Fact
}

// Why tells what chose a broker.
type Why uint8

const (
	WhyNone      Why = iota
	WhyPin           // an operator tied the key to it
	WhyAffinity      // the record names it
	WhyPlacement     // first choice of the rendezvous
	WhyRehomed       // the record's broker is lost, out or not configured: placed anew
	WhyNext          // placed, after a better choice that Query.Avoid names
)

// String is also the reason that is recorded in an affinity.
func (w Why) String() string {
	switch w {
	case WhyPin:
		return "pin"
	case WhyAffinity:
		return "affinity"
	case WhyPlacement:
		return "placement"
	case WhyRehomed:
		return "rehomed"
	case WhyNext:
		return "next"
	}
	return "none"
}

// Refusal tells why nobody was chosen.
type Refusal uint8

const (
	RefusalNone      Refusal = iota
	RefusalNoPool            // the pool is not configured
	RefusalNoBroker          // no broker of the pool may take the key
	RefusalAwaitHome         // the key's own broker is down or was avoided: the key waits for it
)

func (r Refusal) String() string {
	switch r {
	case RefusalNoPool:
		return "no_pool"
	case RefusalNoBroker:
		return "no_broker"
	case RefusalAwaitHome:
		return "await_home"
	}
	return "none"
}

// Route decides. It allocates nothing.
//
// A pin is an operator's word and goes first. While its broker is down (or failed for this connection) the key waits
// for it, recorded elsewhere or not; once it is lost, out or not configured the pin is void.
//
// A record comes next, and is followed as long as its broker may serve, draining or not. While that broker is down, or failed
// for this connection, the key waits: recorded keys never go elsewhere by themselves. Once it is lost, out or not
// configured the key is placed anew.
//
// Placement chooses among the brokers that are neither draining, out, down nor lost, by weight; those of q.Avoid are
// passed over, so that the order of choices is that of the rendezvous.
func (v *View) Route(q Query) Decision {
	p := v.pools[q.Pool]
	if p == nil {
		return Decision{Refusal: RefusalNoPool}
	}
	if len(v.state.Pins) > 0 {
		if id, pinned := v.state.Pins[registry.PinRef{Pool: q.Pool, Key: q.Key}]; pinned {
			if m := p.members[id]; m != nil && m.standing != gone {
				d := p.home(m, q.Avoid, WhyPin)
				if d.Broker != nil && q.Record.Present() && q.Record.Broker != id {
					d.Replace, d.Facts = true, m.facts
				}
				return d
			}
		}
	}
	if !q.Record.Present() {
		return p.place(q)
	}
	m := p.members[q.Record.Broker]
	if m != nil && m.standing != gone {
		return p.home(m, q.Avoid, WhyAffinity)
	}
	d := p.place(q)
	if d.Broker != nil {
		d.Why, d.Replace, d.Facts = WhyRehomed, true, p.facts
		if m != nil {
			d.Facts = m.facts
		}
	}
	return d
}

// home sends a key to the one broker that it belongs to, or nowhere.
func (p *pool) home(m *member, avoid []string, why Why) Decision {
	if m.standing == waiting || contains(avoid, m.broker.ID) {
		return Decision{Pool: p.config, Refusal: RefusalAwaitHome}
	}
	return Decision{Pool: p.config, Broker: m.broker, Why: why}
}

// place sends a key to the best broker that the query does not avoid.
func (p *pool) place(q Query) Decision {
	first, best := place(p.seats, hash(q.Key), q.Avoid)
	switch {
	case best == nil:
		return Decision{Pool: p.config, Refusal: RefusalNoBroker}
	case best != first:
		return Decision{Pool: p.config, Broker: best.member.broker, Why: WhyNext}
	}
	return Decision{Pool: p.config, Broker: best.member.broker, Why: WhyPlacement}
}
