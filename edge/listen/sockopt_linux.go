package listen

import (
	"net"
	"syscall"
)

// tcpUserTimeout is TCP_USER_TIMEOUT (linux/tcp.h), which package syscall does not name on every architecture.
const tcpUserTimeout = 0x12

// deferAccept is for how many seconds the kernel keeps a connection to itself that says nothing: the client speaks first in all that we
// carry, and with its first bytes there one wake-up does for both.
const deferAccept = 1

// listenConfig sets on the listening socket what every connection shall inherit, so that an accept costs no further system call.
func listenConfig() *net.ListenConfig {
	return &net.ListenConfig{
		Control:   tuneListener,
		KeepAlive: -1, // package net shall not set it again on every connection
	}
}

func tuneListener(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		for _, o := range []struct{ level, name, value int }{
			{syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1},
			{syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, deferAccept},
			{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveCount},
			{syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds())},
		} {
			if err := syscall.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil && failed == nil {
				failed = err
			}
		}
	})
	if err != nil {
		return err
	}
	return failed
}

// acknowledge tells the client at once that its last bytes have come. The system would wait up to 40 ms for something to send along
// with it, and a client without TCP_NODELAY (mosquitto's, for one) sends nothing more before that: its CONNECT would wait behind the end
// of its TLS handshake, to which TLS 1.3 has no answer.
func acknowledge(conn net.Conn) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = rc.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) })
}
