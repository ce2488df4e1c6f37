package listen

import (
	"crypto/tls"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
)

// checkOptions holds a connection's socket to what it should have inherited.
func checkOptions(t *testing.T, what string, fd int) {
	t.Helper()
	for name, o := range map[string]struct{ level, name, want int }{
		"TCP_NODELAY":      {syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1},
		"SO_KEEPALIVE":     {syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		"TCP_KEEPIDLE":     {syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 120},
		"TCP_KEEPINTVL":    {syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 15},
		"TCP_KEEPCNT":      {syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 4},
		"TCP_USER_TIMEOUT": {syscall.IPPROTO_TCP, tcpUserTimeout, 180_000},
		"SO_PROTOCOL":      {syscall.SOL_SOCKET, 38, syscall.IPPROTO_TCP}, // not MPTCP
	} {
		if got, err := syscall.GetsockoptInt(fd, o.level, o.name); err != nil || got != o.want && (o.want != 1 || got == 0) {
			t.Errorf("%s: %s = %d, %v; want %d", what, name, got, err, o.want)
		}
	}
}

// A driver that accepts by itself finds the options set on every connection.
func TestConnectionsInheritOptions(t *testing.T) {
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := Open(Config{Transport: TCP, Address: host})
		if err != nil {
			t.Fatal(err)
		}
		dial(t, l.Addr())
		rc, err := l.RawTCP().SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		fd := -1
		wait(t, "the connection is there to be accepted", func() bool {
			var acceptErr error
			if err := rc.Control(func(s uintptr) { fd, _, acceptErr = syscall.Accept4(int(s), syscall.SOCK_CLOEXEC) }); err != nil {
				t.Fatal(err)
			}
			return acceptErr == nil
		})
		checkOptions(t, host, fd)
		_ = syscall.Close(fd)
		_ = l.Close()
	}
}

// The same by way of Serve, whose accept must not undo them.
func TestServeKeepsOptions(t *testing.T) {
	l := start(t, Config{Transport: TCP})
	c := dial(t, l.Addr())
	echoed(t, c, []byte("x"))
	rc, err := l.arrival(t).stream.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) { checkOptions(t, "served", int(fd)) })
	_ = c.Close()
}

// A client that waits for the acknowledgement of its handshake before it sends its CONNECT does not wait for a timer.
func TestTLSHandshakesAreAcknowledgedAtOnce(t *testing.T) {
	ca := newAuthority(t)
	quick := make(chan int, 1)
	l := startWith(t, config(t, TLS, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
		defer s.Close()
		rc, err := s.(*tls.Conn).NetConn().(*headConn).Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Error(err)
			return
		}
		_ = rc.Control(func(fd uintptr) {
			v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK)
			if err != nil {
				t.Error(err)
			}
			quick <- v
		})
	})
	c := tls.Client(dial(t, l.Addr()), ca.client())
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if v := <-quick; v != 1 {
		t.Errorf("TCP_QUICKACK = %d after the handshake, want 1", v)
	}
	_ = c.Close()
}
