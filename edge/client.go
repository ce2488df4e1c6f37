package edge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
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

// client is one session as the edge sees it: the relay's Owner. There are as many as there are connections, so it holds what hours of relaying need;
// the rest is in approach, which is there for moments.
//
// The lock order is client.mu, then the table's or the server's. Nobody else is called under client.mu who could call back: what is decided under it for the
// committer and for the relay is carried out by unlock.
type client struct {
	ln           *listener
	older, newer *client // of the same key, in the table; guarded by the table's shard

	mu       sync.Mutex
	conn     relay.Conn
	approach *approach       // nil while there is nothing to do
	key      string          // changes only while we are not in the table
	at       string          // the broker where the session is, or is going; "" = none
	record   registry.Record // what is recorded of the key, as far as this session knows
	expiry   time.Duration   // of the session: registry.ExpiryMQTT3, ExpiryMQTT5
	turn     uint64          // among all that this edge's brokers have accepted; 0 = not yet
	address  netip.Addr      // of the client
	port     uint16
	why      router.Why
	stage    stage
	assigned bool // the client brought no ID: the broker makes one
	named    bool // and it has told us
	inTable  bool
	stop     relay.Reason // that unlock tells the relay
}

// approach is what a session needs until it is settled: on its way to a broker, and then until the record agrees with it. So it lives from the accept
// to the CONNACK, or to the outcome of the write behind that. Whatever has to be written later brings another one, for as long as that takes.
type approach struct {
	// To the broker.
	origin  relay.Origin
	version mqtt.Version
	avoid   []string // brokers that failed
	again   bool     // the broker hung up on the CONNECT once already
	trouble *trouble // with the last of them; nil = none

	// To the record.
	replace bool            // a record of another broker is to be replaced,
	facts   []registry.Fact // which rests on these
	renew   bool            // the broker made the session anew: the record is written whatever it says
	writing bool            // a write is under way: the watch's word is left to its outcome
	missed  bool            // and there was one
	tries   uint8
	write   *registry.Write // that unlock hands over
}

// stage is how far a session has come to its end.
type stage uint8

const (
	live   stage = iota
	gone         // the broker has ended it; its client may still be reading
	ended        // we have stopped it
	closed       // nothing is left of it
)

// unlock lets go of mu and then does what was decided under it.
func (c *client) unlock() {
	var w *registry.Write
	if a := c.approach; a != nil {
		w, a.write = a.write, nil
	}
	stop, conn := c.stop, c.conn
	c.stop = relay.ReasonNone
	c.mu.Unlock()
	if w != nil {
		c.ln.srv.conf.Committer.Submit(*w, func(r registry.Result) { c.committed(w, r) })
	}
	if stop != relay.ReasonNone {
		conn.Stop(stop)
	}
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
		if s.loops != nil {
			s.loops.makeRoom()
		}
		if s.full.now() {
			s.log.Warn().Int("most", s.conf.MaxConnections).Str("listener", ln.name).Msg("no room for another client: turned away")
		}
	}
	if reason != relay.ReasonNone {
		s.live.Add(-1)
		s.conf.Metrics.rejected(ln.name, reason.String())
		return nil
	}
	ln.accepts.Inc()
	c := &client{ln: ln, approach: &approach{origin: o}}
	c.seen(o.Client)
	return c
}

// seen notes the client's address.
func (c *client) seen(a netip.AddrPort) { c.address, c.port = a.Addr(), a.Port() }

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
	if c.stage >= ended || c.conn == nil {
		return
	}
	c.stage, c.stop = ended, r
	if r == relay.ReasonMoved {
		c.ln.srv.conf.Metrics.moved()
	}
}

// broker is where the session is, or is going.
func (c *client) broker() (ref registry.BrokerRef, placed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ref(), c.at != ""
}

// ref is broker with mu held; zero: nowhere.
func (c *client) ref() registry.BrokerRef {
	if c.at == "" {
		return registry.BrokerRef{}
	}
	return registry.BrokerRef{Pool: c.ln.pool, Broker: c.at}
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
	h.Apply(&c.approach.origin)
	c.seen(c.approach.origin.Client)
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
	key := c.key
	c.mu.Unlock()
	if local {
		return relay.Answer{Reason: relay.ReasonOverload, Code: mqtt.ServerBusy}, true
	}

	s := c.ln.srv
	record, from, ok := s.conf.Cache.TryResolve(c.ln.pool, key)
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
	s := c.ln.srv
	begun := s.task(func() {
		if !known {
			var from registry.Source
			record, from = s.conf.Cache.Resolve(s.ctx, c.ln.pool, c.key)
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
	c.approach.version = k.Version
	c.key = string(k.ClientID)
	if len(k.ClientID) == 0 {
		// The broker will make an ID up [MQTT-3.1.3-6]. Until then the client is nobody: placed at random, by weight.
		c.assigned = true
		var b [16]byte
		rand.Read(b[:])
		c.key = hex.EncodeToString(b[:])
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
	a := c.approach
	if q.Cause == relay.CauseClosed && !a.again {
		// Some brokers hang up on the CONNECT that takes a session over, and accept the next one.
		a.again = true
		return false
	}
	a.avoid = append(a.avoid, c.at)
	if q.Cause != relay.CauseDial {
		a.trouble = &trouble{reason: relay.ReasonBrokerClosed, broker: c.at, err: errHungUp}
		return false
	}
	return c.unreached(c.ref(), q.Err)
}

// unreached tells everybody who may want to know that a broker could not be reached. Called with mu held.
func (c *client) unreached(ref registry.BrokerRef, err error) (local bool) {
	s, reason := c.ln.srv, upstream.Reason(err)
	var b *registry.Broker
	if p := s.view.Load().Pool(ref.Pool); p != nil {
		b = p.Broker(ref.Broker)
	}
	t := &trouble{reason: relay.ReasonDialFailed, broker: ref.Broker, err: err}
	if b != nil {
		t.address = b.Address
	}
	c.approach.trouble = t
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
	s := c.ln.srv
	for {
		v := s.view.Load()
		c.mu.Lock()
		d := v.Route(router.Query{Pool: c.ln.pool, Key: c.key, Record: record, Avoid: c.approach.avoid})
		if d.Broker == nil {
			c.unplace()
			reason := c.approach.trouble.orNoBroker()
			c.mu.Unlock()
			s.conf.Metrics.refused(d.Refusal)
			if d.Refusal == router.RefusalAwaitHome {
				return relay.Answer{Reason: relay.ReasonAwaitHome, Code: mqtt.ServerUnavailable}, true
			}
			return relay.Answer{Reason: reason, Code: mqtt.ServerUnavailable}, true
		}
		t := &relay.Target{DialTimeout: d.Pool.DialDeadline(), Timeout: d.Pool.ConnectDeadline()}
		if !c.aim(t, d.Broker) {
			c.at = d.Broker.ID
			c.mu.Unlock()
			return relay.Answer{}, false
		}
		c.place(d, record)
		at := c.ref()
		c.mu.Unlock()
		// What happened before we could be found in the table nobody has told us.
		if s.leaving.Load() {
			return shuttingDown, true
		}
		if now := s.view.Load(); now == v || now.Serves(at) {
			s.conf.Metrics.routed(d.Why)
			return relay.Answer{Target: t}, true
		}
	}
}

// aim says how the broker is reached; false: its name must be resolved first.
func (c *client) aim(t *relay.Target, b *registry.Broker) bool {
	conf := &c.ln.srv.conf
	over := b.Over()
	if over == registry.TransportTCP {
		var known bool
		if t.Addrs, known = conf.Resolver.Lookup(b); !known {
			return false
		}
	}
	var header []byte
	if b.Proxy != registry.ProxyNone {
		header = upstream.AppendProxy(make([]byte, 0, 64), b.Proxy, &c.approach.origin) // room for IPv6 in version 2
	}
	if over == registry.TransportTCP {
		t.Prelude = header
		return true
	}
	t.Dial = func(ctx context.Context) (relay.Stream, error) { return conf.Dialer.Dial(ctx, b, header) }
	t.Join = func(ctx context.Context) (relay.Wrapped, error) { return conf.Dialer.Join(ctx, b, header) }
	return true
}

// resolve waits for the address of the broker that was chosen; if there is none, the broker is passed over.
func (c *client) resolve() {
	ref, _ := c.broker()
	s := c.ln.srv
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
	c.at, c.why, c.record = d.Broker.ID, d.Why, record.Record()
	c.approach.replace, c.approach.facts = d.Replace, d.Facts
	if !c.inTable && c.stage != closed {
		c.inTable = true
		c.ln.srv.table.add(c)
	}
}

// unplace takes the session out of the table. Called with mu held.
func (c *client) unplace() {
	c.at = ""
	if c.inTable {
		c.inTable = false
		c.ln.srv.table.remove(c)
	}
}

// over reports whether nothing lives at the broker any more: the record, and who has it, is no business of this session's from then on, except that a
// write which is under way comes to its end. Called with mu held.
func (c *client) over() bool { return c.stage != live }

// BrokerEnded implements relay.Owner. The client may take a while to hear of it; nobody counts it as live meanwhile.
func (c *client) BrokerEnded(relay.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stage = max(c.stage, gone)
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
	at, why := c.ref(), c.why
	c.stage = closed
	c.depart()
	if sum.Dial != nil {
		c.unreached(at, sum.Dial)
	}
	if a := c.approach; sum.Detail == "" && sum.Connack == 0 && a != nil && a.trouble != nil {
		sum.Detail = a.trouble.String()
	}
	c.mu.Unlock()
	s := c.ln.srv
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
