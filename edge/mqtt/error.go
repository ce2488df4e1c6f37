package mqtt

import (
	"errors"
	"strconv"
)

// ErrShort says that more bytes are needed. It is never wrapped: compare with ==.
var ErrShort = errors.New("mqtt: short")

// ErrorKind is why a packet was refused: a closed set, made for counters.
type ErrorKind uint8

// The kinds. Kinds without a clause follow from a field that the packet has no room for.
const (
	NotConnect         ErrorKind = iota + 1 // the first byte is not 0x10: another packet [MQTT-3.1.0-1], or no MQTT at all
	NotConnack                              // the first byte is not 0x20 [MQTT-3.2.0-1]
	NotDisconnect                           // the first byte is not 0xE0 [MQTT-3.14.1-1]
	BadPacketType                           // packet type 0 (MQTT 5 §2.1.2)
	BadRemainingLength                      // more than four bytes (MQTT 5 §1.5.5)
	TooLarge                                // beyond the caller's bound
	BadProtocolName                         // neither "MQTT" nor "MQIsdp" [MQTT-3.1.2-1]
	UnknownLevel                            // [MQTT-3.1.2-2]
	ReservedFlag                            // a bit that must be 0 [MQTT-3.1.2-3], [MQTT-3.2.2-1]
	BadWillFlags                            // [MQTT-3.1.2-13 to -15 | 3.1.2-11 to -13]
	BadPasswordFlag                         // a password without a user name, MQTT 3 [MQTT-3.1.2-22]
	BadClientID                             // ill-formed [MQTT-3.1.3-4], or empty where it must not be [MQTT-3.1.3-8]
	BadUTF8                                 // in a user name [MQTT-3.1.3-11 | 3.1.3-12]
	Truncated                               // a field reaches beyond the packet's end
	TrailingBytes                           // bytes behind the last field
	BadProperty                             // unknown, or not one of this packet (MQTT 5 §2.2.2.2)
	DuplicateProperty                       // given twice (MQTT 5 §3.1.2.11, "Protocol Error to include … more than once")
	BadPropertyValue                        // zero where zero is forbidden (MQTT 5 §3.1.2.11.3, §3.1.2.11.4)
	lastKind
)

var kindNames = [lastKind]string{
	NotConnect:         "not_connect",
	NotConnack:         "not_connack",
	NotDisconnect:      "not_disconnect",
	BadPacketType:      "bad_packet_type",
	BadRemainingLength: "bad_remaining_length",
	TooLarge:           "too_large",
	BadProtocolName:    "bad_protocol_name",
	UnknownLevel:       "unknown_level",
	ReservedFlag:       "reserved_flag",
	BadWillFlags:       "bad_will_flags",
	BadPasswordFlag:    "bad_password_flag",
	BadClientID:        "bad_client_id",
	BadUTF8:            "bad_utf8",
	Truncated:          "truncated",
	TrailingBytes:      "trailing_bytes",
	BadProperty:        "bad_property",
	DuplicateProperty:  "duplicate_property",
	BadPropertyValue:   "bad_property_value",
}

// String is the reason as it is counted: "bad_client_id".
func (k ErrorKind) String() string {
	if k > 0 && k < lastKind {
		return kindNames[k]
	}
	return "unknown"
}

// ErrorKinds lists the closed set, so that counters can be created at zero.
func ErrorKinds() []ErrorKind {
	kinds := make([]ErrorKind, 0, lastKind-1)
	for k := ErrorKind(1); k < lastKind; k++ {
		kinds = append(kinds, k)
	}
	return kinds
}

// Error is a malformed or unacceptable packet. The parsers return it as *Error, unwrapped.
type Error struct {
	Kind ErrorKind
	// Version is the client's, in which it can be answered; 0 if its bytes did not tell it, and for a server's packets.
	Version Version
	// Detail is for people. It holds none of the peer's text.
	Detail string
}

func (e *Error) Error() string {
	s := "mqtt: " + e.Kind.String()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Version != 0 {
		s += " (MQTT " + e.Version.String() + ")"
	}
	return s
}

// Refusal is the code for the CONNACK with which a client is refused whose CONNECT has this error, in the client's own
// protocol: a reason code for MQTT 5, a return code for MQTT 3. AppendConnack takes both.
// ok is false where the protocol has no answer: close without one.
func (e *Error) Refusal() (code byte, ok bool) {
	switch e.Version {
	case V5:
		switch e.Kind {
		case UnknownLevel:
			return UnsupportedVersion, true // [MQTT-3.1.2-2]
		case BadClientID:
			return ClientIDNotValid, true // [MQTT-3.1.3-8]
		case TooLarge:
			return PacketTooLarge, true
		case DuplicateProperty, BadPropertyValue:
			return ProtocolError, true
		default:
			return MalformedPacket, true // MQTT 5 §4.13.1
		}
	case V31, V311:
		switch e.Kind {
		case UnknownLevel:
			return RefusedVersion, true // [MQTT-3.1.2-2]
		case BadClientID:
			return RefusedClientID, true // [MQTT-3.1.3-8], [MQTT-3.1.3-9]
		}
	}
	return 0, false
}

func fail(k ErrorKind, v Version, detail string) error {
	return &Error{Kind: k, Version: v, Detail: detail}
}

func failNumber(k ErrorKind, v Version, detail string, n int) error {
	return &Error{Kind: k, Version: v, Detail: detail + " " + strconv.Itoa(n)}
}
