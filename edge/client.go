package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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
type client struct {
	srv    *Server
	ln     *listener
	origin relay.Origin
	next   *client // in the table's chain; guarded by the table's shard

	mu        sync.Mutex
	conn      relay.Conn
	key       tableKey
	version   mqtt.Version
	expiry    time.Duration // of the session: registry.ExpiryMQTT3, ExpiryMQTT5
	assigned  bool          // the client brought no ID: the broker makes one
	avoid     []string      // brokers that failed
	again     bool          // the broker hung up on the CONNECT once already
	at        registry.BrokerRef
	why       router.Why
	record    registry.Affinity // what is recorded of the key, as far as this session knows
	guard     routeGuard
	inTable   bool
	accepted  bool
	closed    bool
	writing   int // writes under way; while there are, the watch's word is left to their outcome
	tries     int
	refreshAt time.Time
}

// routeGuard is what a replacement of the record rests on.
type routeGuard struct {
	replace bool
	facts   []registry.Fact
}

// admit begins a session, or returns nil if there are too many.
func (s *Server) admit(ln *listener, o relay.Origin) *client {
	n := s.live.Add(1)
	if s.conf.MaxConnections > 0 && n > int64(s.conf.MaxConnections) || s.draining.Load() {
		s.live.Add(-1)
		s.conf.Metrics.rejected(o.Listener, relay.ReasonOverload.String())
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
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.Stop(r)
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
	if q.Attempt == 0 {
		c.read(q.Connect)
	} else {
		c.failed(q)
	}
	pool, key := c.key.pool, c.key.key
	c.mu.Unlock()

	s := c.srv
	record, from, ok := s.conf.Cache.TryResolve(pool, key)
	if ok {
		s.conf.Metrics.resolved(from)
		if a, done := c.answer(record); done {
			return a, true
		}
	}
	// Something has to be waited for: the store's word, or a broker's address.
	s.tasks.Go(func() {
		if !ok {
			record, from = s.conf.Cache.Resolve(s.ctx, pool, key)
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
	return relay.Answer{}, false
}

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

// failed notes that the broker chosen last could not be had.
func (c *client) failed(q relay.Query) {
	s, ref := c.srv, c.at
	if q.Cause == relay.CauseClosed && !c.again {
		// Some brokers hang up on the CONNECT that takes a session over, and accept the next one.
		c.again = true
		return
	}
	c.avoid = append(c.avoid, ref.Broker)
	if q.Cause != relay.CauseDial {
		return
	}
	s.conf.Metrics.dialFailed(ref, upstream.Reason(q.Err))
	if p := s.view.Load().Pool(ref.Pool); p != nil {
		if b := p.Broker(ref.Broker); b != nil {
			s.conf.Resolver.Doubt(b)
		}
	}
	if s.conf.Doubt != nil {
		s.conf.Doubt(ref, q.Err)
	}
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
			c.mu.Unlock()
			s.conf.Metrics.refused(d.Refusal)
			if d.Refusal == router.RefusalAwaitHome {
				return relay.Answer{Reason: relay.ReasonAwaitHome, Code: mqtt.ServerUnavailable}, true
			}
			return relay.Answer{Reason: relay.ReasonNoBroker, Code: mqtt.ServerUnavailable}, true
		}
		t := &relay.Target{DialTimeout: d.Pool.DialDeadline(), Timeout: d.Pool.ConnectDeadline()}
		if !c.aim(t, d.Broker) {
			c.at = registry.BrokerRef{Pool: d.Pool.Name, Broker: d.Broker.ID}
			c.mu.Unlock()
			return relay.Answer{}, false
		}
		c.place(d, record)
		c.mu.Unlock()
		// The view may have changed before we could be found in the table: then nobody told us.
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

// Closed implements relay.Owner.
func (c *client) Closed(sum relay.Summary) {
	c.mu.Lock()
	at, why := c.at, c.why
	c.closed = true
	c.unplace()
	c.mu.Unlock()
	s := c.srv
	s.live.Add(-1)
	s.conf.Metrics.closed(sum)
	switch sum.Reason {
	case relay.ReasonBrokerClosed, relay.ReasonConnackTimeout, relay.ReasonBrokerProtocol:
		// It proves nothing, since strangers can provoke it, but is reason to look.
		if s.conf.Doubt != nil && at.Broker != "" {
			s.conf.Doubt(at, nil)
		}
	}
	c.log(sum, at, why)
}
