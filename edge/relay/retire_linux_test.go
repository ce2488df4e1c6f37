package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/tls13"
)

// A loop that retires leaves its sessions to others, in the middle of what they say, and ends; clients come all the while.
func TestRetireUnderTraffic(t *testing.T) {
	for _, w := range []wrapping{{}, wrappings[3]} {
		m := loopMode("plain", w, w)
		if w != (wrapping{}) {
			m.name = w.String()
		}
		t.Run(m.name, func(t *testing.T) {
			at := m.brokers(t, func(c peer) { io.Copy(c, c); c.CloseWrite() })
			var begun, over atomic.Int64
			ln := mustListen(t)
			defer ln.Close()
			server := tls13.NewServer(testTLS(), w.policy)
			owner := func() Owner {
				begun.Add(1)
				return &echoOwner{m.target(at, nil), func(Summary) { over.Add(1) }}
			}
			type running struct {
				*Loop
				leave func()
				ended chan error
			}
			ctx, cancel := context.WithCancel(context.Background())
			start := func() running {
				loop, err := NewLoop(LoopConfig{Shared: new(ciphers)})
				if err != nil {
					t.Fatal(err)
				}
				r := running{Loop: loop, ended: make(chan error, 1)}
				go func() { r.ended <- loop.Run(ctx) }()
				if w == (wrapping{}) {
					r.leave, err = loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return owner(), false })
				} else {
					r.leave, err = loop.Open(ln, &Limits{}, &testDoor{owner: owner, w: w, server: server})
				}
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			stop := make(chan struct{})
			stopped := func() bool {
				select {
				case <-stop:
					return true
				default:
					return false
				}
			}
			last := start()
			var clients sync.WaitGroup
			var rounds atomic.Int64
			for i := range 8 {
				clients.Go(func() {
					for !stopped() { // half of them come and go
						if err := talk(m, ln.Addr().String(), byte(i), func(n int) bool {
							rounds.Add(1)
							return stopped() || i%2 == 1 && n == 20
						}); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range sized(15, 300) {
				for end, n := time.Now().Add(patience), rounds.Load()+200; rounds.Load() < n && !t.Failed(); <-time.After(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%d rounds, and no more:\n%s", rounds.Load(), last.describe())
					}
				}
				next := start()
				last.leave()
				for end := time.Now().Add(patience); len(last.ended) == 0; <-time.After(time.Millisecond) {
					if last.Retire(next.Loop); time.Now().After(end) {
						t.Fatalf("does not end: %d sessions", last.Sessions())
					}
				}
				if err := <-last.ended; err != nil {
					t.Error(err)
				}
				if n := last.Sessions(); n != 0 {
					t.Errorf("ended with %d sessions", n)
				}
				last = next
			}
			close(stop)
			clients.Wait()
			for end := time.Now().Add(patience); over.Load() < begun.Load(); <-time.After(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d sessions, %d ends", begun.Load(), over.Load())
				}
			}
			cancel()
			if err := receive(t, "the last loop's end", last.ended); err != nil {
				t.Error(err)
			}
			t.Logf("%d sessions", begun.Load())
		})
	}
}

// describe says how a loop's sessions are.
func (l *Loop) describe() string {
	var b strings.Builder
	answered := make(chan struct{})
	if !l.send(mail{call: func() {
		defer close(answered)
		fmt.Fprintf(&b, "%d gifts, %d to be read again\n", len(l.gifts), len(l.again))
		for _, c := range l.conns {
			if c != nil {
				fmt.Fprintf(&b, "phase %d, fd %v, gen %v, readable %v, ended %v, unread %d and %d, unsent %d and %d, kept %d and %d, queued %v\n", c.s.Phase, c.fd, c.gen, c.readable, c.ended,
					unread(c.sock(Client)), unread(c.sock(Broker)), unacknowledged(c.sock(Client)), unacknowledged(c.sock(Broker)), c.pend[Client].size(), c.pend[Broker].size(), c.queued)
			}
		}
	}}) {
		return "it has ended"
	}
	select {
	case <-answered:
		return b.String()
	case <-time.After(patience):
		return "it does not answer"
	}
}

// talk is a client that compares what it hears with what it said, until enough says so.
func talk(m mode, at string, seed byte, enough func(n int) bool) error {
	raw, err := net.Dial("tcp", at)
	if err != nil {
		return err
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(time.Minute))
	c, err := m.client.far(raw, true)
	if err != nil {
		return err
	}
	c.Write(connect311)
	if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
		return fmt.Errorf("CONNACK: %w", err)
	}
	from := noise(seed)
	p, q := make([]byte, 3000), make([]byte, 3000)
	for n := 0; !enough(n); n++ {
		from.Read(p)
		if _, err := c.Write(p); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, q); err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
		if !bytes.Equal(p, q) {
			return errors.New("what came back is not what was said")
		}
	}
	return nil
}

// Who is given to a loop that has ended, or retires, stays.
func TestNobodyMovesToTheDead(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, how := range []string{"ended", "retires"} {
		t.Run(how, func(t *testing.T) {
			dead, err := NewLoop(LoopConfig{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			ln := mustListen(t)
			defer ln.Close()
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			loop := startCarousel(t, 1, false, func(loop *Loop) (func(), error) {
				return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
			}).loops[0]
			c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			c.SetDeadline(time.Now().Add(patience))
			c.Write(connect311)
			conn := receive(t, "route", o.conns)
			receive(t, "accepted", o.accepted)
			if how == "retires" {
				dead.Retire(loop) // and is not even begun
			} else {
				cancel()
				if err := dead.Run(ctx); err != nil {
					t.Error(err)
				}
			}
			loop.Give(dead, 10)
			c.Write(publish)
			if _, err := io.ReadFull(c, make([]byte, len(connack311)+len(publish))); err != nil {
				t.Fatal(err)
			}
			loop.ask(func() {}) // the turn of the gift is over
			if conn.(interface{ home() *Loop }).home() != loop {
				t.Error("it has moved")
			}
			c.Write(publish)
			if _, err := io.ReadFull(c, make([]byte, len(publish))); err != nil {
				t.Error(err)
			}
			if how == "retires" {
				go func() { ended <- dead.Run(ctx) }()
				if err := receive(t, "the end of who retires", ended); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A session stays as long as a goroutine that dialed for it may still come back to its loop.
func TestWhoIsWaitedForStays(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	release := make(chan struct{})
	first := Target{DialTimeout: 50 * time.Millisecond, Join: func(context.Context) (Wrapped, error) {
		<-release // whatever its context says
		return Wrapped{}, errors.New("too late")
	}}
	ln := mustListen(t)
	defer ln.Close()
	o := &secondChoice{newWatchedOwner(first), Target{Addrs: []netip.AddrPort{at}}}
	k := startCarousel(t, 2, false, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
	})
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	c.SetDeadline(time.Now().Add(patience))
	c.Write(connect311)
	conn := receive(t, "route", o.conns).(interface{ home() *Loop })
	receive(t, "accepted", o.accepted)
	home := conn.home()
	other := k.loops[0]
	if other == home {
		other = k.loops[1]
	}
	home.Give(other, 1)
	home.ask(func() {})
	home.ask(func() {}) // the turn of the gift is over
	if conn.home() != home {
		t.Fatal("it has moved while a goroutine was on its way to it")
	}
	close(release)
	for end := time.Now().Add(patience); conn.home() == home; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not move when nobody is waited for any more")
		}
		home.Give(other, 1)
	}
	c.Write(publish)
	if _, err := io.ReadFull(c, make([]byte, len(connack311)+len(publish))); err != nil {
		t.Error(err)
	}
}

// secondChoice goes elsewhere after a failure.
type secondChoice struct {
	*watchedOwner
	then Target
}

func (o *secondChoice) Route(c Conn, q Query) (Answer, bool) {
	a, ok := o.watchedOwner.Route(c, q)
	if q.Attempt > 0 {
		a.Target = &o.then
	}
	return a, ok
}

// What a loop tells of itself.
func TestBusyAndSessions(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ln := mustListen(t)
	defer ln.Close()
	began := time.Now()
	loop := startCarousel(t, 1, false, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) {
			return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(Summary) {}}, false
		})
	}).loops[0]
	sessions := func(n int) {
		t.Helper()
		for end := time.Now().Add(patience); loop.Sessions() != n; <-time.After(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d sessions, want %d", loop.Sessions(), n)
			}
		}
	}
	for range 3 {
		mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort()).Write(connect311)
	}
	sessions(3)
	const work = 50 * time.Millisecond
	before := loop.Busy()
	loop.ask(func() {
		for until := time.Now().Add(work); time.Now().Before(until); {
		}
	})
	loop.ask(func() {})
	if busy := loop.Busy() - before; busy < work || loop.Busy() > time.Since(began) {
		t.Errorf("busy for %v, and %v in all, with %v of work in %v", busy, loop.Busy(), work, time.Since(began))
	}
	before = loop.Busy()
	<-time.After(4 * work)
	loop.ask(func() {})
	loop.ask(func() {})
	if busy := loop.Busy() - before; busy > 2*work { // time of another process on this processor counts
		t.Errorf("busy for %v of %v in which there was nothing to do", busy, 4*work)
	}
}

// What it takes to move 1,000 idle sessions to another loop, and back.
func BenchmarkGive(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	at := brokers(b, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, w := range []wrapping{{}, wrappings[0]} {
		name := "plain"
		if w != (wrapping{}) {
			name = w.String()
		}
		b.Run(name, func(b *testing.B) {
			const sessions = 1000
			ln := mustListen(b)
			defer ln.Close()
			accepted := make(chan struct{}, sessions)
			owner := func() Owner {
				return &counted{echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(Summary) {}}, accepted}
			}
			k := startCarousel(b, 2, false, func(loop *Loop) (func(), error) {
				if w == (wrapping{}) {
					return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return owner(), false })
				}
				return loop.Open(ln, &Limits{}, &testDoor{owner: owner, w: w, server: tls13.NewServer(testTLS(), w.policy)})
			})
			for range sessions {
				c, err := w.far(mustDial(b, ln.Addr().(*net.TCPAddr).AddrPort()), true)
				if err != nil {
					b.Fatal(err)
				}
				c.Write(connect311)
				<-accepted
			}
			from, to := k.loops[0], k.loops[1]
			move := func() {
				from.Give(to, sessions)
				for to.Sessions() < sessions {
					<-time.After(20 * time.Microsecond)
				}
				from, to = to, from
			}
			move()
			before := from.Busy() + to.Busy()
			for b.Loop() {
				move()
			}
			b.ReportMetric(float64(from.Busy()+to.Busy()-before)/float64(b.N)/sessions, "busy-ns/session")
		})
	}
}

type counted struct {
	echoOwner
	accepted chan struct{}
}

func (o *counted) Accepted(Conn, mqtt.Connack, time.Duration) { o.accepted <- struct{}{} }
