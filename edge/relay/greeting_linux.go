package relay

import (
	"context"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxHead bounds what a loop reads of a connection before it begins to shake hands on it: a TLS record.
const maxHead = 5 + 16<<10

// greeting is a connection on which something precedes MQTT, and what that sees of it meanwhile: a net.Conn whose socket is the loop's, which
// watches it, and alone closes it.
//
//	accept -> the loop reads until it is worth to begin -> welcome, step by step -> the loop has a session with layers
//
// welcome reads and writes as if it could wait. It runs in a coroutine: where it would wait, its step is over, and the next one begins with the
// next event, or the deadline. So a handshake costs no goroutine that the scheduler wakes up for each of the client's answers.
type greeting struct {
	loop        *Loop // also of c, until welcome has returned
	c           *conn
	fd          int
	peer, local netip.AddrPort
	door        Door
	welcome     func(context.Context) (Owner, []Layer, []byte)
	head        []byte // read by the loop; welcome's once it has begun
	hand        *hand  // runs welcome, from its first step to its last one
	begun       bool   // the loop's, as are these
	ended       bool   // the kernel has said so, once
	queued      bool   // in loop.steps
	over        bool   // welcome has returned
	full        bool   // the socket took no more bytes: the kernel shall say when it does

	// What welcome returned.
	owner  Owner
	layers []Layer
	rest   []byte

	mu      sync.Mutex
	failure error // why it must end
	read    time.Time
	write   time.Time
}

var _ Newcomer = (*greeting)(nil)

func newGreeting(c *conn, peer, local netip.AddrPort, door Door) *greeting {
	g := &greeting{loop: c.loop, c: c, fd: c.sock(Client), peer: peer, local: local, door: door}
	g.welcome = door.Come(g, c.loop.epoch.Add(time.Duration(c.s.AcceptedAt-1)))
	return g
}

// event is told by the loop what the kernel says of the socket.
func (g *greeting) event(events uint32) {
	const ending = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	l := g.loop
	if events&ending != 0 {
		g.ended = true
	}
	if g.begun {
		g.queue()
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
			break // no more now, or an end that welcome will see
		}
		g.head = append(g.head, l.buf[:n]...)
	}
	if events&ending != 0 || len(g.head) == maxHead || g.door.Enough(g.head) {
		g.queue()
	}
}

// queue has the loop make the next step, after what its sessions have to do.
func (g *greeting) queue() {
	if !g.queued {
		g.queued = true
		g.loop.steps = append(g.loop.steps, g)
	}
}

// hand is a coroutine that runs one welcome after the other: its stack has grown already.
type hand struct {
	g    *greeting
	step func() (over, ok bool) // makes a step of g's welcome
	wait func(over bool) bool   // the welcome's side of it
	end  func()                 // between two welcomes
}

// maxHands is how many idle ones a loop keeps.
const maxHands = 16

func (l *Loop) newHand() *hand {
	if n := len(l.hands); n > 0 {
		h := l.hands[n-1]
		l.hands = l.hands[:n-1]
		return h
	}
	h := new(hand)
	h.step, h.end = iter.Pull(func(wait func(bool) bool) {
		for h.wait = wait; ; {
			g := h.g
			if g.owner, g.layers, g.rest = g.welcome(l.life); !wait(true) {
				return
			}
		}
	})
	return h
}

// run makes a step, and begins the session after the last one.
func (g *greeting) run() {
	c, l := g.c, g.loop
	if !g.begun {
		g.begun = true
		g.hand = l.newHand()
		g.hand.g = g
	}
	if over, _ := g.hand.step(); !over {
		if g.full && !c.out[Client] {
			if err := c.control(unix.EPOLL_CTL_MOD, Client, true); err != nil {
				g.end(err)
				return
			}
		}
		c.arm()
		return
	}
	g.over = true
	g.cut(net.ErrClosed) // the descriptor is the session's now, and later somebody else's
	if g.hand.g = nil; len(l.hands) < maxHands {
		l.hands = append(l.hands, g.hand)
	} else {
		g.hand.end()
	}
	g.hand = nil
	c.greeted(g.owner, g.layers, append(g.rest, g.head...))
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
	c.s.Heard[Client] = l.now
	c.readable[Client] = true
	c.behind(Client, rest)
	if c.read(); !c.closed {
		c.arm()
	}
}

// MakeRoom implements Newcomer.
func (g *greeting) MakeRoom() { g.loop.roomFor(g.c.s.limits) }

// end is cut for the loop: welcome learns of it at once.
func (g *greeting) end(err error) {
	g.cut(err)
	g.queue()
}

// cut makes welcome's calls fail from now on; the first reason counts.
func (g *greeting) cut(err error) {
	g.mu.Lock()
	if g.failure == nil {
		g.failure = err
	}
	g.mu.Unlock()
}

// due is when the loop has to look at g without an event, or 0.
func (g *greeting) due() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	by := g.read
	if by.IsZero() || !g.write.IsZero() && g.write.Before(by) {
		by = g.write
	}
	if by.IsZero() || !g.begun {
		return 0
	}
	return int64(by.Sub(g.loop.epoch)) + 1
}

// may returns why nothing may be done any more.
func (g *greeting) may(deadline *time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failure != nil {
		return g.failure
	}
	if by := *deadline; by.IsZero() || time.Now().Before(by) {
		return nil
	}
	return os.ErrDeadlineExceeded
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
		if err := g.may(&g.read); err != nil {
			return 0, err
		}
		switch n, errno := recv(g.fd, p); {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			g.hand.wait(false)
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
		if err := g.may(&g.write); err != nil {
			return written, err
		}
		n, errno := sendTo(g.fd, p[written:])
		written += n
		switch {
		case errno == unix.EAGAIN:
			g.full = true
			g.hand.wait(false)
		case errno != 0:
			return written, os.NewSyscallError("write", errno)
		}
	}
	return written, nil
}

// Close implements net.Conn: the loop closes the socket when welcome has returned.
func (g *greeting) Close() error {
	g.cut(net.ErrClosed)
	g.loop.send(mail{call: func() {
		if !g.over {
			g.queue()
		}
	}})
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
