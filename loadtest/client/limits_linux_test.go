package client

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// TestDescriptors: a process without descriptors is told as such, and goes on when there are some again. It lowers the limit of the whole
// process, so it runs alone.
func TestDescriptors(t *testing.T) {
	for _, d := range drivers[:2] {
		t.Run(d.name, func(t *testing.T) {
			r := newRig(t, d, Config{}, wire.Config{})
			r.connect().Close() // all descriptors of the runtime's own are open now
			r.told.expect(t, "closed session: closed")

			var old unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				t.Fatal(err)
			}
			none := old
			none.Cur = 3
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
				t.Fatal(err)
			}
			err := r.engine.Open(r.client, r.ep, &r.con)
			if err == nil {
				r.told.expect(t, "closed dial: descriptors")
			}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.connect()
		})
	}
}

// TestDialTimeout connects to a listener whose queue is full: the kernel drops the SYN (tcp(7), listen(2)).
func TestDialTimeout(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	full := localAddr(fd)
	for n := 0; ; n++ { // until a connect hangs
		c, err := net.DialTimeout("tcp", full.String(), 300*time.Millisecond)
		if err != nil {
			break
		}
		defer c.Close()
		if n > 100 {
			t.Fatal("its queue is never full")
		}
	}
	for _, d := range drivers[:2] {
		t.Run(d.name, func(t *testing.T) {
			r := newRig(t, d, Config{DialTimeout: 10 * time.Millisecond}, wire.Config{Timeout: 10 * time.Millisecond})
			r.ep.Addr = full
			r.open()
			r.told.expect(t, "closed dial: timeout")
			r.open()
			r.client.Disconnect(nil)
			r.told.expect(t, "closed dial: disconnect")
		})
	}
}

// TestNoSuchInterface: what fails at once is told like everything else.
func TestNoSuchInterface(t *testing.T) {
	r := newRig(t, drivers[0], Config{}, wire.Config{})
	r.ep.Addr = netip.MustParseAddrPort("[fe80::1%nosuchif]:1883")
	r.open()
	r.told.expect(t, "closed dial: other")
}

// TestNothingLeft: descriptors do not leak, whatever the end.
func TestNothingLeft(t *testing.T) {
	m := startMirror(t)
	before := descriptors(t)
	e, stop := startEngine(t, Config{Dialer: newDialer(t, wire.Config{}), Grace: time.Millisecond})
	w := &meter{}
	ep := &wire.Endpoint{Addr: m.addr()}
	for i := range 300 {
		clients := connectAll(t, e, w, ep, 1, mqtt.Connect{Version: mqtt.V5})
		switch i % 3 {
		case 0:
			clients[0].Disconnect(nil)
		case 1:
			clients[0].Abort()
		case 2:
			clients[0].Abandon()
		}
		eventually(t, "closed", &w.closed, int64(1))
		w.closed.Store(0)
	}
	stop()
	m.stop()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range all {
		if _, err := strconv.Atoi(f.Name()); err == nil {
			n++
		}
	}
	return n
}
