package client

import (
	"fmt"

	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Stage says how far a connection had come when it ended.
type Stage uint8

// The stages, in their order.
const (
	StageDial      Stage = iota // TCP's connect
	StageHandshake              // of TLS, WebSocket and QUIC
	StageConnack                // CONNECT sent, no CONNACK that accepts yet
	StageSession                // accepted
)

// String gives the stage's name.
func (s Stage) String() string {
	switch s {
	case StageDial:
		return "dial"
	case StageHandshake:
		return "handshake"
	case StageConnack:
		return "connack"
	case StageSession:
		return "session"
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

// What the client did itself. These are no errors.
const (
	ReasonDisconnect = "disconnect" // Disconnect: DISCONNECT sent, then closed
	ReasonAbort      = "abort"      // Abort: reset
	ReasonAbandon    = "abandon"    // Abandon: left half-open
	ReasonEnd        = "end"        // the engine's context ended
)

// What was found wrong with the other side, besides what wire's words say of a transport: "refused", "reset", "closed" (in order, without a
// DISCONNECT), "descriptors", "ports", and others.
const (
	ReasonRefusal        = "refusal"         // CONNACK with a code other than 0: Cause.Code
	ReasonDisconnected   = "disconnected"    // the server sent DISCONNECT (MQTT 5): Cause.Code
	ReasonConnackTimeout = "connack-timeout" // no CONNACK in time
	ReasonKeepAlive      = "keepalive"       // no PINGRESP in time
	ReasonMalformed      = "malformed"       // what came is not MQTT, or breaks its format
	ReasonTooLarge       = "too-large"       // a packet above Config.MaxPacket
	ReasonProtocol       = "protocol"        // a packet that has no place there
)

// Reasons returns the closed set of words that Cause.Reason is out of.
func Reasons() []string {
	return append([]string{
		ReasonDisconnect, ReasonAbort, ReasonAbandon, ReasonEnd,
		ReasonRefusal, ReasonDisconnected, ReasonConnackTimeout, ReasonKeepAlive, ReasonMalformed, ReasonTooLarge, ReasonProtocol,
	}, wire.Reasons()...)
}

// Cause is how a connection ended.
type Cause struct {
	Stage     Stage
	Reason    string // out of Reasons
	Code      byte   // of the CONNACK (ReasonRefusal) or the server's DISCONNECT (ReasonDisconnected)
	Reference string // the Server Reference in it (MQTT 5 §4.13)
	Err       error  // what the system or the codec said, if anything
}

// Own reports whether the client ended the connection by itself, so that nothing failed.
func (c Cause) Own() bool {
	switch c.Reason {
	case ReasonDisconnect, ReasonAbort, ReasonAbandon, ReasonEnd:
		return true
	}
	return false
}

// String gives the cause as one would tell it: "dial: refused", "connack: refusal 0x87".
func (c Cause) String() string {
	s := c.Stage.String() + ": " + c.Reason
	if c.Reason == ReasonRefusal || c.Reason == ReasonDisconnected {
		s += fmt.Sprintf(" %#02x", c.Code)
	}
	if c.Err != nil {
		s += " (" + c.Err.Error() + ")"
	}
	return s
}
