package tls13

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
)

// Stdlib is a tls.Conn after its handshake, over memory: the same methods as Records for whatever TLS version was agreed on, at
// some 7 KB a connection and more after long records. Its state cannot be written out. It is not safe for concurrent use.
//
// The tls.Conn is given whole records, one at a time: what is not whole waits in the caller's memory, and payload is never longer
// than the records that it came in.
type Stdlib struct {
	conn   *tls.Conn
	wire   *wire
	ended  bool // Open has returned an error
	failed bool // it was not io.EOF: nothing is written any more but the alert
	closed bool // End has been called
}

// Open is as that of Records. Errors besides io.EOF are those of crypto/tls.
func (s *Stdlib) Open(raw []byte) (payload, rest []byte, err error) {
	if s.ended {
		return nil, nil, ErrClosed
	}
	rest = raw
	written := 0
	for len(rest) >= headerSize {
		n := headerSize + int(binary.BigEndian.Uint16(rest[3:]))
		if n > MaxRest+1 {
			n = headerSize // too long: the header is enough for an alert
		}
		if len(rest) < n {
			break
		}
		record := rest[:n]
		rest = rest[n:]
		s.wire.in = record
		// The tls.Conn copies the record before it writes the payload, which is shorter, over it.
		got, err := s.conn.Read(raw[written : len(raw)-len(rest)])
		s.wire.in = nil
		written += got
		if err != nil && !errors.Is(err, errMore) {
			s.ended, s.failed = true, err != io.EOF
			return raw[:written:written], nil, err
		}
	}
	return raw[:written:written], rest, nil // an append to payload must not meet the rest
}

// Seal is as that of Records. crypto/tls starts with records that fit into a packet, and goes over to long ones.
func (s *Stdlib) Seal(dst, p []byte) []byte {
	if s.failed || s.closed {
		return s.Reply(dst)
	}
	s.wire.out = append(dst, s.wire.out...)
	_, _ = s.conn.Write(p) // to memory
	return s.take()
}

// Reply is as that of Records.
func (s *Stdlib) Reply(dst []byte) []byte {
	if len(s.wire.out) == 0 {
		return dst
	}
	if s.closed {
		// crypto/tls answers a KeyUpdate also behind its close_notify. Nobody reads that any more, and a peer that closes its socket with bytes
		// unread resets it (RFC 1122 §4.2.2.13), which destroys what it has sent.
		s.wire.out = nil
		return dst
	}
	dst = append(dst, s.wire.out...)
	s.wire.out = nil
	return dst
}

// End is as that of Records.
func (s *Stdlib) End(dst []byte) []byte {
	defer func() { s.closed = true }()
	if s.failed || s.closed { // crypto/tls would say close_notify after its alert, and what it said behind that
		return s.Reply(dst)
	}
	s.wire.out = append(dst, s.wire.out...)
	_ = s.conn.CloseWrite() // a second one does nothing
	return s.take()
}

func (s *Stdlib) take() []byte {
	out := s.wire.out
	s.wire.out = nil
	return out
}

// String says nothing about keys.
func (s *Stdlib) String() string { return "tls13.Stdlib" }
