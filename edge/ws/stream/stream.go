// Package stream reads and writes the payload of a WebSocket's binary messages as one stream of bytes over a net.Conn: package ws with
// I/O, for sessions that have goroutines of their own.
//
//	s := stream.New(conn, ws.Client, early) // after the upgrade
//	n, err := s.Read(p)                     // pings and close frames are answered on the way
//	n, err = s.Write(packet)
//	err = s.CloseWrite()                    // a close frame; what the peer sends up to its own still arrives
//	err = s.Close()
//
// A [Stream] has no buffer for payload: frames are taken apart in the memory that Read is given. One goroutine may read while
// another writes, and any may close.
//
// Control frames of ours (pongs, the close frame) wait for a moment at which nobody is in the middle of a frame: either whoever read
// their cause finds the wire free, or whoever is writing sends them right after. So Read never waits for a Write that a slow peer holds up.
//
// What it refuses: to go on after a Write that failed, at a deadline too (a frame cut short cannot be mended), and to let a control frame
// wait for a peer that takes nothing.
package stream

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/ws"
)

const (
	// controlTimeout bounds the sending of a pong or close frame. A peer that leaves no room for it that long reads nothing.
	controlTimeout = 10 * time.Second
	// closeGrace bounds how long Close tries to say goodbye to a client that does not read.
	closeGrace = 250 * time.Millisecond
)

// A Stream is one end of a WebSocket after the upgrade.
type Stream struct {
	conn net.Conn
	role ws.Role

	// Read's alone.
	early   []byte // came with the upgrade
	readErr error

	wire     sync.Mutex // held by whoever writes to conn: frames stay whole
	writeErr error      // under wire: what ended writing

	mu       sync.Mutex
	frames   ws.Frames
	deadline time.Time // of the caller's writes
}

// errClosed is returned by Write after a close frame.
var errClosed = fmt.Errorf("stream: a close frame has been sent: %w", net.ErrClosed)

// New returns a stream over conn, which has just been upgraded. early is what came with the upgrade's last bytes; it is kept until it is
// read.
func New(conn net.Conn, r ws.Role, early []byte) *Stream {
	return &Stream{conn: conn, role: r, early: early, frames: ws.New(r)}
}

// Read returns payload only. Its end is as [ws.Frames.Open] and [ws.Frames.EOF] have it: io.EOF after a close frame or between two
// messages, io.ErrUnexpectedEOF elsewhere, a *[ws.Error], which the peer has been told, where it broke the rules. After a deadline the
// next Read goes on.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.readErr == nil {
		got, err := s.receive(p)
		n, ended := s.open(p[:got], err == io.EOF)
		switch {
		case ended != nil:
			s.readErr = ended
		case err != nil && !os.IsTimeout(err):
			s.readErr = err
		case err != nil && n == 0:
			return 0, err
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.readErr
}

func (s *Stream) receive(p []byte) (int, error) {
	if len(s.early) == 0 {
		s.early = nil
		return s.conn.Read(p)
	}
	n := copy(p, s.early)
	s.early = s.early[n:]
	return n, nil
}

// open moves the payload of the frames in raw to its front, and answers what there is to answer.
func (s *Stream) open(raw []byte, last bool) (n int, err error) {
	s.mu.Lock()
	payload, _, err := s.frames.Open(raw)
	if err == nil && last {
		err = s.frames.EOF()
	}
	due := s.frames.Due()
	s.mu.Unlock()
	if due {
		s.flush()
	}
	return len(payload), err
}

// flush sends the control frame that is due, unless somebody is writing, who will do it afterwards.
func (s *Stream) flush() {
	for s.isDue() && s.wire.TryLock() {
		s.say((*ws.Frames).Reply, controlTimeout)
		s.wire.Unlock()
	}
}

func (s *Stream) isDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frames.Due()
}

// chunks are where frames are built.
var chunks = sync.Pool{New: func() any { return new([ws.MaxSealed]byte) }}

// say sends a control frame if there is one, within the time given, whatever the caller's deadline was, or until the caller's if that is
// still to come. Callers hold wire.
func (s *Stream) say(what func(*ws.Frames, []byte) []byte, limit time.Duration) {
	chunk := chunks.Get().(*[ws.MaxSealed]byte)
	defer chunks.Put(chunk)
	s.mu.Lock()
	defer s.mu.Unlock()
	frame := what(&s.frames, chunk[:0])
	if len(frame) == 0 || s.writeErr != nil {
		return
	}
	now := time.Now()
	until := now.Add(limit)
	if s.deadline.After(now) && s.deadline.Before(until) {
		until = s.deadline
	}
	if s.writeErr = s.conn.SetWriteDeadline(until); s.writeErr != nil {
		return
	}
	s.mu.Unlock()
	_, s.writeErr = s.conn.Write(frame)
	s.mu.Lock()
	if err := s.conn.SetWriteDeadline(s.deadline); s.writeErr == nil {
		s.writeErr = err
	}
}

// Write sends p: as a server in one message, as a client in messages of at most ws.MaxSealed bytes.
func (s *Stream) Write(p []byte) (n int, err error) {
	s.wire.Lock()
	for n < len(p) && err == nil {
		var k int
		k, err = s.write(p[n:])
		n += k
	}
	s.wire.Unlock()
	s.flush() // what had to wait for us
	return n, err
}

// write sends the beginning of p, and returns how much of it. Callers hold wire.
func (s *Stream) write(p []byte) (n int, err error) {
	chunk := chunks.Get().(*[ws.MaxSealed]byte)
	defer chunks.Put(chunk)
	frame, behind := s.seal(chunk[:0], p)
	switch {
	case s.writeErr != nil:
		return 0, s.writeErr
	case len(frame) == 0:
		return 0, errClosed
	}
	taken := len(p) - len(behind)
	head := len(frame) - taken
	n, s.writeErr = s.conn.Write(frame)
	if n = max(n-head, 0); s.writeErr != nil || s.role == ws.Client {
		return n, s.writeErr
	}
	var more int
	if len(behind) > 0 { // the rest of the message
		more, s.writeErr = s.conn.Write(behind)
	}
	return n + more, s.writeErr
}

// seal puts a header and the beginning of p into chunk, so that they are one segment, or TLS record. The rest of p belongs to the same
// message if we are a server, and to the next if we are a client.
func (s *Stream) seal(chunk, p []byte) (frame, rest []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.role == ws.Client {
		n := min(len(p), ws.MaxSealed-ws.MaxHeader)
		return s.frames.Seal(chunk, p[:n]), p[n:]
	}
	frame = s.frames.SealHeader(chunk, len(p))
	if len(frame) == 0 {
		return nil, nil
	}
	n := min(len(p), cap(frame)-len(frame))
	return append(frame, p[:n]...), p[n:]
}

// CloseWrite sends a close frame, once. The peer answers with its own, which ends what is to be read.
func (s *Stream) CloseWrite() error {
	s.wire.Lock()
	defer s.wire.Unlock()
	s.say((*ws.Frames).End, controlTimeout)
	return s.writeErr
}

// Close closes the connection. A client that has not had a close frame gets one if it takes it at once; a server learns from CloseWrite,
// or not at all.
func (s *Stream) Close() error {
	if s.role == ws.Server && s.wire.TryLock() { // else a Write is stuck, and the close ends it
		s.say((*ws.Frames).End, closeGrace)
		s.wire.Unlock()
	}
	return s.conn.Close()
}

// SetReadDeadline bounds Read. It may be moved after it has passed.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds Write.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return s.conn.SetWriteDeadline(t)
}
