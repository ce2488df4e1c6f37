package broker

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// will is what a client wants published if its connection ends without DISCONNECT.
type will struct {
	message message // its expiry begins when it is published
	expiry  uint32  // seconds; 0: never
	delay   time.Duration
}

// delayedWill waits for its client's return (MQTT 5 §3.1.3.2.2).
type delayedWill struct {
	*will
	due time.Time
}

// willOf takes the will out of a CONNECT, or returns nil.
func willOf(pk *packets.Packet) *will {
	if !pk.Connect.WillFlag {
		return nil
	}
	w := &will{
		message: message{
			topic:     pk.Connect.WillTopic,
			payload:   pk.Connect.WillPayload,
			qos:       pk.Connect.WillQos,
			retain:    pk.Connect.WillRetain,
			publisher: pk.Connect.ClientIdentifier,
		},
		expiry: pk.Connect.WillProperties.MessageExpiryInterval,
		delay:  seconds(pk.Connect.WillProperties.WillDelayInterval),
	}
	w.message.setProperties(&pk.Connect.WillProperties)
	return w
}

// publishWill publishes a client's will after a delay, unless it is canceled. It is forwarded to the peers as any
// message is, but nobody waits for them: there is nobody to answer.
func (b *Broker) publishWill(client string, w *will, delay time.Duration) {
	if delay > 0 {
		b.mu.Lock()
		b.wills[client] = delayedWill{w, time.Now().Add(delay)}
		b.mu.Unlock()
		return
	}
	if !publishable(w.message.topic) {
		return
	}
	m := w.message
	m.expireAfter(w.expiry)
	b.publish(&m)
}

// cancelWill: the client is back, so that a will that waited for this is obsolete [MQTT-3.1.3-9], unless the client
// begins a new session, with which the old one and the delay end.
func (b *Broker) cancelWill(client string, clean bool) {
	b.mu.Lock()
	w, waiting := b.wills[client]
	delete(b.wills, client)
	b.mu.Unlock()
	if waiting && clean {
		b.publishWill(client, w.will, 0)
	}
}

// publishDueWills publishes the delayed wills that are due at now.
func (b *Broker) publishDueWills(now time.Time) {
	due := make(map[string]*will)
	b.mu.Lock()
	for client, w := range b.wills {
		if !now.Before(w.due) {
			due[client] = w.will
			delete(b.wills, client)
		}
	}
	b.mu.Unlock()
	for client, w := range due {
		b.publishWill(client, w, 0)
	}
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
