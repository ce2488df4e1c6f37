package relay

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of a loop on its sockets. They are raw: none of them waits for anything, so
// the scheduler need not be told; where it is, it may take the processor away from the loop meanwhile, and has to give it back.

func recv(fd int, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func sendTo(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// closeSocket closes a descriptor of the loop's.
func closeSocket(fd int) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// shutWrite ends a socket's writing direction.
func shutWrite(fd int) { syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

// epollCtl is epoll_ctl(2).
func epollCtl(epfd, op, fd int, ev *unix.EpollEvent) error {
	if _, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// setOption sets a socket option that is a number.
func setOption(fd, level, name, value int) {
	v := int32(value)
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
}

// socketError is a socket's pending error, which it takes.
func socketError(fd int) syscall.Errno {
	var code int32
	n := uint32(unsafe.Sizeof(code))
	if _, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&code)), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		return errno
	}
	return syscall.Errno(code)
}

// accept4 takes a connection from a listening socket, with the address of the other end.
func accept4(fd int) (int, netip.AddrPort, syscall.Errno) {
	var sa unix.RawSockaddrAny
	n := uint32(unsafe.Sizeof(sa))
	conn, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(conn), addrPort(&sa), 0
}

// localAddr is a socket's own address, or the zero AddrPort.
func localAddr(fd int) netip.AddrPort {
	var sa unix.RawSockaddrAny
	n := uint32(unsafe.Sizeof(sa))
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n))); errno != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// unacknowledged is the number of bytes that the other end of a TCP connection has not acknowledged yet, a FIN included; 0 if there is none.
func unacknowledged(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ) // tcp(7)
	if err != nil {
		return 0
	}
	return n
}

// unread is the number of bytes that have come to a socket and have not been read.
func unread(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ) // tcp(7)
	if err != nil {
		return 0
	}
	return n
}

// ofSocket asks the socket below a Stream, where there is one.
func ofSocket(st Stream, ask func(fd int) int) (n int) {
	var under any = st
	for {
		switch c := under.(type) {
		case syscall.Conn:
			if raw, err := c.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) { n = ask(int(fd)) })
			}
			return n
		case interface{ NetConn() net.Conn }: // tls.Conn
			under = c.NetConn()
		default:
			return 0
		}
	}
}

// unsent is unacknowledged for a Stream.
func unsent(st Stream) int { return ofSocket(st, unacknowledged) }

// waiting is unread for a Stream.
func waiting(st Stream) int { return ofSocket(st, unread) }

// toItself reports whether fd is connected to itself: on one host a connect to a port that nobody listens on succeeds where the kernel gives
// the connecting socket that very port (simultaneous open, RFC 9293 §3.5).
func toItself(fd int, peer netip.AddrPort) bool {
	local := localAddr(fd)
	return local.Port() == peer.Port() && local.Addr() == peer.Addr().Unmap().WithZone("")
}

// dialSocket makes a socket and begins to connect it; EINPROGRESS is no failure. fd is -1 where there is no socket. On one host the connection
// stands as a rule when the first call returns all the same: asked again, the kernel says so, and nobody needs to wait for an event.
func dialSocket(addr netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET
	ip := addr.Addr().Unmap()
	if !ip.Is4() {
		family = unix.AF_INET6
	}
	sock, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	fd = int(sock)
	keepAlive(fd)
	port := [2]byte{byte(addr.Port() >> 8), byte(addr.Port())} // network order
	for range 2 {
		if ip.Is4() {
			sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: ip.As4()}
			_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
		} else {
			sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: ip.As16(), Scope_id: zoneID(ip.Zone())}
			_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
		}
		if errno != unix.EINPROGRESS {
			break
		}
	}
	switch errno {
	case 0, unix.EISCONN:
		return fd, nil
	case unix.EALREADY:
		return fd, unix.EINPROGRESS
	}
	return fd, errno
}

// keepAlive sets on a broker's socket what notices that the broker is gone. How many probes may go without an answer says the user timeout
// (tcp(7): it overrides TCP_KEEPCNT).
func keepAlive(fd int) {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepIdle.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepInterval.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())},
	} {
		setOption(fd, o.level, o.name, o.value) // a kernel that lacks one of them still relays
	}
}

// userTimeoutControl does for Go's own dialer what it has no option for.
func userTimeoutControl(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

// zoneID is the interface of a scoped IPv6 address (RFC 4007 §11).
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, err := strconv.ParseUint(zone, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), hostOrder(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), hostOrder(&in.Port))
	}
	return netip.AddrPort{}
}

// hostOrder reads a port as the kernel writes it.
func hostOrder(port *uint16) uint16 {
	p := (*[2]byte)(unsafe.Pointer(port))
	return uint16(p[0])<<8 | uint16(p[1])
}
