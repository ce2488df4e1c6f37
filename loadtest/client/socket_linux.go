package client

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/loadtest/wire"
)

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

// dialSocket makes a socket and begins to connect it; EINPROGRESS is no failure. fd is -1 where there is no socket.
func dialSocket(to netip.AddrPort, source netip.Addr) (fd int, err error) {
	ip := to.Addr().Unmap()
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port())}
	if ip.Is4() {
		sa.(*unix.SockaddrInet4).Addr = ip.As4()
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: ip.As16(), ZoneId: zoneID(ip.Zone())}
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // a kernel that cannot still connects
	if err := wire.Bind(fd, source); err != nil {
		return fd, err
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return fd, err
	}
	return fd, nil
}

// zoneID is the interface of a scoped IPv6 address (RFC 4007 §11).
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32) // else 0: the system chooses
	return uint32(n)
}

// toItself reports whether fd is connected to itself: on one host a connect to a port that nobody listens on succeeds where the kernel
// gives the connecting socket that very port (simultaneous open, RFC 9293 §3.5). Ports below ephemeral ones are never given.
func toItself(fd int, peer netip.AddrPort) bool {
	return peer.Port() >= 1024 && localAddr(fd) == netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
}

// localAddr is a socket's own address, or the zero AddrPort.
func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
