package relay

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// wires is a loop between two ends that are bare descriptors, which cost the heap nothing.
type wires struct {
	t        testing.TB
	listener int // of the broker
	to       unix.Sockaddr
	buf      []byte
}

func newWires(t testing.TB) *wires {
	w := &wires{t: t, buf: make([]byte, 64<<10)}
	w.listener = w.socket()
	t.Cleanup(func() { unix.Close(w.listener) })
	if err := unix.Bind(w.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(w.listener, 128); err != nil {
		t.Fatal(err)
	}
	o := &echoOwner{Target{Addrs: []netip.AddrPort{localAddr(w.listener)}}, func(Summary) {}}
	ln := mustListen(t)
	t.Cleanup(func() { ln.Close() })
	startLoop(t, nil, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{Counters: &Counters{}, Held: NewBudget(0)}, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
	})
	w.to = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: ln.Addr().(*net.TCPAddr).Port}
	return w
}

func (w *wires) socket() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd
}

// connect opens a session up to its CONNACK.
func (w *wires) connect() (client, broker int) {
	client = w.socket()
	if err := unix.Connect(client, w.to); err != nil {
		w.t.Fatal(err)
	}
	unix.Write(client, connect311)
	broker, _, err := unix.Accept4(w.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		w.t.Fatal(err)
	}
	if n, err := unix.Read(broker, w.buf); err != nil || n != len(connect311) {
		w.t.Fatal(n, err)
	}
	w.say(broker, client, connack311)
	return client, broker
}

// say writes p to one end and reads it at the other.
func (w *wires) say(from, to int, p []byte) {
	unix.Write(from, p)
	for got := 0; got < len(p); {
		n, err := unix.Read(to, w.buf)
		if err != nil || n == 0 {
			w.t.Fatal(n, err)
		}
		got += n
	}
}

// idleSessions opens n sessions, lets each relay something, and returns what the heap holds for one of them.
func idleSessions(t testing.TB, n int) float64 {
	w := newWires(t)
	fds := make([]int, 0, 2*n+100)
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	open := func(n int) {
		for range n {
			c, b := w.connect()
			fds = append(fds, c, b)
			w.say(c, b, bigPublish)
			w.say(b, c, bigPublish)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	open(50)
	before := heap()
	open(n)
	return float64(heap()-before) / float64(n)
}

// An idle session has no buffer: what it costs is its state.
func TestIdleSessionsHoldNoBuffer(t *testing.T) {
	if per := idleSessions(t, 500); per > 1024 {
		t.Errorf("%.0f bytes per idle session", per)
	} else {
		t.Logf("%.0f bytes per idle session", per)
	}
}

func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(idleSessions(b, 4800), "heap-B/session")
	}
}

// One client after the other: accept, CONNECT, dial, CONNACK, and the close.
func BenchmarkConnect(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	w := newWires(b)
	b.ReportAllocs()
	for b.Loop() {
		client, broker := w.connect()
		unix.Close(client)
		unix.Close(broker)
	}
}
