package relay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxHead bounds what a loop reads of a connection before a goroutine shakes hands on it: a TLS record.
const maxHead = 5 + 16<<10

// greeting is a connection on which something precedes MQTT, and what a goroutine sees of it meanwhile: a net.Conn whose socket is the loop's,
// which watches it, and alone closes it.
//
//	accept -> the loop reads until it is worth a goroutine -> welcome, in a goroutine -> the loop has a session with layers
type greeting struct {
	c           *conn
	fd          int
	peer, local netip.AddrPort
	door        Door
	welcome     func(context.Context) (Owner, []Layer, []byte)
	head        []byte // read by the loop; the goroutine's once it has begun
	begun       bool   // the loop's
	ended       bool   // the loop's: the kernel has said so, once
	events      chan struct{}

	mu      sync.Mutex
	failure error // why it must end
	read    time.Time
	write   time.Time
}

var _ net.Conn = (*greeting)(nil)

func newGreeting(c *conn, peer, local netip.AddrPort, door Door) *greeting {
	g := &greeting{c: c, fd: c.sock(Client), peer: peer, local: local, door: door, events: make(chan struct{}, 1)}
	g.welcome = door.Come(g, c.loop.epoch.Add(time.Duration(c.s.AcceptedAt-1)))
	return g
}

// event is told by the loop what the kernel says of the socket.
func (g *greeting) event(events uint32) {
	const ending = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	l := g.c.loop
	if events&ending != 0 {
		g.ended = true
	}
	if g.begun {
		g.wake()
		return
	}
	if events&(unix.EPOLLIN|ending) == 0 {
		return
	}
	for len(g.head) < maxHead {
		n, errno := recv(g.fd, l.buf[:maxHead-len(g.head)])
		if errno == unix.EINTR {
			continue
		}
		if n <= 0 {
			break // no more now, or an end that the goroutine will see
		}
		g.head = append(g.head, l.buf[:n]...)
	}
	if events&ending != 0 || len(g.head) == maxHead || g.door.Enough(g.head) {
		g.begin()
	}
}

// begin starts the goroutine.
func (g *greeting) begin() {
	c := g.c
	l := c.loop
	g.begun = true
	ctx, cancel := context.WithCancel(l.life)
	l.work.Go(func() {
		defer cancel()
		l.gate.enter()
		owner, layers, rest := g.welcome(ctx)
		l.gate.leave()
		g.cut(net.ErrClosed) // the descriptor is the session's now, and later somebody else's
		rest = append(rest, g.head...)
		if !l.send(mail{call: func() { c.greeted(owner, layers, rest) }}) {
			wipe(layers...)
			if owner != nil {
				owner.Closed(Summary{Reason: ReasonShutdown, Total: time.Since(l.epoch) - time.Duration(c.s.AcceptedAt-1)})
			}
		}
	})
}

// greeted begins the session.
func (c *conn) greeted(owner Owner, layers []Layer, rest []byte) {
	l := c.loop
	c.ended[Client] = c.greet.ended // no event will tell it again
	c.greet = nil
	if owner == nil {
		wipe(layers...)
		c.close(Client)
		l.release(c)
		return
	}
	c.owner, c.wrap[Client] = owner, newWrap(layers, l.shared)
	c.readable[Client] = true
	c.behind(Client, rest)
	if c.read(); !c.closed {
		c.arm()
	}
}

// end is cut for the loop: also whoever has not begun learns why it must not.
func (g *greeting) end(err error) {
	g.cut(err)
	if !g.begun {
		g.begin()
	}
}

// cut makes the goroutine's calls fail from now on.
func (g *greeting) cut(err error) {
	g.mu.Lock()
	if g.failure == nil {
		g.failure = err
	}
	g.mu.Unlock()
	g.wake()
}

func (g *greeting) wake() {
	select {
	case g.events <- struct{}{}:
	default:
	}
}

// wait waits for an event of the socket, or the deadline, outside of the gate.
func (g *greeting) wait(deadline time.Time) error {
	gate := g.c.loop.gate
	gate.leave()
	defer gate.enter()
	if deadline.IsZero() {
		<-g.events
		return nil
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-g.events:
		return nil
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

// may returns why nothing may be done any more, and the deadline.
func (g *greeting) may(deadline *time.Time) (time.Time, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failure != nil {
		return time.Time{}, g.failure
	}
	if by := *deadline; by.IsZero() || time.Now().Before(by) {
		return by, nil
	}
	return time.Time{}, os.ErrDeadlineExceeded
}

// Read implements net.Conn.
func (g *greeting) Read(p []byte) (int, error) {
	if len(g.head) > 0 {
		n := copy(p, g.head)
		if g.head = g.head[n:]; len(g.head) == 0 {
			g.head = nil
		}
		return n, nil
	}
	for {
		by, err := g.may(&g.read)
		if err != nil {
			return 0, err
		}
		switch n, errno := recv(g.fd, p); {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			if err := g.wait(by); err != nil {
				return 0, err
			}
		case errno != 0:
			return 0, os.NewSyscallError("read", errno)
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements net.Conn.
func (g *greeting) Write(p []byte) (written int, err error) {
	for written < len(p) {
		by, err := g.may(&g.write)
		if err != nil {
			return written, err
		}
		n, errno := sendTo(g.fd, p[written:])
		written += n
		switch {
		case errno == unix.EAGAIN:
			if err := g.wait(by); err != nil {
				return written, err
			}
		case errno != 0:
			return written, os.NewSyscallError("write", errno)
		}
	}
	return written, nil
}

// Close implements net.Conn: the loop closes the socket when the goroutine has ended.
func (g *greeting) Close() error {
	g.cut(net.ErrClosed)
	return nil
}

// CloseWrite ends the writing direction.
func (g *greeting) CloseWrite() error {
	return os.NewSyscallError("shutdown", unix.Shutdown(g.fd, unix.SHUT_WR))
}

// LocalAddr implements net.Conn.
func (g *greeting) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(g.local) }

// RemoteAddr implements net.Conn.
func (g *greeting) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(g.peer) }

// SetDeadline implements net.Conn.
func (g *greeting) SetDeadline(t time.Time) error { return g.until(t, &g.read, &g.write) }

// SetReadDeadline implements net.Conn.
func (g *greeting) SetReadDeadline(t time.Time) error { return g.until(t, &g.read) }

// SetWriteDeadline implements net.Conn.
func (g *greeting) SetWriteDeadline(t time.Time) error { return g.until(t, &g.write) }

func (g *greeting) until(t time.Time, deadlines ...*time.Time) error {
	g.mu.Lock()
	for _, d := range deadlines {
		*d = t
	}
	g.mu.Unlock()
	g.wake()
	return nil
}

// SyscallConn lets socket options be set.
func (g *greeting) SyscallConn() (syscall.RawConn, error) { return rawConn(g.fd), nil }

// rawConn is a socket's descriptor, for options only.
type rawConn int

// Control implements syscall.RawConn.
func (r rawConn) Control(f func(fd uintptr)) error {
	f(uintptr(r))
	return nil
}

// Read implements syscall.RawConn: it is the loop's to wait for the socket.
func (rawConn) Read(func(fd uintptr) bool) error { return os.ErrInvalid }

// Write implements syscall.RawConn.
func (rawConn) Write(func(fd uintptr) bool) error { return os.ErrInvalid }
