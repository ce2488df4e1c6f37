package listen

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"github.com/limpet-mesh/limpet/edge/relay"
)

// closeGrace bounds how long Close tries to say goodbye to a client that does not read.
const closeGrace = 250 * time.Millisecond

// wsStream is the payload of a WebSocket connection's binary messages as one byte stream [MQTT-6.0.0-2]. It has no buffer for
// payload: frames are taken apart in the memory that Read is given.
//
// Control frames of ours (pongs, the close frame) wait in one place for a moment at which nobody is in the middle of a frame:
// either whoever put it there finds the wire free, or whoever is writing sends it right after. So Read never waits for a Write
// that a slow client holds up. A new pong replaces one that still waits (RFC 6455 §5.5.3), a close frame replaces a pong.
type wsStream struct {
	conn net.Conn
	tcp  *net.TCPConn // conn, if it can take two pieces in one system call; else nil

	spoken atomic.Bool // a message has gone out, or begun to: the client has its CONNACK at least

	// Owned by Read.
	frames  FrameReader
	readErr error

	// Owned by whoever holds wire.
	wire     sync.Mutex
	writeErr error // nothing more may go out: a frame did so in part, or the close frame has
	header   [maxFrameHeader]byte
	pieces   [2][]byte
	vector   net.Buffers
	control  [maxControlFrame]byte

	mu      sync.Mutex
	waiting [maxControlFrame]byte // a control frame that is due
	size    int                   // of waiting; 0 = none
	closing bool                  // a close frame waits or has gone out
}

var _ relay.Stream = (*wsStream)(nil)

func newStream(c net.Conn) *wsStream {
	s := &wsStream{conn: c}
	s.tcp, _ = c.(*net.TCPConn)
	return s
}

// Read returns payload only; pings and the close frame are answered on the way. The end is io.EOF after a close frame or between
// two messages, io.ErrUnexpectedEOF elsewhere, and a *FrameError, which the client has been told, where it broke the rules.
func (s *wsStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.readErr == nil {
		got, err := s.conn.Read(p)
		n := s.unwrap(p[:got])
		if err == io.EOF && !s.frames.Between() {
			err = io.ErrUnexpectedEOF
		}
		if s.readErr == nil && !os.IsTimeout(err) { // after a time-out the next Read goes on
			s.readErr = err
		}
		if n > 0 {
			return n, nil
		}
		if err != nil && s.readErr == nil {
			return 0, err
		}
	}
	return 0, s.readErr
}

// unwrap moves the payload of the frames in b to the front of b and returns its length.
func (s *wsStream) unwrap(b []byte) (n int) {
	for rest := b; len(rest) > 0 && s.readErr == nil; {
		took, payload, ev, err := s.frames.Next(rest)
		rest = rest[took:]
		switch {
		case err != nil:
			s.readErr = err
			s.sayClose(err.(*FrameError).Code)
		case ev == FrameData:
			n += copy(b[n:], payload) // never past rest: headers only shrink it
		case ev == FramePing:
			s.sayPong(payload)
		case ev == FrameClose:
			s.readErr = io.EOF
			code := uint16(0)
			if len(payload) >= 2 {
				code = binary.BigEndian.Uint16(payload) // §5.5.1: the answer echoes the code
			}
			s.sayClose(code)
		}
	}
	return n
}

// Write sends p as one binary message.
func (s *wsStream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.wire.Lock()
	n, err := s.writeMessage(p)
	s.wire.Unlock()
	s.flush() // what had to wait for us
	return n, err
}

func (s *wsStream) writeMessage(p []byte) (int, error) {
	if s.writeErr != nil {
		return 0, s.writeErr
	}
	s.spoken.Store(true)
	head := AppendBinaryHeader(s.header[:0], len(p))
	var written int64
	if s.tcp != nil {
		s.pieces = [2][]byte{head, p}
		s.vector = s.pieces[:]
		written, s.writeErr = s.vector.WriteTo(s.tcp)
		s.pieces = [2][]byte{}
	} else {
		written, s.writeErr = s.writeJoined(head, p)
	}
	return max(int(written)-len(head), 0), s.writeErr
}

var joinBuffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }} // a TLS record

// writeJoined puts the header and the beginning of p into one Write, so that TLS makes one record of them.
func (s *wsStream) writeJoined(head, p []byte) (int64, error) {
	buf := joinBuffers.Get().(*[]byte)
	defer joinBuffers.Put(buf)
	n := copy(*buf, head)
	taken := copy((*buf)[n:], p)
	written, err := s.conn.Write((*buf)[:n+taken])
	if err == nil && taken < len(p) {
		var more int
		more, err = s.conn.Write(p[taken:])
		written += more
	}
	return int64(written), err
}

// CloseWrite sends a close frame; the client answers with its own, which Read reports as io.EOF.
func (s *wsStream) CloseWrite() error {
	s.queueClose(s.farewell())
	s.wire.Lock()
	err := s.flushLocked()
	s.wire.Unlock()
	return err
}

// Close closes the connection. A client that has not had a close frame gets one if it takes it at once.
func (s *wsStream) Close() error {
	s.queueClose(s.farewell())
	if s.wire.TryLock() { // else a Write is stuck, and Close ends it
		if s.isWaiting() && s.conn.SetWriteDeadline(time.Now().Add(closeGrace)) == nil {
			_ = s.flushLocked()
		}
		s.wire.Unlock()
	}
	return s.conn.Close()
}

// SetReadDeadline is the connection's.
func (s *wsStream) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline is the connection's; it also bounds the control frames that Read answers with.
func (s *wsStream) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }

func (s *wsStream) sayPong(payload []byte) {
	s.mu.Lock()
	if !s.closing {
		s.size = len(AppendPong(s.waiting[:0], payload))
	}
	s.mu.Unlock()
	s.flush()
}

func (s *wsStream) sayClose(code uint16) {
	s.queueClose(code)
	s.flush()
}

// farewell is the status code of a close frame that the client has not asked for. A client that is closed without a single word
// in MQTT is one that came with something else, or with nothing in time: its connection has not "fulfilled its purpose" (§7.4.1).
func (s *wsStream) farewell() uint16 {
	if s.spoken.Load() {
		return closeNormal
	}
	return closePolicy
}

func (s *wsStream) queueClose(code uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		s.size = len(AppendClose(s.waiting[:0], code))
	}
}

func (s *wsStream) isWaiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size > 0
}

// flush sends the control frame that waits, unless somebody is writing, who will.
func (s *wsStream) flush() {
	for s.isWaiting() && s.wire.TryLock() {
		err := s.flushLocked()
		s.wire.Unlock()
		if err != nil {
			return
		}
	}
}

// flushLocked needs wire.
func (s *wsStream) flushLocked() error {
	s.mu.Lock()
	frame := s.control[:copy(s.control[:], s.waiting[:s.size])]
	s.size = 0
	s.mu.Unlock()
	if len(frame) == 0 || s.writeErr != nil {
		return s.writeErr
	}
	_, err := s.conn.Write(frame)
	if s.writeErr = err; err == nil && ws.OpCode(frame[0]&0x0f) == ws.OpClose {
		s.writeErr = net.ErrClosed
	}
	return err
}
