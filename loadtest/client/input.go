package client

import (
	"errors"
	"fmt"
	"slices"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// The methods of this file are called by the driver that owns the connection, one at a time.

// dials notes that the driver begins to connect, and when it must be done; false if the client is leaving already.
func (c *Client) dials(due int64) bool {
	c.calls.Lock() // the earlier connection's OnClosed returns first
	//lint:ignore SA2001 that is all
	c.calls.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun, c.due = pace.Now(), due
	return !c.leaving.Load()
}

// greets is called with c.mu held when the transport carries bytes: the CONNECT, which is queued since Open, may go.
func (c *Client) greets() {
	c.phase = greeting
	c.ready = pace.Now()
	c.due = c.ready + int64(c.engine.cfg.ConnackTimeout)
}

// begin opens a turn: until finish, what the client sends is gathered.
func (c *Client) begin() {
	c.mu.Lock()
	c.turn = true
	c.mu.Unlock()
}

// finish ends a turn and writes what it gathered.
func (c *Client) finish() {
	c.mu.Lock()
	c.turn = false
	c.flush()
	c.mu.Unlock()
}

// input takes what the server sent, at the time at. A cause means that the connection must end. packet is the driver's, for use in here.
func (c *Client) input(b []byte, at int64, packet *mqtt.Packet) *Cause {
	c.engine.in.Add(int64(len(b)))
	if c.phase == greeting && !c.reader.Pending() {
		switch k := mqtt.Kind(b[0] >> 4); k {
		case mqtt.CONNACK, mqtt.DISCONNECT, mqtt.AUTH:
		default: // say so now: the length that it claims may never come
			return c.cause(ReasonMalformed, fmt.Errorf("client: not MQTT: the first bytes, %.16q, are no CONNACK", b))
		}
	}
	for !c.leaving.Load() {
		rest, ok, err := c.reader.Next(b, packet)
		switch {
		case errors.Is(err, mqtt.ErrTooLarge):
			return c.cause(ReasonTooLarge, err)
		case err != nil:
			return c.cause(ReasonMalformed, err)
		case !ok:
			return nil
		}
		b = rest
		if cause := c.take(at, packet); cause != nil {
			return cause
		}
	}
	return nil
}

func (c *Client) cause(r string, err error) *Cause {
	return &Cause{Stage: c.phase.stage(), Reason: r, Err: err}
}

func (c *Client) take(at int64, p *mqtt.Packet) *Cause {
	if c.phase == greeting {
		switch {
		case p.Kind == mqtt.CONNACK && p.Code == 0:
			c.accepted(at, &p.Connack)
			return nil
		case p.Kind == mqtt.CONNACK:
			return &Cause{Stage: StageConnack, Reason: ReasonRefusal, Code: p.Code, Reference: string(p.Connack.ServerReference)}
		}
	} else {
		switch p.Kind {
		case mqtt.PUBLISH:
			c.published(at, &p.Publish)
			return nil
		case mqtt.PUBACK, mqtt.PUBREC, mqtt.PUBCOMP, mqtt.SUBACK, mqtt.UNSUBACK:
			c.acked(at, p)
			return nil
		case mqtt.PUBREL:
			c.released(p)
			return nil
		case mqtt.PINGRESP:
			c.mu.Lock()
			c.pinged = false
			c.mu.Unlock()
			return nil
		}
	}
	if p.Kind == mqtt.DISCONNECT { // for MQTT 5; but some servers say it to all
		return &Cause{Stage: c.phase.stage(), Reason: ReasonDisconnected, Code: p.Code, Reference: string(p.ServerReference)}
	}
	return c.cause(ReasonProtocol, &unexpected{p.Kind})
}

// unexpected is the error of ReasonProtocol.
type unexpected struct{ kind mqtt.Kind }

func (u *unexpected) Error() string { return "client: unexpected " + u.kind.String() }

func (c *Client) accepted(at int64, a *mqtt.Connack) {
	c.mu.Lock()
	c.phase = live
	c.quiet, c.sent, c.pinged = at, false, false
	c.window, c.maximumQoS, c.packetMax = a.ReceiveMaximum, a.MaximumQoS, a.MaximumPacketSize
	if a.HasKeepAlive {
		c.keepAlive = a.KeepAlive // [MQTT-3.2.2-21]
	}
	var lost []uint64
	if c.session != nil {
		lost = c.session.restore(a.SessionPresent, c.Resend)
		c.pump() // before anything new [MQTT-4.6.0-1]
	}
	c.mu.Unlock()
	for _, token := range lost {
		c.Handler.OnAcked(c, at, token, CodeDropped)
	}
	c.Handler.OnConnack(c, at, a)
}

func (c *Client) published(at int64, p *mqtt.Publish) {
	switch p.QoS {
	case 0:
		c.Handler.OnPublish(c, at, p)
		return
	case 1:
		c.Handler.OnPublish(c, at, p)
		c.answer(mqtt.PUBACK, p.ID, 0) // [MQTT-4.3.2-4]
		return
	}
	c.mu.Lock()
	s := c.state()
	known := slices.Contains(s.received, p.ID)
	if !known {
		s.received = append(s.received, p.ID)
	}
	c.mu.Unlock()
	if !known { // [MQTT-4.3.3-10]
		c.Handler.OnPublish(c, at, p)
	}
	c.answer(mqtt.PUBREC, p.ID, 0)
}

// reasonUnknownID is Packet Identifier not found (§2.4).
const reasonUnknownID = 0x92

func (c *Client) released(p *mqtt.Packet) {
	var code byte = reasonUnknownID
	c.mu.Lock()
	if s := c.session; s != nil {
		if i := slices.Index(s.received, p.ID); i >= 0 {
			s.received[i] = s.received[len(s.received)-1]
			s.received = s.received[:len(s.received)-1]
			code = 0
		}
	}
	c.mu.Unlock()
	c.answer(mqtt.PUBCOMP, p.ID, code) // [MQTT-4.3.3-11]
}

func (c *Client) answer(k mqtt.Kind, id uint16, code byte) {
	c.mu.Lock()
	c.reply(k, id, code)
	c.mu.Unlock()
}

// reply is called with c.mu held. A client that has said DISCONNECT says nothing after it [MQTT-3.14.4-2].
func (c *Client) reply(k mqtt.Kind, id uint16, code byte) {
	if !c.leaving.Load() {
		out := c.queue(8)
		out.b = mqtt.AppendAck(out.b, c.version, k, id, code)
	}
}

func (c *Client) acked(at int64, p *mqtt.Packet) {
	c.mu.Lock()
	s, i := c.session, -1
	if s != nil {
		if i = s.find(p.ID); i >= len(s.flights)-s.unsent {
			i = -1 // not sent on this connection
		}
	}
	switch {
	case p.Kind == mqtt.PUBREC && (i < 0 || s.flights[i].await != mqtt.PUBREC):
		// The PUBREL once more; or, for a message that we know nothing of, one that ends the matter [MQTT-4.3.3-4].
		if p.Code < 0x80 {
			var code byte
			if i < 0 || s.flights[i].await != mqtt.PUBCOMP {
				code = reasonUnknownID
			}
			c.reply(mqtt.PUBREL, p.ID, code)
		}
	case i < 0 || s.flights[i].await != p.Kind: // nobody waits for it
	case p.Kind == mqtt.PUBREC && p.Code < 0x80:
		f := &s.flights[i]
		f.packet.release()
		f.packet, f.await = nil, mqtt.PUBCOMP
		c.reply(mqtt.PUBREL, p.ID, 0)
	default:
		token := s.flights[i].token
		if s.flights[i].isPublish() {
			s.flying--
		}
		s.remove(i)
		c.pump()
		c.mu.Unlock()
		c.Handler.OnAcked(c, at, token, p.Code)
		return
	}
	c.mu.Unlock()
}

// overdue is called about every sweepEvery, with c.mu held: it sends a PINGREQ in time, and says when the server's time is up.
func (c *Client) overdue(now int64) *Cause {
	if c.leaving.Load() {
		return nil
	}
	switch c.phase {
	case dialing:
		if now >= c.due {
			return c.cause(wire.Reason(wire.ErrTimeout), wire.ErrTimeout)
		}
	case greeting:
		if now >= c.due {
			return c.cause(ReasonConnackTimeout, nil)
		}
	case live:
		if c.sent {
			c.sent, c.quiet = false, now
		}
		if c.keepAlive == 0 {
			return nil
		}
		patience := int64(c.keepAlive) * 1e9
		if c.pinged {
			if now >= c.due {
				return c.cause(ReasonKeepAlive, nil)
			}
			return nil
		}
		// quiet is late by up to one sweep, and the next look is one sweep away [MQTT-3.1.2-20].
		if now-c.quiet >= patience*3/4-2*int64(sweepEvery) {
			out := c.queue(2)
			out.b = mqtt.AppendPingreq(out.b)
			c.sent, c.quiet = false, now
			c.pinged, c.due = true, now+max(patience, minPatience)
			if t := c.engine.cfg.PingTimeout; t > 0 {
				c.due = now + int64(t)
			}
			c.flush()
		}
	}
	return nil
}

// detach takes the connection's state off the client when its connection has ended, and says how it ended and whose answers will not come.
func (c *Client) detach(cause Cause) (Cause, []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving.Load() {
		cause = Cause{Stage: c.phase.stage(), Reason: c.why}
	}
	c.out.release()
	c.reader.Release()
	c.out, c.link, c.phase, c.turn = nil, nil, closed, false
	var lost []uint64
	if c.session != nil {
		lost = c.session.drop(func(f *flight) bool { return !f.isPublish() })
	}
	return cause, lost
}

// ended detaches the client and tells its handler.
func (c *Client) ended(at int64, cause Cause) {
	c.calls.Lock()
	defer c.calls.Unlock()
	cause, lost := c.detach(cause)
	for _, token := range lost {
		c.Handler.OnAcked(c, at, token, CodeDropped)
	}
	c.Handler.OnClosed(c, at, cause)
}
