package wire

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// BenchmarkIdle tells what an idle connection costs: memory of this process, half of which is the test's server, and a goroutine
// that waits. In-process servers make it an upper bound; the stack of a handshake shrinks at the second collection.
func BenchmarkIdle(b *testing.B) {
	for _, kind := range Transports() {
		b.Run(kind.String(), func(b *testing.B) {
			for b.Loop() {
				idle(b, kind)
			}
		})
	}
}

func idle(b *testing.B, kind Transport) {
	const clients = 500
	release := make(chan struct{})
	answer := func(c served) {
		_, _ = c.Read(make([]byte, 100))
		if kind == WS || kind == WSS {
			_, _ = c.Write([]byte{frameFin | opBinary, 1})
		}
		_, _ = c.Write([]byte{1})
		<-release
	}
	var ep *Endpoint
	if kind == QUIC {
		ep = serve(b, kind, answer)
	} else {
		ep = serveScript(b, kind, listen(b), func(c net.Conn) { answer(c) })
	}
	d := newDialer(b, Config{Linger: -1})
	conns := make([]Conn, clients)
	before := inUse()
	for i := range conns {
		c, err := d.Dial(b.Context(), ep)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 9)); err != nil {
			b.Fatal(err)
		}
		conns[i] = c
	}
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { _ = c.Wait() })
	}
	time.Sleep(100 * time.Millisecond) // until they are parked; a figure, not a judgement, hangs on it
	b.ReportMetric(float64(inUse()-before)/clients, "B/conn")
	for _, c := range conns {
		_ = c.Abort()
	}
	wg.Wait()
	close(release)
}

func inUse() uint64 {
	for range 4 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkWrite is a message of 128 bytes out, to a server that discards.
func BenchmarkWrite(b *testing.B) {
	for _, kind := range []Transport{TCP, TLS, WS, WSS, QUIC} {
		b.Run(kind.String(), func(b *testing.B) {
			d := newDialer(b, Config{Linger: -1})
			c, err := d.Dial(b.Context(), serve(b, kind, func(c served) { _, _ = io.Copy(io.Discard, c) }))
			if err != nil {
				b.Fatal(err)
			}
			defer c.Abort()
			message := noise(128, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
