package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// client is one session as the edge sees it: the relay's Owner.
//
// The lock order is client.mu, then the table's or the server's. Nobody else is called under client.mu who could call back: what is decided under it for the
// committer and for the relay is carried out by unlock.
type client struct {
	srv          *Server
	ln           *listener
	origin       relay.Origin
	older, newer *client // of the same key, in the table; guarded by the table's shard

	mu        sync.Mutex
	conn      relay.Conn
	key       tableKey
	version   mqtt.Version
	expiry    time.Duration // of the session: registry.ExpiryMQTT3, ExpiryMQTT5
	assigned  bool          // the client brought no ID: the broker makes one
	named     bool          // and it has told us
	avoid     []string      // brokers that failed
	again     bool          // the broker hung up on the CONNECT once already
	trouble   *trouble      // with the last of them; nil = none
	at        registry.BrokerRef
	why       router.Why
	record    registry.Affinity // what is recorded of the key, as far as this session knows
	guard     routeGuard
	inTable   bool
	accepted  bool
	turn      uint64 // among all that this edge's brokers have accepted; 0 = not yet
	closed    bool
	gone      bool // the broker has ended it; its client may still be reading
	ended     bool // we have stopped it
	renew     bool // the broker made the session anew: the record is written whatever it says
	writing   bool // a write is under way: the watch's word is left to its outcome
	missed    bool // and there was one
	tries     uint8
	refreshAt time.Time

	// What unlock does.
	write *registry.Write
	stop  relay.Reason
}

// unlock lets go of mu and then does what was decided under it.
func (c *client) unlock() {
	w, stop, conn := c.write, c.stop, c.conn
	c.write, c.stop = nil, relay.ReasonNone
	c.mu.Unlock()
	if w != nil {
		c.srv.conf.Committer.Submit(*w, func(r registry.Result) { c.committed(w, r) })
	}
	if stop != relay.ReasonNone {
		conn.Stop(stop)
	}
}

// routeGuard is what a replacement of the record rests on.
type routeGuard struct {
	replace bool
	facts   []registry.Fact
}

// admit begins a session, or returns nil if there are too many.
func (s *Server) admit(ln *listener, o relay.Origin) *client {
	n := s.live.Add(1)
	reason := relay.ReasonNone
	switch {
	case s.leaving.Load():
		reason = relay.ReasonShutdown
	case s.conf.MaxConnections > 0 && n > int64(s.conf.MaxConnections):
		reason = relay.ReasonOverload
		if s.full.now() {
			s.log.Warn().Int("most", s.conf.MaxConnections).Str("listener", o.Listener).Msg("no room for another client: turned away")
		}
	}
	if reason != relay.ReasonNone {
		s.live.Add(-1)
		s.conf.Metrics.rejected(o.Listener, reason.String())
		return nil
	}
	s.conf.Metrics.accepted(o.Listener)
	return &client{srv: s, ln: ln, origin: o}
}

// ready gives the session's handle before its first event.
func (c *client) ready(conn relay.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
}

// end stops the session for a reason of ours.
func (c *client) end(r relay.Reason) {
	c.mu.Lock()
	defer c.unlock()
	c.stopFor(r)
}

// stopFor has unlock stop the session, once. Called with mu held.
func (c *client) stopFor(r relay.Reason) {
	if c.ended || c.closed || c.conn == nil {
		return
	}
	c.ended, c.stop = true, r
	if r == relay.ReasonMoved {
		c.srv.conf.Metrics.moved()
	}
}

// broker is where the session is, or is going.
func (c *client) broker() (ref registry.BrokerRef, placed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at, c.at.Broker != ""
}

// Preamble implements relay.Owner: a PROXY header of a trusted peer.
func (c *client) Preamble(b []byte) (int, error) {
	n, h, err := listen.ParseProxy(b)
	if err == listen.ErrShort {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	h.Apply(&c.origin)
	return n, nil
}

// Route implements relay.Owner.
func (c *client) Route(conn relay.Conn, q relay.Query) (relay.Answer, bool) {
	c.mu.Lock()
	c.conn = conn
	local := false
	if q.Attempt == 0 {
		c.read(q.Connect)
	} else {
		local = c.failed(q)
		c.unplace() // until there is another broker
	}
	pool, key := c.key.pool, c.key.key
	c.mu.Unlock()
	if local {
		return relay.Answer{Reason: relay.ReasonOverload, Code: mqtt.ServerBusy}, true
	}

	s := c.srv
	record, from, ok := s.conf.Cache.TryResolve(pool, key)
	if ok {
		s.conf.Metrics.resolved(from)
		if a, done := c.answer(record); done {
			return a, true
		}
	}
	return c.think(conn, record, ok)
}

// think answers later: something has to be waited for, the store's word (unless it is known) or a broker's address.
func (c *client) think(conn relay.Conn, record registry.Affinity, known bool) (relay.Answer, bool) {
	s := c.srv
	begun := s.task(func() {
		if !known {
			var from registry.Source
			record, from = s.conf.Cache.Resolve(s.ctx, c.key.pool, c.key.key)
			s.conf.Metrics.resolved(from)
		}
		for {
			a, done := c.answer(record)
			if done {
				conn.Answer(a)
				return
			}
			c.resolve()
		}
	})
	if !begun {
		return shuttingDown, true
	}
	return relay.Answer{}, false
}

// shuttingDown refuses who comes while the edge leaves.
var shuttingDown = relay.Answer{Reason: relay.ReasonShutdown, Code: mqtt.ServerUnavailable}

// read takes what matters from the CONNECT.
func (c *client) read(k *mqtt.Connect) {
	c.version = k.Version
	c.key = tableKey{c.ln.pool, string(k.ClientID)}
	if len(k.ClientID) == 0 {
		// The broker will make an ID up [MQTT-3.1.3-6]. Until then the client is nobody: placed at random, by weight.
		c.assigned = true
		var b [16]byte
		rand.Read(b[:])
		c.key.key = hex.EncodeToString(b[:])
	}
	if k.Version == mqtt.V5 {
		c.expiry = registry.ExpiryMQTT5(k.SessionExpiry)
	} else {
		c.expiry = registry.ExpiryMQTT3(k.CleanStart)
	}
}

// failed notes that the broker chosen last could not be had; local: for a reason of this host's, which says nothing about any broker.
// Called with mu held.
func (c *client) failed(q relay.Query) (local bool) {
	ref := c.at
	if q.Cause == relay.CauseClosed && !c.again {
		// Some brokers hang up on the CONNECT that takes a session over, and accept the next one.
		c.again = true
		return false
	}
	c.avoid = append(c.avoid, ref.Broker)
	if q.Cause != relay.CauseDial {
		c.trouble = &trouble{reason: relay.ReasonBrokerClosed, broker: ref.Broker, err: errHungUp}
		return false
	}
	return c.unreached(ref, q.Err)
}

// unreached tells everybody who may want to know that a broker could not be reached. Called with mu held.
func (c *client) unreached(ref registry.BrokerRef, err error) (local bool) {
	s, reason := c.srv, upstream.Reason(err)
	var b *registry.Broker
	if p := s.view.Load().Pool(ref.Pool); p != nil {
		b = p.Broker(ref.Broker)
	}
	c.trouble = &trouble{reason: relay.ReasonDialFailed, broker: ref.Broker, err: err}
	if b != nil {
		c.trouble.address = b.Address
	}
	s.conf.Metrics.dialFailed(ref, reason)
	switch reason {
	case upstream.ReasonLocal:
		return true
	case upstream.ReasonSelf:
		if s.itself.now() {
			s.log.Error().Str("pool", ref.Pool).Str("broker", ref.Broker).Err(err).Msg("the address of a broker is a listener of this edge: nobody is sent there")
		}
	}
	if b != nil {
		s.conf.Resolver.Doubt(b)
	}
	if s.conf.Doubt != nil {
		s.conf.Doubt(ref, err)
	}
	return false
}

// trouble is why a broker could not be had.
type trouble struct {
	reason  relay.Reason
	broker  string
	address string
	err     error
}

var errHungUp = errors.New("it hung up on the CONNECT, twice")

// orNoBroker is the reason to refuse a client for whom there is no other broker; t may be nil.
func (t *trouble) orNoBroker() relay.Reason {
	if t == nil {
		return relay.ReasonNoBroker
	}
	return t.reason
}

// String names the broker and what was wrong.
func (t *trouble) String() string {
	s := t.err.Error()
	if strings.HasPrefix(s, "broker ") { // the dialer's, which knows every address
		return s
	}
	if t.address == "" {
		return fmt.Sprintf("broker %s: %s", t.broker, s)
	}
	return fmt.Sprintf("broker %s at %s: %s", t.broker, t.address, s)
}

// answer decides where the session goes; done false: the broker's name has no address yet.
func (c *client) answer(record registry.Affinity) (a relay.Answer, done bool) {
	s := c.srv
	for {
		v := s.view.Load()
		c.mu.Lock()
		d := v.Route(router.Query{Pool: c.key.pool, Key: c.key.key, Record: record, Avoid: c.avoid})
		if d.Broker == nil {
			c.unplace()
			reason := c.trouble.orNoBroker()
			c.mu.Unlock()
			s.conf.Metrics.refused(d.Refusal)
			if d.Refusal == router.RefusalAwaitHome {
				return relay.Answer{Reason: relay.ReasonAwaitHome, Code: mqtt.ServerUnavailable}, true
			}
			return relay.Answer{Reason: reason, Code: mqtt.ServerUnavailable}, true
		}
		t := &relay.Target{DialTimeout: d.Pool.DialDeadline(), Timeout: d.Pool.ConnectDeadline()}
		if !c.aim(t, d.Broker) {
			c.at = registry.BrokerRef{Pool: d.Pool.Name, Broker: d.Broker.ID}
			c.mu.Unlock()
			return relay.Answer{}, false
		}
		c.place(d, record)
		c.mu.Unlock()
		// What happened before we could be found in the table nobody has told us.
		if s.leaving.Load() {
			return shuttingDown, true
		}
		if now := s.view.Load(); now == v || now.Serves(registry.BrokerRef{Pool: d.Pool.Name, Broker: d.Broker.ID}) {
			s.conf.Metrics.routed(d.Why)
			return relay.Answer{Target: t}, true
		}
	}
}

// aim says how the broker is reached; false: its name must be resolved first.
func (c *client) aim(t *relay.Target, b *registry.Broker) bool {
	if b.Over() == registry.TransportTCP {
		addrs, ok := c.srv.conf.Resolver.Lookup(b)
		if !ok {
			return false
		}
		t.Addrs, t.Prelude = addrs, upstream.AppendProxy(nil, b.Proxy, &c.origin)
		return true
	}
	header := upstream.AppendProxy(nil, b.Proxy, &c.origin)
	dialer := c.srv.conf.Dialer
	t.Dial = func(ctx context.Context) (relay.Stream, error) { return dialer.Dial(ctx, b, header) }
	t.Join = func(ctx context.Context) (relay.Wrapped, error) { return dialer.Join(ctx, b, header) }
	return true
}

// resolve waits for the address of the broker that was chosen; if there is none, the broker is passed over.
func (c *client) resolve() {
	c.mu.Lock()
	ref := c.at
	c.mu.Unlock()
	s := c.srv
	p := s.view.Load().Pool(ref.Pool)
	if p == nil {
		return
	}
	b := p.Broker(ref.Broker)
	if b == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, p.DialDeadline())
	defer cancel()
	if _, err := s.conf.Resolver.Resolve(ctx, b); err != nil {
		c.mu.Lock()
		c.failed(relay.Query{Cause: relay.CauseDial, Err: err})
		c.mu.Unlock()
	}
}

// place notes where the session goes, and enters it into the table. Called with mu held.
func (c *client) place(d router.Decision, record registry.Affinity) {
	c.at, c.why, c.record = registry.BrokerRef{Pool: d.Pool.Name, Broker: d.Broker.ID}, d.Why, record
	c.guard = routeGuard{d.Replace, d.Facts}
	if !c.inTable && !c.closed {
		c.inTable = true
		c.srv.table.add(c, c.key)
	}
}

// unplace takes the session out of the table. Called with mu held.
func (c *client) unplace() {
	c.at = registry.BrokerRef{}
	if c.inTable {
		c.inTable = false
		c.srv.table.remove(c, c.key)
	}
}

// over reports whether nothing lives at the broker any more: the record, and who has it, is no business of this session's from then on, except that a
// write which is under way comes to its end. Called with mu held.
func (c *client) over() bool { return c.closed || c.gone || c.ended }

// BrokerEnded implements relay.Owner. The client may take a while to hear of it; nobody counts it as live meanwhile.
func (c *client) BrokerEnded(relay.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.depart()
}

// depart takes the session out of the table for good. Called with mu held.
func (c *client) depart() {
	at := c.at
	c.unplace()
	c.at = at // writes that are under way still ask
}

// Closed implements relay.Owner.
func (c *client) Closed(sum relay.Summary) {
	c.mu.Lock()
	at, why := c.at, c.why
	c.closed = true
	c.depart()
	if sum.Dial != nil {
		c.unreached(at, sum.Dial)
	}
	if sum.Detail == "" && sum.Connack == 0 && c.trouble != nil {
		sum.Detail = c.trouble.String()
	}
	c.mu.Unlock()
	s := c.srv
	s.live.Add(-1)
	s.conf.Metrics.closed(sum)
	switch sum.Reason {
	case relay.ReasonBrokerClosed, relay.ReasonBrokerTimeout, relay.ReasonConnackTimeout, relay.ReasonBrokerProtocol:
		// It proves nothing, since strangers can provoke it, but is reason to look.
		if s.conf.Doubt != nil && at.Broker != "" {
			s.conf.Doubt(at, nil)
		}
	}
	c.log(sum, at, why)
}
