package failover

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/rs/zerolog"
)

// A Prober tests one broker once, as p (resolved) says and no longer than ctx lasts. It returns nil if the broker serves.
// An error that wraps ECONNREFUSED says that its host refuses.
type Prober interface {
	Probe(ctx context.Context, pool string, b *registry.Broker, p registry.Probe) error
}

// A Source is where the mesh's State comes from: an edge's registry.Cache.
type Source interface {
	// State is the newest State.
	State() *registry.State
	// OnState has fn called with each new State, in order. fn does not block.
	OnState(fn func(*registry.State))
	// Status tells, by Listed and Age, whether the State keeps up with the store.
	Status() registry.CacheStatus
}

// Config is what an Agent needs. All but Bus, Settle and Concurrency is required.
type Config struct {
	Edge   registry.Edge // this edge's registration; zero Started = now
	Store  registry.Store
	Source Source
	Prober Prober
	Bus    registry.Bus // nil = none: everything waits for the store
	Log    zerolog.Logger

	// Settle is how long this edge's State must have been current before it writes, as the leader, that a broker is down,
	// or takes another edge's silence for an answer. 0 = registry.SessionTTL, in which every living edge is back; negative = none.
	Settle time.Duration
	// Concurrency bounds the probes under way; 0 = 64.
	Concurrency int
}

func (c *Config) settle() time.Duration {
	if c.Settle == 0 {
		return registry.SessionTTL
	}
	return max(c.Settle, 0)
}

func (c *Config) concurrency() int {
	if c.Concurrency > 0 {
		return c.Concurrency
	}
	return defaultConcurrency
}

// An Agent is an edge's part in failover. Its methods may be called from any goroutine.
type Agent struct {
	conf Config
	mon  *monitor

	registered atomic.Bool
	apart      atomic.Pointer[error] // why this edge could not join last, nil once it has
}

// New returns an Agent that does nothing before Run.
func New(c Config) *Agent {
	if c.Edge.Started.IsZero() {
		c.Edge.Started = time.Now()
	}
	return &Agent{conf: c, mon: newMonitor(c)}
}

// OnChange has fn called after Overlay's answer changed by itself, without a new State. fn must not block. Before Run, once.
func (a *Agent) OnChange(fn func()) { a.mon.changed = fn }

// Overlay returns the State that routing should use in place of s, the Source's: s itself, except that while the store is away (and
// a moment longer) verdicts of this edge's own may replace stored ones. Theirs is Revision 0, so that no guarded write can rest on
// them where the store knows better.
func (a *Agent) Overlay(s *registry.State) *registry.State { return a.mon.overlay(s) }

// Doubt says that something is wrong with a broker, so that it is probed at once. err is that of a failed dial: it counts as a
// failure, and makes every edge of the mesh probe the broker. Without one (a connection was reset, a CONNECT refused: what
// strangers can cause) only this edge looks.
func (a *Agent) Doubt(ref registry.BrokerRef, err error) { a.mon.failed(ref, err) }

// Run joins the mesh, watches its brokers and leads it when elected, until ctx ends; then it leaves in order. It returns
// nil, after all that it started has ended. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	a.conf.Source.OnState(a.mon.observe)
	var wg sync.WaitGroup
	wg.Go(func() { a.attend(ctx) })
	a.mon.run(ctx)
	wg.Wait()
	return nil
}

// attend keeps this edge registered.
func (a *Agent) attend(ctx context.Context) {
	log := a.conf.Log.With().Str("edge", a.conf.Edge.ID).Logger()
	var told time.Time // when the log was told last why not
	for wait := retryMin; ; {
		joining, cancel := context.WithTimeout(ctx, joinTimeout)
		session, err := a.conf.Store.Join(joining, a.conf.Edge)
		cancel()
		if err == nil {
			log.Info().Msg("joined the mesh")
			wait, told = retryMin, time.Time{}
			a.apart.Store(nil)
			a.serve(ctx, session)
			if ctx.Err() == nil {
				log.Warn().Msg("session lost, joining again")
			}
		} else if ctx.Err() == nil {
			a.apart.Store(&err)
			level := zerolog.DebugLevel // of a store that is away the watch tells
			if now := time.Now(); !errors.Is(err, registry.ErrUnavailable) && (told.IsZero() || now.Sub(told) >= tellApart) {
				level, told = zerolog.WarnLevel, now
			}
			log.WithLevel(level).Err(err).Msg("not registered in the mesh: this edge serves, but has no voice in what is down")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2)):
			wait = min(2*wait, retryMax)
		}
	}
}

// serve uses one session for as long as it lasts.
func (a *Agent) serve(ctx context.Context, session registry.Session) {
	term, end := context.WithCancel(ctx)
	var campaign sync.WaitGroup
	campaign.Go(func() { leader{mon: a.mon}.run(term, session) })
	a.mon.attach(session)
	a.registered.Store(true)
	select {
	case <-ctx.Done():
	case <-session.Lost():
	}
	a.registered.Store(false)
	a.mon.attach(nil)
	end()
	campaign.Wait()
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := session.Close(leaving); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.conf.Log.Debug().Err(err).Str("edge", a.conf.Edge.ID).Msg("session not closed in order")
	}
}

// Status is what an Agent knows, for people and readiness checks.
type Status struct {
	Current    bool  // the store is in reach
	Registered bool  // this edge has a session
	Apart      error // why it could not get one last: another edge has its id, the store is away; nil with a session
	Leader     bool  // this edge leads, as far as its State shows
	Brokers    []BrokerStatus
}

// BrokerStatus is what this edge knows of one broker. Brokers that are never probed are not listed.
type BrokerStatus struct {
	Ref     registry.BrokerRef
	Judged  bool            // this edge has a judgement: Report
	Report  registry.Report // this edge's
	Settled bool            // nothing observed lately speaks against Report
	Duty    bool            // this edge probes it although nothing is wrong
	Verdict registry.Verdict
	Local   bool // Verdict is this edge's own, made without the store
}

// Status returns the present state, brokers in order.
func (a *Agent) Status() Status {
	m := a.mon
	m.mu.Lock()
	defer m.mu.Unlock()
	st := Status{Current: m.current, Registered: a.registered.Load()}
	if err := a.apart.Load(); err != nil {
		st.Apart = *err
	}
	if m.state == nil {
		return st
	}
	st.Leader = st.Registered && m.state.Leader == m.edge
	for ref, g := range m.watched {
		b := BrokerStatus{Ref: ref, Settled: g.patrol.det.Settled(), Duty: g.patrol.duty, Verdict: m.state.Verdicts[ref]}
		b.Report, b.Judged = g.patrol.det.Report()
		if l, ok := m.local[ref]; ok {
			b.Verdict, b.Local = l.verdict, true
		}
		st.Brokers = append(st.Brokers, b)
	}
	slices.SortFunc(st.Brokers, func(a, b BrokerStatus) int {
		return cmp.Or(cmp.Compare(a.Ref.Pool, b.Ref.Pool), cmp.Compare(a.Ref.Broker, b.Ref.Broker))
	})
	return st
}
