package edge

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/registry"
)

// wires is an edge between clients and a broker that are bare descriptors, which cost the heap nothing.
type wires struct {
	tb     testing.TB
	edge   *testEdge
	broker int // listening
	to     unix.Sockaddr
	buf    []byte
	packet []byte
}

func newWires(tb testing.TB) *wires {
	m := newMesh(tb)
	w := &wires{tb: tb, buf: make([]byte, 4096)}
	w.broker = w.socket()
	tb.Cleanup(func() { unix.Close(w.broker) })
	if err := unix.Bind(w.broker, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Listen(w.broker, 128); err != nil {
		tb.Fatal(err)
	}
	at, err := unix.Getsockname(w.broker)
	if err != nil {
		tb.Fatal(err)
	}
	m.pool.Brokers = []registry.Broker{{ID: "b1", Address: fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port), Proxy: registry.ProxyV2}}
	w.edge = m.edge("e1", func(conf *Config, _ *Listener) { conf.Log = zerolog.New(io.Discard) }) // what the test keeps is not the edge's
	m.putPool(w.edge.State().Pools["default"].Revision)
	eventually(tb, "the broker is known", func() (bool, any) { n := len(w.edge.State().Pools["default"].Brokers); return n == 1, n })
	addr, err := net.ResolveTCPAddr("tcp", w.edge.addr)
	if err != nil {
		tb.Fatal(err)
	}
	w.to = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: addr.Port}
	return w
}

func (w *wires) socket() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.tb.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd
}

// connect opens a session up to its CONNACK.
func (w *wires) connect(k *mqtt.Connect) (client, broker int) {
	client = w.socket()
	if err := unix.Connect(client, w.to); err != nil {
		w.tb.Fatal(err)
	}
	w.packet = mqtt.AppendConnect(w.packet[:0], k)
	unix.Write(client, w.packet)
	broker, _, err := unix.Accept4(w.broker, unix.SOCK_CLOEXEC)
	if err != nil {
		w.tb.Fatal(err)
	}
	if n, err := unix.Read(broker, w.buf); err != nil || n < len(w.packet) {
		w.tb.Fatal(n, err)
	}
	unix.Write(broker, []byte{0x20, 2, 0, 0})
	if n, err := unix.Read(client, w.buf); err != nil || n != 4 || w.buf[3] != 0 {
		w.tb.Fatal(n, err, w.buf[:n])
	}
	return client, broker
}

// One client after the other, by an edge with all that it does about one: key, route, PROXY header, record, log line, metrics.
func BenchmarkConnect(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for name, connect := range map[string]func(string) *mqtt.Connect{"clean": clean, "persistent": persistent} {
		b.Run(name, func(b *testing.B) {
			w := newWires(b)
			k := connect("sensor-000000")
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				k.ClientID = fmt.Appendf(k.ClientID[:7], "%06d", n)
				client, broker := w.connect(k)
				unix.Close(client)
				unix.Close(broker)
			}
		})
	}
}

// What the heap holds for an idle client, its session and its record in the cache.
func BenchmarkIdle(b *testing.B) {
	for name, connect := range map[string]func(string) *mqtt.Connect{"clean": clean, "persistent": persistent} {
		b.Run(name, func(b *testing.B) {
			const n = 2000
			for b.Loop() {
				w := newWires(b)
				fds := make([]int, 0, 2*(100+n)) // ours, and no growth of it
				open := func(from, to int) {
					for i := from; i < to; i++ {
						c, br := w.connect(connect(fmt.Sprintf("sensor-%06d", i)))
						fds = append(fds, c, br)
					}
				}
				heap := func() uint64 {
					time.Sleep(100 * time.Millisecond) // what is written behind the clients' backs
					runtime.GC()
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return m.HeapAlloc
				}
				open(0, 100)
				before := heap()
				open(100, 100+n)
				b.ReportMetric(float64(heap()-before)/n, "heap-B/session")
				for _, fd := range fds {
					unix.Close(fd)
				}
				eventually(b, "they are gone", func() (bool, any) { return w.edge.Live() == 0, w.edge.Live() })
			}
		})
	}
}
