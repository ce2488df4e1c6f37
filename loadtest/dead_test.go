package loadtest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// deadEnd forwards connections to a broker. The first one of the client whose ID ends with suffix goes dead after its first message: the
// broker sees it end, and the client sees nothing at all.
func deadEnd(t *testing.T, broker, suffix string) (address string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var died atomic.Bool
	open := make(chan net.Conn, 100)
	t.Cleanup(func() {
		ln.Close()
		for len(open) > 0 {
			(<-open).Close()
		}
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", broker)
			if err != nil {
				client.Close()
				continue
			}
			open <- client
			open <- upstream
			all.Go(func() {
				connect := make([]byte, 4096)
				n, err := client.Read(connect)
				if err != nil {
					upstream.Close()
					return
				}
				upstream.Write(connect[:n])
				dies := bytes.HasSuffix(connect[:n], []byte(suffix)) && died.CompareAndSwap(false, true)
				all.Go(func() {
					io.Copy(upstream, client)
					upstream.Close()
				})
				buf := make([]byte, 4096)
				for {
					n, err := upstream.Read(buf)
					if err != nil {
						if !dies {
							client.Close()
						}
						return
					}
					client.Write(buf[:n])
					if dies && bytes.Contains(buf[:n], []byte("limpet/verify/")) {
						upstream.Close()
					}
				}
			})
		}
	})
	return ln.Addr().String()
}

// A connection that is dead without its client knowing costs no message: before what has not come is called lost, it is fetched by another
// one.
func TestADeadConnectionLosesNothing(t *testing.T) {
	t.Parallel()
	p := &Plan{Verb: "verify", Endpoints: []string{"tcp://" + deadEnd(t, startBroker(t), "-3")}, Verify: &Verify{
		Clients: 6, Lives: 1, Up: 2 * time.Second, Down: 50 * time.Millisecond, QoS: []int{1}, Rate: schedule("60/s"), Feeders: 1, Drop: []string{"clean"},
	}}
	res, err := runPlan(t, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := res.Verify.Messages["mesh"]
	if m == nil || m.Expected == 0 || m.Lost+m.LostWithSession != 0 || m.Received < m.Expected {
		t.Errorf("%+v, %+v", m, res.Verify.Anomalies)
	}
	if res.Verify.Connects != 7 {
		t.Errorf("%d connects, want one again", res.Verify.Connects)
	}
}
