package upstream

import "syscall"

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall does not name; it is 18 on every architecture (uapi/linux/tcp.h).
const tcpUserTimeout = 0x12

// setUserTimeout bounds how long sent data may stay unacknowledged, before the socket connects.
func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(UserTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return serr
}
