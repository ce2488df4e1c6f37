package client

import (
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// conn is a connection in a loop. It is the loop's alone but for flush, stop and expire; what those touch is guarded by the client's mu.
//
//	waiting → connecting → up → parting → draining
//	                       up → abandoned
//
// and from each to gone.
type conn struct {
	loop   *loop
	client *Client // nil from draining and abandoned on
	ep     *wire.Endpoint
	until  atomic.Int64 // parting, draining, abandoned: when the descriptor is closed
	failed syscall.Errno
	fd     int32
	gen    int32
	slot   uint32
	state  connState
	queued bool // in loop.again
	hangup bool // the kernel said that nothing comes any more, so read until the end
	full   bool // not read, because what was to be written waits
}

type connState uint8

const (
	waiting    connState = iota // to be opened
	connecting                  // EINPROGRESS
	up
	parting   // DISCONNECT is queued
	draining  // FIN is sent, the peer's is awaited; the client has left
	abandoned // neither read nor written; the client has left
	gone
)

// open begins to connect.
func (k *conn) open(ep *wire.Endpoint) {
	k.ep = ep
	if !k.client.dials(pace.Now() + int64(k.loop.engine.cfg.DialTimeout)) {
		k.fail(Cause{})
		return
	}
	if err := k.connect(); err != nil {
		k.fail(Cause{Stage: StageDial, Reason: wire.Reason(err), Err: err})
	}
}

func (k *conn) connect() error {
	d := k.loop.engine.cfg.Dialer
	source, err := d.Source(k.ep.Addr.Addr())
	if err != nil {
		return err
	}
	fd, err := dialSocket(k.ep.Addr, source)
	k.fd = int32(fd)
	if err != nil {
		return err
	}
	k.state = connecting
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(k.slot), Pad: k.gen}
	return unix.EpollCtl(k.loop.epfd, unix.EPOLL_CTL_ADD, fd, &ev)
}

const hangups = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

func (k *conn) event(events uint32) {
	if events&hangups != 0 {
		k.hangup = true
	}
	switch k.state {
	case connecting:
		k.connected()
	case up:
		if events&unix.EPOLLOUT != 0 && k.writable() || !k.full && events&(unix.EPOLLIN|hangups) != 0 {
			k.read()
		}
	case parting:
		k.parted()
	case draining:
		k.drain()
	}
}

// connected looks how the connect ended.
func (k *conn) connected() {
	errno, err := unix.GetsockoptInt(int(k.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = syscall.Errno(errno)
	}
	if err == nil && toItself(int(k.fd), k.ep.Addr) {
		err = unix.ECONNREFUSED
	}
	if err != nil {
		k.fail(Cause{Stage: StageDial, Reason: wire.Reason(err), Err: err})
		return
	}
	c, cfg := k.client, &k.loop.engine.cfg
	c.mu.Lock()
	k.state = up
	c.greets()
	if cfg.Dialer.HasPrelude() && !c.leaving.Load() {
		b := newBuffer(256 + len(c.out.b))
		b.b = cfg.Dialer.AppendPrelude(b.b, localAddr(int(k.fd)), k.ep.Addr)
		k.loop.engine.out.Add(-int64(len(b.b))) // that is not MQTT
		b.b = append(b.b, c.out.b...)
		c.out.release()
		c.out = b
	}
	k.flush()
	c.mu.Unlock()
	if k.hangup {
		k.read()
	}
}

// read reads what came, and gives the client its turn.
func (k *conn) read() {
	l, c := k.loop, k.client
	var over *Cause
	c.begin()
	for reads := 1; ; reads++ {
		n, errno := recv(int(k.fd), l.buf)
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			break
		}
		if n == 0 || errno != 0 {
			over = k.end(errno)
			break
		}
		if over = c.input(l.buf[:n], pace.Now(), &l.packet); over != nil || c.leaving.Load() {
			break
		}
		if n < len(l.buf) && !k.hangup {
			break
		}
		if reads == loopReads {
			if !k.queued {
				k.queued = true
				l.again = append(l.again, k)
			}
			break
		}
	}
	c.finish()
	if over != nil {
		k.fail(*over)
		return
	}
	c.mu.Lock()
	k.full = c.out != nil && len(c.out.b) > stopReading // writable reads on
	c.mu.Unlock()
}

// end is the cause when the socket gives no more. The error of an earlier write tells more than the end that follows it.
func (k *conn) end(errno syscall.Errno) *Cause {
	c := k.client
	c.mu.Lock()
	if k.failed != 0 {
		errno = k.failed
	}
	c.mu.Unlock()
	if errno == 0 {
		return c.cause(wire.Reason(wire.ErrClosed), nil)
	}
	return c.cause(wire.Reason(errno), errno)
}

// writable writes what waited, and reports whether reading, which waited for that, is to go on.
func (k *conn) writable() bool {
	c := k.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out != nil {
		k.flush()
	}
	if k.full && c.out == nil {
		k.full = false
		return true
	}
	return false
}

// flush writes the queue as far as the socket takes it; EPOLLOUT tells when it takes more. The client's mu is held, by any goroutine.
func (k *conn) flush() {
	c := k.client
	if k.state != up && k.state != parting {
		return
	}
	sent := 0
	for sent < len(c.out.b) {
		n, errno := sendTo(int(k.fd), c.out.b[sent:])
		if errno == unix.EAGAIN {
			k.loop.engine.out.Add(int64(sent))
			c.out.b = c.out.b[:copy(c.out.b, c.out.b[sent:])]
			return
		}
		if errno != 0 {
			k.failed = errno // reading finds the end
			break
		}
		sent += n
	}
	k.loop.engine.out.Add(int64(sent))
	c.out.release()
	c.out = nil
}

func (k *conn) stop() { k.loop.post(mail{conn: k}) }

// part does what the client wants that is leaving.
func (k *conn) part() {
	c := k.client
	if c == nil || k.state == gone || k.state == parting {
		return
	}
	c.mu.Lock()
	why := c.why
	if why == ReasonDisconnect && k.state == up {
		k.state = parting
		k.until.Store(pace.Now() + int64(partTimeout))
	}
	if why == ReasonAbandon && k.state == up {
		unix.EpollCtl(k.loop.epfd, unix.EPOLL_CTL_DEL, int(k.fd), nil)
		k.state = abandoned
		k.until.Store(never)
		c.left = k
	}
	c.mu.Unlock()
	switch k.state {
	case parting:
		k.parted()
	case abandoned:
		k.tell(Cause{})
	default:
		k.reset()
	}
}

// parted goes on with a connection that has a DISCONNECT to send.
func (k *conn) parted() {
	c := k.client
	c.mu.Lock()
	if c.out != nil {
		k.flush()
	}
	waits := c.out != nil
	c.mu.Unlock()
	if waits {
		return
	}
	unix.Shutdown(int(k.fd), unix.SHUT_WR)
	k.state = draining
	k.until.Store(pace.Now() + int64(partTimeout))
	k.tell(Cause{})
	k.drain()
}

// drain reads to the end what nobody wants any more: a socket that is closed unread resets its connection, and the DISCONNECT with it.
func (k *conn) drain() {
	for {
		n, errno := recv(int(k.fd), k.loop.buf)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR:
		case n == 0 || errno != 0:
			k.close()
			return
		}
	}
}

func (k *conn) sweep(now int64) {
	c := k.client
	if c == nil || k.state == parting {
		if now >= k.until.Load() {
			k.reset()
		}
		return
	}
	c.mu.Lock()
	cause := c.overdue(now)
	c.mu.Unlock()
	if cause != nil {
		k.fail(*cause)
	}
}

// expire is called by Open, with the client's mu held.
func (k *conn) expire(grace time.Duration) { k.until.Store(pace.Now() + int64(grace)) }

// finish ends the connection with the engine.
func (k *conn) finish() {
	if c := k.client; c != nil {
		c.mu.Lock()
		if c.leave(ReasonEnd) && k.state == up {
			c.sayDisconnect(nil)
			k.flush()
		}
		c.mu.Unlock()
		k.fail(Cause{})
		return
	}
	k.reset()
}

// reset closes with RST.
func (k *conn) reset() {
	if k.fd >= 0 {
		unix.SetsockoptLinger(int(k.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	k.fail(Cause{})
}

// fail closes, and tells the client if it is still there. A client that is leaving has a cause of its own.
func (k *conn) fail(cause Cause) {
	c := k.client
	if c != nil {
		c.mu.Lock() // nobody writes to a descriptor that is closed, and somebody else's soon
		defer func() { c.ended(pace.Now(), cause) }()
		defer c.mu.Unlock()
		k.client = nil
	}
	k.close()
}

// tell detaches the client and tells it. The descriptor lives on.
func (k *conn) tell(cause Cause) {
	c := k.client
	k.client = nil
	c.ended(pace.Now(), cause)
}

// close frees the descriptor and the slot.
func (k *conn) close() {
	if k.state == gone {
		return
	}
	k.state = gone
	if k.fd >= 0 {
		unix.Close(int(k.fd))
	}
	l := k.loop
	l.conns[k.slot] = nil
	l.vacant = append(l.vacant, k.slot)
}

// The system calls on sockets are raw: a non-blocking socket never makes the scheduler wait, so it need not be told.

func recv(fd int, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
