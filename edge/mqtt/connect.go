package mqtt

import (
	"encoding/binary"
	"math"
)

// Connect is a CONNECT packet as far as routing needs it. Byte slices alias the parsed bytes.
type Connect struct {
	Version Version
	Bridge  bool // the client is a bridge of another broker: bit 0x80 of the level

	ClientID    []byte // well-formed UTF-8 without U+0000, at most 65,535 bytes, compared as bytes
	Username    []byte
	HasUsername bool // a user name is there; it may be empty
	HasPassword bool
	CleanStart  bool   // "clean session" in MQTT 3
	KeepAlive   uint16 // seconds; 0 = off

	Will       bool
	WillQoS    byte // 0, 1, 2
	WillRetain bool
	WillDelay  uint32 // seconds (MQTT 5)

	// MQTT 5 (§3.1.2.11); zero is "not given".
	HasSessionExpiry  bool
	SessionExpiry     uint32 // seconds; NeverExpires = never
	ReceiveMaximum    uint16 // 0 = not given: 65,535
	MaximumPacketSize uint32 // 0 = not given: no bound
	TopicAliasMaximum uint16
	AuthMethod        bool // enhanced authentication: AUTH packets will follow

	Size int // of the whole packet, in bytes
}

// NeverExpires is the Session Expiry Interval of a session that does not expire (MQTT 5 §3.1.2.11.2).
const NeverExpires = math.MaxUint32

// Persistent reports whether the session may outlive its connection: MQTT 3 without clean session [MQTT-3.1.2-4],
// MQTT 5 with a Session Expiry Interval above 0 [MQTT-3.1.2-23]. A server may still decide otherwise in its CONNACK.
func (c *Connect) Persistent() bool {
	if c.Version == V5 {
		return c.SessionExpiry > 0
	}
	return !c.CleanStart
}

// Connect flags (MQTT 5 §3.1.2.3).
const (
	flagReserved   = 0x01
	flagCleanStart = 0x02
	flagWill       = 0x04
	flagWillQoS    = 0x18
	flagWillRetain = 0x20
	flagPassword   = 0x40
	flagUsername   = 0x80
)

const (
	nameV31 = "\x00\x06MQIsdp"
	nameV4  = "\x00\x04MQTT" // 3.1.1 and 5
	// minConnect is the shortest body there is: "MQTT", level, flags, keep alive, an empty client ID.
	// So wherever a body is that long, the fields before the payload fit, in "MQIsdp" too.
	minConnect = len(nameV4) + 1 + 1 + 2 + 2
)

// ParseConnect reads the CONNECT at the start of b, which may hold bytes behind it. limit bounds the packet's size in bytes.
//
// ErrShort says that the packet is incomplete. The fields up to the keep alive are judged as soon as they are there,
// whatever is still missing; the others when the packet is complete. So more bytes turn ErrShort into a result, but never
// one error into another kind; only the Version of a too_large error can become known.
// Every other error is an *Error, and the Connect is zero then.
func ParseConnect(b []byte, limit int) (Connect, error) {
	start, end, err := fixedHeader(b, CONNECT, NotConnect, 0)
	if err != nil {
		return Connect{}, err
	}
	body := b[start:min(end, len(b))]
	if end > limit {
		v, _, _, _ := parseLevel(body) // so that an MQTT 5 client can be told
		return Connect{}, failNumber(TooLarge, v, "bytes:", end)
	}
	if end-start < minConnect {
		return Connect{}, fail(Truncated, 0, "too short for a CONNECT")
	}
	v, bridge, n, err := parseLevel(body)
	if err != nil {
		return Connect{}, err
	}
	if len(body) == n {
		return Connect{}, ErrShort
	}
	flags := body[n]
	if err := checkFlags(flags, v); err != nil {
		return Connect{}, err
	}
	if len(b) < end {
		return Connect{}, ErrShort
	}

	c := Connect{
		Version:     v,
		Bridge:      bridge,
		HasUsername: flags&flagUsername != 0,
		HasPassword: flags&flagPassword != 0,
		CleanStart:  flags&flagCleanStart != 0,
		KeepAlive:   binary.BigEndian.Uint16(body[n+1:]),
		Will:        flags&flagWill != 0,
		Size:        end,
	}
	if c.Will { // without one MQTT 3.1 disregards the other two
		c.WillQoS = flags & flagWillQoS >> 3
		c.WillRetain = flags&flagWillRetain != 0
	}
	if err := c.parsePayload(cursor{body[n+3:]}); err != nil {
		return Connect{}, err
	}
	return c, nil
}

// parseLevel reads protocol name and level at the start of a CONNECT's body of which p is there. n is their length.
// With an unknown level, v is a version that says no in a way such a client can read.
func parseLevel(p []byte) (v Version, bridge bool, n int, err error) {
	var old bool
	switch {
	case startsLike(p, nameV4):
		n = len(nameV4)
	case startsLike(p, nameV31):
		n, old = len(nameV31), true
	default: // [MQTT-3.1.2-1]
		return 0, false, 0, fail(BadProtocolName, 0, `neither "MQTT" nor "MQIsdp"`)
	}
	if len(p) <= n {
		return 0, false, 0, ErrShort
	}
	v, bridge = Version(p[n]&^bridgeBit), p[n]&bridgeBit != 0
	n++
	switch { // [MQTT-3.1.2-2]
	case old && v == V31, !old && (v == V311 || v == V5):
		return v, bridge, n, nil
	case old:
		return V31, false, 0, failNumber(UnknownLevel, V31, "MQIsdp", int(p[n-1]))
	case v > V5:
		return V5, false, 0, failNumber(UnknownLevel, V5, "MQTT", int(p[n-1]))
	default:
		return V311, false, 0, failNumber(UnknownLevel, V311, "MQTT", int(p[n-1]))
	}
}

// startsLike compares p with name as far as p goes.
func startsLike(p []byte, name string) bool {
	n := min(len(p), len(name))
	return string(p[:n]) == name[:n]
}

func checkFlags(flags byte, v Version) error {
	if flags&flagReserved != 0 { // [MQTT-3.1.2-3]
		return fail(ReservedFlag, v, "connect flag 0 is set")
	}
	switch {
	case flags&flagWill == 0:
		// MQTT 3.1 disregards both bits without a Will; later versions do not. [MQTT-3.1.2-13 | 3.1.2-11], [MQTT-3.1.2-15 | 3.1.2-13]
		if v != V31 && flags&(flagWillQoS|flagWillRetain) != 0 {
			return fail(BadWillFlags, v, "Will QoS or Will Retain without a Will")
		}
	case flags&flagWillQoS == flagWillQoS: // [MQTT-3.1.2-14 | 3.1.2-12]
		return fail(BadWillFlags, v, "Will QoS 3")
	}
	if v != V5 && flags&(flagUsername|flagPassword) == flagPassword { // [MQTT-3.1.2-22]
		return fail(BadPasswordFlag, v, "a password without a user name")
	}
	return nil
}

// parsePayload reads what follows the keep alive: the properties of MQTT 5, then the payload [MQTT-3.1.3-1].
func (c *Connect) parsePayload(p cursor) error {
	v := c.Version
	if v == V5 {
		props, err := p.properties(inConnect, v)
		if err != nil {
			return err
		}
		if err := c.setProperties(&props); err != nil {
			return err
		}
	}

	var ok bool
	if c.ClientID, ok = p.field(); !ok { // [MQTT-3.1.3-3]
		return fail(Truncated, v, "client ID")
	}
	if !wellFormed(c.ClientID) { // [MQTT-3.1.3-4]
		return fail(BadClientID, v, "not well-formed UTF-8, or with U+0000")
	}
	// MQTT 3.1 has no empty client ID (its bound of 23 bytes was never kept); 3.1.1 has it for clean sessions
	// [MQTT-3.1.3-7], [MQTT-3.1.3-8]; with MQTT 5 the server assigns one [MQTT-3.1.3-6].
	if len(c.ClientID) == 0 && (v == V31 || v == V311 && !c.CleanStart) {
		return fail(BadClientID, v, "empty")
	}

	if c.Will { // [MQTT-3.1.2-9]
		if v == V5 {
			props, err := p.properties(inWill, v)
			if err != nil {
				return err
			}
			c.WillDelay = props.willDelay
		}
		if _, ok = p.field(); !ok {
			return fail(Truncated, v, "Will topic")
		}
		if _, ok = p.field(); !ok {
			return fail(Truncated, v, "Will message")
		}
	}

	// "For compatibility with the original MQTT V3 specification, the Remaining Length … takes precedence over the
	// User Name flag": in MQTT 3.1 (§3.1, User name and password flags) both may be announced and missing.
	if v == V31 && len(p.rest) == 0 {
		c.HasUsername, c.HasPassword = false, false
	}
	if c.HasUsername { // [MQTT-3.1.2-19 | 3.1.2-17]
		if c.Username, ok = p.field(); !ok {
			return fail(Truncated, v, "user name")
		}
		if v != V31 && !wellFormed(c.Username) { // [MQTT-3.1.3-11 | 3.1.3-12]
			return fail(BadUTF8, v, "user name")
		}
	}
	if v == V31 && len(p.rest) == 0 {
		c.HasPassword = false
	}
	if c.HasPassword { // [MQTT-3.1.2-21 | 3.1.2-19]
		if _, ok = p.field(); !ok {
			return fail(Truncated, v, "password")
		}
	}
	if len(p.rest) > 0 {
		return failNumber(TrailingBytes, v, "bytes:", len(p.rest))
	}
	return nil
}

func (c *Connect) setProperties(p *properties) error {
	// Zero would read as "not given" here, and both are Protocol Errors (MQTT 5 §3.1.2.11.3, §3.1.2.11.4).
	if p.has(propReceiveMaximum) && p.receiveMaximum == 0 {
		return fail(BadPropertyValue, V5, "Receive Maximum 0")
	}
	if p.has(propMaximumPacketSize) && p.maximumPacketSize == 0 {
		return fail(BadPropertyValue, V5, "Maximum Packet Size 0")
	}
	c.HasSessionExpiry, c.SessionExpiry = p.has(propSessionExpiry), p.sessionExpiry
	c.ReceiveMaximum = p.receiveMaximum
	c.MaximumPacketSize = p.maximumPacketSize
	c.TopicAliasMaximum = p.topicAliasMaximum
	c.AuthMethod = p.has(propAuthMethod)
	return nil
}

// ConnectOption adds to a CONNECT what Connect does not hold.
type ConnectOption struct {
	password, willTopic, willMessage []byte
}

// WithPassword gives the password of a Connect that HasPassword.
func WithPassword(password []byte) ConnectOption { return ConnectOption{password: password} }

// WithWill gives the Will of a Connect that has one. A Will's topic must not be empty [MQTT-4.7.3-1].
func WithWill(topic, message []byte) ConnectOption {
	return ConnectOption{willTopic: topic, willMessage: message}
}

// AppendConnect appends the CONNECT that c describes; Size is disregarded. An AuthMethod is written with an empty name.
// ParseConnect reads back what was written, if c is legal for its version: AppendConnect does not judge, since probes
// and tests want illegal ones too. What has no form on the wire (an unknown version, a field above 65,535 bytes) appends nothing.
func AppendConnect(dst []byte, c *Connect, options ...ConnectOption) []byte {
	var x ConnectOption
	for _, o := range options {
		x.password = append(x.password, o.password...)
		x.willTopic = append(x.willTopic, o.willTopic...)
		x.willMessage = append(x.willMessage, o.willMessage...)
	}
	for _, f := range [...][]byte{c.ClientID, c.Username, x.password, x.willTopic, x.willMessage} {
		if len(f) > maxField {
			return dst
		}
	}

	var name string
	switch c.Version {
	case V31:
		name = nameV31
	case V311, V5:
		name = nameV4
	default:
		return dst
	}
	level := byte(c.Version)
	if c.Bridge {
		level |= bridgeBit
	}

	body := make([]byte, 0, 64+len(c.ClientID)+len(c.Username)+len(x.password)+len(x.willTopic)+len(x.willMessage))
	body = append(body, name...)
	body = append(body, level, c.flags())
	body = binary.BigEndian.AppendUint16(body, c.KeepAlive)
	if c.Version == V5 {
		body = c.appendProperties(body)
	}
	body = appendField(body, c.ClientID)
	if c.Will {
		if c.Version == V5 {
			body = c.appendWillProperties(body)
		}
		body = appendField(body, x.willTopic)
		body = appendField(body, x.willMessage)
	}
	if c.HasUsername {
		body = appendField(body, c.Username)
	}
	if c.HasPassword {
		body = appendField(body, x.password)
	}

	dst = append(dst, byte(CONNECT)<<4)
	dst = appendUvarint(dst, len(body))
	return append(dst, body...)
}

func (c *Connect) flags() (f byte) {
	set := func(on bool, bit byte) {
		if on {
			f |= bit
		}
	}
	set(c.CleanStart, flagCleanStart)
	set(c.Will, flagWill)
	set(c.WillRetain, flagWillRetain)
	set(c.HasPassword, flagPassword)
	set(c.HasUsername, flagUsername)
	return f | c.WillQoS<<3&flagWillQoS
}

func (c *Connect) appendProperties(dst []byte) []byte {
	var buf [32]byte
	p := buf[:0]
	if c.HasSessionExpiry {
		p = binary.BigEndian.AppendUint32(append(p, propSessionExpiry), c.SessionExpiry)
	}
	if c.ReceiveMaximum > 0 {
		p = binary.BigEndian.AppendUint16(append(p, propReceiveMaximum), c.ReceiveMaximum)
	}
	if c.MaximumPacketSize > 0 {
		p = binary.BigEndian.AppendUint32(append(p, propMaximumPacketSize), c.MaximumPacketSize)
	}
	if c.TopicAliasMaximum > 0 {
		p = binary.BigEndian.AppendUint16(append(p, propTopicAliasMaximum), c.TopicAliasMaximum)
	}
	if c.AuthMethod {
		p = append(p, propAuthMethod, 0, 0)
	}
	dst = appendUvarint(dst, len(p))
	return append(dst, p...)
}

func (c *Connect) appendWillProperties(dst []byte) []byte {
	if c.WillDelay == 0 {
		return append(dst, 0)
	}
	dst = append(dst, 5, propWillDelay)
	return binary.BigEndian.AppendUint32(dst, c.WillDelay)
}
