package relay

import (
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A session that relays can go on in another loop of the process. Nothing of it is written out: the two loops hand over the very conn.
//
//	giver, at the end of a turn: off its epoll set, its slot and its Shared
//	both mail boxes locked: the session's home changes, and what waits for it goes to the other box, behind the session itself
//	taker, reading its mail: onto its Shared, its epoll set and its wheel
//
// What comes while nobody watches is told when the taker begins to: epoll_ctl(2) tells at once of what is there, also edge-triggered. Entries of the
// giver's wheel are left there; they meet nobody (Loop.tick).

// giveLook is how many of its slots a loop looks at in one turn for sessions to give away: those that stay shall not notice.
const giveLook = 64

// gift is sessions to be given away.
type gift struct {
	to   *Loop
	left int // sessions
	look int // slots
}

// Busy is for how long the loop has worked, not waited, since it began; up to its last wait.
func (l *Loop) Busy() time.Duration { return time.Duration(l.load.Load()) }

// Sessions is how many connections the loop has, those included that shake hands.
func (l *Loop) Sessions() int { return int(l.sessions.Load()) }

// tell makes known how the loop fares. It is called before it waits.
func (l *Loop) tell(now int64) {
	l.worked += time.Duration(now - l.woke)
	l.load.Store(int64(l.worked))
	l.sessions.Store(int64(len(l.conns) - len(l.free)))
}

// Give moves up to n sessions that relay to another loop, in some turns, and returns before. Those that are on their way to a broker, or from one, stay;
// all do where the other loop has ended, or retires.
func (l *Loop) Give(to *Loop, n int) {
	if to != l && n > 0 {
		l.send(mail{call: func() { l.gifts = append(l.gifts, gift{to, n, len(l.conns)}) }})
	}
}

// Retire makes the loop end: it takes no session of another loop any more, gives its own to the given one, and Run returns when none is left and
// nothing is listened to, which is for whoever made it listen to see to. Sessions that cannot move now are not looked at again before Retire is called again.
func (l *Loop) Retire(to *Loop) {
	l.mu.Lock()
	l.retired = true
	l.mu.Unlock()
	l.send(mail{call: func() { l.leaving = true }})
	l.Give(to, int(^uint(0)>>1))
}

// left reports whether the loop has retired and nobody needs it any more. Then nothing reaches it from now on.
func (l *Loop) left() bool {
	if !l.leaving || len(l.conns) != len(l.free) || len(l.acceptors) > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = len(l.mail) == 0
	return l.closed
}

// give goes on with the first gift.
func (l *Loop) give() {
	g := &l.gifts[0]
	var given []*conn
	for n := 0; n < giveLook && g.look > 0 && g.left > 0; n++ {
		if l.next++; l.next >= len(l.conns) {
			l.next = 0
		}
		g.look--
		if c := l.conns[l.next]; c != nil && c.movable() {
			l.part(c)
			given = append(given, c)
			g.left--
		}
	}
	over := g.look == 0 || g.left == 0
	if len(given) > 0 && !l.handOver(given, g.to) {
		l.take(given)
		over = true
	}
	if over {
		l.gifts = slices.Delete(l.gifts, 0, 1)
	}
}

// movable reports whether all that there is of c is c: no goroutine has it, and no question is open.
func (c *conn) movable() bool { return c.s.Phase == Relaying && c.greet == nil && c.way == nil }

// part takes c off the loop.
func (l *Loop) part(c *conn) {
	for side, fd := range c.fd {
		if c.gen[side] != 0 {
			epollCtl(l.epfd, unix.EPOLL_CTL_DEL, int(fd), nil)
			c.gen[side] = 0
		}
		if w := c.wrap[side]; w != nil && l.shared != nil {
			w.each(l.shared.Part)
		}
	}
	if c.queued {
		c.queued = false
		l.again = slices.DeleteFunc(l.again, func(a *conn) bool { return a == c })
	}
	c.armed = 0
	l.conns[c.slot] = nil
	l.free = append(l.free, c.slot)
}

// handOver gives sessions that are off the loop to another one, with their mail; false if that takes none.
func (l *Loop) handOver(given []*conn, to *Loop) bool {
	first, second := l, to
	if to.epfd < l.epfd { // two that give to each other lock in the same order
		first, second = to, l
	}
	first.mu.Lock()
	defer first.mu.Unlock()
	second.mu.Lock()
	defer second.mu.Unlock()
	if to.closed || to.retired {
		return false
	}
	for _, c := range given {
		c.move(to)
	}
	to.put(mail{call: func() { to.take(given) }})
	l.mail = slices.DeleteFunc(l.mail, func(m mail) bool {
		moved := m.conn != nil && m.conn.home() == to
		if moved {
			to.put(m)
		}
		return moved
	})
	return true
}

// take goes on with sessions that another loop had, or that could not be given away.
func (l *Loop) take(given []*conn) {
	l.now = l.clock() // not before what the other loop noted
	for _, c := range given {
		l.seat(c)
		for side := range c.wrap {
			if w := c.wrap[side]; w != nil && l.shared != nil {
				w.each(l.shared.Adopt)
			}
		}
		var err error
		for _, side := range [2]Side{Client, Broker} {
			if c.fd[side] >= 0 && err == nil {
				err = c.watch(side, c.pend[side] != nil)
			}
		}
		if err != nil {
			c.feed(func(out []Action) []Action { return c.s.cut(ReasonInternal, err.Error(), out) })
			continue
		}
		if c.read(); !c.closed { // what the other loop had not come to
			c.arm()
		}
	}
}

// each calls fn with each of the layers.
func (w *wrap) each(fn func(Layer)) {
	fn(w.outer)
	if w.inner != nil {
		fn(w.inner)
	}
}

// home is c.loop for those who are not that loop. The loop itself reads the field as it is: it alone changes it, with both mail boxes locked, and the next
// one reads it when it has found the session in its own.
func (c *conn) home() *Loop {
	return (*Loop)(atomic.LoadPointer((*unsafe.Pointer)(unsafe.Pointer(&c.loop))))
}

func (c *conn) move(to *Loop) {
	atomic.StorePointer((*unsafe.Pointer)(unsafe.Pointer(&c.loop)), unsafe.Pointer(to))
}

// post sends m to the loop that has c, behind all that was posted before.
func (c *conn) post(m mail) {
	for {
		l := c.home()
		l.mu.Lock()
		found := c.home() == l
		if found && !l.closed {
			l.put(m)
		}
		l.mu.Unlock()
		if found {
			return
		}
	}
}

// A Socket is a listening socket for loops that come and go. Unlike a *net.TCPListener it is not in the runtime's poller, which is woken for each client
// beside the loops, and may be closed as soon as they have theirs.
type Socket struct{ fd int }

// NewSocket returns another descriptor of ln's socket. It must be closed.
func NewSocket(ln syscall.Conn) (*Socket, error) {
	fd, err := duplicate(ln)
	if err != nil {
		return nil, fmt.Errorf("relay: socket: %w", err)
	}
	return &Socket{fd}, nil
}

// SyscallConn implements syscall.Conn, for Loop.Listen and Loop.Open. The Socket must not be closed meanwhile.
func (s *Socket) SyscallConn() (syscall.RawConn, error) { return rawConn(s.fd), nil }

// Close lets go of the socket. Loops that listen to it have descriptors of their own.
func (s *Socket) Close() { unix.Close(s.fd) }

// duplicate makes another descriptor of c's socket.
func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(sock uintptr) { fd, err = unix.FcntlInt(sock, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		err = e
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}
