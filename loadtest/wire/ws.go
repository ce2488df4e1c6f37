package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// Status codes of close frames (RFC 6455 §7.4.1).
const (
	statusNormal        = 1000
	statusGoingAway     = 1001
	statusProtocolError = 1002
	statusNone          = 1005 // never on the wire: the frame had no code
)

// CloseError is the end of a stream by a WebSocket close frame. Its [Reason] is "closed" for codes 1000 (normal), 1001 (going away) and
// 1005 (none given), and it is then an [io.EOF] too; for others "websocket".
type CloseError struct {
	Code uint16
	Text string // at most 123 bytes, as the peer gave it
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("wire: WebSocket closed by the peer with %d %q", e.Code, e.Text)
}

func (e *CloseError) Unwrap() []error {
	switch e.Code {
	case statusNormal, statusGoingAway, statusNone:
		return []error{ErrClosed, io.EOF}
	}
	return []error{ErrWebSocket}
}

// wsConn carries the stream in binary messages, one for each Write; those of the peer may be cut anywhere [MQTT-6.0.0-2].
type wsConn struct {
	Conn // TLS or TCP below
	tcp  *tcpConn

	// Of the reader.
	rest    []byte // came with the answer to the upgrade; nil once read
	frames  unframer
	readErr error

	mu       sync.Mutex // guards what follows
	writeErr error
	closing  bool // our close frame is written
}

func (c *wsConn) Wait() error {
	if c.rest != nil || c.readErr != nil {
		return nil
	}
	return c.Conn.Wait()
}

func (c *wsConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, c.readErr
	}
	for c.readErr == nil {
		n, err := c.readRaw(p)
		n, frameErr := c.frames.take(p[:n], c.onControl)
		if frameErr != nil {
			c.fail(frameErr)
		}
		if n > 0 {
			return n, nil // an error comes again
		}
		if err != nil && frameErr == nil {
			return 0, err // not kept: after a deadline reading can go on
		}
	}
	return 0, c.readErr
}

func (c *wsConn) readRaw(p []byte) (int, error) {
	if c.rest == nil {
		return c.Conn.Read(p)
	}
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.rest = nil
	}
	return n, nil
}

// fail makes err what Read returns from now on, and tells the peer if it broke the protocol (RFC 6455 §7.1.7).
func (c *wsConn) fail(err error) {
	c.readErr = err
	if _, byPeer := err.(*CloseError); !byPeer {
		_ = c.writeClose(statusProtocolError)
	}
}

// onControl answers a ping and a close (RFC 6455 §5.5). The error of an answer is that of the next Write.
func (c *wsConn) onControl(opcode byte, payload []byte) error {
	switch opcode {
	case opPing:
		_ = c.writeControl(opPong, payload)
	case opClose:
		e := &CloseError{Code: statusNone}
		switch {
		case len(payload) == 1:
			return badFrame("a close code of one byte")
		case len(payload) >= 2:
			e.Code, e.Text = binary.BigEndian.Uint16(payload), string(payload[2:])
		}
		_ = c.writeClose(e.Code)
		return e
	}
	return nil
}

func (c *wsConn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writable(); err != nil {
		return 0, err
	}
	return c.writeFrame(opBinary, p) // [MQTT-6.0.0-1]
}

// writable is why nothing more may be written.
func (c *wsConn) writable() error {
	if c.closing && c.writeErr == nil {
		return fmt.Errorf("%w: the close frame is written", ErrClosed)
	}
	return c.writeErr
}

// writeFrame writes p as one frame, in pieces of a buffer of the pool. The mask is unpredictable, as RFC 6455 §10.3 wants: math/rand/v2
// draws it from the runtime's ChaCha8.
func (c *wsConn) writeFrame(opcode byte, p []byte) (int, error) {
	b := buffer()
	defer buffers.Put(b)
	mask := rand.Uint32()
	out := appendHeader(b[:0], opcode, len(p), mask)
	for done := 0; ; {
		m := min(len(p)-done, len(b)-len(out))
		piece := out[len(out) : len(out)+m]
		mask = maskInto(piece, p[done:done+m], mask)
		if _, err := c.Conn.Write(out[:len(out)+m]); err != nil {
			c.writeErr = err // a frame was cut: nothing can follow
			return done, err
		}
		if done += m; done == len(p) {
			return done, nil
		}
		out = b[:0]
	}
}

func (c *wsConn) writeControl(opcode byte, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writable(); err != nil {
		return err
	}
	_, err := c.writeFrame(opcode, payload)
	return err
}

// writeClose writes a close frame, unless one was written before.
func (c *wsConn) writeClose(code uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.writeErr != nil {
		return c.writeErr
	}
	c.closing = true
	var payload []byte
	if code != statusNone {
		payload = binary.BigEndian.AppendUint16(nil, code)
	}
	_, err := c.writeFrame(opClose, payload)
	return err
}

func (c *wsConn) Close() error {
	c.tcp.farewell() // before what waits for a Write that is stuck
	err := c.writeClose(statusNormal)
	if closeErr := c.Conn.Close(); err == nil || sentinel(err) == ErrCancelled {
		err = closeErr
	}
	return err
}
