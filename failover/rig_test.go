package failover

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/rs/zerolog"
)

// rig is a mesh of agents on one store and one bus, in the fake time of a bubble.
type rig struct {
	t     *testing.T
	store *registry.Memory
	hub   *registry.MemoryBus
	edges map[string]*edge

	rehome time.Duration // the pool's

	mu      sync.Mutex
	brokers map[string]string    // what every edge meets at a broker: "" serves, "refuses", "hangs", "flaps"
	cut     map[[2]string]string // the same for one edge and one broker
	probes  map[[2]string]int    // so far, by edge and broker
	under   int                  // way now
	most    int                  // ever under way

	verdicts map[string]registry.Verdict // as stored, by broker
}

// edge is one agent and its links, each of which can be cut.
type edge struct {
	id     string
	rig    *rig
	agent  *Agent
	client registry.Store
	source *registry.Cache
	bus    *link
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	away    bool     // the store is out of its reach
	session *session // the newest
	changes int      // of the overlay
	deposed int      // how many verdicts it will still write in vain
}

const rehome = 5 * time.Second

// newRig starts a mesh of one pool "p" with brokers b1 and b2.
func newRig(t *testing.T, change func(*registry.Pool), ids ...string) *rig {
	t.Helper()
	r := &rig{
		t: t, store: registry.NewMemory(), hub: registry.NewMemoryBus(), edges: map[string]*edge{},
		brokers: map[string]string{}, cut: map[[2]string]string{}, probes: map[[2]string]int{},
		verdicts: map[string]registry.Verdict{},
	}
	var recorder sync.WaitGroup
	recorder.Go(func() { r.record(t.Context()) })
	t.Cleanup(func() {
		for _, e := range r.edges {
			e.leave()
		}
		r.store.Close()
		recorder.Wait()
	})
	p := &registry.Pool{Name: "p", RehomeAfter: rehome, Brokers: []registry.Broker{{ID: "b1", Address: "b1:1883"}, {ID: "b2", Address: "b2:1883"}}}
	if change != nil {
		change(p)
	}
	r.rehome = p.RehomeDelay()
	if err := r.store.PutPool(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		r.start(id)
	}
	return r
}

// start starts an edge.
func (r *rig) start(id string) *edge {
	e := &edge{id: id, rig: r, client: r.store.Client(), bus: &link{Bus: r.hub.Bus(id)}, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	store := shaky{e.client, e}
	e.source = registry.NewCache(registry.CacheConfig{Store: store, Bus: e.bus})
	e.agent = New(Config{
		Edge: registry.Edge{ID: id}, Source: e.source, Prober: prober{r, id},
		Store: store, Bus: e.bus, Log: zerolog.Nop(), Concurrency: 4,
	})
	e.agent.OnChange(func() {
		e.mu.Lock()
		e.changes++
		e.mu.Unlock()
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.source.Run(ctx); err != nil {
			r.t.Errorf("%s: cache: %v", id, err)
		}
	})
	wg.Go(func() {
		if err := e.agent.Run(ctx); err != nil {
			r.t.Errorf("%s: Run: %v", id, err)
		}
	})
	go func() { wg.Wait(); e.bus.Close(); e.client.Close(); close(e.done) }()
	r.edges[id] = e
	return e
}

// leave ends an edge in order.
func (e *edge) leave() {
	e.stop()
	<-e.done
}

// crash ends an edge without a farewell: its session stands until its TTL.
func (e *edge) crash() {
	e.client.Close()
	e.bus.set(true)
	e.leave()
}

// storeAway takes the store from all edges, or gives it back.
func (r *rig) storeAway(away bool) {
	for _, e := range r.edges {
		e.storeAway(away)
	}
}

func (e *edge) storeAway(away bool) {
	e.mu.Lock()
	e.away = away
	e.mu.Unlock()
}

// reach is the error of a call to the store.
func (e *edge) reach() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.away {
		return registry.ErrUnavailable
	}
	return nil
}

// broker changes what every edge meets at a broker.
func (r *rig) broker(id, does string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.brokers[id] = does
}

// between changes what one edge meets at a broker.
func (r *rig) between(edge, broker, does string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut[[2]string{edge, broker}] = does
}

func (r *rig) probed(edge, broker string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.probes[[2]string{edge, broker}]
}

// record follows the store's verdicts, and expects that each follows its predecessor as drawn at Ballot.Decide.
func (r *rig) record(ctx context.Context) {
	_ = r.store.Watch(ctx, 0, func(b registry.Batch) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range b.Changes {
			if c.Kind != registry.KindVerdict {
				continue
			}
			if was := r.verdicts[c.Name]; !c.Deleted && !r.follows(c.Verdict, was) {
				r.t.Errorf("%s: %+v follows %+v", c.Name, c.Verdict, was)
			}
			r.verdicts[c.Name] = c.Verdict // the zero one if deleted
		}
		return nil
	})
}

func (r *rig) follows(is, was registry.Verdict) bool {
	switch is.State {
	case registry.BrokerDown:
		return !isDown(was)
	case registry.BrokerLost:
		return was.State == registry.BrokerDown && is.Since.Sub(was.Since) >= r.rehome
	case registry.BrokerUp:
		return isDown(was)
	}
	return false
}

// verdict is the stored verdict on a broker.
func (r *rig) verdict(broker string) registry.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.verdicts[broker]
}

// routed is the verdict that an edge routes by.
func (e *edge) routed(broker string) registry.BrokerState {
	v := e.agent.Overlay(e.source.State()).Verdicts[registry.BrokerRef{Pool: "p", Broker: broker}]
	if v.State == "" {
		return registry.BrokerUp
	}
	return v.State
}

// pass lets time pass, and everything that happens in it happen.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// until lets time pass until cond holds, at most so long, and returns how long it took.
func (r *rig) until(most time.Duration, what string, cond func() bool) time.Duration {
	r.t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) >= most {
			r.t.Fatalf("not after %v: %s\n%s", most, what, r)
		}
		r.pass(10 * time.Millisecond)
	}
	return time.Since(start)
}

// is lets time pass until a stored verdict says so.
func (r *rig) is(broker string, want registry.BrokerState, most time.Duration) time.Duration {
	r.t.Helper()
	return r.until(most, fmt.Sprintf("verdict %s on %s", want, broker), func() bool { return r.verdict(broker).State == want })
}

// stays lets time pass and expects that no verdict on a broker changes meanwhile.
func (r *rig) stays(broker string, d time.Duration) {
	r.t.Helper()
	was := r.verdict(broker)
	for range int(d / (100 * time.Millisecond)) {
		r.pass(100 * time.Millisecond)
		if is := r.verdict(broker); is != was {
			r.t.Fatalf("the verdict on %s changed from %+v to %+v\n%s", broker, was, is, r)
		}
	}
}

func (r *rig) leader() *edge {
	for _, e := range r.edges {
		if e.agent.Status().Leader {
			return e
		}
	}
	return nil
}

// settled lets the mesh start: every edge registered, one leads, and it has waited long enough.
func (r *rig) settled() {
	r.t.Helper()
	r.pass(registry.SessionTTL + 5*time.Second)
	if r.leader() == nil {
		r.t.Fatalf("nobody leads\n%s", r)
	}
}

// String is what everybody sees.
func (r *rig) String() string {
	s := ""
	for id, e := range r.edges {
		s += fmt.Sprintf("%s: %+v\n", id, e.agent.Status())
	}
	return s
}

// prober is an edge's Prober.
type prober struct {
	rig  *rig
	edge string
}

var errRefused = fmt.Errorf("dial: %w", syscall.ECONNREFUSED)

func (p prober) Probe(ctx context.Context, _ string, b *registry.Broker, _ registry.Probe) error {
	r, pair := p.rig, [2]string{p.edge, b.ID}
	r.mu.Lock()
	r.probes[pair]++
	n := r.probes[pair]
	does := r.brokers[b.ID]
	if own, ok := r.cut[pair]; ok {
		does = own
	}
	r.under++
	r.most = max(r.most, r.under)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.under--
		r.mu.Unlock()
	}()
	switch {
	case does == "refuses":
		return errRefused
	case does == "hangs", does == "flaps" && n%2 == 0:
		<-ctx.Done()
		return ctx.Err()
	}
	select { // it takes a moment
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// shaky is a store that may be out of its edge's reach.
type shaky struct {
	registry.Store
	edge *edge
}

func (s shaky) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	if err := s.edge.reach(); err != nil {
		return err
	}
	return s.Store.Watch(ctx, from, func(b registry.Batch) error {
		if err := s.edge.reach(); err != nil {
			return err
		}
		return fn(b)
	})
}

func (s shaky) Join(ctx context.Context, e registry.Edge) (registry.Session, error) {
	if err := s.edge.reach(); err != nil {
		return nil, err
	}
	inner, err := s.Store.Join(ctx, e)
	if err != nil {
		return nil, err
	}
	ses := &session{Session: inner, edge: s.edge, lost: make(chan struct{})}
	s.edge.mu.Lock()
	defer s.edge.mu.Unlock()
	s.edge.session = ses
	return ses, nil
}

type session struct {
	registry.Session
	edge *edge
	lost chan struct{} // closed by a test
}

func (s *session) Lost() <-chan struct{} { return s.lost }

func (s *session) Report(ctx context.Context, h registry.Health) error {
	if err := s.edge.reach(); err != nil {
		return err
	}
	return s.Session.Report(ctx, h)
}

func (s *session) Campaign(ctx context.Context) (registry.Leadership, error) {
	lead, err := s.Session.Campaign(ctx)
	return leadership{lead, s.edge}, err
}

type leadership struct {
	registry.Leadership
	edge *edge
}

func (l leadership) PutVerdict(ctx context.Context, ref registry.BrokerRef, v registry.Verdict) error {
	if err := l.edge.reach(); err != nil {
		return err
	}
	l.edge.mu.Lock()
	deposed := l.edge.deposed > 0
	if deposed {
		l.edge.deposed--
	}
	l.edge.mu.Unlock()
	if deposed {
		return fmt.Errorf("put: %w", registry.ErrNotLeader)
	}
	return l.Leadership.PutVerdict(ctx, ref, v)
}

// link is an edge's end of the bus.
type link struct {
	registry.Bus
	mu  sync.Mutex
	cut bool
}

func (l *link) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

func (l *link) Connected() bool { return !l.isCut() && l.Bus.Connected() }

func (l *link) Publish(m registry.Message) error {
	if l.isCut() {
		return registry.ErrUnavailable
	}
	return l.Bus.Publish(m)
}

func (l *link) Subscribe(fn func(registry.Message)) (func(), error) {
	return l.Bus.Subscribe(func(m registry.Message) {
		if !l.isCut() {
			fn(m)
		}
	})
}

func (e *edge) newest() *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session
}

func (e *edge) changed() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changes
}
