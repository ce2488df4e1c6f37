package mqtt

import (
	"encoding/binary"
	"fmt"
)

// Properties that are written or read (§2.2.2.2).
const (
	propPayloadFormat   = 0x01
	propMessageExpiry   = 0x02
	propContentType     = 0x03
	propResponseTopic   = 0x08
	propCorrelation     = 0x09
	propSubscriptionID  = 0x0B
	propSessionExpiry   = 0x11
	propAssignedID      = 0x12
	propServerKeepAlive = 0x13
	propAuthMethod      = 0x15
	propAuthData        = 0x16
	propResponseInfo    = 0x1A
	propServerReference = 0x1C
	propReason          = 0x1F
	propReceiveMaximum  = 0x21
	propTopicAliasMax   = 0x22
	propTopicAlias      = 0x23
	propMaximumQoS      = 0x24
	propRetainAvailable = 0x25
	propUserProperty    = 0x26
	propMaximumPacket   = 0x27
	propWildcard        = 0x28
	propSubIDs          = 0x29
	propShared          = 0x2A
)

// Check says what of c cannot be written: a version that does not exist, or a field that is too long.
func (c *Connect) Check() error {
	if c.Version < V31 || c.Version > V5 {
		return fmt.Errorf("%w: CONNECT of %v", ErrMalformed, c.Version)
	}
	lengths := [...]struct {
		field string
		n     int
	}{{"client ID", len(c.ID)}, {"user name", len(c.User)}, {"password", len(c.Password)}, {"Will topic", 0}, {"Will payload", 0}}
	if w := c.Will; w != nil {
		lengths[3].n, lengths[4].n = len(w.Topic), len(w.Payload)
		if w.QoS > 2 {
			return fmt.Errorf("%w: Will QoS %d", ErrMalformed, w.QoS) // [MQTT-3.1.2-12]
		}
	}
	for _, l := range lengths {
		if l.n > MaxString {
			return fmt.Errorf("%w: %s of %d bytes", ErrTooLong, l.field, l.n)
		}
	}
	return nil
}

// Append appends the CONNECT to b. c has passed Check.
func (c *Connect) Append(b []byte) []byte {
	name := "MQTT"
	if c.Version == V31 {
		name = "MQIsdp"
	}
	n := 2 + len(name) + 1 + 1 + 2 + 2 + len(c.ID)
	var flags byte
	if c.Clean {
		flags |= 0x02
	}
	if w := c.Will; w != nil {
		flags |= 0x04 | w.QoS<<3
		if w.Retain {
			flags |= 0x20
		}
		n += 2 + len(w.Topic) + 2 + len(w.Payload)
		if c.Version == V5 {
			n++ // no properties
		}
	}
	if c.HasPassword {
		flags |= 0x40
		n += 2 + len(c.Password)
	}
	if c.HasUser {
		flags |= 0x80
		n += 2 + len(c.User)
	}
	props := 0
	if c.Version == V5 {
		if c.Expiry > 0 {
			props += 5
		}
		if c.ReceiveMaximum > 0 {
			props += 3
		}
		n += 1 + props
	}

	b = appendLength(append(b, byte(CONNECT)<<4), n)
	b = appendString(b, name)
	b = append(b, byte(c.Version), flags)
	b = binary.BigEndian.AppendUint16(b, c.KeepAlive)
	if c.Version == V5 {
		b = append(b, byte(props))
		if c.Expiry > 0 {
			b = binary.BigEndian.AppendUint32(append(b, propSessionExpiry), c.Expiry)
		}
		if c.ReceiveMaximum > 0 {
			b = binary.BigEndian.AppendUint16(append(b, propReceiveMaximum), c.ReceiveMaximum)
		}
	}
	b = appendString(b, c.ID)
	if w := c.Will; w != nil { // Will before user name and password [MQTT-3.1.3-1]
		if c.Version == V5 {
			b = append(b, 0)
		}
		b = appendString(b, w.Topic)
		b = appendBinary(b, w.Payload)
	}
	if c.HasUser {
		b = appendString(b, c.User)
	}
	if c.HasPassword {
		b = appendBinary(b, c.Password)
	}
	return b
}

// PublishSize is the number of bytes that AppendPublish appends, or ErrTooLong.
func PublishSize(v Version, p *Publish) (int, error) {
	n := publishLength(v, p)
	if len(p.Topic) > MaxString || n > MaxPacket {
		return 0, fmt.Errorf("%w: PUBLISH with a topic of %d bytes and a payload of %d", ErrTooLong, len(p.Topic), len(p.Payload))
	}
	return 1 + lengthSize(n) + n, nil
}

func publishLength(v Version, p *Publish) int {
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if v == V5 {
		n++
	}
	return n
}

// AppendPublish appends p to b. p has passed PublishSize.
func AppendPublish(b []byte, v Version, p *Publish) []byte {
	first := byte(PUBLISH)<<4 | p.QoS<<1
	if p.Retain {
		first |= 1
	}
	if p.Dup {
		first |= DupFlag
	}
	b = appendLength(append(b, first), publishLength(v, p))
	b = appendBinary(b, p.Topic)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, p.ID)
	}
	if v == V5 {
		b = append(b, 0)
	}
	return append(b, p.Payload...)
}

// DupFlag is DUP in the first byte of a PUBLISH [MQTT-3.3.1-1]; whoever keeps a written packet sets it there when sending it again.
const DupFlag = 0x08

// AppendAck appends a PUBACK, PUBREC, PUBREL or PUBCOMP. Versions below 5 have no reason: it is left out there, as Success is in 5 (§3.4.2.1).
func AppendAck(b []byte, v Version, k Kind, id uint16, reason byte) []byte {
	first := byte(k) << 4
	if k == PUBREL {
		first |= 2 // [MQTT-3.6.1-1]
	}
	if v != V5 || reason == 0 {
		return append(b, first, 2, byte(id>>8), byte(id))
	}
	return append(b, first, 3, byte(id>>8), byte(id), reason)
}

// Subscription is a topic filter with the QoS that is asked for (§3.8.3).
type Subscription struct {
	Filter string
	QoS    byte
}

// AppendSubscribe appends a SUBSCRIBE. Filters have 1 to MaxString bytes, and there is at least one [MQTT-3.8.3-2].
func AppendSubscribe(b []byte, v Version, id uint16, subs ...Subscription) []byte {
	n := 2
	for i := range subs {
		n += 2 + len(subs[i].Filter) + 1
	}
	b = appendIDHeader(b, v, byte(SUBSCRIBE)<<4|2, id, n) // [MQTT-3.8.1-1]
	for i := range subs {
		b = append(appendString(b, subs[i].Filter), subs[i].QoS)
	}
	return b
}

// AppendUnsubscribe appends an UNSUBSCRIBE, under the same conditions as AppendSubscribe.
func AppendUnsubscribe(b []byte, v Version, id uint16, filters ...string) []byte {
	n := 2
	for _, f := range filters {
		n += 2 + len(f)
	}
	b = appendIDHeader(b, v, byte(UNSUBSCRIBE)<<4|2, id, n) // [MQTT-3.10.1-1]
	for _, f := range filters {
		b = appendString(b, f)
	}
	return b
}

func appendIDHeader(b []byte, v Version, first byte, id uint16, n int) []byte {
	if v == V5 {
		n++
	}
	b = appendLength(append(b, first), n)
	b = append(b, byte(id>>8), byte(id))
	if v == V5 {
		b = append(b, 0)
	}
	return b
}

// AppendPingreq appends a PINGREQ.
func AppendPingreq(b []byte) []byte { return append(b, byte(PINGREQ)<<4, 0) }

// AppendDisconnect appends a DISCONNECT. Versions below 5 have neither reason nor expiry: they are left out. A nil expiry keeps the session
// expiry of the CONNECT (§3.14.2.2.2).
func AppendDisconnect(b []byte, v Version, reason byte, expiry *uint32) []byte {
	const first = byte(DISCONNECT) << 4
	switch {
	case v == V5 && expiry != nil:
		return binary.BigEndian.AppendUint32(append(b, first, 7, reason, 5, propSessionExpiry), *expiry)
	case v == V5 && reason != 0:
		return append(b, first, 1, reason)
	}
	return append(b, first, 0)
}

// appendLength appends a Remaining Length (§1.5.5).
func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func lengthSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func appendBinary(b, p []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
}
