package client

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// meter is a Handler that counts.
type meter struct {
	connected, received, acked, closed atomic.Int64
	each                               chan struct{} // a token for every message received and acknowledgement, if not nil
	reason                             atomic.Pointer[Cause]
}

func (m *meter) OnConnack(*Client, int64, *mqtt.Connack) { m.connected.Add(1) }

func (m *meter) OnPublish(*Client, int64, *mqtt.Publish) {
	m.received.Add(1)
	if m.each != nil {
		m.each <- struct{}{}
	}
}

func (m *meter) OnAcked(*Client, int64, uint64, byte) {
	m.acked.Add(1)
	if m.each != nil {
		m.each <- struct{}{}
	}
}

func (m *meter) OnClosed(_ *Client, _ int64, c Cause) {
	m.reason.Store(&c)
	m.closed.Add(1)
}

// eventually polls until n reaches want.
func eventually(t testing.TB, what string, n *atomic.Int64, want int64) {
	t.Helper()
	for end := time.Now().Add(2 * patience); n.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %d of %d", what, n.Load(), want)
		}
	}
}

func connectAll(t testing.TB, e *Engine, m *meter, ep *wire.Endpoint, n int, con mqtt.Connect) []*Client {
	t.Helper()
	clients := make([]*Client, n)
	want := m.connected.Load() + int64(n)
	for i := range clients {
		clients[i] = &Client{Handler: m}
		con.ID = "client-" + strconv.Itoa(i)
		if err := e.Open(clients[i], ep, &con); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(2 * patience); m.connected.Load() < want; time.Sleep(time.Millisecond) {
		if m.closed.Load() > 0 || time.Now().After(end) {
			t.Fatalf("%d of %d connected, %d closed (%v)", m.connected.Load(), want, m.closed.Load(), m.reason.Load())
		}
	}
	return clients
}

// TestAllocations: a message costs no allocation in either direction, once the first ones have filled the pools.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		return // it makes a sync.Pool forget at random
	}
	for _, d := range drivers[:2] {
		if d.loops > 0 && !loopsSupported {
			continue
		}
		for qos := range byte(3) {
			t.Run(fmt.Sprintf("%s/QoS %d", d.name, qos), func(t *testing.T) {
				e, _ := startEngine(t, Config{Dialer: newDialer(t, wire.Config{}), Loops: d.loops})
				m := &meter{each: make(chan struct{}, 100)}
				c := connectAll(t, e, m, &wire.Endpoint{Addr: startMirror(t).addr()}, 1, mqtt.Connect{Version: mqtt.V5})[0]
				topic, payload := []byte("devices/1/state"), make([]byte, 100)
				events := 1 // the message that comes back, and the acknowledgement
				if qos > 0 {
					events = 2
				}
				round := func() {
					if err := c.Publish(1, topic, payload, qos, false); err != nil {
						t.Fatal(err)
					}
					for range events {
						<-m.each
					}
				}
				for range 100 {
					round()
				}
				if n := testing.AllocsPerRun(2000, round); n != 0 {
					t.Errorf("%v allocations a message", n)
				}
			})
		}
	}
}

// TestSizes keeps the memory of an idle client in view.
func TestSizes(t *testing.T) {
	client, link := unsafe.Sizeof(Client{}), unsafe.Sizeof(conn{})
	t.Logf("Client %d bytes, its connection in a loop %d", client, link)
	if client+link > 512 {
		t.Errorf("a Client of %d bytes and a connection of %d: more than 512", client, link)
	}
}

// TestIdleMemory connects 15,000 clients (1,000 without LIMPET_DRILLS=1) and reports what each costs. The other ends are in another process.
func TestIdleMemory(t *testing.T) {
	if !loopsSupported || raceEnabled {
		return // about memory that the race detector multiplies, in a loop
	}
	n := 1000
	if os.Getenv("LIMPET_DRILLS") == "1" {
		n = 15_000
	}
	for _, d := range drivers[:2] {
		t.Run(d.name, func(t *testing.T) {
			e, stop := startEngine(t, Config{Dialer: newDialer(t, wire.Config{}), Loops: d.loops})
			m := &meter{}
			ep := &wire.Endpoint{Addr: spawnMirror(t)}
			connectAll(t, e, m, ep, 1, mqtt.Connect{Version: mqtt.V5, KeepAlive: 60})
			runtime.GC()
			before := resident(t)
			clients := connectAll(t, e, m, ep, n, mqtt.Connect{Version: mqtt.V5, KeepAlive: 60})
			each := float64(resident(t)-before) / float64(n)
			t.Logf("%d clients: %.0f bytes of resident memory each", n, each)
			if limit := 6 << 10; n >= 15_000 && d.loops > 0 && each > float64(limit) {
				t.Errorf("%.0f bytes of resident memory a client, more than %d", each, limit)
			}
			stop()
			runtime.KeepAlive(clients)
		})
	}
}

// resident is the process' resident memory in bytes.
func resident(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
