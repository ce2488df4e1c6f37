package tls13

import (
	"net"
	"slices"
)

// A Through reads and writes the payload of a connection that was handed over, for the little that is said before a loop takes it: an
// HTTP upgrade. Its other methods are the connection's.
type Through struct {
	net.Conn
	layer   Layer
	buf     []byte
	payload []byte // opened, and not read yet
	rest    []byte // a piece of a record
	err     error  // what comes behind payload
}

// A Layer is what Records and Stdlib have in common.
type Layer interface {
	Open(raw []byte) (payload, rest []byte, err error)
	Seal(dst, p []byte) []byte
	Reply(dst []byte) []byte
	End(dst []byte) []byte
}

// Layer is who goes on: Records, or else Stdlib.
func (h *Handover) Layer() Layer {
	if h.Records != nil {
		return h.Records
	}
	return h.Stdlib
}

// throughRoom is how much is read from the socket at once.
const throughRoom = 4 << 10

// Through returns one over conn. It takes h.Rest; Left gives back what it is then.
func (h *Handover) Through(conn net.Conn) *Through {
	t := &Through{Conn: conn, layer: h.Layer()}
	t.open(h.Rest)
	h.Rest = nil
	return t
}

// Read reads payload. One that failed by a deadline may be tried again.
func (t *Through) Read(p []byte) (int, error) {
	for len(t.payload) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		t.buf = slices.Grow(append(t.buf[:0], t.rest...), throughRoom) // a rest is shorter than a record
		t.rest = t.buf
		n, err := t.Conn.Read(t.buf[len(t.buf) : len(t.buf)+throughRoom])
		if n > 0 {
			t.open(t.buf[:len(t.buf)+n])
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, t.payload)
	t.payload = t.payload[n:]
	return n, nil
}

// open opens raw, and says what the layer has to say to it, such as an alert.
func (t *Through) open(raw []byte) {
	t.payload, t.rest, t.err = t.layer.Open(raw)
	if word := t.layer.Reply(nil); len(word) > 0 {
		if _, err := t.Conn.Write(word); err != nil && t.err == nil {
			t.err = err
		}
	}
}

// Write writes p as payload.
func (t *Through) Write(p []byte) (int, error) {
	if _, err := t.Conn.Write(t.layer.Seal(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends the writing direction of the connection below.
func (t *Through) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return net.ErrClosed
}

// Left is what has been opened and not been read, what has not been opened, and the error that Read would return behind the former.
func (t *Through) Left() (payload, rest []byte, err error) {
	return t.payload, slices.Clone(t.rest), t.err
}
