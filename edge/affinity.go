package edge

import (
	"context"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// Accepted implements relay.Owner: the broker has the client, so its affinity may be written (only proven clients cost state).
func (c *client) Accepted(_ relay.Conn, k mqtt.Connack, after time.Duration) {
	c.ln.sessions.Inc()
	c.ln.srv.conf.Metrics.established(after)
	c.accept(k)
	c.supersede()
}

// accept takes what matters from the CONNACK, and settles the record.
func (c *client) accept(k mqtt.Connack) {
	c.mu.Lock()
	defer c.unlock()
	c.turn = c.ln.srv.turns.Add(1)
	// A session that is new although there is a record: whoever is about to delete the record, because of the old session, must fail.
	c.approach.renew = !k.SessionPresent && c.approach.version != mqtt.V31 // which cannot tell
	if k.HasSessionExpiry {                                                // the broker's word overrides the client's [MQTT5 §3.2.2.3.2]
		c.expiry = registry.ExpiryMQTT5(k.SessionExpiry)
	}
	if c.assigned {
		c.adopt(string(k.AssignedClientID))
	}
	c.settle(time.Now())
}

// supersede ends the older connections of the same client [MQTT-3.1.4-2, MQTT5 3.1.4-3]. Where both are at one broker it does so by itself, and knows better
// than we who is the same client.
func (c *client) supersede() {
	c.mu.Lock()
	key, turn, at := c.key, c.turn, c.at
	c.mu.Unlock()
	c.ln.srv.table.find(c.ln.pool, key, func(o *client) {
		o.mu.Lock()
		defer o.unlock()
		if o.turn != 0 && o.turn < turn && o.at != at {
			o.stopFor(relay.ReasonTwin)
		}
	})
}

// adopt takes the ID that the broker made up as the client's key. Called with mu held.
func (c *client) adopt(id string) {
	if id == "" {
		c.expiry = 0 // MQTT 3.1.1, or a broker that keeps it to itself: nobody can come back by it
		return
	}
	if c.inTable {
		c.ln.srv.table.remove(c)
		defer c.ln.srv.table.add(c)
	}
	c.key, c.named = id, true
	c.record = registry.Record{} // what was recorded of the random key is nothing
}

// Goodbye implements relay.Owner: a DISCONNECT may set another expiry [MQTT5 §3.14.2.2.2].
func (c *client) Goodbye(_ relay.Conn, d mqtt.Disconnect) {
	if !d.HasSessionExpiry {
		return
	}
	c.mu.Lock()
	defer c.unlock()
	if c.expiry == 0 && d.SessionExpiry != 0 {
		return // a protocol error, and the broker's to punish [MQTT5 §3.14.2.2.2]
	}
	c.expiry = registry.ExpiryMQTT5(d.SessionExpiry)
	if c.turn != 0 {
		c.settle(time.Now())
	}
}

// settle brings the record in line with the session: written if the session lasts and the record is not there or too short,
// deleted if nothing lasts. Where it is in line already, nothing is left to do. Called with mu held, for a session that was accepted.
func (c *client) settle(now time.Time) {
	pool := c.ln.srv.view.Load().Pool(c.ln.pool)
	if pool == nil || c.at == "" || c.writing() {
		return
	}
	a, was, life := c.approach, c.record.Affinity(), pool.Lifetime(c.expiry)
	if !life.Recorded() {
		if was.Revision > 0 {
			c.submit(registry.Write{Guard: was.Revision})
		} else {
			c.approach = nil
		}
		return
	}
	replace := a != nil && a.replace
	if was.Broker == c.at && !replace && (a == nil || !a.renew) && life.RefreshIn(was.Expires, now) > 0 {
		c.approach = nil
		return
	}
	w := registry.Write{
		Affinity: registry.Affinity{
			Broker: c.at, Home: c.at, Writer: c.ln.srv.conf.ID, Written: now.Truncate(time.Second),
			Expires: life.Expires(now), Reason: c.why.String(),
		},
		Guard: was.Revision, Lease: life.Lease(),
	}
	switch {
	case c.assigned:
		w.Affinity.Reason = "assigned"
	case was.Present():
		w.Affinity.Home, w.Affinity.Extra = was.Home, was.Extra
		if was.Broker == c.at {
			w.Affinity.Reason = was.Reason // a renewal decides nothing
		}
	}
	if replace {
		w.Facts = a.facts
	}
	c.submit(w)
}

// submit has unlock hand a write over, to be made behind the client's back. Called with mu held.
func (c *client) submit(w registry.Write) {
	if c.approach == nil {
		c.approach = new(approach)
	}
	w.Pool, w.Key = c.ln.pool, c.key
	a := c.approach
	a.writing, a.missed, a.write = true, false, &w
}

// writing reports whether a write is under way. Called with mu held.
func (c *client) writing() bool { return c.approach != nil && c.approach.writing }

// committed learns what became of a write.
func (c *client) committed(w *registry.Write, r registry.Result) {
	now := time.Now()
	c.mu.Lock()
	defer c.unlock()
	a, metrics := c.approach, c.ln.srv.conf.Metrics
	a.writing = false
	switch r.Status {
	case registry.Committed:
		metrics.committed("committed")
		c.approach = nil
		if c.record = w.Affinity.Record(); c.record.Present() {
			c.record.Revision = r.Revision
		}
		if a.missed {
			// The watch told of a change meanwhile: of this one, or of a later one.
			found, _ := c.ln.srv.conf.Cache.Lookup(c.ln.pool, c.key)
			c.changed(found, now)
		}
		c.settle(now) // the expiry may have changed meanwhile
	case registry.Conflict:
		metrics.committed("conflict")
		c.reconsider(r.Found, now)
	case registry.Stale:
		// What we routed by has changed: wait until the watch shows it, and route again.
		metrics.committed("stale")
		a.writing = true // nobody decides before we have
		if !c.ln.srv.task(func() { c.routeAgain(r.Revision) }) {
			a.writing = false
		}
	default:
		// It could not be written and is not kept: the next look-over tries again.
		metrics.committed("failed")
	}
}

// staleWait bounds the wait for the watch after a write that rested on an old view.
const staleWait = 5 * time.Second

func (c *client) routeAgain(revision int64) {
	s := c.ln.srv
	ctx, cancel := context.WithTimeout(s.ctx, staleWait)
	defer cancel()
	err := s.conf.Cache.Wait(ctx, revision)
	found, _ := s.conf.Cache.Lookup(c.ln.pool, c.key)
	c.mu.Lock()
	defer c.unlock()
	c.approach.writing = false
	if err == nil { // else it is left to the next look-over
		c.reconsider(found, time.Now())
	}
}

// reconsider runs the router again with the record that stands instead of the one that we knew: our broker is the one after all,
// or the record is to be replaced, or the client is to go where the record says. Called with mu held.
func (c *client) reconsider(found registry.Affinity, now time.Time) {
	if c.over() && found.Present() {
		return // another edge has the key now
	}
	if !c.lasts() && (!found.Present() || found.Broker == c.at) {
		// We wanted the record gone, and it is, or somebody has written it since for a session that is not ours to judge.
		c.record, c.approach = registry.Record{}, nil
		return
	}
	a := c.approach
	if a.tries++; a.tries > commitAgain {
		a.tries = 0 // and the next look-over tries again
		return
	}
	c.record, a.replace, a.facts = found.Record(), false, nil
	if c.assigned && found.Present() && found.Broker != c.at {
		// The broker has just made this session and its ID: whoever else claims it is wrong.
		a.replace = true
		c.settle(now)
		return
	}
	if found.Present() && found.Broker != c.at {
		d := c.ln.srv.view.Load().Route(router.Query{Pool: c.ln.pool, Key: c.key, Record: found})
		if d.Broker == nil || d.Broker.ID != c.at {
			c.move()
			return
		}
		a.replace, a.facts = d.Replace, d.Facts
	}
	c.settle(now)
}

// lasts reports whether the session is to be recorded. Called with mu held.
func (c *client) lasts() bool {
	pool := c.ln.srv.view.Load().Pool(c.ln.pool)
	return pool != nil && pool.Lifetime(c.expiry).Recorded()
}

// move sends the client away, to come back where its key belongs. Called with mu held.
func (c *client) move() {
	c.stopFor(relay.ReasonMoved)
}

// recordChanged is the watch's word on the key.
func (c *client) recordChanged(a registry.Affinity) {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.turn == 0 || c.over(): // not proven yet: the commit will meet the record
	case c.writing(): // likewise, unless that was sooner
		c.approach.missed = true
	default:
		c.changed(a, time.Now())
	}
}

// changed compares the session with the record that stands. Called with mu held.
func (c *client) changed(a registry.Affinity, now time.Time) {
	switch {
	case c.over():
	case !a.Present():
		// Deleted, by its lease or by hand: a session that lives is recorded.
		if c.record = (registry.Record{}); c.lasts() {
			c.settle(now)
		}
	case a.Revision <= c.record.Revision: // no news
	case a.Broker != c.at:
		c.move()
	case c.lasts():
		c.record = a.Record()
		c.settle(now)
	}
	// Else somebody has recorded a session of this key at this broker, which is not ours: it is not ours to delete either.
}

// refresh writes the record again if it is due, or if it could not be written before.
func (c *client) refresh(now time.Time) {
	c.mu.Lock()
	defer c.unlock()
	if c.turn != 0 && !c.over() {
		c.settle(now)
	}
}
