package broker

import (
	"math"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// published is a message that a peer has been sent and may be waited for.
type published struct {
	link *link
	done <-chan struct{}
}

// publish publishes a message at this broker and hands it to the peers.
func (b *Broker) publish(m *message) []published {
	if m.retain {
		m.stamp, m.from = b.clock.next(), b.config.Name
		b.retained.put(m)
	}
	var sent []published
	if len(b.links) > 0 {
		body := m.encode(nil)
		for _, l := range b.links {
			if done := l.backlog.add(body, m.qos > 0 || m.retain); done != nil {
				sent = append(sent, published{l, done})
			}
		}
	}
	b.deliver(m)
	return sent
}

// awaitPeers returns when the peers that are connected have published the message, or are gone, or ackWait is over.
// One that makes us wait that long is not waited for again until it is quicker.
func (b *Broker) awaitPeers(sent []published) {
	if len(sent) == 0 {
		return
	}
	timeout := time.NewTimer(ackWait)
	defer timeout.Stop()
	for i, p := range sent {
		select {
		case <-p.done:
		case <-timeout.C:
			for _, p := range sent[i:] {
				select {
				case <-p.done:
				default:
					p.link.backlog.markLate()
					p.link.log.Warn().Msg("peer does not acknowledge; not waiting for it until it does")
				}
			}
			return
		}
	}
}

// deliver adds a message to the sessions here that subscribe to it. It never waits for a client.
func (b *Broker) deliver(m *message) {
	subscribers := b.server.Topics.Subscribers(m.topic)
	if len(subscribers.Shared) > 0 {
		b.selectShared(subscribers)
		subscribers.MergeSharedSelected()
	}
	for id, sub := range subscribers.Subscriptions {
		if sub.NoLocal && id == m.publisher { // [MQTT-3.8.3-3]
			continue
		}
		b.owe(b.session(id), m, sub, m.retain && sub.RetainAsPublished) // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
	}
}

// selectShared chooses one member of each shared subscription [MQTT-4.8.2-4], a connected one where there is one.
func (b *Broker) selectShared(subscribers *mqtt.Subscribers) {
	for _, members := range subscribers.Shared {
		chosen := ""
		for id := range members { // in random order
			chosen = id
			if b.connected(id) {
				break
			}
		}
		sub := members[chosen]
		if other, ok := subscribers.SharedSelected[chosen]; ok {
			sub = other.Merge(sub)
		}
		subscribers.SharedSelected[chosen] = sub
	}
}

// sendRetained sends the retained messages that a SUBSCRIBE asks for (MQTT 5 §3.3.1.3).
func (b *Broker) sendRetained(c *conn) {
	now := time.Now()
	for i, sub := range c.subscribing.filters {
		switch {
		case i >= len(c.subscribing.codes) || c.subscribing.codes[i] >= packets.ErrUnspecifiedError.Code:
		case mqtt.IsSharedFilter(sub.Filter):
		case sub.RetainHandling == 2 || sub.RetainHandling == 1 && c.subscribing.existed[i]: // [MQTT-3.3.1-10], [MQTT-3.3.1-11]
		default:
			for _, m := range b.retained.matching(sub.Filter, now) {
				b.owe(c.session, m, sub.Merge(sub), true)
			}
		}
	}
}

// owe adds a message to a session as a subscription wants it.
func (b *Broker) owe(s *session, m *message, sub packets.Subscription, retain bool) {
	if s == nil {
		return
	}
	d := &delivery{message: m, qos: min(m.qos, sub.Qos), retain: retain} // [MQTT-3.8.4-8]
	for _, id := range sub.Identifiers {
		if id > 0 {
			d.subIDs = append(d.subIDs, id) // [MQTT-3.3.4-3], [MQTT-3.3.4-4]
		}
	}
	if !s.add(d) {
		b.log.Warn().Str("client", s.id).Msg("session is full: messages for it are being dropped")
	}
}

// open gives a connection whose CONNACK is being written its session: the one there is, or a new one.
func (b *Broker) open(c *conn, present bool) {
	id := c.client.ID
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	if s == nil || !present {
		s = newSession(id)
		b.sessions[id] = s
	}
	c.session = s
	if n, known := b.connects[id]; known || len(b.connects) < connectsKept {
		b.connects[id] = n + 1
	}
}

// establish: CONNACK is written, messages may follow.
func (b *Broker) establish(c *conn) {
	window := math.MaxUint16 // MQTT 5 §3.1.2.11.3
	if n := int(c.client.Properties.Props.ReceiveMaximum); n > 0 {
		window = n
	}
	c.session.attach(window)
	b.mu.Lock()
	c.established = true
	b.mu.Unlock()
	b.reportSession(c.session)
	b.log.Debug().Str("client", c.client.ID).Str("remote", c.client.Net.Remote).Msg("client connected")
}

func (b *Broker) session(id string) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[id]
}

func (b *Broker) connected(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	owner := b.owners[id]
	return owner != nil && owner.established
}
