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
	c.srv.conf.Metrics.established(c.origin.Listener, after)
	c.accept(k)
	c.supersede()
}

// accept takes what matters from the CONNACK, and settles the record.
func (c *client) accept(k mqtt.Connack) {
	c.mu.Lock()
	defer c.unlock()
	c.accepted, c.turn = true, c.srv.turns.Add(1)
	// A session that is new although there is a record: whoever is about to delete the record, because of the old session, must fail.
	c.renew = !k.SessionPresent && c.version != mqtt.V31 // which cannot tell
	if k.HasSessionExpiry {                              // the broker's word overrides the client's [MQTT5 §3.2.2.3.2]
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
	c.srv.table.find(key.pool, key.key, func(o *client) {
		o.mu.Lock()
		defer o.unlock()
		if o.accepted && o.turn < turn && o.at != at {
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
		c.srv.table.remove(c, c.key)
		c.key.key = id
		c.srv.table.add(c, c.key)
	} else {
		c.key.key = id
	}
	c.named = true
	c.record = registry.Affinity{} // what was recorded of the random key is nothing
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
	if c.accepted {
		c.settle(time.Now())
	}
}

// settle brings the record in line with the session: written if the session lasts and the record is not there or too short,
// deleted if nothing lasts. Called with mu held, for a session that was accepted.
func (c *client) settle(now time.Time) {
	pool := c.srv.view.Load().Pool(c.at.Pool)
	if pool == nil || c.at.Broker == "" || c.writing {
		return
	}
	life := pool.Lifetime(c.expiry)
	if !life.Recorded() {
		if c.record.Present() && c.record.Revision > 0 {
			c.submit(registry.Write{Guard: c.record.Revision})
		}
		return
	}
	if c.record.Broker == c.at.Broker && !c.guard.replace && !c.renew {
		if in := life.RefreshIn(c.record.Expires, now); in > 0 {
			c.refreshAt = now.Add(min(in, 365*24*time.Hour))
			return
		}
	}
	w := registry.Write{
		Affinity: registry.Affinity{
			Broker: c.at.Broker, Home: c.at.Broker, Writer: c.srv.conf.ID, Written: now.Truncate(time.Second),
			Expires: life.Expires(now), Reason: c.why.String(),
		},
		Guard: c.record.Revision, Lease: life.Lease(),
	}
	switch {
	case c.assigned:
		w.Affinity.Reason = "assigned"
	case c.record.Present():
		w.Affinity.Home, w.Affinity.Extra = c.record.Home, c.record.Extra
		if c.record.Broker == c.at.Broker {
			w.Affinity.Reason = c.record.Reason // a renewal decides nothing
		}
	}
	if c.guard.replace {
		w.Facts = c.guard.facts
	}
	c.submit(w)
}

// submit has unlock hand a write over, to be made behind the client's back. Called with mu held.
func (c *client) submit(w registry.Write) {
	w.Pool, w.Key = c.key.pool, c.key.key
	c.writing, c.missed = true, false
	c.write = &w
}

// committed learns what became of a write.
func (c *client) committed(w *registry.Write, r registry.Result) {
	now := time.Now()
	c.mu.Lock()
	defer c.unlock()
	c.writing = false
	switch r.Status {
	case registry.Committed:
		c.srv.conf.Metrics.committed("committed")
		c.tries, c.renew, c.guard = 0, false, routeGuard{}
		c.record = w.Affinity
		if c.record.Present() {
			c.record.Revision = r.Revision
		}
		if c.missed {
			// The watch told of a change meanwhile: of this one, or of a later one.
			found, _ := c.srv.conf.Cache.Lookup(c.key.pool, c.key.key)
			c.changed(found, now)
		}
		c.settle(now) // the expiry may have changed meanwhile
	case registry.Conflict:
		c.srv.conf.Metrics.committed("conflict")
		c.reconsider(r.Found, now)
	case registry.Stale:
		// What we routed by has changed: wait until the watch shows it, and route again.
		c.srv.conf.Metrics.committed("stale")
		c.writing = true // nobody decides before we have
		if !c.srv.task(func() { c.routeAgain(r.Revision) }) {
			c.writing = false
		}
	default:
		// It could not be written and is not kept: the next look-over tries again.
		c.srv.conf.Metrics.committed("failed")
		c.refreshAt = now
	}
}

// staleWait bounds the wait for the watch after a write that rested on an old view.
const staleWait = 5 * time.Second

func (c *client) routeAgain(revision int64) {
	s := c.srv
	ctx, cancel := context.WithTimeout(s.ctx, staleWait)
	defer cancel()
	err := s.conf.Cache.Wait(ctx, revision)
	found, _ := s.conf.Cache.Lookup(c.key.pool, c.key.key)
	c.mu.Lock()
	defer c.unlock()
	c.writing = false
	if err != nil {
		c.refreshAt = time.Now()
		return
	}
	c.reconsider(found, time.Now())
}

// reconsider runs the router again with the record that stands instead of the one that we knew: our broker is the one after all,
// or the record is to be replaced, or the client is to go where the record says. Called with mu held.
func (c *client) reconsider(found registry.Affinity, now time.Time) {
	if c.over() && found.Present() {
		return // another edge has the key now
	}
	if !c.lasts() && (!found.Present() || found.Broker == c.at.Broker) {
		// We wanted the record gone, and it is, or somebody has written it since for a session that is not ours to judge.
		c.record = registry.Affinity{}
		return
	}
	if c.tries++; c.tries > commitAgain {
		c.tries, c.refreshAt = 0, now
		return
	}
	c.record, c.guard = found, routeGuard{}
	if c.assigned && found.Present() && found.Broker != c.at.Broker {
		// The broker has just made this session and its ID: whoever else claims it is wrong.
		c.guard.replace = true
		c.settle(now)
		return
	}
	if found.Present() && found.Broker != c.at.Broker {
		d := c.srv.view.Load().Route(router.Query{Pool: c.key.pool, Key: c.key.key, Record: found})
		if d.Broker == nil || d.Broker.ID != c.at.Broker {
			c.move()
			return
		}
		c.guard = routeGuard{d.Replace, d.Facts}
	}
	c.settle(now)
}

// lasts reports whether the session is to be recorded. Called with mu held.
func (c *client) lasts() bool {
	pool := c.srv.view.Load().Pool(c.at.Pool)
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
	case !c.accepted || c.over(): // not proven yet: the commit will meet the record
	case c.writing: // likewise, unless that was sooner
		c.missed = true
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
		if c.record = (registry.Affinity{}); c.lasts() {
			c.settle(now)
		}
	case a.Revision <= c.record.Revision: // no news
	case a.Broker != c.at.Broker:
		c.move()
	case c.lasts():
		c.record = a
		c.settle(now)
	}
	// Else somebody has recorded a session of this key at this broker, which is not ours: it is not ours to delete either.
}

// refresh writes the record again if it is due.
func (c *client) refresh(now time.Time) {
	c.mu.Lock()
	defer c.unlock()
	if c.accepted && !c.over() && !c.writing && !c.refreshAt.IsZero() && !now.Before(c.refreshAt) {
		c.settle(now)
	}
}
