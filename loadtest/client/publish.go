package client

import (
	"fmt"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// Publish sends a message: nil means that it is written, or queued behind what a full socket has not taken yet. topic and payload may be
// used again after the return. token comes back in OnAcked (QoS 1 and 2). Once it was taken, a message of QoS 1 or 2 outlives its connection, see OnAcked.
//
// Errors: ErrNotConnected, ErrInflight, ErrQueueFull, ErrTooLarge, ErrQoS, mqtt.ErrTooLong; then nothing was sent.
func (c *Client) Publish(token uint64, topic, payload []byte, qos byte, retain bool) error {
	p := mqtt.Publish{Topic: topic, Payload: payload, QoS: qos, Retain: retain}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != live || c.leaving.Load() {
		return ErrNotConnected
	}
	if qos > c.maximumQoS {
		return ErrQoS // [MQTT-3.2.2-11]
	}
	size, err := mqtt.PublishSize(c.version, &p)
	if err != nil {
		return err
	}
	if c.packetMax > 0 && size > int(c.packetMax) {
		return ErrTooLarge // [MQTT-3.2.2-15]
	}
	if !c.room(size) {
		return ErrQueueFull
	}
	if qos == 0 {
		out := c.queue(size)
		out.b = mqtt.AppendPublish(out.b, c.version, &p)
		c.flush()
		return nil
	}
	s := c.state()
	if s.unsent > 0 || s.flying >= int(c.window) {
		return ErrInflight // [MQTT-3.3.4-7]
	}
	if p.ID = s.newID(); p.ID == 0 {
		return ErrInflight
	}
	f := flight{token: token, id: p.ID, await: mqtt.PUBACK, packet: newBuffer(size), sent: true}
	if qos == 2 {
		f.await = mqtt.PUBREC
	}
	f.packet.b = mqtt.AppendPublish(f.packet.b, c.version, &p)
	s.add(f)
	s.flying++
	out := c.queue(size)
	out.b = append(out.b, f.packet.b...)
	c.flush()
	return nil
}

// Subscribe asks for a subscription; OnAcked tells the code that the broker granted: 0, 1, 2, or a refusal (0x80 and above).
// If the connection ends before, that is CodeDropped.
func (c *Client) Subscribe(token uint64, filter string, qos byte) error {
	return c.ask(token, mqtt.SUBACK, filter, qos)
}

// Unsubscribe takes a subscription back; OnAcked tells the code (0 in MQTT 3, which has none).
func (c *Client) Unsubscribe(token uint64, filter string) error {
	return c.ask(token, mqtt.UNSUBACK, filter, 0)
}

func (c *Client) ask(token uint64, await mqtt.Kind, filter string, qos byte) error {
	if len(filter) == 0 || len(filter) > mqtt.MaxString {
		return fmt.Errorf("%w: topic filter of %d bytes", mqtt.ErrTooLong, len(filter))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != live || c.leaving.Load() {
		return ErrNotConnected
	}
	size := len(filter) + 16
	if !c.room(size) {
		return ErrQueueFull
	}
	s := c.state()
	if s.unsent > 0 {
		return ErrInflight
	}
	id := s.newID()
	if id == 0 {
		return ErrInflight
	}
	s.add(flight{token: token, id: id, await: await, sent: true})
	out := c.queue(size)
	if await == mqtt.SUBACK {
		out.b = mqtt.AppendSubscribe(out.b, c.version, id, mqtt.Subscription{Filter: filter, QoS: qos})
	} else {
		out.b = mqtt.AppendUnsubscribe(out.b, c.version, id, filter)
	}
	c.flush()
	return nil
}

// Inflight is the number of messages that were taken and are not acknowledged.
func (c *Client) Inflight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return 0
	}
	return len(c.session.flights) - c.session.head
}

// Disconnect ends the connection in order: what is queued is written, then a DISCONNECT, with a Session Expiry Interval if expiry is not
// nil (MQTT 5), then the transport is closed. Without a connection it does nothing, as Abort and Abandon do.
func (c *Client) Disconnect(expiry *uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leave(ReasonDisconnect) {
		return
	}
	c.sayDisconnect(expiry)
	c.link.stop()
}

// sayDisconnect is called with c.mu held.
func (c *Client) sayDisconnect(expiry *uint32) {
	if c.phase != dialing {
		out := c.queue(16)
		out.b = mqtt.AppendDisconnect(out.b, c.version, 0, expiry)
	}
}

// Abort ends the connection as a crash would: reset (RST), without a DISCONNECT, so that a Will is published. What is queued is thrown away.
func (c *Client) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leave(ReasonAbort) {
		c.link.stop()
	}
}

// Abandon leaves the connection half-open, as a client does that lost its network: the socket stays open, unread and unanswered. It is
// closed a grace (Config.Grace) after the client is opened again, or when the engine ends.
func (c *Client) Abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leave(ReasonAbandon) {
		c.link.stop()
	}
}

func (c *Client) leave(why string) bool {
	if c.link == nil || c.leaving.Load() {
		return false
	}
	c.why = why
	c.leaving.Store(true)
	return true
}

// The methods below are called with c.mu held.

// state returns the session, made when it is needed first.
func (c *Client) state() *session {
	if c.session == nil {
		c.session = new(session)
	}
	return c.session
}

// room reports whether n bytes more may be queued. What is larger than the queue passes when nothing is queued.
func (c *Client) room(n int) bool {
	return c.out == nil || len(c.out.b)+n <= c.engine.cfg.Queue
}

// queue returns the write queue, to which the caller appends about n bytes.
func (c *Client) queue(n int) *buffer {
	if c.out == nil {
		c.out = newBuffer(n)
	}
	c.sent = true
	return c.out
}

// flush writes the queue, if the driver is not about to do so anyway.
func (c *Client) flush() {
	if !c.turn && c.out != nil && c.link != nil {
		c.link.flush()
	}
}

// pump sends what is left over from an earlier connection, in its order, as far as the broker's Receive Maximum allows [MQTT-4.4.0-1].
func (c *Client) pump() {
	s := c.session
	for s != nil && !c.leaving.Load() && s.unsent > 0 && s.flying < int(c.window) {
		f := &s.flights[len(s.flights)-s.unsent]
		if f.await == mqtt.PUBCOMP {
			c.reply(mqtt.PUBREL, f.id, 0)
		} else {
			if !c.room(len(f.packet.b)) {
				return // an acknowledgement of those before brings us here again
			}
			f.packet.b[0] &^= mqtt.DupFlag
			if f.sent {
				f.packet.b[0] |= mqtt.DupFlag // [MQTT-3.3.1-1]
				c.engine.resent.Add(1)
			}
			f.sent = true
			out := c.queue(len(f.packet.b))
			out.b = append(out.b, f.packet.b...)
		}
		s.unsent--
		s.flying++
	}
}
