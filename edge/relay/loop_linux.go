package relay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Supported reports whether this system has the epoll driver.
const Supported = true

// The numbers of a loop, together.
const (
	loopBuffer  = 64 << 10  // one read buffer for all of a loop's sessions
	loopBudget  = 256 << 10 // bytes from one side before the other sessions get their turn
	loopEvents  = 256       // events taken from the kernel at once
	loopAccepts = 64        // connections accepted at once
	loopTimers  = 64        // timers, and as many messages of other goroutines, before the sessions get their turn; more where more are late
	busyWait    = 5         // ms: how long a busy loop waits without telling the Go scheduler
	acceptPause = 100 * time.Millisecond
	handTime    = 100 * time.Microsecond // for steps of handshakes, until it is the sessions' turn
	roomy       = 3                      // processors: with fewer a loop must step aside for the goroutines that it wakes up
)

// Loop is the epoll driver: it runs sessions from accept to close on raw descriptors, edge-triggered, reading into one shared buffer and
// writing through; bytes are kept only for a socket that is full, and then its peer is not read. Handshakes of TLS and WebSocket are
// coroutines of it (greeting), which give it the layers to go on with.
//
// A loop belongs to the goroutine that runs it. Other goroutines reach it through its mail box. Sessions that relay can move to another loop (Give). It keeps a processor (GOMAXPROCS) to itself while
// it is busy, and there should be two more than there are loops, for the goroutines that loops wake up: an idle one takes them over at once.
type Loop struct {
	epfd, wake int
	epoch      time.Time // of all loops: the times of a session hold wherever it is

	// Owned by Run.
	events    [loopEvents]unix.EpollEvent
	buf       []byte
	out       []Action
	connect   mqtt.Connect // of the Route call at hand
	conns     []*conn      // by slot
	free      []uint32
	gen       int32
	acceptors map[int32]*acceptor
	again     []*conn     // stopped by the budget: there is more to read
	steps     []*greeting // handshakes that can go on
	hands     []*hand     // idle
	spare     []*backlog
	wheel     wheel
	scratch   scratch
	pieces    [][]byte // emptied rests of records
	shared    Shared   // nil: none
	ticking   bool     // shared is told the time
	busy      bool
	now       int64
	woke      int64         // when the last wait ended
	worked    time.Duration // what Busy tells
	gifts     []gift        // under way
	next      int           // slot to look at for one
	looked    int           // slot that makeRoom has looked at
	leaving   bool          // Retire was called

	load     atomic.Int64 // Busy
	sessions atomic.Int64

	work sync.WaitGroup  // goroutines that shake hands with brokers
	life context.Context // theirs: ends with Run

	mu      sync.Mutex
	mail    []mail
	rung    bool
	closed  bool
	retired bool // takes no sessions of other loops any more
}

// epoch is when the time of loops begins.
var epoch = time.Now()

// mail is what other goroutines want of a loop.
type mail struct {
	conn   *conn
	stop   Reason // ReasonNone: answer
	answer Answer
	call   func()
}

// acceptor is a listening descriptor.
type acceptor struct {
	fd     int
	limits *Limits
	local  netip.AddrPort // zero: it differs by connection
	accept Accept
	door   Door // instead of accept
	paused bool
	batch  int // connections to accept at once: it doubles while there are more
}

// NewLoop makes a loop; Run runs it and frees what it holds.
func NewLoop(conf LoopConfig) (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("relay: epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("relay: eventfd: %w", err)
	}
	l := &Loop{
		epfd: epfd, wake: wake, epoch: epoch, shared: conf.Shared, buf: make([]byte, loopBuffer),
		acceptors: map[int32]*acceptor{},
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		unix.Close(epfd)
		unix.Close(wake)
		return nil, fmt.Errorf("relay: epoll_ctl: %w", err)
	}
	return l, nil
}

// An event's 64 bits of data are Fd and Pad. Sessions: Fd = slot<<1 | side, Pad = the descriptor's generation, so that an event of a
// descriptor that is closed already meets nobody. Others have a negative Fd.
const wakeSlot = -1

// Listen makes the loop accept from ln's socket (a *net.TCPListener's, or a Socket), until stop is called. Several loops may share a socket; ln itself stays
// the caller's. The connections have the options (keep-alive, TCP_NODELAY) that the listening socket has.
func (l *Loop) Listen(ln syscall.Conn, limits *Limits, accept Accept) (stop func(), err error) {
	return l.listen(ln, &acceptor{limits: limits, accept: accept})
}

// Open is Listen for connections that have something to do before MQTT.
func (l *Loop) Open(ln syscall.Conn, limits *Limits, door Door) (stop func(), err error) {
	return l.listen(ln, &acceptor{limits: limits, door: door})
}

func (l *Loop) listen(ln syscall.Conn, a *acceptor) (stop func(), err error) {
	fd, err := duplicate(ln)
	if err != nil {
		return nil, fmt.Errorf("relay: listen: %w", err)
	}
	a.fd, a.batch = fd, 1
	if at := localAddr(fd); !at.Addr().IsUnspecified() {
		a.local = at
	}
	key := int32(-2 - fd)
	added := make(chan error, 1)
	if !l.send(mail{call: func() {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: key}
		err := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev)
		if err == nil {
			l.acceptors[key] = a
		}
		added <- err
	}}) {
		unix.Close(fd)
		return nil, errLoopClosed
	}
	if err := <-added; err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("relay: listen: %w", err)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			done := make(chan struct{})
			if l.send(mail{call: func() { l.unlisten(key); close(done) }}) {
				<-done
			}
		})
	}, nil
}

func (l *Loop) unlisten(key int32) {
	if a := l.acceptors[key]; a != nil {
		delete(l.acceptors, key)
		// Closing alone would not end the watch: it is on the open file, which the listener's own descriptor shares.
		if err := epollCtl(l.epfd, unix.EPOLL_CTL_DEL, a.fd, nil); err != nil && !a.paused {
			panic("relay: epoll set lost a listener: " + err.Error())
		}
		unix.Close(a.fd)
	}
}

// send puts m into the mail box; false if the loop has ended.
func (l *Loop) send(m mail) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.put(m)
	return true
}

// put is send with mu held: an unlocked loop may end, and its descriptor may be somebody else's by then.
func (l *Loop) put(m mail) {
	l.mail = append(l.mail, m)
	if !l.rung {
		l.rung = true
		one := [8]byte{1} // little endian or not: any value above zero wakes
		unix.Write(l.wake, one[:])
	}
}

// Run runs the loop until ctx ends. Then it stops accepting, closes the sessions that are left, and waits for the handshakes. A loop that retires
// ends by itself.
func (l *Loop) Run(ctx context.Context) error {
	crowded := runtime.GOMAXPROCS(0) < roomy
	end := context.AfterFunc(ctx, func() { l.send(mail{}) })
	defer end()
	life, over := context.WithCancel(ctx)
	defer over()
	l.life = life
	l.woke = l.clock()
	for ctx.Err() == nil && !l.left() {
		n, err := l.wait()
		if err != nil {
			over()
			l.finish()
			return err
		}
		l.now = l.clock()
		l.woke = l.now
		for i := range l.events[:n] {
			l.event(&l.events[i])
		}
		l.readAgain()
		l.shakeHands()
		l.wheel.advance(l.now, l.wheel.most(l.now), l.tick)
		if n > 0 && l.shared != nil && !l.ticking {
			l.tickShared()
		}
		if len(l.gifts) > 0 { // nothing of the turn is under way any more
			l.give()
		}
		if crowded {
			runtime.Gosched() // what we made runnable sits in this processor's queue, and a raw wait would keep it there
		}
	}
	over()
	l.finish()
	return nil
}

func (l *Loop) finish() {
	l.mu.Lock()
	l.closed = true
	left := l.mail
	l.mail = nil
	l.mu.Unlock()
	for _, m := range left { // nobody may wait for an answer for ever
		if m.call != nil {
			m.call()
		}
	}
	for key := range l.acceptors {
		l.unlisten(key)
	}
	for _, c := range l.conns {
		if c != nil && c.greet != nil {
			c.greet.cut(net.ErrClosed)
			c.greet.run()
		}
	}
	for _, c := range l.conns {
		if c != nil {
			c.feed(func(out []Action) []Action { return c.s.cut(ReasonShutdown, "", out) })
		}
	}
	for _, h := range l.hands {
		h.end()
	}
	l.work.Wait()
	l.tell(l.clock())
	unix.Close(l.wake)
	unix.Close(l.epfd)
}

func (l *Loop) clock() int64 { return int64(time.Since(l.epoch)) + 1 } // +1: zero means never

// wait waits for events. A busy loop waits by a raw system call: the Go scheduler's part in a blocking one (it gives the processor away and
// takes it back) costs more than the call itself. Stop-the-world reaches a raw wait by a signal, hence Gosched on EINTR.
func (l *Loop) wait() (int, error) {
	now := l.clock()
	l.tell(now)
	timeout := l.wheel.timeout(now)
	if len(l.again)+len(l.steps)+len(l.gifts) > 0 {
		timeout = 0
	}
	if l.busy {
		t := busyWait
		if timeout >= 0 {
			t = min(t, timeout)
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epfd), uintptr(unsafe.Pointer(&l.events[0])), loopEvents, uintptr(t), 0, 0)
		switch {
		case errno == unix.EINTR:
			runtime.Gosched()
			return 0, nil // time has passed: look at the timers again
		case errno != 0:
			return 0, fmt.Errorf("relay: epoll_wait: %w", errno)
		case n > 0 || timeout == 0:
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
	return 0, fmt.Errorf("relay: epoll_wait: %w", err)
}

func (l *Loop) event(ev *unix.EpollEvent) {
	switch {
	case ev.Fd == wakeSlot:
		l.readMail()
	case ev.Fd < 0:
		l.acceptFrom(ev.Fd)
	default:
		slot, side := uint32(ev.Fd)>>1, Side(ev.Fd&1)
		if int(slot) < len(l.conns) {
			if c := l.conns[slot]; c != nil && c.gen[side] == ev.Pad {
				c.event(side, ev.Events)
			}
		}
	}
}

func (l *Loop) readMail() {
	l.mu.Lock()
	n := min(max(loopTimers, len(l.mail)/16), len(l.mail)) // however long a turn takes, a crowd of messages is through in some dozens
	box := l.mail[:n:n]
	if l.mail = l.mail[n:]; len(l.mail) == 0 { // otherwise the bell goes on ringing
		var eight [8]byte
		unix.Read(l.wake, eight[:])
		l.mail, l.rung = nil, false
	}
	l.mu.Unlock()
	for _, m := range box {
		switch c := m.conn; {
		case m.call != nil:
			m.call()
		case c == nil:
		case c.closed:
		case m.stop != ReasonNone:
			c.turn(func(out []Action) []Action { return c.s.Stop(m.stop, l.now, out) })
		default:
			c.answered(m.answer)
		}
	}
}

func (l *Loop) acceptFrom(key int32) {
	a := l.acceptors[key]
	if a == nil || a.paused {
		return
	}
	for n := 1; ; n++ {
		if a.door != nil {
			if wait, ok := a.door.Room(); !ok {
				l.pause(a, key, wait)
				return
			}
		}
		fd, peer, err := accept4(a.fd)
		switch err {
		case 0:
			l.adopt(a, fd, peer)
			if n >= a.batch { // the listener is level-triggered: who is left is told of again
				a.batch = min(2*a.batch, loopAccepts)
				return
			}
		case unix.ECONNABORTED, unix.EINTR:
		case unix.EAGAIN:
			a.batch = 1
			return
		default: // out of descriptors or memory, most of the time
			if a.limits.AcceptFailed != nil {
				a.limits.AcceptFailed(fmt.Errorf("relay: accept: %w", err))
			}
			l.pause(a, key, acceptPause)
			return
		}
	}
}

// MakeRoom lets the loop end a session whose client has had time for its CONNECT, as for a newcomer of its own: for one that another loop
// turns away, or that no loop has.
func (l *Loop) MakeRoom() { l.send(mail{call: l.makeRoom}) }

// roomFor makes room for a newcomer, where there is none.
func (l *Loop) roomFor(limits *Limits) {
	if limits.Full != nil && limits.Full() {
		l.makeRoom()
	}
}

// makeRoom ends a session whose client has had time for its CONNECT, if it is among the next ones.
func (l *Loop) makeRoom() {
	for range min(makeRoomLooks, len(l.conns)) {
		l.looked = (l.looked + 1) % len(l.conns)
		c := l.conns[l.looked]
		if c == nil || c.greet != nil || c.s.Phase > AwaitConnect || l.now < max(c.s.AcceptedAt, c.s.Heard[Client])+int64(c.s.limits.connectTimeout()/makeRoomAfter) {
			continue
		}
		c.readable[Client] = true // what came while the loop was held up counts
		if c.read(); c.closed {
			return
		}
		if c.s.Phase <= AwaitConnect {
			c.feed(func(out []Action) []Action {
				return c.s.cut(ReasonOverload, "made room: the edge is full, and this client had no CONNECT to say", out)
			})
			return
		}
	}
}

// pause stops accepting for a moment: without descriptors a level-triggered listener would spin.
func (l *Loop) pause(a *acceptor, key int32, wait time.Duration) {
	if !a.paused {
		a.paused = true
		epollCtl(l.epfd, unix.EPOLL_CTL_DEL, a.fd, nil)
	}
	l.wheel.add(l.now, l.now+int64(wait), wheelEntry{call: func() {
		if l.acceptors[key] != a {
			return
		}
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: key}
		if err := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, a.fd, &ev); err != nil {
			l.pause(a, key, acceptPause)
			return
		}
		a.paused = false
	}})
}

func (l *Loop) adopt(a *acceptor, fd int, peer netip.AddrPort) {
	local := a.local
	if !local.IsValid() {
		local = localAddr(fd)
	}
	c := &conn{loop: l, fd: [2]int32{int32(fd), -1}}
	if a.door != nil {
		c.s.Start(a.limits, l.now, false)
		c.greet = newGreeting(c, peer, local, a.door)
		l.place(c)
		return
	}
	l.roomFor(a.limits)
	owner, preamble := a.accept(peer, local)
	if owner == nil {
		closeSocket(fd)
		return
	}
	c.owner = owner
	c.s.Start(a.limits, l.now, preamble)
	l.place(c)
}

// seat gives a session its slot.
func (l *Loop) seat(c *conn) {
	if n := len(l.free); n > 0 {
		c.slot, l.free = l.free[n-1], l.free[:n-1]
		l.conns[c.slot] = c
	} else {
		c.slot = uint32(len(l.conns))
		l.conns = append(l.conns, c)
	}
}

// place gives a session its slot, and its client's socket to the kernel to watch.
func (l *Loop) place(c *conn) {
	l.seat(c)
	// The first bytes are there as a rule. What comes after they have been read is an event.
	if c.greet != nil {
		c.greet.event(unix.EPOLLIN)
	} else {
		c.readable[Client] = true
		c.read()
	}
	if c.closed {
		return
	}
	if err := c.watch(Client, c.pend[Client] != nil); err != nil {
		if c.greet != nil {
			c.greet.end(err)
			return
		}
		c.feed(func(out []Action) []Action { return c.s.cut(ReasonInternal, err.Error(), out) })
		return
	}
	c.arm()
}

func (l *Loop) readAgain() {
	again := l.again
	l.again = nil
	for _, c := range again {
		c.queued = false
		if !c.closed {
			c.read()
		}
	}
}

// shakeHands makes steps of handshakes, in the order of events, until they have taken their time: a step computes, and the sessions that live
// shall not wait for more than one that is long.
func (l *Loop) shakeHands() {
	i := 0
	for ; i < len(l.steps); i++ {
		if i > 0 && l.clock() > l.now+int64(handTime) {
			break
		}
		l.steps[i].queued = false
		l.steps[i].run()
	}
	n := copy(l.steps, l.steps[i:])
	clear(l.steps[n:])
	l.steps = l.steps[:n]
}

func (l *Loop) tick(at int64, e wheelEntry) {
	c := e.conn
	if c == nil {
		e.call()
		return
	}
	if c.home() != l || c.armed != at {
		return // it has moved on, or back, or is looked at sooner
	}
	c.armed = 0
	switch due := c.due(); {
	case c.greet != nil && due != 0 && due <= l.now:
		if c.s.Deadline <= l.now {
			c.greet.end(os.ErrDeadlineExceeded)
		}
		c.greet.queue()
	case c.closed || due == 0:
	case due > l.now:
		c.arm()
	case c.s.Deadline > l.now:
		c.turn(c.nextAddress)
	default:
		c.turn(func(out []Action) []Action { return c.s.Tick(l.now, out) })
	}
}

// release takes c out of the loop. What still knows it, the wheel or somebody's handle, keeps next to nothing alive.
func (l *Loop) release(c *conn) {
	l.conns[c.slot] = nil
	l.free = append(l.free, c.slot)
	c.closed = true
	c.s = Session{State: State{Phase: Closed}, limits: c.s.limits}
	c.owner, c.way, c.greet = nil, nil, nil
}
