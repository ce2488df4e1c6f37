// Package ws is the wire format of WebSocket after the upgrade (RFC 6455), as MQTT uses it: the payload of binary messages is one
// stream of bytes, whatever the frames that it comes in [MQTT-6.0.0-2].
//
//	f := ws.New(ws.Server)                      // or ws.Client
//	payload, _, err := f.Open(raw)              // raw came from the socket; payload lies in its memory
//	out = f.Reply(out)                          // pongs, the answer to a close frame: most of the time nothing
//	out = f.Seal(out, answer)                   // one binary message
//	out = f.End(out)                            // the close frame
//
// [Frames] is one side of one connection, without I/O, clock, lock or goroutine. It holds no payload: what a frame carries is unmasked
// and moved together in the memory that it came in, so a frame may claim any length. What is kept between two calls is the header of a
// frame that has come in part (14 bytes of state), and, only while there is one, a control frame that has come in part, or a ping's
// payload that is to be sent back. All of it can be written out and read back in the middle of a frame.
//
// What it refuses: text messages, since MQTT wants binary ones [MQTT-6.0.0-1], extensions, and whatever RFC 6455 says that the peer must
// not send. It gathers no messages, sends no pings and waits for nothing.
package ws

import (
	"crypto/rand"
	"fmt"
	"io"
	chacha "math/rand/v2"
	"sync"

	gobwas "github.com/gobwas/ws"
)

// Role is the side of the connection that is ours.
type Role uint8

// The roles. Frames of a client are masked, frames of a server are not (RFC 6455 §5.1).
const (
	Server Role = iota
	Client
)

const (
	// MaxHeader is the longest header of a frame: 2 bytes, 8 of length, 4 of masking key (RFC 6455 §5.2).
	MaxHeader = 2 + 8 + 4
	// MaxReply bounds what one call of Reply or End appends: the largest control frame, masked (RFC 6455 §5.5).
	MaxReply = 2 + 4 + maxControl
	// MaxSealed is the longest frame, its header included, that Seal makes as a client. It is a TLS record's length, and brokers
	// bound the size of a frame, or gather it before they look at it.
	MaxSealed = 16 << 10

	maxControl = gobwas.MaxControlFramePayloadSize // 125
)

// Status codes that are sent (RFC 6455 §7.4.1).
const (
	CodeNormal      = uint16(gobwas.StatusNormalClosure)           // 1000
	CodeGoingAway   = uint16(gobwas.StatusGoingAway)               // 1001
	CodeProtocol    = uint16(gobwas.StatusProtocolError)           // 1002
	CodeUnsupported = uint16(gobwas.StatusUnsupportedData)         // 1003
	CodeInvalidData = uint16(gobwas.StatusInvalidFramePayloadData) // 1007
	CodePolicy      = uint16(gobwas.StatusPolicyViolation)         // 1008
)

// Error says how the peer broke RFC 6455, or MQTT's rules for WebSocket.
type Error struct {
	Code uint16 // status code of the close frame that tells the peer
	Err  error  // the rule
}

func (e *Error) Error() string { return fmt.Sprintf("ws: peer broke a rule (%d): %v", e.Code, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Transport names the layer whose rules were broken.
func (e *Error) Transport() string { return "ws" }

// CloseError is the status code of a server's close frame that tells of a failure: neither 1000 nor 1001.
type CloseError uint16

func (e CloseError) Error() string {
	return fmt.Sprintf("ws: closed by the peer with code %d", uint16(e))
}

// Frames is one side of a WebSocket after the upgrade. The zero value is a server's at the start of a connection. It must not be
// copied once it is in use, and is not safe for concurrent use.
//
//	byte      0                1           2 .. 9          .. 13
//	     +---------------+---------------+---------------+--------------+---------
//	     | FIN RSV opcode| MASK  length7 | length 16/64  | masking key  | payload
//	     +---------------+---------------+---------------+--------------+---------
type Frames struct {
	left  uint64          // payload bytes of this frame still to come
	part  *control        // the payload of a control frame, as far as it has come; nil = nothing of one
	pong  *control        // what the pong that is due carries; nil = nothing
	key   uint32          // masking key of this frame; its lowest byte is the next payload byte's
	code  uint16          // of the close frame that is due; 0 = without one
	head  [MaxHeader]byte // a header, as far as it has come
	have  uint8           // bytes in head
	op    gobwas.OpCode   // of the control frame that is coming
	stage stage
	role  Role

	more     bool // a fragmented message is open: its continuation must come (§5.4)
	spoken   bool // something was sealed
	pongDue  bool
	closeDue bool
	closing  bool // a close frame of ours is due, or gone
}

// stage is what the peer's next byte is.
type stage uint8

const (
	stageHeader  stage = iota
	stageData          // payload of a binary message
	stageControl       // payload of a control frame
	stageEnd           // of no interest: a close frame or an error was before it (§7.1.7)
)

// control holds the payload of a control frame.
type control struct {
	n int
	b [maxControl]byte
}

func (c *control) bytes() []byte {
	if c == nil {
		return nil
	}
	return c.b[:c.n]
}

var controls = sync.Pool{New: func() any { return new(control) }}

// hold returns p's bytes in memory of their own; nil for none.
func hold(p []byte) *control {
	if len(p) == 0 {
		return nil
	}
	c := controls.Get().(*control)
	c.n = copy(c.b[:], p)
	return c
}

// release ends the use of *c.
func release(c **control) {
	if *c != nil {
		controls.Put(*c)
		*c = nil
	}
}

// New returns the side r of a connection that has just been upgraded.
func New(r Role) Frames { return Frames{role: r} }

// EOF is what it means that the bytes end here: io.EOF behind a close frame or between two messages, else io.ErrUnexpectedEOF.
func (f *Frames) EOF() error {
	if f.stage == stageEnd || f.stage == stageHeader && f.have == 0 && !f.more {
		return io.EOF
	}
	return io.ErrUnexpectedEOF
}

// Closing reports whether a close frame of ours is due or gone: Seal appends nothing any more.
func (f *Frames) Closing() bool { return f.closing }

// keys are generators of masking keys, one for each goroutine that seals at the same time. A key must come from a strong source, and no
// frame's may be foretold from those before it (RFC 6455 §5.3, §10.3): the payload comes from strangers, who must not be able to choose
// the bytes on the wire. ChaCha8 with a seed of the system's is cryptographically strong, and costs no system call.
var keys = sync.Pool{New: func() any {
	var seed [32]byte
	rand.Read(seed[:]) // never fails: crypto/rand
	return chacha.NewChaCha8(seed)
}}

func newKey() uint32 {
	c := keys.Get().(*chacha.ChaCha8)
	key := uint32(c.Uint64())
	keys.Put(c)
	return key
}
