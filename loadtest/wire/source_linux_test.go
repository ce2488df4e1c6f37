package wire

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSources: they take turns, family by family, also for QUIC, whose clients share a socket for each.
func TestSources(t *testing.T) {
	var all []netip.Addr
	for _, s := range []string{"127.0.0.2", "::1", "127.0.0.3"} {
		all = append(all, netip.MustParseAddr(s))
	}
	d := newDialer(t, Config{Sources: all})
	for _, kind := range []Transport{TCP, TLS, WS, WSS} {
		ep := serve(t, kind, echo)
		var got []string
		for range 4 {
			c := dial(t, d, ep)
			got = append(got, localOf(c).Addr().String())
			_ = c.Close()
		}
		if want := []string{"127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"}; !slices.Equal(got, want) {
			t.Errorf("%v: from %v, want %v", kind, got, want)
		}
	}
	ep := serve(t, QUIC, echo)
	for range 4 {
		_ = dial(t, d, ep).Abort()
	}
	if len(d.quic) != 2 {
		t.Errorf("%d UDP sockets, want one for each source", len(d.quic))
	}
	only6 := newDialer(t, Config{Sources: all[1:2]})
	failure(t, only6, ep, StageDial, ErrSource)
	elsewhere := newDialer(t, Config{Sources: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	failure(t, elsewhere, serve(t, TCP, echo), StageDial, ErrPorts)
}

// TestBind connects a bare socket, as an epoll loop would.
func TestBind(t *testing.T) {
	l := listen(t)
	defer l.Close()
	source := netip.MustParseAddr("127.0.0.4")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(Bind(fd, netip.Addr{}), Bind(fd, source)); err != nil {
		t.Fatal(err)
	}
	if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT); err != nil || v != 1 {
		t.Errorf("IP_BIND_ADDRESS_NO_PORT is %d, %v", v, err)
	}
	port := func() int {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return sa.(*unix.SockaddrInet4).Port
	}
	if p := port(); p != 0 {
		t.Errorf("port %d is taken before the connect", p)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: l.Addr().(*net.TCPAddr).Port}); err != nil {
		t.Fatal(err)
	}
	if port() == 0 {
		t.Error("no port after the connect")
	}
	if err := Bind(fd, netip.MustParseAddr("fe80::1%no-such-interface")); err == nil {
		t.Error("a zone that is none: no error")
	}
}
