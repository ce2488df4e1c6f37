// Package mqtt reads and writes the little of MQTT that an edge must understand:
// who connects, whether the broker accepted, how the client left, and where
// packets begin and end. It speaks MQTT 3.1, 3.1.1 and 5, and the bridges that
// mark themselves in the protocol level.
//
//	c, err := mqtt.ParseConnect(received, 128<<10)
//	var bad *mqtt.Error
//	switch {
//	case err == mqtt.ErrShort: // read more, call again
//	case errors.As(err, &bad): // count bad.Kind; if code, ok := bad.Refusal(); ok, answer:
//		reply = mqtt.AppendConnack(reply, bad.Version, false, code)
//	default: // route by c.ClientID, then send received on as it is
//	}
//
// How it works: the parsers read a byte slice in place and allocate nothing but
// errors; what they return aliases the input. They can be called again from the
// start whenever bytes arrive: the first dozen bytes of a CONNECT are judged as
// soon as they are there, so that a stranger is refused early, and the rest once
// when the packet is whole, so that a packet that comes one byte at a time costs
// no more than its length. A length that the peer claims is compared and never
// allocated. [Scanner] follows a connection for hours: it reads fixed headers
// only, and its state is eight bytes that can be copied, stored and resumed in
// another process.
//
// What it refuses to do: keep bytes, read sockets, look at passwords, topics or
// payloads, or judge what is the broker's to judge. It checks what routing
// relies on (the client ID above all) and what would make two readers of one
// packet disagree: lengths, flags, repeated properties.
//
// Clauses in brackets are those of the OASIS standards; where the two versions
// number them differently, both are given as [3.1.1 | 5].
package mqtt

import "strconv"

// Version is a protocol level, without the bit that marks a bridge.
type Version byte

// The versions that are understood. Zero is "not known".
const (
	V31  Version = 3 // protocol name "MQIsdp"
	V311 Version = 4
	V5   Version = 5
)

// String is the version as people write it: "3.1", "3.1.1", "5"; "unknown" for others.
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	}
	return "unknown"
}

// bridgeBit in the protocol level marks a connection from another broker.
// No standard has it; mosquitto's bridges set it (try_private) and others follow.
const bridgeBit = 0x80

// PacketType is the upper half of a packet's first byte (MQTT 5 §2.1.2).
type PacketType byte

// The packet types. Zero is forbidden on the wire.
const (
	CONNECT PacketType = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH // MQTT 5; reserved before
)

var packetNames = [16]string{
	"RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
}

// String is the name in the standard: "CONNECT".
func (t PacketType) String() string {
	if int(t) < len(packetNames) {
		return packetNames[t]
	}
	return "PacketType(" + strconv.Itoa(int(t)) + ")"
}

// MaxRemainingLength is the largest remaining length that four bytes can say (MQTT 5 §2.1.4).
const MaxRemainingLength = 268_435_455

// maxField is the largest string or binary field: its length has two bytes (MQTT 5 §1.5.4, §1.5.6).
const maxField = 65_535
