package mqtt

// Connack is a CONNACK packet as far as routing needs it. Byte slices alias the parsed bytes.
type Connack struct {
	SessionPresent bool // always false in MQTT 3.1, which has no such flag
	Code           byte // 0 = accepted; a reason code in MQTT 5, a return code in MQTT 3

	// MQTT 5 (§3.2.2.3).
	AssignedClientID   []byte // nil = none; well-formed UTF-8 without U+0000
	HasSessionExpiry   bool
	SessionExpiry      uint32 // seconds, instead of the client's
	HasServerKeepAlive bool
	ServerKeepAlive    uint16 // seconds, instead of the client's

	Size int // of the whole packet, in bytes
}

// MaxConnack bounds a CONNACK's size in bytes: the longest client ID that a broker can assign (MQTT 5 §3.2.2.3.7), and 64 KiB of
// other properties beside it. The standard has no bound of its own: user properties may repeat (§3.2.2.3.10).
const MaxConnack = 128 << 10

// ParseConnack reads the CONNACK at the start of b, which may hold bytes behind it, for a client of version v.
// ErrShort says that it is incomplete; its first five bytes are judged as soon as they are there.
//
// A broker that does not know MQTT 5 answers an MQTT 5 client in the older form: then Code is one of MQTT 3's (1 to 5).
func ParseConnack(b []byte, v Version) (Connack, error) {
	start, end, err := fixedHeader(b, CONNACK, NotConnack, 0)
	switch {
	case err != nil:
		return Connack{}, err
	case end > MaxConnack:
		return Connack{}, failNumber(TooLarge, 0, "bytes:", end)
	case end-start < 2:
		return Connack{}, fail(Truncated, 0, "too short for a CONNACK")
	case end-start > 2 && v != V5:
		return Connack{}, failNumber(TrailingBytes, 0, "bytes:", end-start-2)
	case len(b) < end:
		return Connack{}, ErrShort
	}
	body := cursor{b[start:end]}
	flags, _ := body.u8()
	code, _ := body.u8()
	c := Connack{Code: code, Size: end}
	if v != V31 { // whose first byte is "reserved, not used"
		if flags&^1 != 0 { // [MQTT-3.2.2-1]
			return Connack{}, fail(ReservedFlag, 0, "acknowledge flags are not 0 or 1")
		}
		c.SessionPresent = flags == 1
	}
	if len(body.rest) == 0 {
		return c, nil
	}

	props, err := body.properties(inConnack, 0)
	if err != nil {
		return Connack{}, err
	}
	if len(body.rest) > 0 {
		return Connack{}, failNumber(TrailingBytes, 0, "bytes:", len(body.rest))
	}
	if !wellFormed(props.assignedClientID) {
		return Connack{}, fail(BadClientID, 0, "assigned one is not well-formed UTF-8, or with U+0000")
	}
	c.AssignedClientID = props.assignedClientID
	c.HasSessionExpiry, c.SessionExpiry = props.has(propSessionExpiry), props.sessionExpiry
	c.HasServerKeepAlive, c.ServerKeepAlive = props.has(propServerKeepAlive), props.serverKeepAlive
	return c, nil
}

// AppendConnack appends a CONNACK for a client of version v, without properties. code is a reason code of MQTT 5; for
// MQTT 3 it is translated (codes 0 to 5 are MQTT 3's already), and what MQTT 3 has no word for is "server unavailable".
// sessionPresent counts with code 0 only. For a version that is not known, nothing is appended.
func AppendConnack(dst []byte, v Version, sessionPresent bool, code byte) []byte {
	var flags byte
	if sessionPresent && code == Success && v != V31 { // [MQTT-3.2.2-4 | 3.2.2-6]
		flags = 1
	}
	switch v {
	case V5:
		return append(dst, byte(CONNACK)<<4, 3, flags, code, 0)
	case V31, V311:
		return append(dst, byte(CONNACK)<<4, 2, flags, returnCode(code))
	}
	return dst
}

// Disconnect is a DISCONNECT packet as far as routing needs it.
type Disconnect struct {
	Reason           byte // MQTT 5; 0 = normal disconnection
	HasSessionExpiry bool
	SessionExpiry    uint32 // seconds, instead of the CONNECT's (MQTT 5 §3.14.2.2.2)
}

// ParseDisconnect reads a DISCONNECT of a connection of version v; b is one whole packet and nothing else.
func ParseDisconnect(b []byte, v Version) (Disconnect, error) {
	start, end, err := fixedHeader(b, DISCONNECT, NotDisconnect, v) // [MQTT-3.14.1-1]
	switch {
	case err == ErrShort || err == nil && len(b) < end:
		return Disconnect{}, fail(Truncated, v, "not a whole DISCONNECT")
	case err != nil:
		return Disconnect{}, err
	case len(b) > end:
		return Disconnect{}, failNumber(TrailingBytes, v, "behind the DISCONNECT:", len(b)-end)
	case v != V5 && end > start:
		return Disconnect{}, failNumber(TrailingBytes, v, "bytes:", end-start)
	}
	body := cursor{b[start:end]}
	var d Disconnect
	if len(body.rest) == 0 { // "the Reason Code and Property Length can be omitted if the Reason Code is 0x00" (§3.14.2.1)
		return d, nil
	}
	d.Reason, _ = body.u8()
	if len(body.rest) == 0 { // "less than 2: a value of 0 is used" for the property length (§3.14.2.2.1)
		return d, nil
	}
	props, err := body.properties(inDisconnect, v)
	if err != nil {
		return Disconnect{}, err
	}
	if len(body.rest) > 0 {
		return Disconnect{}, failNumber(TrailingBytes, v, "bytes:", len(body.rest))
	}
	d.HasSessionExpiry, d.SessionExpiry = props.has(propSessionExpiry), props.sessionExpiry
	return d, nil
}

// AppendDisconnect appends a server's DISCONNECT with a reason code, without properties.
// For MQTT 3, where only clients send one, nothing is appended.
//
// The property length of zero could be left out (MQTT 5 §3.14.2.2.1), but releases of MQTT.js and others read past the end then.
func AppendDisconnect(dst []byte, v Version, code byte) []byte {
	if v != V5 {
		return dst
	}
	return append(dst, byte(DISCONNECT)<<4, 2, code, 0)
}
