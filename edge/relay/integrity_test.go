package relay

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// echoOwner routes to one address and keeps quiet.
type echoOwner struct {
	target Target
	closed func(Summary)
}

func (o *echoOwner) Preamble([]byte) (int, error)               { return 0, nil }
func (o *echoOwner) Route(Conn, Query) (Answer, bool)           { return Answer{Target: &o.target}, true }
func (o *echoOwner) Accepted(Conn, mqtt.Connack, time.Duration) {}
func (o *echoOwner) Goodbye(Conn, mqtt.Disconnect)              {}
func (o *echoOwner) BrokerEnded(Conn)                           {}
func (o *echoOwner) Closed(s Summary)                           { o.closed(s) }
func acceptConnect(c net.Conn) error {
	_, err := io.ReadFull(c, make([]byte, len(connect311)))
	return err
}
func sum(h hash.Hash) string               { return fmt.Sprintf("%x", h.Sum(nil)[:8]) }
func payload(rnd *rand.Rand, n int) []byte { p := make([]byte, n); fill(rnd, p); return p }

func fill(rnd *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
}

func mustDial(t testing.TB, at netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// relays are the two drivers behind a listening socket that relays to broker.
func relays() map[string]func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort {
	m := map[string]func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort{}
	for _, mode := range modes() {
		if mode.plain() {
			m[mode.name] = func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort {
				at, _ := mode.relay(t, relayed{limits: l, owner: func() Owner { return &echoOwner{mode.target(broker, nil), closed} }})
				return at
			}
		}
	}
	return m
}

func mustListen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln.(*net.TCPListener)
}

// brokers accepts and gives each connection, behind its CONNECT and CONNACK, to fn.
func brokers(t testing.TB, fn func(c *net.TCPConn)) netip.AddrPort {
	ln := mustListen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if acceptConnect(c) == nil {
					c.Write(connack311)
					fn(c.(*net.TCPConn))
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// stream writes total random bytes in pieces of random size, and returns their hash.
func stream(c net.Conn, seed uint64, total int, prefix []byte) string {
	rnd := rand.New(rand.NewPCG(seed, 1))
	h := sha256.New()
	chunk := make([]byte, 200_000)
	c.Write(prefix)
	for total > 0 {
		p := chunk[:min(total, 1+rnd.IntN(len(chunk)))]
		if rnd.IntN(4) == 0 {
			p = p[:min(len(p), 1+rnd.IntN(20))]
		}
		fill(rnd, p[:min(len(p), 64)])
		h.Write(p)
		if _, err := c.Write(p); err != nil {
			return err.Error()
		}
		total -= len(p)
	}
	return sum(h)
}

// drain reads n bytes behind those that are skipped, and returns their hash.
func drain(c net.Conn, skip, n int) string {
	h := sha256.New()
	if _, err := io.ReadFull(c, make([]byte, skip)); err != nil {
		return err.Error()
	}
	if _, err := io.CopyN(h, c, int64(n)); err != nil {
		return err.Error()
	}
	return sum(h)
}

// drained is drain to an end that must be there.
func drained(c net.Conn, skip, n int) string {
	s := drain(c, skip, n)
	if extra, err := io.Copy(io.Discard, c); extra > 0 || err != nil {
		return fmt.Sprintf("%s, and %d bytes behind it, %v", s, extra, err)
	}
	return s
}

// Much both ways at once, in pieces of every size, with half closes where there are such: not a byte is lost, added or changed. The bytes
// are no MQTT, which must not matter.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	for _, m := range modes() {
		for _, size := range []int{1, 70_000, sized(4<<20, 64<<20)} {
			t.Run(fmt.Sprintf("%s/%d", m.name, size), func(t *testing.T) {
				type sums struct{ in, out string }
				atBroker := make(chan sums, 1)
				at := m.brokers(t, func(c peer) {
					var s sums
					var wg sync.WaitGroup
					wg.Go(func() {
						if s.out = stream(c, 7, size, nil); m.half() {
							c.CloseWrite()
						}
					})
					s.in = drained(c, 0, size)
					wg.Wait()
					atBroker <- s
				})
				ended := make(chan Summary, 1)
				addr, _ := m.relay(t, relayed{limits: &Limits{}, owner: func() Owner {
					return &echoOwner{m.target(at, nil), func(s Summary) { ended <- s }}
				}})
				c := m.dial(t, addr)
				var wg sync.WaitGroup
				var sent string
				wg.Go(func() {
					if sent = stream(c, 8, size, connect311); m.half() {
						c.CloseWrite()
					}
				})
				var got string
				if m.half() {
					got = drained(c, len(connack311), size)
					wg.Wait()
				} else {
					got = drain(c, len(connack311), size)
					wg.Wait()
					c.CloseWrite()
				}
				b := receive(t, "the broker's end", atBroker)
				if sent != b.in || got != b.out {
					t.Errorf("client sent %s, broker got %s; broker sent %s, client got %s", sent, b.in, b.out, got)
				}
				c.Close()
				s := receive(t, "the session's end", ended)
				if want := uint64(size + len(connect311)); s.Bytes[Client] != want {
					t.Errorf("%d bytes counted from the client, want %d", s.Bytes[Client], want)
				}
			})
		}
	}
}

// A client that reads nothing: the broker is held back, the relay keeps little, and when the client reads on nothing is missing.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	const total = 32 << 20
	var all sync.WaitGroup
	defer all.Wait()
	for _, m := range modes() { // all at once: they wait most of the time
		all.Go(func() {
			t.Run(m.name, func(t *testing.T) {
				sent := make(chan string, 1)
				var wrote counter
				at := m.brokers(t, func(c peer) {
					h := sha256.New()
					p := payload(rand.New(rand.NewPCG(3, 3)), 64<<10)
					for n := 0; n < total; n += len(p) {
						h.Write(p)
						if _, err := c.Write(p); err != nil {
							break
						}
						wrote.add(len(p))
					}
					c.CloseWrite()
					sent <- sum(h)
					io.Copy(io.Discard, c)
				})
				ended := make(chan Summary, 1)
				addr, held := m.relay(t, relayed{limits: &Limits{}, owner: func() Owner {
					return &echoOwner{m.target(at, nil), func(s Summary) { ended <- s }}
				}})
				raw := mustDial(t, addr)
				raw.SetReadBuffer(64 << 10)
				c, err := m.client.far(raw, true)
				if err != nil {
					t.Fatal(err)
				}
				c.Write(connect311)
				// Wait until the broker is held back: what it has written stands still, and does so as long as the client.
				var since time.Time
				stall := sized(3*time.Second, 30*time.Second)
				most := 0
				for last, end := -1, time.Now().Add(2*patience+stall); since.IsZero() || time.Since(since) < stall; {
					if time.Now().After(end) {
						t.Fatalf("the broker is not held back: %d bytes written", wrote.load())
					}
					<-time.After(10 * time.Millisecond)
					if n := wrote.load(); n != last {
						last, since = n, time.Now()
					}
					if held != nil {
						most = max(most, held())
					}
				}
				if n := wrote.load(); n >= total {
					t.Fatalf("all %d bytes went somewhere while the client read nothing", n)
				}
				// One read of 64 KiB at most, what its records and frames take besides, and a piece of a record.
				t.Logf("held at most %d bytes, the kernel %d", most, wrote.load()-most)
				if most > 128<<10 {
					t.Errorf("%d bytes held", most)
				}
				if got := drained(c, len(connack311), total); got != receive(t, "what was sent", sent) {
					t.Error("the bytes differ")
				}
				c.Close()
				receive(t, "the end", ended)
			})
		})
	}
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add(n int) { c.mu.Lock(); c.n += n; c.mu.Unlock() }
func (c *counter) load() int { c.mu.Lock(); defer c.mu.Unlock(); return c.n }

// Many sessions side by side, each with its own stream of packets echoed: nobody gets another's bytes.
func TestManySessions(t *testing.T) {
	t.Parallel()
	for _, m := range modes() {
		t.Run(m.name, func(t *testing.T) {
			at := m.brokers(t, func(c peer) { io.Copy(c, c); c.CloseWrite() })
			sessions := sized(40, 300)
			if m.plain() {
				sessions = 300
			}
			ended := make(chan Summary, sessions)
			addr, _ := m.relay(t, relayed{limits: &Limits{}, owner: func() Owner {
				return &echoOwner{m.target(at, nil), func(s Summary) { ended <- s }}
			}})
			var wg sync.WaitGroup
			for i := range sessions {
				c := m.dial(t, addr)
				wg.Go(func() {
					defer c.Close()
					c.Write(connect311)
					io.ReadFull(c, make([]byte, len(connack311)))
					for round := range 30 {
						p := append([]byte{0x30, 12, 0, 2, 't', 't'}, fmt.Sprintf("%04d%04d", i, round)...)
						c.Write(p)
						got := make([]byte, len(p))
						if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, p) {
							t.Errorf("session %d round %d: got %q, %v", i, round, got, err)
							return
						}
					}
				})
			}
			wg.Wait()
			for range sessions {
				s := receive(t, "an end", ended)
				if s.Packets != [2]uint64{31, 31} || s.Reason != ReasonClientClosed {
					t.Fatalf("%+v", s)
				}
			}
		})
	}
}

// One message through the relay and back, per driver; 100 bytes, one session.
func BenchmarkRelay(b *testing.B) {
	// The loop waits in a raw system call with a processor in its hand, as it does in an edge, which is given spare ones.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for name, start := range relays() {
		b.Run(name, func(b *testing.B) {
			at := brokers(b, func(c *net.TCPConn) { io.Copy(c, c) })
			c := mustDial(b, start(b, at, &Limits{}, func(Summary) {}))
			defer c.Close()
			c.Write(connect311)
			io.ReadFull(c, make([]byte, len(connack311)))
			msg := append([]byte{0x30, 100, 0, 1, 't'}, make([]byte, 97)...)
			back := make([]byte, len(msg))
			b.ReportAllocs()
			for b.Loop() {
				c.Write(msg)
				if _, err := io.ReadFull(c, back); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The machine alone: one PUBLISH of 100 bytes.
func BenchmarkSession(b *testing.B) {
	var s Session
	s.Start(&Limits{Counters: &Counters{}}, 1, false)
	out := s.Received(Client, connect311, 1, nil)
	out = s.Routed(Answer{Target: &Target{}}, 1, out[:0])
	out = s.Dialed(nil, 1, out[:0])
	out = s.Received(Broker, connack311, 1, out[:0])
	msg := append([]byte{0x30, 100, 0, 1, 't'}, make([]byte, 97)...)
	b.ReportAllocs()
	for b.Loop() {
		if out = s.Received(Client, msg, 1, out[:0]); len(out) != 1 {
			b.Fatal(out)
		}
	}
}
