package relay

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memConn is one end of a connection in memory with half closes and a bounded buffer each way; net.Pipe has neither.
type memConn struct {
	net.Conn // nil: what is not implemented is not used
	in, out  *memPipe
}

func newMemPair() (a, b *memConn) {
	x, y := newMemPipe(), newMemPipe()
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

func (c *memConn) Read(p []byte) (int, error)        { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error)       { return c.out.write(p) }
func (c *memConn) CloseWrite() error                 { c.out.finish(); return nil }
func (c *memConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(&c.in.readBy, t); return nil }

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

func (c *memConn) Close() error {
	c.out.finish()
	c.in.abandon()
	return nil
}

// memPipe is one direction.
type memPipe struct {
	mu              sync.Mutex
	changed         sync.Cond
	buf             []byte
	ended, deserted bool // no more is written; nobody reads
	readBy, writeBy time.Time
}

const memPipeSize = 64 << 10

func newMemPipe() *memPipe {
	p := &memPipe{}
	p.changed.L = &p.mu
	return p
}

func (m *memPipe) finish() {
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	m.changed.Broadcast()
}

func (m *memPipe) abandon() {
	m.mu.Lock()
	m.deserted = true
	m.mu.Unlock()
	m.changed.Broadcast()
}

func (m *memPipe) setDeadline(which *time.Time, t time.Time) {
	m.mu.Lock()
	*which = t
	m.mu.Unlock()
	if !t.IsZero() {
		time.AfterFunc(time.Until(t)+time.Millisecond, m.changed.Broadcast)
	}
}

func late(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (m *memPipe) read(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.deserted:
			return 0, net.ErrClosed
		case len(m.buf) > 0:
			n := copy(p, m.buf)
			m.buf = m.buf[n:]
			m.changed.Broadcast()
			return n, nil
		case m.ended:
			return 0, io.EOF
		case late(m.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		m.changed.Wait()
	}
}

func (m *memPipe) write(p []byte) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(p) > 0 {
		switch room := memPipeSize - len(m.buf); {
		case m.ended:
			return n, net.ErrClosed
		case m.deserted:
			return n, io.ErrClosedPipe
		case room > 0:
			k := min(room, len(p))
			m.buf = append(m.buf, p[:k]...)
			p, n = p[k:], n+k
			m.changed.Broadcast()
		case late(m.writeBy):
			return n, os.ErrDeadlineExceeded
		default:
			m.changed.Wait()
		}
	}
	return n, nil
}
