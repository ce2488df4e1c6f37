package relay

import (
	"context"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// conn is a session in a loop. Only its loop touches it.
type conn struct {
	loop  *Loop // others ask home
	owner Owner
	s     Session
	fd    [2]int32    // -1 = none
	gen   [2]int32    // of fd, in the loop
	pend  [2]*backlog // to be written to this side: its socket was full; nil most of the time
	wrap  [2]*wrap    // nil: plain TCP
	greet *greeting   // what precedes MQTT is under way; nil most of the time
	way   *way        // to the broker: from the first question to the CONNACK
	armed int64       // when the wheel will look at us; 0 = it will not
	slot  uint32

	readable [2]bool // the kernel may have bytes of this side
	ended    [2]bool // this side has sent FIN: read on, to the zero
	shut     [2]bool // shut this side's writing down when pend is out
	out      [2]bool // the kernel will say when this side takes bytes again
	finish   bool    // feed Finished when pend is out, both ways
	dialing  bool
	queued   bool // in loop.again
	closed   bool
}

// way is how a session gets to its broker.
type way struct {
	target  *Target
	addr    int                // index of the target's address that is being dialed
	until   int64              // when the next one gets its turn; counts while dialing
	hangUp  context.CancelFunc // ends the dial of a goroutine; else nil
	joins   int                // goroutines that dial, or were told to hang up: each comes back to this loop
	arrived bool               // the broker has accepted: what is left to do is to wait for them
	failure error              // of the last dial
}

// backlog is bytes that wait for a socket.
type backlog struct{ b []byte }

func (b *backlog) size() int {
	if b == nil {
		return 0
	}
	return len(b.b)
}

// Answer implements Conn.
func (c *conn) Answer(a Answer) { c.post(mail{conn: c, answer: a}) }

// Stop implements Conn.
func (c *conn) Stop(r Reason) { c.post(mail{conn: c, stop: r}) }

// sock is side's descriptor.
func (c *conn) sock(side Side) int { return int(c.fd[side]) }

// watch puts side's descriptor into the epoll set, edge-triggered. out asks for the other direction too, which costs an event at once, but
// afterwards only where a socket was full.
func (c *conn) watch(side Side, out bool) error {
	c.loop.gen++
	c.gen[side] = c.loop.gen
	return c.control(unix.EPOLL_CTL_ADD, side, out)
}

func (c *conn) control(op int, side Side, out bool) error {
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     int32(c.slot<<1 | uint32(side)), Pad: c.gen[side],
	}
	if c.out[side] = out; out {
		ev.Events |= unix.EPOLLOUT
	}
	return epollCtl(c.loop.epfd, op, c.sock(side), &ev)
}

func (c *conn) event(side Side, events uint32) {
	if c.greet != nil {
		c.greet.event(events)
		return
	}
	gen := c.gen[side]
	if side == Broker && c.dialing {
		if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			return
		}
		if c.connected(); c.gen[side] != gen {
			c.read()
			return // it could not be, and the rest of the event is about a descriptor that is closed
		}
	}
	const closing = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|closing) != 0 {
		c.readable[side] = true
		if events&closing != 0 {
			c.ended[side] = true
		}
	}
	if events&unix.EPOLLOUT != 0 && c.pend[side] != nil {
		c.flush(side)
	}
	c.read()
}

// read reads both sides as far as that is welcome.
func (c *conn) read() {
	c.pump(Client)
	c.pump(Broker)
	if !c.queued {
		c.pump(Client) // what held it back may have gone with the broker
	}
}

// turn feeds an event that no socket brought, and reads on: what was not welcome before it may be so now, and brings no event again.
func (c *conn) turn(event func(out []Action) []Action) {
	c.feed(event)
	c.read()
}

// pump reads side and feeds the session, until there is nothing to read, the other side is full, or the budget is spent.
func (c *conn) pump(side Side) {
	l := c.loop
	for budget := loopBudget; c.readable[side] && !c.closed && c.pend[side.Other()] == nil && c.s.WantRead(side) && c.fd[side] >= 0; {
		if side == Broker && c.dialing {
			return
		}
		if budget <= 0 {
			if !c.queued {
				c.queued = true
				l.again = append(l.again, c)
			}
			return
		}
		w, kept := c.wrap[side], 0
		if w != nil {
			if w.owed > maxOwed {
				return // until they are out
			}
			kept = copy(l.buf, w.rest)
		}
		n, errno := recv(c.sock(side), l.buf[kept:])
		switch {
		case errno == unix.EAGAIN:
			c.readable[side] = false
		case errno == unix.EINTR:
		case errno != 0:
			c.readable[side] = false
			c.feed(func(out []Action) []Action {
				return c.s.Failed(side, ReasonNone, errno.Error(), l.now, out)
			})
		case n == 0:
			c.readable[side] = false
			c.over(side)
		default:
			// A short read means that the socket was empty: the next byte brings an event. After a FIN none comes.
			if kept+n < len(l.buf) && !c.ended[side] {
				c.readable[side] = false
			}
			budget -= n
			if w == nil {
				c.carryOut(c.s.Received(side, l.buf[:n], l.now, l.out[:0]))
			} else if !w.ended {
				c.unwrap(side, l.buf[:kept+n])
			}
		}
	}
}

func (c *conn) feed(event func(out []Action) []Action) {
	if !c.closed {
		c.carryOut(event(c.loop.out[:0]))
	}
}

// carryOut does what the session asks for. out is the loop's scratch, so nothing called from here may feed a session.
func (c *conn) carryOut(out []Action) {
	l := c.loop
	for i := 0; i < len(out); i++ { // out grows while we go
		switch a := out[i]; a.Op {
		case OpWrite:
			if err := c.send(a.Side, a.Data); err != 0 {
				c.readable[a.Side] = true // to its end
				out = c.s.Unwritable(a.Side, err.Error(), l.now, out)
			}
		case OpShutdown:
			if c.pend[a.Side] != nil {
				c.shut[a.Side] = true
			} else {
				c.shutdown(a.Side)
			}
		case OpPreamble:
			n, err := c.owner.Preamble(a.Data)
			out = c.s.Preamble(n, err, l.now, out)
		case OpRoute:
			q := Query{Attempt: int(c.s.Attempt), Cause: c.s.Cause}
			var err error
			if l.connect, err = c.s.Connect(); err != nil {
				out = c.s.cut(ReasonInternal, err.Error(), out)
				continue
			}
			q.Connect = &l.connect
			if c.way == nil {
				c.way = new(way)
			}
			q.Err, c.way.failure = c.way.failure, nil
			if ans, ok := c.owner.Route(c, q); ok {
				c.way.target = ans.Target
				out = c.s.Routed(ans, l.now, out)
			}
		case OpDial:
			if c.way.target.Join != nil {
				c.join()
			} else {
				c.way.addr = 0
				out = c.dial(out)
			}
		case OpDrop:
			if c.dialing {
				c.way.failure = errDialTimeout
			}
			c.close(Broker)
		case OpAccepted:
			c.way.arrived = true
			c.settle()
			if k, err := mqtt.ParseConnack(a.Data, c.s.Version); err == nil {
				c.owner.Accepted(c, k, c.s.toConnack())
			}
		case OpGoodbye:
			if m, err := mqtt.ParseDisconnect(a.Data, c.s.Version); err == nil {
				c.owner.Goodbye(c, m)
			}
		case OpBrokerEnded:
			c.owner.BrokerEnded(c)
		case OpFlow:
			out = c.s.Flow(c.pend[Client].size()+unacknowledged(c.sock(Client)), l.now, out)
		case OpUnread:
			out = c.s.Unread(a.Side, unread(c.sock(a.Side)), l.now, out)
		case OpFinish:
			if c.finish = c.owes(Client) || c.owes(Broker); !c.finish {
				out = c.s.Finished(out)
			}
		case OpClose:
			c.close(Client)
			c.close(Broker)
			owner, sum := c.owner, c.s.summary(l.now, c.failure())
			l.release(c)
			owner.Closed(sum)
		}
	}
	clear(out) // no slice of a session's memory stays behind
	l.out = out[:0]
	if !c.closed {
		c.arm()
	}
}

// settle lets go of the way once it is behind us.
func (c *conn) settle() {
	if c.way != nil && c.way.arrived && c.way.joins == 0 {
		c.way = nil
	}
}

// answered is Answer on the loop.
func (c *conn) answered(a Answer) {
	if c.s.Phase != Routing {
		return
	}
	c.way.target = a.Target
	c.turn(func(out []Action) []Action { return c.s.Routed(a, c.loop.now, out) })
}

// due is when the session wants to be looked at; 0 = never.
func (c *conn) due() int64 {
	if c.greet != nil {
		if due := c.greet.due(); due != 0 && due < c.s.Deadline {
			return due
		}
	}
	if c.dialing && c.way.hangUp == nil && c.way.until < c.s.Deadline {
		return c.way.until
	}
	return c.s.Deadline
}

// arm makes the wheel look at us no later than that.
func (c *conn) arm() {
	if due := c.due(); due != 0 && (c.armed == 0 || c.armed > due+wheelTick) {
		c.armed = c.loop.wheel.add(c.loop.now, due, wheelEntry{conn: c})
	}
}

// dial connects to the target's next address that can be tried at all. Each has an equal share of the time that is left.
func (c *conn) dial(out []Action) []Action {
	w := c.way
	for n := len(w.target.Addrs); w.addr < n; w.addr++ {
		w.until = c.loop.now + int64(share(time.Duration(c.s.Deadline-c.loop.now), n-w.addr))
		done, err := c.connect(w.target.Addrs[w.addr])
		switch {
		case err != nil:
			w.failure = err
			c.close(Broker)
		case done:
			return c.s.Dialed(w.target.Prelude, c.loop.now, out)
		default:
			c.dialing = true
			return out
		}
	}
	if w.failure == nil {
		w.failure = errNoAddress // nor a Join
	}
	return c.s.DialFailed(c.loop.now, out)
}

// nextAddress gives the address that is being dialed up.
func (c *conn) nextAddress(out []Action) []Action {
	c.way.failure = errDialTimeout
	c.close(Broker)
	c.way.addr++
	return c.dial(out)
}

// connect starts a connection to addr; done if it stands already.
func (c *conn) connect(addr netip.AddrPort) (done bool, err error) {
	fd, err := dialSocket(addr)
	if fd < 0 {
		return false, err
	}
	c.fd[Broker] = int32(fd)
	c.readable[Broker], c.ended[Broker] = false, false
	if err != nil && err != unix.EINPROGRESS {
		return false, err
	}
	if done = err == nil; done && toItself(fd, addr) {
		return false, unix.ECONNREFUSED
	}
	return done, c.watch(Broker, !done)
}

// connected is told by the kernel that the connection stands, or cannot.
func (c *conn) connected() {
	c.dialing = false
	var err error
	switch code := socketError(c.sock(Broker)); {
	case code != 0:
		err = code
	case toItself(c.sock(Broker), c.way.target.Addrs[c.way.addr]):
		err = unix.ECONNREFUSED
	}
	c.feed(func(out []Action) []Action {
		if err != nil {
			c.way.failure = err
			c.close(Broker)
			c.way.addr++
			return c.dial(out)
		}
		c.way.failure = nil
		return c.s.Dialed(c.way.target.Prelude, c.loop.now, out)
	})
}

// send writes p to side, behind what waits for it already.
func (c *conn) send(side Side, p []byte) syscall.Errno {
	if c.fd[side] < 0 || c.s.Dead[side] {
		return 0
	}
	if w := c.wrap[side]; w != nil {
		p = w.seal(&c.loop.scratch, p)
	}
	return c.write(side, p)
}

// write writes bytes of the wire.
func (c *conn) write(side Side, p []byte) syscall.Errno {
	if len(p) == 0 {
		return 0
	}
	if c.pend[side] == nil {
		n, errno := sendTo(c.sock(side), p)
		if errno != 0 && errno != unix.EAGAIN {
			return errno
		}
		if p = p[n:]; len(p) == 0 {
			return 0
		}
		c.pend[side] = c.loop.spareBuffer()
		if !c.out[side] && c.gen[side] != 0 {
			if err := c.control(unix.EPOLL_CTL_MOD, side, true); err != nil {
				return err.(syscall.Errno)
			}
		}
	}
	c.pend[side].b = append(c.pend[side].b, p...)
	return 0
}

// flush writes what waits for side.
func (c *conn) flush(side Side) {
	if c.fd[side] < 0 {
		return
	}
	waiting := c.pend[side]
	n, errno := sendTo(c.sock(side), waiting.b)
	if errno != 0 && errno != unix.EAGAIN {
		c.keepBuffer(side)
		c.readable[side] = true // to its end
		c.feed(func(out []Action) []Action { return c.s.Unwritable(side, errno.Error(), c.loop.now, out) })
		c.finished()
		return
	}
	if n < len(waiting.b) {
		waiting.b = append(waiting.b[:0], waiting.b[n:]...)
		return
	}
	c.keepBuffer(side)
	if c.shut[side] {
		c.shut[side] = false
		c.shutdown(side)
	}
	c.finished()
}

// finished tells the session that all is written, if it wants to know.
func (c *conn) finished() {
	if c.finish && !c.owes(Client) && !c.owes(Broker) {
		c.finish = false
		c.feed(c.s.Finished)
	}
}

// failure is that of the last dial.
func (c *conn) failure() error {
	if c.way == nil {
		return nil
	}
	return c.way.failure
}

// owes reports whether bytes wait for a side that may still take them.
func (c *conn) owes(side Side) bool { return c.pend[side] != nil && !c.s.Dead[side] }

// keepBuffer gives side's empty buffer back to the loop.
func (c *conn) keepBuffer(side Side) {
	if p := c.pend[side]; p != nil && cap(p.b) <= 2*loopBuffer && len(c.loop.spare) < 64 {
		p.b = p.b[:0]
		c.loop.spare = append(c.loop.spare, p)
	}
	c.pend[side] = nil
	if w := c.wrap[side]; w != nil {
		w.owed = 0
	}
}

func (l *Loop) spareBuffer() *backlog {
	if n := len(l.spare); n > 0 {
		b := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return b
	}
	return new(backlog)
}

func (c *conn) close(side Side) {
	if side == Broker && c.way != nil && c.way.hangUp != nil {
		c.way.hangUp()
		c.way.hangUp, c.dialing = nil, false
		c.gen[Broker] = 0
	}
	if c.fd[side] < 0 {
		return
	}
	if w := c.wrap[side]; w != nil {
		if c.pend[side] == nil && !c.s.Dead[side] {
			if last := w.end(&c.loop.scratch, true); len(last) > 0 {
				sendTo(c.sock(side), last) // if it takes it at once
			}
		}
		wipe(w.outer, w.inner)
		c.wrap[side] = nil
	}
	closeSocket(c.sock(side))
	c.fd[side] = -1
	c.gen[side] = 0
	c.readable[side], c.ended[side], c.shut[side] = false, false, false
	if side == Broker {
		c.dialing = false
	}
	c.keepBuffer(side)
}
