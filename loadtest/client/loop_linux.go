package client

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

const loopsSupported = true

// The numbers of a loop, together.
const (
	loopBuffer = 64 << 10 // one read buffer for all of a loop's clients
	loopReads  = 4        // buffers read from one client before the others get their turn
	loopEvents = 256      // events taken from the kernel at once
	loopOpens  = 32       // connects begun before sockets are read again
	busyWait   = 5        // ms: how long a busy loop waits without telling the Go scheduler
)

// loop runs connections on raw descriptors, edge-triggered. It belongs to the goroutine that runs it; others reach it by post.
type loop struct {
	engine     *Engine
	epfd, wake int
	raw        bool // a busy loop waits by a raw system call, see wait

	// Owned by run.
	events [loopEvents]unix.EpollEvent
	buf    []byte
	packet mqtt.Packet
	conns  []*conn // by slot
	vacant []uint32
	gen    int32
	opens  []mail  // connects to begin
	again  []*conn // there is more to read
	busy   bool
	next   int64 // when the next part of the sweep is due
	part   int

	mu     sync.Mutex
	mail   []mail
	spare  []mail
	rung   bool
	closed bool
}

// mail is what other goroutines want of a loop: to open conn, or (open nil) to look why its client is leaving.
type mail struct {
	conn *conn
	open *wire.Endpoint
}

// wakeSlot stands for the eventfd in an event's data. A connection's are its slot and its generation, so that an event of a descriptor that
// is closed already meets nobody.
const wakeSlot = -1

func newLoop(e *Engine) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("client: epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("client: eventfd: %w", err)
	}
	l := &loop{engine: e, epfd: epfd, wake: wake, buf: make([]byte, loopBuffer)}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		l.free()
		return nil, fmt.Errorf("client: epoll_ctl: %w", err)
	}
	return l, nil
}

func (l *loop) free() {
	unix.Close(l.epfd)
	unix.Close(l.wake)
}

// post puts m into the mail box; false if the loop has ended. It may be called with a client's mu held.
func (l *loop) post(m mail) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.mail = append(l.mail, m)
	if !l.rung { // under the lock: an unlocked loop may end, and its descriptor may be somebody else's by now
		l.rung = true
		one := [8]byte{1} // little endian or not: any value above zero wakes
		unix.Write(l.wake, one[:])
	}
	return true
}

// run runs the loop until ctx ends.
func (l *loop) run(ctx context.Context) error {
	defer l.finish()
	loopsRunning.Add(1)
	defer loopsRunning.Add(-1)
	l.mayWaitRaw()
	end := context.AfterFunc(ctx, func() { l.post(mail{}) })
	defer end()
	for ctx.Err() == nil {
		n, err := l.wait()
		if err != nil {
			return err
		}
		for i := range l.events[:n] {
			l.event(&l.events[i])
		}
		l.readAgain()
		l.openSome()
		l.sweep()
		if n > 0 && l.raw {
			// What handlers made runnable sits in this processor's queue, and a raw wait would keep it there.
			runtime.Gosched()
		}
	}
	return nil
}

// wait waits for events. A busy loop waits by a raw system call: the Go scheduler's part in a blocking one (it gives the processor away and
// takes it back) costs more than the call itself. Stop-the-world reaches a raw wait by a signal, hence Gosched on EINTR.
func (l *loop) wait() (int, error) {
	timeout := l.timeout()
	if l.busy && l.raw {
		t := busyWait
		if timeout >= 0 {
			t = min(t, timeout)
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), loopEvents, uintptr(t), 0, 0)
		switch {
		case errno == unix.EINTR:
			runtime.Gosched()
			return 0, nil
		case errno != 0:
			return 0, fmt.Errorf("client: epoll_wait: %w", errno)
		case n > 0 || t == timeout:
			return int(n), nil
		}
		l.busy = false
	}
	n, err := unix.EpollWait(l.epfd, l.events[:], timeout)
	switch err {
	case nil:
		l.busy = n > 0
		return n, nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("client: epoll_wait: %w", err)
}

// loopsRunning counts the loops of all engines of this process: they share its processors.
var loopsRunning atomic.Int32

// mayWaitRaw looks whether there is a processor for all other goroutines, since a raw wait keeps its own.
func (l *loop) mayWaitRaw() { l.raw = runtime.GOMAXPROCS(0) > int(loopsRunning.Load()) }

// timeout is how long epoll_wait may wait, in ms; -1 = for ever.
func (l *loop) timeout() int {
	switch {
	case len(l.again) > 0 || len(l.opens) > 0:
		return 0
	case len(l.conns) == len(l.vacant):
		return -1
	}
	return int(max(0, l.next-pace.Now()+int64(time.Millisecond)-1) / int64(time.Millisecond))
}

func (l *loop) event(ev *unix.EpollEvent) {
	if ev.Fd == wakeSlot {
		l.readMail()
		return
	}
	if k := l.conns[ev.Fd]; k != nil && k.gen == ev.Pad {
		k.event(ev.Events)
	}
}

func (l *loop) readMail() {
	var eight [8]byte
	unix.Read(l.wake, eight[:])
	l.mu.Lock()
	box := l.mail
	l.mail, l.spare, l.rung = l.spare[:0], box, false
	l.mu.Unlock()
	for i, m := range box {
		box[i] = mail{}
		switch {
		case m.conn == nil: // ctx ended
		case m.open != nil:
			l.opens = append(l.opens, m)
		case m.conn.state != waiting: // else open finds it
			m.conn.part()
		}
	}
}

func (l *loop) openSome() {
	n := min(loopOpens, len(l.opens))
	for _, m := range l.opens[:n] {
		l.enter(m.conn)
		m.conn.open(m.open)
	}
	clear(l.opens[:n])
	if l.opens = l.opens[n:]; len(l.opens) == 0 {
		l.opens = nil
	}
}

// enter gives k a slot.
func (l *loop) enter(k *conn) {
	if len(l.conns) == len(l.vacant) {
		l.next = pace.Now() + int64(sweepEvery/sweepParts) // it stood still
	}
	l.gen++
	k.gen = l.gen
	if n := len(l.vacant); n > 0 {
		k.slot, l.vacant = l.vacant[n-1], l.vacant[:n-1]
		l.conns[k.slot] = k
		return
	}
	k.slot = uint32(len(l.conns))
	l.conns = append(l.conns, k)
}

func (l *loop) readAgain() {
	n := len(l.again)
	for _, k := range l.again[:n] {
		k.queued = false
		if k.state == up && !k.full {
			k.read()
		}
	}
	rest := copy(l.again, l.again[n:])
	clear(l.again[rest:])
	l.again = l.again[:rest]
}

// sweep looks at a part of the connections when its time has come.
func (l *loop) sweep() {
	if len(l.conns) == len(l.vacant) {
		return
	}
	now := pace.Now()
	if now < l.next {
		return
	}
	l.next = now + int64(sweepEvery/sweepParts)
	l.mayWaitRaw()
	for i := l.part; i < len(l.conns); i += sweepParts {
		if k := l.conns[i]; k != nil {
			k.sweep(now)
		}
	}
	l.part = (l.part + 1) % sweepParts
}

// finish ends what is left.
func (l *loop) finish() {
	l.mu.Lock()
	l.closed = true
	left := l.mail
	l.mail = nil
	l.mu.Unlock()
	for _, m := range append(l.opens, left...) {
		if m.open != nil {
			l.enter(m.conn)
		}
	}
	for _, k := range l.conns {
		if k != nil {
			k.finish()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free()
}
