package client

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// cpu is the processor time of this process, kernel's part included.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pingPong publishes again as soon as its message came back, until all have sent enough.
type pingPong struct {
	meter
	qos   byte
	left  atomic.Int64
	ended chan struct{}
}

func (p *pingPong) OnPublish(c *Client, _ int64, m *mqtt.Publish) {
	if n := p.left.Add(-1); n > 0 {
		if err := c.Publish(0, m.Topic, m.Payload, p.qos, false); err != nil {
			panic(err)
		}
	} else if n == 0 {
		close(p.ended)
	}
}

// BenchmarkMessages: 100 clients send as fast as their messages come back; the other ends are in another process. A message that went
// out and came back counts as one operation.
func BenchmarkMessages(b *testing.B) {
	for _, d := range drivers[:2] {
		for qos := range byte(3) {
			b.Run(fmt.Sprintf("%s/QoS%d", d.name, qos), func(b *testing.B) {
				e, stop := startEngine(b, Config{Dialer: newDialer(b, wire.Config{}), Loops: d.loops})
				p := &pingPong{qos: qos, ended: make(chan struct{})}
				at := spawnMirror(b)
				clients := make([]*Client, 100)
				for i := range clients {
					clients[i] = &Client{Handler: p}
					if err := e.Open(clients[i], &wire.Endpoint{Addr: at}, &mqtt.Connect{Version: mqtt.V5}); err != nil {
						b.Fatal(err)
					}
				}
				eventually(b, "connected", &p.connected, 100)
				p.left.Store(int64(b.N))
				b.ReportAllocs()
				b.ResetTimer()
				before := cpu()
				for _, c := range clients {
					if err := c.Publish(0, []byte("devices/1/state"), make([]byte, 100), qos, false); err != nil {
						b.Fatal(err)
					}
				}
				<-p.ended
				b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
				b.StopTimer()
				stop()
			})
		}
	}
}

// BenchmarkAtRate: 1,000 clients send at a fixed rate in all, two seconds long: what a message costs when the process mostly sleeps.
func BenchmarkAtRate(b *testing.B) {
	for _, d := range drivers[:2] {
		for _, rate := range []int{2000, 20_000} {
			b.Run(fmt.Sprintf("%s/%d", d.name, rate), func(b *testing.B) {
				e, stop := startEngine(b, Config{Dialer: newDialer(b, wire.Config{}), Loops: d.loops})
				m := &meter{}
				clients := connectAll(b, e, m, &wire.Endpoint{Addr: spawnMirror(b)}, 1000, mqtt.Connect{Version: mqtt.V5})
				topic, payload := []byte("devices/1/state"), make([]byte, 100)
				before, start := cpu(), time.Now()
				sent := 0
				for b.Loop() {
					for end := sent + 2*rate; sent < end; {
						due := int(time.Since(start).Seconds() * float64(rate))
						for ; sent < min(due, end); sent++ {
							if err := clients[sent%len(clients)].Publish(0, topic, payload, 0, false); err != nil {
								b.Fatal(err)
							}
						}
						time.Sleep(time.Millisecond)
					}
				}
				eventually(b, "received", &m.received, int64(sent))
				b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(sent), "cpu-ns/msg")
				stop()
			})
		}
	}
}
