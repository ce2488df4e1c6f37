package mqtt

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// fixedFlags are the low four bits of each kind's first byte [MQTT-2.1.3-1]; PUBLISH has flags of its own.
var fixedFlags = [16]byte{PUBREL: 2, SUBSCRIBE: 2, UNSUBSCRIBE: 2}

// parse reads the packet that raw is.
func (p *Packet) parse(v Version, raw []byte) error {
	p.Kind, p.Raw = Kind(raw[0]>>4), raw
	header := 1
	for raw[header] >= 0x80 {
		header++
	}
	p.Body = raw[header+1:]
	p.Code, p.ID, p.Codes, p.Reason, p.ServerReference = 0, 0, nil, nil, nil
	switch p.Kind {
	case PUBLISH:
		return p.parsePublish(v, raw[0])
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		return p.parseAck(v)
	case CONNACK:
		return p.parseConnack(v)
	case SUBACK, UNSUBACK:
		return p.parseSuback(v)
	case PINGREQ, PINGRESP:
		if len(p.Body) > 0 {
			return p.malformed("it has a body")
		}
	case DISCONNECT, AUTH:
		return p.parseDisconnect(v)
	case CONNECT, SUBSCRIBE, UNSUBSCRIBE: // Body alone
	}
	return nil
}

func (p *Packet) malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %v: %s", ErrMalformed, p.Kind, fmt.Sprintf(format, args...))
}

func (p *Packet) parsePublish(v Version, first byte) error {
	c := cursor{b: p.Body}
	m := &p.Publish
	*m = Publish{QoS: first >> 1 & 3, Retain: first&1 != 0, Dup: first&DupFlag != 0}
	if m.QoS == 3 {
		return p.malformed("QoS 3") // [MQTT-3.3.1-4]
	}
	if m.QoS == 0 && m.Dup {
		return p.malformed("DUP at QoS 0") // [MQTT-3.3.1-2]
	}
	m.Topic = c.text()
	if m.QoS > 0 {
		if m.ID = c.uint16(); m.ID == 0 && !c.bad {
			return p.malformed("packet ID 0") // [MQTT-2.2.1-3]
		}
		p.ID = m.ID
	}
	if v == V5 {
		c.properties(PUBLISH, p)
	}
	m.Payload = c.b
	switch {
	case c.bad:
		return p.malformed("cut or wrong fields")
	case len(m.Topic) == 0:
		return p.malformed("no topic") // [MQTT-4.7.3-1]; an alias would need our permission [MQTT-3.3.2-10]
	case bytes.IndexByte(m.Topic, '+') >= 0 || bytes.IndexByte(m.Topic, '#') >= 0:
		return p.malformed("wildcard in topic %q", m.Topic) // [MQTT-3.3.2-2]
	}
	return nil
}

func (p *Packet) parseAck(v Version) error {
	c := cursor{b: p.Body}
	p.ID = c.uint16()
	if v == V5 && len(c.b) > 0 { // §3.4.2.1: both may be missing
		p.Code = c.byte()
		if len(c.b) > 0 {
			c.properties(p.Kind, p)
		}
	}
	return p.ended(&c)
}

func (p *Packet) parseSuback(v Version) error {
	c := cursor{b: p.Body}
	p.ID = c.uint16()
	if v == V5 {
		c.properties(p.Kind, p)
	}
	if v != V5 && p.Kind == UNSUBACK {
		return p.ended(&c)
	}
	if !c.bad && len(c.b) == 0 {
		return p.malformed("no reason code")
	}
	p.Codes, c.b = c.b, nil
	if !c.bad {
		p.Code = p.Codes[0]
	}
	return p.ended(&c)
}

func (p *Packet) parseDisconnect(v Version) error {
	c := cursor{b: p.Body}
	if v != V5 && p.Kind == AUTH {
		return p.malformed("before version 5") // §2.1.2 of 3.1.1: reserved
	}
	if len(c.b) > 0 && (v == V5 || p.Kind == DISCONNECT) { // §3.14.2.1: both may be missing; servers that say it to MQTT 3 say it thus
		p.Code = c.byte()
		if len(c.b) > 0 {
			c.properties(p.Kind, p)
		}
	}
	return p.ended(&c)
}

func (p *Packet) parseConnack(v Version) error {
	c := cursor{b: p.Body}
	k := &p.Connack
	*k = Connack{ReceiveMaximum: 65_535, MaximumQoS: 2}
	flags := c.byte()
	k.Code = c.byte()
	if v == V31 {
		flags = 0 // reserved there, with no value given
	}
	if flags > 1 {
		return p.malformed("flags %08b", flags) // [MQTT-3.2.2-1]
	}
	k.SessionPresent = flags == 1
	if k.SessionPresent && k.Code != 0 {
		return p.malformed("Session Present with code %#02x", k.Code) // [MQTT-3.2.2-6]
	}
	p.Code = k.Code
	// A server that does not speak 5 refuses in the form of 3.1.1, with code 1, without properties.
	if v == V5 && (len(c.b) > 0 || k.Code != 1) {
		c.properties(CONNACK, p)
		k.ServerReference, k.Reason = p.ServerReference, p.Reason
	}
	return p.ended(&c)
}

// ended is for packets that have nothing behind their last field.
func (p *Packet) ended(c *cursor) error {
	switch {
	case c.bad:
		return p.malformed("cut or wrong fields")
	case len(c.b) > 0:
		return p.malformed("%d bytes too many", len(c.b))
	case (p.Kind >= PUBACK && p.Kind <= UNSUBACK) && p.ID == 0:
		return p.malformed("packet ID 0")
	}
	return nil
}

// cursor takes fields from the front of b. What is cut sets bad, and all later fields are empty.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || len(c.b) < n {
		c.bad, c.b = true, nil
		return nil
	}
	t := c.b[:n:n]
	c.b = c.b[n:]
	return t
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return uint16(b[0])<<8 | uint16(b[1])
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	return 0
}

func (c *cursor) binary() []byte { return c.take(int(c.uint16())) }

// text takes a UTF-8 string: valid and without U+0000 [MQTT-1.5.4-1] [MQTT-1.5.4-2].
func (c *cursor) text() []byte {
	t := c.binary()
	if bytes.IndexByte(t, 0) >= 0 || !utf8.Valid(t) {
		c.bad = true
	}
	return t
}

// length takes a Variable Byte Integer (§1.5.5).
func (c *cursor) length() int {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b := c.byte()
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
	c.bad = true
	return 0
}

// allowed says in which packets a property may be (§2.2.2.2), as bits 1<<Kind; those that only clients send are in none, but for one.
var allowed = [0x2B]uint16{
	propPayloadFormat: 1 << PUBLISH, propMessageExpiry: 1 << PUBLISH, propContentType: 1 << PUBLISH, propResponseTopic: 1 << PUBLISH,
	propCorrelation: 1 << PUBLISH, propSubscriptionID: 1 << PUBLISH, propTopicAlias: 1 << PUBLISH,
	propSessionExpiry: 1<<CONNACK | 1<<DISCONNECT, // that of a client's DISCONNECT passes: Readers of both directions exist
	propAssignedID:    1 << CONNACK, propServerKeepAlive: 1 << CONNACK, propResponseInfo: 1 << CONNACK,
	propReceiveMaximum: 1 << CONNACK, propTopicAliasMax: 1 << CONNACK, propMaximumQoS: 1 << CONNACK, propRetainAvailable: 1 << CONNACK,
	propMaximumPacket: 1 << CONNACK, propWildcard: 1 << CONNACK, propSubIDs: 1 << CONNACK, propShared: 1 << CONNACK,
	propAuthMethod: 1<<CONNACK | 1<<AUTH, propAuthData: 1<<CONNACK | 1<<AUTH,
	propServerReference: 1<<CONNACK | 1<<DISCONNECT,
	propReason:          1<<CONNACK | 1<<PUBACK | 1<<PUBREC | 1<<PUBREL | 1<<PUBCOMP | 1<<SUBACK | 1<<UNSUBACK | 1<<DISCONNECT | 1<<AUTH,
	propUserProperty: 1<<CONNACK | 1<<PUBLISH | 1<<PUBACK | 1<<PUBREC | 1<<PUBREL | 1<<PUBCOMP | 1<<SUBACK | 1<<UNSUBACK |
		1<<DISCONNECT | 1<<AUTH,
}

// repeatable are the properties that a packet may have more than once.
const repeatable = 1<<propUserProperty | 1<<propSubscriptionID

// properties takes the properties of a packet of kind k into p.
func (c *cursor) properties(k Kind, p *Packet) {
	in := cursor{b: c.take(c.length())}
	a := &p.Connack
	var seen uint64
	for len(in.b) > 0 && !in.bad {
		id := in.length()
		if id >= len(allowed) || allowed[id]&(1<<k) == 0 || seen&^repeatable&(1<<id) != 0 {
			in.bad = true // §2.2.2.2: unknown, out of place or twice
			break
		}
		seen |= 1 << id
		switch id {
		case propReason:
			p.Reason = in.text()
		case propServerReference:
			p.ServerReference = in.text()
		case propAssignedID:
			a.AssignedID = in.text()
		case propSessionExpiry:
			a.Expiry, a.HasExpiry = in.uint32(), true
		case propServerKeepAlive:
			a.KeepAlive, a.HasKeepAlive = in.uint16(), true
		case propReceiveMaximum:
			a.ReceiveMaximum = in.uint16()
			in.bad = in.bad || a.ReceiveMaximum == 0 // §3.2.2.3.3
		case propMaximumPacket:
			a.MaximumPacketSize = in.uint32()
			in.bad = in.bad || a.MaximumPacketSize == 0 // §3.2.2.3.6
		case propMaximumQoS:
			a.MaximumQoS = in.flag() // 0 or 1 (§3.2.2.3.4)
		case propPayloadFormat, propRetainAvailable, propWildcard, propSubIDs, propShared:
			in.flag()
		case propMessageExpiry:
			in.uint32()
		case propTopicAliasMax, propTopicAlias:
			in.uint16()
		case propSubscriptionID:
			in.bad = in.length() == 0 || in.bad // §3.3.2.3.8
		case propContentType, propResponseTopic, propResponseInfo, propAuthMethod:
			in.text()
		case propCorrelation, propAuthData:
			in.binary()
		case propUserProperty:
			in.text()
			in.text()
		}
	}
	c.bad = c.bad || in.bad
}

// flag takes a byte that is 0 or 1.
func (c *cursor) flag() byte {
	b := c.byte()
	c.bad = c.bad || b > 1
	return b
}
