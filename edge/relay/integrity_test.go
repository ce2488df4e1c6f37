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

// relays are the two drivers behind a listening socket that relays to broker; wait waits until n sessions have ended.
func relays() map[string]func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort {
	m := map[string]func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort{
		"goroutines": func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort {
			ln := mustListen(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					o := &echoOwner{Target{Addrs: []netip.AddrPort{broker}}, closed}
					wg.Go(func() { Serve(c.(*net.TCPConn), o, l, time.Now(), nil) })
				}
			})
			t.Cleanup(func() { ln.Close(); wg.Wait() })
			return ln.Addr().(*net.TCPAddr).AddrPort()
		},
	}
	if Supported {
		m["epoll"] = func(t testing.TB, broker netip.AddrPort, l *Limits, closed func(Summary)) netip.AddrPort {
			ln := mustListen(t)
			startLoop(t, nil, func(loop *Loop) (func(), error) {
				return loop.Listen(ln, l, func(_, _ netip.AddrPort) (Owner, bool) {
					return &echoOwner{Target{Addrs: []netip.AddrPort{broker}}, closed}, false
				})
			})
			t.Cleanup(func() { ln.Close() })
			return ln.Addr().(*net.TCPAddr).AddrPort()
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
func stream(c *net.TCPConn, seed uint64, total int, prefix []byte) string {
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
	c.CloseWrite()
	return sum(h)
}

func drain(c *net.TCPConn, skip int) string {
	h := sha256.New()
	if _, err := io.ReadFull(c, make([]byte, skip)); err != nil {
		return err.Error()
	}
	if _, err := io.Copy(h, c); err != nil {
		return err.Error()
	}
	return sum(h)
}

// Much both ways at once, in pieces of every size, with half closes: not a byte is lost, added or changed. The bytes are no MQTT, which
// must not matter.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	for name, start := range relays() {
		for _, size := range []int{1, 70_000, 16 << 20} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				type sums struct{ in, out string }
				atBroker := make(chan sums, 1)
				at := brokers(t, func(c *net.TCPConn) {
					var s sums
					var wg sync.WaitGroup
					wg.Go(func() { s.out = stream(c, 7, size, nil) })
					s.in = drain(c, 0)
					wg.Wait()
					atBroker <- s
				})
				ended := make(chan Summary, 1)
				c := mustDial(t, start(t, at, &Limits{}, func(s Summary) { ended <- s }))
				var wg sync.WaitGroup
				var sent string
				wg.Go(func() { sent = stream(c, 8, size, connect311) })
				got := drain(c, len(connack311))
				wg.Wait()
				b := <-atBroker
				if sent != b.in || got != b.out {
					t.Errorf("client sent %s, broker got %s; broker sent %s, client got %s", sent, b.in, b.out, got)
				}
				s := <-ended
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
	for name, start := range relays() {
		t.Run(name, func(t *testing.T) {
			sent := make(chan string, 1)
			var wrote counter
			at := brokers(t, func(c *net.TCPConn) {
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
			var counters Counters
			c := mustDial(t, start(t, at, &Limits{Counters: &counters}, func(s Summary) { ended <- s }))
			c.SetReadBuffer(64 << 10)
			c.Write(connect311)
			// Wait until the broker is held back: what it has written stands still.
			still, last := 0, -1
			for end := time.Now().Add(patience); still < 20; {
				if time.Now().After(end) {
					t.Fatalf("the broker is not held back: %d bytes written", wrote.load())
				}
				<-time.After(10 * time.Millisecond)
				if n := wrote.load(); n == last {
					still++
				} else {
					still, last = 0, n
				}
			}
			if last >= total {
				t.Fatalf("all %d bytes went somewhere while the client read nothing", total)
			}
			// What the relay has taken from the broker and the client's socket has not taken is what it keeps: at most one read.
			if got := drain(c, len(connack311)); got != <-sent {
				t.Error("the bytes differ")
			}
			c.Close()
			<-ended
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
	for name, start := range relays() {
		t.Run(name, func(t *testing.T) {
			at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() })
			const sessions = 300
			ended := make(chan Summary, sessions)
			addr := start(t, at, &Limits{}, func(s Summary) { ended <- s })
			var wg sync.WaitGroup
			for i := range sessions {
				c := mustDial(t, addr)
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
				s := <-ended
				if s.Packets != [2]uint64{31, 31} || s.Reason != ReasonClientClosed {
					t.Fatalf("%+v", s)
				}
			}
		})
	}
}

// The machine's own rules, whatever happens to it in whatever order.
func FuzzSession(f *testing.F) {
	f.Add([]byte("\x00\x11"+string(connect311)), []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add(append([]byte{}, connect5...), []byte{9, 9, 0, 0, 3, 3, 1, 1})
	f.Fuzz(func(t *testing.T, data, script []byte) {
		if len(data) > 1<<16 || len(script) > 1<<10 {
			return
		}
		var s Session
		l := &Limits{ConnectSize: 1 << 12, Held: NewBudget(1 << 13)}
		now := int64(1)
		s.Start(l, now, len(script) > 0 && script[0]&0x80 != 0)
		var toBroker, fromClient []byte
		closed, dialing, connected := false, false, false
		run := func(out []Action) {
			for i := 0; i < len(out); i++ {
				if closed {
					t.Fatalf("action %v after close", out[i].Op)
				}
				switch a := out[i]; a.Op {
				case OpWrite:
					if a.Side == Broker {
						if !connected {
							t.Fatal("a write to no broker")
						}
						toBroker = append(toBroker, a.Data...)
					}
				case OpDial:
					dialing = true
				case OpDrop:
					dialing, connected = false, false
				case OpRoute:
					if _, err := s.Connect(); err != nil {
						t.Fatal("a route without a CONNECT")
					}
				case OpClose:
					closed = true
				case OpFlow:
					out = s.Flow(len(data), now, out)
				case OpUnread:
					out = s.Unread(a.Side, len(data), now, out)
				case OpFinish:
					out = s.Finished(out)
				case OpPreamble:
					n := bytes.IndexByte(a.Data, '>') + 1
					out = s.Preamble(n, nil, now, out)
				}
			}
		}
		for _, op := range script {
			if closed {
				break
			}
			now += int64(op) * int64(10*time.Millisecond)
			n := min(len(data), 1+int(op>>4)*7)
			switch op & 0x0f {
			case 0, 1, 2:
				fromClient = append(fromClient, data[:n]...)
				run(s.Received(Client, data[:n], now, nil))
				data = data[n:]
			case 3, 4:
				if connected {
					run(s.Received(Broker, data[:n], now, nil))
					data = data[n:]
				}
			case 5:
				run(s.Routed(Answer{Target: &Target{}}, now, nil))
			case 6:
				run(s.Routed(Answer{Reason: ReasonAwaitHome}, now, nil))
			case 7:
				if dialing {
					dialing, connected = false, true
					toBroker = toBroker[:0]
					run(s.Dialed([]byte("P"), now, nil))
				}
			case 8:
				if dialing {
					dialing = false
					run(s.DialFailed(now, nil))
				}
			case 9:
				run(s.Ended(Client, now, nil))
			case 10:
				if connected {
					run(s.Ended(Broker, now, nil))
				}
			case 11, 12:
				side := Side(op&0x0f - 11)
				switch {
				case side == Broker && !connected:
				case op&0x10 != 0:
					run(s.Unwritable(side, "", now, nil))
				default:
					run(s.Failed(side, ReasonNone, "", now, nil))
				}
			case 13:
				run(s.Tick(now, nil))
			case 14:
				run(s.Stop(ReasonShutdown, now, nil))
			case 15:
				if connected {
					run(s.Received(Broker, connack311, now, nil))
				}
			}
			if connected && len(toBroker) > 0 && !bytes.Contains(append([]byte{}, fromClient...), toBroker[1:]) {
				t.Fatalf("the broker got %q, the client sent %q", toBroker, fromClient)
			}
			if s.Phase < Relaying && !closed && s.Deadline == 0 {
				t.Fatalf("phase %d without a deadline", s.Phase)
			}
			if s := s.kept(); len(s.Held) > 1<<12+maxPipelined+1024 || len(s.First) > maxConnack || len(s.Tail) > maxGoodbye {
				t.Fatalf("kept: %d %d %d bytes", len(s.Held), len(s.First), len(s.Tail))
			}
		}
		// Time alone ends it, unless it relays for two who are there.
		for range 3 * maxAttempts {
			if closed || s.Deadline == 0 {
				break
			}
			now = max(now, s.Deadline)
			run(s.Tick(now, nil))
		}
		if !closed && (s.Phase != Relaying || s.EOF != [2]bool{} || s.Dead != [2]bool{} || s.Reason != ReasonNone) {
			t.Fatalf("phase %d for ever: %+v", s.Phase, s.State)
		}
		if closed && (s.Reason == ReasonNone || l.Held.Used() != 0) {
			t.Fatalf("closed for %v with %d bytes taken", s.Reason, l.Held.Used())
		}
	})
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
