// Package edge is where clients and brokers meet: a [Server] accepts clients, asks who serves them, and sees to it that each
// is brought home.
//
//	s := edge.New(edge.Config{ID: "e1", Cache: cache, Committer: committer, Dialer: dialer, Resolver: resolver, ...})
//	cache.OnState(s.SetState)
//	cache.OnAffinity(s.AffinityChanged)
//	err := s.Listen(edge.Listener{Config: listen.Config{Transport: "tcp", Address: ":1883"}, Pool: "default"})
//	err = s.Run(ctx) // until ctx ends; then Drain(grace) has had its say
//
// How it works. Package relay runs the sessions, and asks one owner for each (type client) where it goes. The owner looks its key up
// in the cache, lets package router decide, and answers, nearly always without waiting for anybody. After the broker's CONNACK it
// writes the affinity behind the client's back. The [Table] knows all live clients by key, so that a verdict or a changed record
// finds those that it concerns.
//
// What it refuses to do: judge a broker's health (it only tells of failed dials), or decide anything that package router can.
package edge

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// The numbers of a server, together.
const (
	// refreshEvery is how often the live clients are looked over for records that are due. A record has half an hour to spare.
	refreshEvery = 30 * time.Second
	// commitAgain bounds how often one CONNACK's record is fought for before the client is left to the next look-over.
	commitAgain = 8
	// warnEvery is how often what happens to each of many clients is said.
	warnEvery = 10 * time.Second
	// acceptCalm is how long accepting must not have failed to be said to work again: three times the longest pause between two tries,
	// which is package listen's; a loop tries ten times a second.
	acceptCalm = 3 * time.Second
	// drainRate is how many sessions a second a leaving edge ends at least.
	drainRate = 500
)

// Committer writes affinities behind the clients' backs. registry.Committer is one.
type Committer interface {
	// Submit never blocks; done is called once, by a goroutine of the committer's or, where that has ended, by Submit itself.
	Submit(w registry.Write, done func(registry.Result))
}

// Config is what a Server needs. All of it is required but Doubt, Loops, MaxConnections, MaxHeld and LogLost.
type Config struct {
	ID        string
	Cache     *registry.Cache
	Committer Committer
	Resolver  *upstream.Resolver
	Dialer    *upstream.Dialer
	Log       zerolog.Logger
	Metrics   *Metrics
	// Doubt is told of every failed dial, with its error, and with nil of sessions that a broker ended or did not answer. It must not block.
	Doubt func(ref registry.BrokerRef, err error)
	// Loops is the number of epoll loops, for all but QUIC; 0 = as many as their load wants, up to the number of processors. Where there is no epoll it
	// is ignored.
	Loops int
	// MaxConnections bounds the clients; 0 = no bound of ours. Above it connections are closed at accept.
	MaxConnections int
	// MaxHeld bounds what clients without a CONNACK hold of memory together, in bytes; 0 = relay.DefaultBudget.
	MaxHeld int64
	// LogLost is the number of lines that Log had to drop, for the metrics; nil = it drops none.
	LogLost func() uint64
}

// Listener is an address that clients connect to.
type Listener struct {
	listen.Config
	Pool   string
	Limits relay.Limits // Counters, Held, AcceptFailed and Full are set by the server
}

// Server accepts clients and relays them to their brokers.
type Server struct {
	conf  Config
	log   zerolog.Logger
	table *Table
	state atomic.Pointer[registry.State]
	view  atomic.Pointer[router.View]
	loops *loops // nil: this system has none
	own   ownAddresses

	counters relay.Counters
	held     *relay.Budget // what clients of all listeners have sent that have no CONNACK yet
	live     atomic.Int64  // sessions, from accept to Closed
	turns    atomic.Uint64 // clients that brokers have accepted
	draining atomic.Bool   // Drain was called
	leaving  atomic.Bool   // no session is begun any more: draining, or Run ends
	itself   seldom        // warned that a broker is this edge
	full     seldom        // warned that there is no room

	mu        sync.Mutex
	listeners []*listener
	streams   map[*client]struct{} // sessions that no loop runs, and which nobody but us ends
	over      bool                 // Run ends: no task is begun, and streams are stopped

	tasks sync.WaitGroup  // goroutines of ours that ask, wait or resolve
	ctx   context.Context // of Run: ends their waiting
	stop  context.CancelFunc
}

// New makes a server; nothing runs before Run.
func New(conf Config) (*Server, error) {
	s := &Server{conf: conf, log: conf.Log, table: newTable(), held: relay.NewBudget(conf.MaxHeld), streams: map[*client]struct{}{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.state.Store(conf.Cache.State())
	s.view.Store(router.NewView(conf.Cache.State()))
	if relay.Supported {
		var err error
		if s.loops, err = newLoops(s, conf.Loops); err != nil {
			return nil, err
		}
	}
	conf.Resolver.Refuse(s.own.has)
	conf.Metrics.observe(s)
	return s, nil
}

// Listen opens a listener. Its clients wait in the kernel until Run.
func (s *Server) Listen(conf Listener) (*listen.Listener, error) {
	ln := &listener{srv: s, pool: conf.Pool, limits: conf.Limits, leave: map[*relay.Loop]func(){}}
	ln.limits.Counters, ln.limits.Held, ln.limits.AcceptFailed, ln.limits.Full = &s.counters, s.held, ln.acceptFailed, s.Full
	conf.OnReject, conf.OnAcceptError = ln.rejected, ln.acceptFailed
	l, err := listen.Open(conf.Config)
	if err != nil {
		return nil, err
	}
	ln.open, ln.name, ln.transport = l, l.Config().Name, l.Config().Transport
	ln.accepts, ln.sessions = s.conf.Metrics.open(conf.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, ln)
	s.own.add(l.Addr())
	return l, nil
}

// Run serves the listeners until ctx ends, and then closes what Drain has left. It returns when everything that it started has ended.
func (s *Server) Run(ctx context.Context) error {
	var running sync.WaitGroup
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 1)
	fail := func(err error) {
		select {
		case errs <- err: // the first
		default:
		}
		cancel()
	}
	if s.loops != nil {
		s.loops.begin(inner, &running, fail)
	}
	listeners := s.listening()
	for _, ln := range listeners {
		if s.loops != nil && ln.open.RawTCP() != nil {
			if err := s.loops.listen(ln); err != nil && inner.Err() == nil {
				fail(err)
			}
			continue
		}
		running.Go(func() {
			if err := ln.serve(inner); err != nil {
				fail(err)
			}
		})
	}
	if s.loops != nil {
		s.loops.govern()
	}
	running.Go(func() { s.refresh(inner) })
	<-inner.Done()
	s.leaving.Store(true)
	s.stop()
	for _, ln := range listeners {
		ln.close()
	}
	// The loops end their sessions themselves, and those that left them.
	s.mu.Lock()
	s.over = true
	streams := slices.Collect(maps.Keys(s.streams))
	s.mu.Unlock()
	for _, c := range streams {
		c.end(relay.ReasonShutdown)
	}
	running.Wait()
	s.tasks.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// listening are the listeners.
func (s *Server) listening() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners
}

// task runs fn in a goroutine that Run waits for; false if Run does not any more.
func (s *Server) task(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.tasks.Go(fn)
	return true
}

// stream runs a session that no loop runs.
func (s *Server) stream(ln *listener, st relay.Stream, c *client, accepted time.Time) {
	relay.Serve(st, c, &ln.limits, accepted, func(conn relay.Conn) {
		c.ready(conn)
		s.mu.Lock()
		s.streams[c] = struct{}{}
		over := s.over
		s.mu.Unlock()
		if over {
			c.end(relay.ReasonShutdown)
		}
	})
	s.mu.Lock()
	delete(s.streams, c)
	s.mu.Unlock()
}

// ErrDraining is returned by Drain when it is called twice.
var ErrDraining = errors.New("edge: already draining")

// Drain stops accepting and ends all sessions within grace, evenly: everybody at once would be a storm at the other edges.
// It returns when the last one has ended, or when grace or ctx is over.
func (s *Server) Drain(ctx context.Context, grace time.Duration) error {
	if s.draining.Swap(true) {
		return ErrDraining
	}
	s.leaving.Store(true)
	for _, ln := range s.listening() {
		ln.close()
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	var all []*client
	s.table.each(func(c *client) { all = append(all, c) })
	// What the protocol's last words take is left at the end.
	rate := max(drainRate, float64(len(all))/max(grace-relay.DefaultLinger, grace/2).Seconds())
	began := time.Now()
	for i, c := range all {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if wait := time.Until(due); wait > time.Millisecond && !sleep(ctx, wait) {
			break
		}
		c.end(relay.ReasonShutdown)
	}
	for s.table.count() > 0 {
		s.table.each(func(c *client) { c.end(relay.ReasonShutdown) }) // who came while we counted
		if !sleep(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Draining reports whether Drain was called.
func (s *Server) Draining() bool { return s.draining.Load() }

// MostLoops is how many epoll loops there may be at the same time. Each keeps a processor (GOMAXPROCS) while it is busy, and needs two more for all.
func (s *Server) MostLoops() int {
	if s.loops == nil {
		return 0
	}
	return s.loops.governor.most
}

// Live is the number of sessions, from accept to close.
func (s *Server) Live() int { return int(s.live.Load()) }

// Turns is the number of clients that brokers have accepted so far.
func (s *Server) Turns() uint64 { return s.turns.Load() }

// Full reports whether MaxConnections is reached: who comes is turned away.
func (s *Server) Full() bool { return s.conf.MaxConnections > 0 && s.Live() >= s.conf.MaxConnections }

// State is what the server routes by.
func (s *Server) State() *registry.State { return s.state.Load() }

// Session is one live client, for those who ask where somebody is.
type Session struct {
	Broker    registry.BrokerRef
	Accepted  bool // by the broker
	Why       router.Why
	Listener  string
	Transport string
	Client    netip.AddrPort
}

// Sessions are the live clients of a key that have, or are getting, a broker; the newest first.
func (s *Server) Sessions(pool, key string) (all []Session) {
	s.table.find(pool, key, func(c *client) {
		c.mu.Lock()
		defer c.mu.Unlock()
		all = append(all, Session{c.ref(), c.turn != 0, c.why, c.ln.name, c.ln.transport, netip.AddrPortFrom(c.address, c.port)})
	})
	return all
}

// Addresses are where the listeners are reached, by name.
func (s *Server) Addresses() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := make(map[string]string, len(s.listeners))
	for _, ln := range s.listeners {
		at[ln.name] = ln.open.Addr().String()
	}
	return at
}

// SetState makes the server route by st. Clients of brokers that may serve no longer are closed. It is called by one goroutine at a time.
func (s *Server) SetState(st *registry.State) {
	v := router.NewView(st)
	s.state.Store(st)
	s.view.Store(v)
	// Who registers from now on sees the new view after it has registered (client.place): nobody slips through.
	s.table.each(func(c *client) {
		if ref, placed := c.broker(); placed && !v.Serves(ref) {
			reason := relay.ReasonMoved
			if st.Verdicts[ref].State != "" && st.Verdicts[ref].State != registry.BrokerUp {
				reason = relay.ReasonBrokerDown
			}
			c.end(reason)
		}
	})
}

// AffinityChanged tells that the store has another record for a key, or none (no Broker). Live clients of the key that are elsewhere are
// closed: they will come home (no split session).
func (s *Server) AffinityChanged(pool, key string, a registry.Affinity) {
	s.table.find(pool, key, func(c *client) { c.recordChanged(a) })
}

// refresh writes again, before they end, the records of clients that stay connected.
func (s *Server) refresh(ctx context.Context) {
	for sleep(ctx, refreshEvery) {
		now := time.Now()
		s.table.each(func(c *client) { c.refresh(now) })
	}
}

// ciphers are what the sessions of a loop share.
type ciphers struct{ tls13.Cache }

// Adopt implements relay.Shared.
func (c *ciphers) Adopt(l relay.Layer) {
	if r, ok := l.(*tls13.Records); ok {
		r.Bind(&c.Cache)
	}
}

// Part implements relay.Shared.
func (c *ciphers) Part(l relay.Layer) {
	if r, ok := l.(*tls13.Records); ok {
		r.Bind(nil)
	}
}

// listener is one open listener.
type listener struct {
	srv    *Server
	open   *listen.Listener
	limits relay.Limits

	name, transport, pool string
	accepts, sessions     prometheus.Counter

	mu     sync.Mutex
	socket *relay.Socket          // for the loops, once they serve it
	leave  map[*relay.Loop]func() // makes a loop stop accepting
	closed bool

	outage outage // of accept
}

// share makes the listener one for loops.
func (ln *listener) share() (err error) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.closed {
		return nil
	}
	if ln.socket, err = relay.NewSocket(ln.open.RawTCP()); err != nil {
		return err
	}
	ln.open.LetGo()
	return nil
}

// attach makes a loop, which must be running, accept, unless the listener is closed or not one for loops.
func (ln *listener) attach(l *relay.Loop) error {
	ln.mu.Lock() // whoever closes the listener waits for the loop
	defer ln.mu.Unlock()
	if ln.socket == nil {
		return nil
	}
	var leave func()
	var err error
	if ln.open.Config().Transport == listen.TCP {
		leave, err = l.Listen(ln.socket, &ln.limits, ln.accept)
	} else {
		leave, err = l.Open(ln.socket, &ln.limits, ln.open.Door(ln.welcome))
	}
	if err == nil {
		ln.leave[l] = leave
	}
	return err
}

// detach makes a loop stop accepting.
func (ln *listener) detach(l *relay.Loop) {
	ln.mu.Lock()
	leave := ln.leave[l]
	delete(ln.leave, l)
	ln.mu.Unlock()
	if leave != nil {
		leave()
	}
}

// serve accepts in goroutines until ctx ends or the listener is closed.
func (ln *listener) serve(ctx context.Context) error {
	s := ln.srv
	return ln.open.Serve(ctx, func(st relay.Stream, o relay.Origin, accepted time.Time) {
		c := s.admit(ln, o)
		if c == nil {
			st.Close()
			return
		}
		s.stream(ln, st, c, accepted)
	})
}

// accept admits a connection of a loop.
func (ln *listener) accept(peer, local netip.AddrPort) (relay.Owner, bool) {
	o := ln.open.Origin(peer, local)
	c := ln.srv.admit(ln, o)
	if c == nil {
		return nil, false
	}
	return c, ln.open.Trusted(o.Peer.Addr())
}

// welcome admits a connection of a loop that has shaken hands.
func (ln *listener) welcome(o relay.Origin) relay.Owner {
	if c := ln.srv.admit(ln, o); c != nil {
		return c
	}
	return nil
}

// close stops accepting.
func (ln *listener) close() {
	ln.mu.Lock()
	leave, socket := ln.leave, ln.socket
	ln.closed, ln.leave, ln.socket = true, nil, nil
	ln.mu.Unlock()
	for _, f := range leave {
		f()
	}
	if socket != nil {
		socket.Close()
	}
	ln.open.Close()
}

func (ln *listener) rejected(o relay.Origin, r listen.Reason, err error) {
	ln.srv.conf.Metrics.rejected(o.Listener, string(r))
	ln.srv.log.Info().Str("edge", ln.srv.conf.ID).Str("listener", o.Listener).Str("transport", o.Transport).Stringer("client_address", o.Client).Str("reason", string(r)).
		Str("error", printable(err.Error())).Msg("rejected before MQTT")
}
