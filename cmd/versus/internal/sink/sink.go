//go:build linux

// Package sink is the broker behind the proxies: it accepts everybody, answers PINGREQ and SUBSCRIBE, and sends every PUBLISH of QoS 0 back to
// where it came from, byte for byte.
//
//	s, err := sink.Listen(3, sink.MQTT) // or sink.WebSocket
//	fmt.Println(s.Addresses())          // brokers, one after the other
//	err = s.Run(ctx)
//	s.Counts()
//
// It is made to cost little, so that the proxy before it is what is measured: one epoll loop, one read buffer, no allocation for a message. A
// header of PROXY v1 or v2 may come first. It remembers at which of its brokers it saw a client ID first, and says session present where the ID
// returns to that one: a proxy that is not sticky is found out.
//
// What it does not do: MQTT beyond that. What it does not understand closes the connection, and is counted.
package sink

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Protocol is what the sink speaks.
type Protocol uint8

// The protocols.
const (
	MQTT      Protocol = iota
	WebSocket          // MQTT in binary frames, after an upgrade
)

// Counts is what a sink has seen.
type Counts struct {
	Connects  int64 `json:"connects"`  // CONNECT packets
	Home      int64 `json:"home"`      // of those, of clients that were at the same broker before
	Strayed   int64 `json:"strayed"`   // of those, of clients that were at another one before
	Proxied   int64 `json:"proxied"`   // of those, that had a PROXY header
	Publishes int64 `json:"publishes"` // sent back
	Faults    int64 `json:"faults"`    // connections that said what the sink does not understand
}

const (
	events     = 512
	readBuffer = 64 << 10
	busyWait   = 5       // ms: how long a busy loop waits by a raw system call
	maxPending = 1 << 20 // what a connection may have half said, or not yet read
)

// Sink is a set of brokers in one loop.
type Sink struct {
	protocol  Protocol
	listeners []int
	epfd      int
	conns     []*conn // by descriptor
	closing   []int   // at the end of the batch: an event of it may still come
	buf       []byte
	frame     []byte           // the newest that was sent
	homes     map[string]uint8 // client ID → the broker that saw it first
	counts    struct{ connects, home, strayed, proxied, publishes, faults atomic.Int64 }
}

// conn is one connection.
type conn struct {
	fd      int
	broker  uint8
	stage   stage
	proxied bool
	closed  bool
	in      []byte // of what is not whole yet
	out     []byte // what the socket did not take
	mqtt    []byte // WebSocket: of a packet that is not whole yet
}

type stage uint8

const (
	proxyHeader stage = iota
	upgrade
	packets
)

// Listen opens n brokers on ports of 127.0.0.1 that the system chooses.
func Listen(n int, p Protocol) (*Sink, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("sink: epoll_create: %w", err)
	}
	s := &Sink{protocol: p, epfd: epfd, buf: make([]byte, readBuffer), homes: map[string]uint8{}}
	for range n {
		if err := s.listen(); err != nil {
			s.free()
			return nil, err
		}
	}
	return s, nil
}

func (s *Sink) listen() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sink: socket: %w", err)
	}
	s.listeners = append(s.listeners, fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil { // accepted sockets inherit it
		return fmt.Errorf("sink: TCP_NODELAY: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("sink: bind: %w", err)
	}
	if err := unix.Listen(fd, 1<<14); err != nil {
		return fmt.Errorf("sink: listen: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev)
}

// Addresses are those of the brokers.
func (s *Sink) Addresses() []string {
	var all []string
	for _, fd := range s.listeners {
		name, err := unix.Getsockname(fd)
		if a, ok := name.(*unix.SockaddrInet4); err == nil && ok {
			all = append(all, (&net.TCPAddr{IP: a.Addr[:], Port: a.Port}).String())
		}
	}
	return all
}

// Counts may be called at any time.
func (s *Sink) Counts() Counts {
	c := &s.counts
	return Counts{c.connects.Load(), c.home.Load(), c.strayed.Load(), c.proxied.Load(), c.publishes.Load(), c.faults.Load()}
}

func (s *Sink) free() {
	for _, c := range s.conns {
		if c != nil {
			unix.Close(c.fd)
		}
	}
	for _, fd := range s.listeners {
		unix.Close(fd)
	}
	unix.Close(s.epfd)
}

// Run serves until ctx ends, and closes everything. It is called once.
func (s *Sink) Run(ctx context.Context) error {
	defer s.free()
	var evs [events]unix.EpollEvent
	for busy := false; ctx.Err() == nil; {
		n, err := s.wait(evs[:], busy)
		if err != nil {
			return err
		}
		busy = n > 0
		for i := range evs[:n] {
			s.event(int(evs[i].Fd), evs[i].Events)
		}
		for _, fd := range s.closing {
			s.conns[fd] = nil
			unix.Close(fd)
		}
		s.closing = s.closing[:0]
	}
	return nil
}

// wait tells the Go scheduler only when there is nothing to do: that costs more than the system call.
func (s *Sink) wait(evs []unix.EpollEvent, busy bool) (int, error) {
	if busy {
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.epfd), uintptr(unsafe.Pointer(&evs[0])), uintptr(len(evs)), busyWait, 0, 0)
		switch {
		case errno == unix.EINTR:
			runtime.Gosched() // the runtime wants to stop the world
			return 0, nil
		case errno != 0:
			return 0, fmt.Errorf("sink: epoll_wait: %w", errno)
		}
		return int(n), nil
	}
	n, err := unix.EpollWait(s.epfd, evs, 100) // ms: ctx is looked at that often
	if err == unix.EINTR {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("sink: epoll_wait: %w", err)
	}
	return n, nil
}

func (s *Sink) event(fd int, flags uint32) {
	for i, l := range s.listeners {
		if l == fd {
			s.accept(l, uint8(i))
			return
		}
	}
	c := s.conns[fd]
	if c == nil || c.closed {
		return
	}
	if flags&unix.EPOLLOUT != 0 && len(c.out) > 0 {
		s.write(c, nil)
	}
	if flags&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.read(c, flags&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0)
	}
}

func (s *Sink) accept(listener int, broker uint8) {
	for range 64 { // then others have their turn
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		for fd >= len(s.conns) {
			s.conns = append(s.conns, nil)
		}
		s.conns[fd] = &conn{fd: fd, broker: broker}
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
		if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			s.close(s.conns[fd])
		}
	}
}

func (s *Sink) close(c *conn) {
	if !c.closed {
		c.closed = true
		s.closing = append(s.closing, c.fd)
	}
}

func (s *Sink) fault(c *conn) {
	s.counts.faults.Add(1)
	s.close(c)
}

// read reads what there is. A short read has emptied the socket, unless the peer has ended.
func (s *Sink) read(c *conn, ended bool) {
	for !c.closed {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&s.buf[0])), readBuffer, unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR:
			continue
		case errno != 0 || n == 0:
			s.close(c)
			return
		}
		s.input(c, s.buf[:n])
		if int(n) < readBuffer && !ended {
			return
		}
	}
}

// input takes what came, behind what was left of before.
func (s *Sink) input(c *conn, b []byte) {
	if len(c.in) > 0 {
		c.in = append(c.in, b...)
		b = c.in
	}
	rest := s.take(c, b)
	if len(rest) > maxPending {
		s.fault(c)
		return
	}
	c.in = append(c.in[:0], rest...)
	if len(c.in) == 0 {
		c.in = nil
	}
}

// write writes b behind what waits. A peer that does not read is cut once too much waits.
func (s *Sink) write(c *conn, b []byte) {
	if len(c.out) > 0 {
		c.out = append(c.out, b...)
		b = c.out
	}
	for len(b) > 0 {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EAGAIN {
			break
		}
		if errno != 0 {
			s.close(c)
			return
		}
		b = b[n:]
	}
	if len(b) > maxPending {
		s.fault(c)
		return
	}
	c.out = append(c.out[:0], b...)
	if len(c.out) == 0 {
		c.out = nil
	}
}
