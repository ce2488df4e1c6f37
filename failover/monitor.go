package failover

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/rs/zerolog"
)

// monitor watches the brokers from one edge: it probes those that are its duty or in doubt, reports what it finds, hears what others
// report, and answers for the mesh while the store cannot.
//
// Goroutines, all of them run's: tend (the main loop), report (writes to the store, which may block), and one guard per broker.
type monitor struct {
	edge    string
	source  Source
	bus     registry.Bus // nil = none
	prober  Prober
	settle  time.Duration
	log     zerolog.Logger
	changed func()        // the overlay has changed; called without mu
	slots   chan struct{} // one per probe under way
	guards  sync.WaitGroup

	turn  chan struct{} // for tend: something happened
	write chan struct{} // for report: there may be something to write
	judge chan struct{} // for the leader: there may be something to decide

	mu       sync.Mutex
	state    *registry.State // the newest
	fresh    bool            // the guards are not in line with it yet
	current  bool            // the store is in reach
	since    time.Time       // when current became what it is
	votes    Judge
	watched  map[registry.BrokerRef]*guard
	own      registry.Health
	local    map[registry.BrokerRef]local // replaced, never modified
	session  registry.Session             // where reports go; nil = nowhere
	sessions int                          // how many there were

	// owned by tend
	cancel      func() // of the bus's subscription
	published   uint64 // Seq of the last report on the bus
	publishedAt time.Time
	connected   bool
}

// guard is one broker's patrol and the goroutine that walks it.
type guard struct {
	ref    registry.BrokerRef
	wake   chan struct{} // the plan has changed
	cancel context.CancelFunc

	// guarded by monitor.mu
	broker *registry.Broker
	patrol patrol
}

func newMonitor(c Config) *monitor {
	return &monitor{
		edge: c.Edge.ID, source: c.Source, bus: c.Bus, prober: c.Prober, settle: c.settle(), log: c.Log,
		slots:   make(chan struct{}, c.concurrency()),
		turn:    make(chan struct{}, 1),
		write:   make(chan struct{}, 1),
		judge:   make(chan struct{}, 1),
		watched: make(map[registry.BrokerRef]*guard),
	}
}

// kick wakes the owner of a channel of capacity 1.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run watches until ctx ends, and returns after all that it started has ended.
func (m *monitor) run(ctx context.Context) {
	m.mu.Lock()
	m.since = time.Now()
	m.restate(m.since)
	m.mu.Unlock()

	var reporter sync.WaitGroup
	reporter.Go(func() { m.report(ctx) })
	m.tend(ctx)
	reporter.Wait()
	m.guards.Wait()
}

// tend is the main loop. It never waits for a network.
func (m *monitor) tend(ctx context.Context) {
	tick := time.NewTicker(turnEvery)
	defer tick.Stop()
	defer func() {
		if m.cancel != nil {
			m.cancel()
		}
	}()
	for {
		m.takeTurn(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-m.turn:
		case <-tick.C:
		}
	}
}

// observe takes in each State as it comes. None may be passed over: an edge that leaves in order says so in one and is missing
// from the next.
func (m *monitor) observe(s *registry.State) {
	m.mu.Lock()
	m.take(s, time.Now())
	m.mu.Unlock()
	kick(m.turn)
}

// take makes s the newest State. mu is held.
func (m *monitor) take(s *registry.State, now time.Time) {
	if s == nil || s == m.state {
		return
	}
	m.state, m.fresh = s, true
	for _, ref := range m.votes.Observe(s, now) {
		m.doubt(ref, now)
	}
	m.votes.Hear(m.own, now)
}

func (m *monitor) takeTurn(ctx context.Context, now time.Time) {
	source := m.source.Status()
	current := source.Listed && source.Age >= 0 && source.Age <= awayAfter
	m.mu.Lock()
	if m.state == nil { // it was there before observe was told of any
		m.take(m.source.State(), now)
	}
	if current != m.current {
		m.current, m.since, m.fresh = current, now, true
		m.log.Info().Str("edge", m.edge).Bool("current", current).Msg("reach of the store changed")
	}
	if m.fresh && m.state != nil {
		m.fresh = false
		m.reconcile(ctx, now)
	}
	changed := m.decideLocally(now)
	own := m.own
	m.mu.Unlock()

	m.publish(own, current, now)
	if changed && m.changed != nil {
		m.changed()
	}
	kick(m.judge)
}

// reconcile brings the guards in line with the State. mu is held.
func (m *monitor) reconcile(ctx context.Context, now time.Time) {
	s := m.state
	configured := make(map[registry.BrokerRef]bool)
	for name, pool := range s.Pools {
		if pool.Probe.Kind == registry.ProbeNone {
			continue
		}
		for i := range pool.Brokers {
			b := &pool.Brokers[i]
			ref := registry.BrokerRef{Pool: name, Broker: b.ID}
			configured[ref] = true
			down := isDown(s.Verdicts[ref])

			g := m.watched[ref]
			switch {
			case g == nil:
				g = &guard{ref: ref, wake: make(chan struct{}, 1), broker: b}
				var walk context.Context
				walk, g.cancel = context.WithCancel(ctx)
				m.watched[ref] = g
				m.guards.Go(func() { m.walk(walk, g) })
			case *g.broker != *b: // it may be another machine now
				g.patrol.doubt(now, 0)
			}
			g.broker = b
			g.patrol.configure(pool.Probe)
			g.patrol.det.Presume(down)
			// Every edge keeps an eye on a broker that is down: a majority has to see it return.
			duty := !m.current || down || appointed(s, ref, m.edge)
			g.patrol.assign(duty, now, rand.N(min(g.patrol.rules.Interval, doubtWithin)))
			kick(g.wake)
		}
	}
	dropped := false
	for ref, g := range m.watched {
		if !configured[ref] {
			g.cancel()
			delete(m.watched, ref)
			dropped = true
		}
	}
	if dropped {
		m.restate(now)
	}
}

// appointed reports whether an edge is the one that probes a broker although nothing is wrong: the winner of a rendezvous of all
// live edges, so that they agree without talking. Where no edge is registered, everyone is.
func appointed(s *registry.State, ref registry.BrokerRef, edge string) bool {
	var best uint64
	winner := ""
	for id, e := range s.Edges {
		if e.Leaving {
			continue
		}
		draw := xxhash.Sum64String(id + "/" + ref.Pool + "/" + ref.Broker)
		if winner == "" || draw > best || draw == best && id < winner {
			best, winner = draw, id
		}
	}
	return winner == "" || winner == edge
}

// walk probes one broker when its patrol says so, until ctx ends.
func (m *monitor) walk(ctx context.Context, g *guard) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m.mu.Lock()
		due := g.patrol.due
		m.mu.Unlock()
		var fire <-chan time.Time // nil: nothing is planned
		if !due.IsZero() {
			timer.Reset(time.Until(due))
			fire = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
			continue
		case <-fire:
		}
		select {
		case <-ctx.Done():
			return
		case m.slots <- struct{}{}:
		}
		m.probe(ctx, g)
		<-m.slots
	}
}

// probe makes one probe and takes in its outcome.
func (m *monitor) probe(ctx context.Context, g *guard) {
	m.mu.Lock()
	g.patrol.begin(time.Now())
	broker, rules := g.broker, g.patrol.rules
	m.mu.Unlock()

	probing, cancel := context.WithTimeout(ctx, rules.Timeout)
	err := m.prober.Probe(probing, g.ref.Pool, broker, rules)
	cancel()
	if ctx.Err() != nil {
		return // we gave up, the broker did not
	}

	now, outcome := time.Now(), Classify(err)
	m.mu.Lock()
	changed := g.patrol.end(outcome, reasonOf(outcome, err), now)
	m.learned(g, changed, now)
	tell := g.patrol.tells(outcome, now)
	m.mu.Unlock()
	if tell {
		m.tell(g.ref)
	}
}

// failed takes in a client's failed dial, or with no error a mere suspicion.
func (m *monitor) failed(ref registry.BrokerRef, err error) {
	now, outcome := time.Now(), Classify(err)
	m.mu.Lock()
	g := m.watched[ref]
	if g == nil || outcome == Unknown {
		m.mu.Unlock()
		return
	}
	if outcome == OK {
		g.patrol.doubt(now, 0)
	} else {
		m.learned(g, g.patrol.dialed(outcome, reasonOf(outcome, err), now), now)
	}
	kick(g.wake)
	tell := g.patrol.tells(outcome, now)
	m.mu.Unlock()
	if tell {
		m.tell(ref)
	}
}

// doubt makes this edge probe a broker soon. mu is held.
func (m *monitor) doubt(ref registry.BrokerRef, now time.Time) {
	if g := m.watched[ref]; g != nil {
		g.patrol.doubt(now, rand.N(doubtWithin))
		kick(g.wake)
	}
}

// learned reports a judgement that changed. mu is held.
func (m *monitor) learned(g *guard, changed bool, now time.Time) {
	if !changed {
		return
	}
	r, _ := g.patrol.det.Report()
	m.log.Info().Str("edge", m.edge).Str("pool", g.ref.Pool).Str("broker", g.ref.Broker).
		Bool("up", r.Up).Str("reason", r.Reason).Msg("broker judged")
	m.restate(now)
}

// restate makes this edge's report anew. mu is held.
func (m *monitor) restate(now time.Time) {
	h := registry.Health{
		Edge: m.edge,
		// It starts at the clock, so that a restarted edge is believed over its former life.
		Seq:     max(m.own.Seq+1, uint64(now.UnixMicro())),
		Brokers: make(map[registry.BrokerRef]registry.Report, len(m.watched)),
	}
	for ref, g := range m.watched {
		if r, judged := g.patrol.det.Report(); judged {
			h.Brokers[ref] = r
		}
	}
	m.own = h
	m.votes.Hear(h, now)
	kick(m.turn)
	kick(m.write)
}
