// Package mqtt is the load test's own MQTT codec: versions 3.1, 3.1.1 and 5, from the client's side. It shares no line with the edge's
// parser: two independent readings of one specification find each other's mistakes.
//
//	out = (&mqtt.Connect{Version: mqtt.V5, ID: "c1", Clean: true, KeepAlive: 60}).Append(out)
//	var r mqtt.Reader
//	r.Version = mqtt.V5
//	for { // after each read of p bytes
//		p, ok, err := r.Next(p, &packet)
//		if err != nil || !ok { break }
//		... packet.Kind, packet.Publish, … (borrowed until the next call)
//	}
//
// How it works: packets are appended to a slice of the caller's, and read without copying from the bytes that a socket gave. A Reader is
// some words of state; it has a buffer only while a packet is cut in two, and that buffer grows with the bytes that came, never with the
// length that a packet claims. Neither side allocates per message.
//
// What it refuses: packets above Reader.Max, and what breaks the specification in a way that a client can see: reserved bits, strings that
// are not UTF-8, topics with wildcards, unknown or repeated properties. What a load test never sends cannot be written: topic aliases,
// extended authentication, properties of a Will.
//
// Clauses in brackets are numbered as in MQTT 5.0, where nothing else is said.
package mqtt

import (
	"errors"
	"fmt"
)

// Version is a protocol version as the CONNECT writes it (§3.1.2.2).
type Version byte

// The versions.
const (
	V31  Version = 3
	V311 Version = 4
	V5   Version = 5
)

// String gives the version as people write it: 3.1, 3.1.1, 5.
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	}
	return fmt.Sprintf("version %d", byte(v))
}

// Kind is a control packet's type (§2.1.2).
type Kind byte

// The kinds. A Reader gives CONNECT, SUBSCRIBE, UNSUBSCRIBE and PINGREQ, which no server sends, with Raw and Body alone.
const (
	CONNECT     Kind = 1
	CONNACK     Kind = 2
	PUBLISH     Kind = 3
	PUBACK      Kind = 4
	PUBREC      Kind = 5
	PUBREL      Kind = 6
	PUBCOMP     Kind = 7
	SUBSCRIBE   Kind = 8
	SUBACK      Kind = 9
	UNSUBSCRIBE Kind = 10
	UNSUBACK    Kind = 11
	PINGREQ     Kind = 12
	PINGRESP    Kind = 13
	DISCONNECT  Kind = 14
	AUTH        Kind = 15
)

var kindNames = [16]string{
	"kind 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
}

// String gives the name that the specification uses.
func (k Kind) String() string { return kindNames[k&15] }

// Limits of the format.
const (
	MaxString = 65_535      // bytes of a string or of binary data (§1.5.4, §1.5.6)
	MaxPacket = 268_435_455 // Remaining Length (§1.5.5)
	// DefaultMax is what Reader.Max means when it is zero.
	DefaultMax = 2 << 20
)

// What a Reader can find wrong. Errors say more and wrap these.
var (
	ErrMalformed = errors.New("mqtt: malformed packet")
	ErrTooLarge  = errors.New("mqtt: packet larger than the bound")
	// ErrTooLong: a field that is to be written has more than MaxString bytes, or the packet more than MaxPacket.
	ErrTooLong = errors.New("mqtt: too long to be written")
)

// Connect is what a CONNECT says (§3.1).
type Connect struct {
	Version        Version
	ID             string
	User           string
	HasUser        bool
	Password       []byte
	HasPassword    bool
	Clean          bool   // Clean Start; 3.x: Clean Session
	KeepAlive      uint16 // seconds; 0 = none
	Expiry         uint32 // Session Expiry Interval in seconds (5 only); 0 = the session ends with the connection
	ReceiveMaximum uint16 // 5 only; 0 = not sent, which means 65,535
	Will           *Will
}

// Will is the message that the broker publishes when the client is lost (§3.1.2.5).
type Will struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
}

// Publish is a PUBLISH (§3.3). Topic and Payload of a packet that was read are borrowed from the input.
type Publish struct {
	Topic, Payload []byte
	ID             uint16 // QoS 1 and 2
	QoS            byte
	Retain, Dup    bool
}

// Connack is a CONNACK (§3.2). Byte slices are borrowed from the input; they are nil where the server did not say.
type Connack struct {
	SessionPresent    bool
	Code              byte // 0 = accepted; else a reason code of 5 (§3.2.2.2) or a return code of 3.1.1 (§3.2.2.3 there)
	HasExpiry         bool
	HasKeepAlive      bool
	Expiry            uint32 // if HasExpiry: the server's Session Expiry Interval
	KeepAlive         uint16 // if HasKeepAlive: the server's Keep Alive, which the client must use
	ReceiveMaximum    uint16 // 65,535 where absent
	MaximumQoS        byte   // 2 where absent
	MaximumPacketSize uint32 // 0 where absent: no bound
	AssignedID        []byte
	ServerReference   []byte
	Reason            []byte
}

// Packet is one packet that was read. It is made to be used again and again; all its slices are borrowed from the input and good until the
// next call of Reader.Next.
type Packet struct {
	Kind Kind
	Raw  []byte // the whole packet
	Body []byte // Raw without its fixed header

	Connack Connack // of CONNACK
	Publish Publish // of PUBLISH

	ID    uint16 // of PUBACK … PUBCOMP, SUBACK, UNSUBACK
	Code  byte   // of PUBACK … PUBCOMP, DISCONNECT, AUTH; of SUBACK and UNSUBACK the first
	Codes []byte // of SUBACK, UNSUBACK (nil in 3.x's UNSUBACK)

	Reason          []byte // Reason String of acknowledgements and DISCONNECT (5 only)
	ServerReference []byte // of DISCONNECT (5 only)
}
