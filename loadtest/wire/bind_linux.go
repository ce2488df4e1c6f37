package wire

import (
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind makes the socket fd connect from source, and does nothing for the zero Addr. The port is chosen when it connects, with the remote
// address known (IP_BIND_ADDRESS_NO_PORT, ip(7)): otherwise it would be taken from all remotes at once, and run out at 28,000 in all.
func Bind(fd int, source netip.Addr) error {
	if !source.IsValid() {
		return nil
	}
	if err := portAtConnect(fd); err != nil {
		return err
	}
	var sa unix.Sockaddr
	if source.Is4() {
		sa = &unix.SockaddrInet4{Addr: source.As4()}
	} else {
		zone, err := zoneIndex(source.Zone())
		if err != nil {
			return err
		}
		sa = &unix.SockaddrInet6{Addr: source.As16(), ZoneId: zone}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// controlBind is portAtConnect for a [net.Dialer].
func controlBind(_, _ string, c syscall.RawConn) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = portAtConnect(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// portAtConnect sets an option of the level IPPROTO_IP that counts for IPv6 too.
func portAtConnect(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
}

// zoneIndex is the number of the interface that an IPv6 zone names; 0 for none.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(i.Index), nil
}
