package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/tls13"
)

// A carousel is loops that share a listener and give each other their sessions all the time.
type carousel struct {
	loops []*Loop

	mu    sync.Mutex
	moves map[*conn]*ride
}

// ride is what was seen of one session.
type ride struct {
	at    *Loop
	moves int
}

// startCarousel starts loops that listen to ln.
func startCarousel(t testing.TB, loops int, shuttle bool, listen func(*Loop) (func(), error)) *carousel {
	k := &carousel{moves: map[*conn]*ride{}}
	for range loops {
		k.loops = append(k.loops, startLoop(t, new(ciphers), listen))
	}
	if !shuttle {
		return k
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { k.turn(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return k
}

func (k *carousel) turn(ctx context.Context) {
	for rnd := rand.New(rand.NewPCG(1, 2)); ctx.Err() == nil; {
		from := k.loops[rnd.IntN(len(k.loops))]
		from.Give(k.loops[rnd.IntN(len(k.loops))], 1+rnd.IntN(100))
		<-time.After(time.Duration(rnd.IntN(200)) * time.Microsecond)
		k.look()
	}
}

// look sees who has moved.
func (k *carousel) look() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, r := range k.moves {
		if at := c.home(); at != r.at {
			r.at = at
			r.moves++
		}
	}
}

// enter makes a session's moves count.
func (k *carousel) enter(c Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at := c.(*conn); k.moves[at] == nil {
		k.moves[at] = &ride{at: at.home()}
	}
}

func (k *carousel) moved(c Conn) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.moves[c.(*conn)].moves
}

// movingMode is two loops whose sessions move all the time.
type movingMode struct {
	mode
	k *carousel // once it relays
}

func movingModes() (all []*movingMode) {
	for _, w := range append([]wrapping{{}}, wrappings...) {
		m := &movingMode{mode: loopMode(w.String(), w, w)}
		if w == (wrapping{}) {
			m.name = "plain"
		}
		m.relay = func(t testing.TB, r relayed) (netip.AddrPort, func() int) {
			ln := mustListen(t)
			t.Cleanup(func() { ln.Close() })
			if r.narrow {
				narrow(t, ln, unix.SO_SNDBUF, narrowBuffer) // inherited
			}
			m.k = startCarousel(t, 2, true, func(loop *Loop) (func(), error) {
				if w == (wrapping{}) {
					return loop.Listen(ln, r.limits, func(_, _ netip.AddrPort) (Owner, bool) { return r.owner(), false })
				}
				return loop.Open(ln, r.limits, &testDoor{owner: r.owner, w: w, server: tls13.NewServer(testTLS(), w.policy), pause: r.pause, failed: r.failed})
			})
			return ln.Addr().(*net.TCPAddr).AddrPort(), nil
		}
		all = append(all, m)
	}
	return all
}

// Sessions of which nothing is regular, in loops that give them to each other all the time.
func TestMixesOnTheMove(t *testing.T) {
	t.Parallel()
	for _, m := range movingModes() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for i, narrow := range []bool{false, true} {
				h, broker := newHall(t, m.mode, narrow)
				var wg sync.WaitGroup
				turns := make(chan struct{}, 5)
				for seed := range uint64(sized(10, 250)) {
					m := newMix(2*seed+uint64(i), m.half())
					turns <- struct{}{}
					wg.Go(func() {
						defer func() { <-turns }()
						if err := h.run(m, broker); err != nil {
							t.Errorf("seed %d, narrow %v, %v: %v", m.seed, narrow, m.end, err)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// noise is bytes without end that two can make.
func noise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// Traffic both ways through sessions that move some hundred times, with pauses that leave a backlog: not a byte is lost, added or changed.
func TestTrafficOnTheMove(t *testing.T) {
	t.Parallel()
	moves := sized(200, 5000)
	for _, m := range movingModes() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			at := m.brokers(t, func(c peer) { io.Copy(c, c); c.CloseWrite() })
			const sessions = 3
			conns := make(chan Conn, sessions)
			ended := make(chan Summary, sessions)
			addr, _ := m.relay(t, relayed{narrow: true, limits: &Limits{}, owner: func() Owner {
				o := newWatchedOwner(m.target(at, nil))
				o.conns, o.closed = conns, func(s Summary) { ended <- s }
				return o
			}})
			var all sync.WaitGroup
			for i := range sessions {
				c := m.dial(t, addr)
				c.SetDeadline(time.Now().Add(time.Minute))
				c.Write(connect311)
				conn := receive(t, "route", conns)
				if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
					t.Fatal(err)
				}
				m.k.enter(conn)
				var sent, got atomic.Int64
				all.Go(func() {
					rnd, from := rand.New(rand.NewPCG(uint64(i), 1)), noise(byte(i))
					for p := make([]byte, 32<<10); m.k.moved(conn) < moves; {
						p := p[:anySize(rnd, len(p))]
						from.Read(p)
						if _, err := c.Write(p); err != nil {
							t.Errorf("write behind %d bytes and %d moves: %v", sent.Load(), m.k.moved(conn), err)
							return
						}
						sent.Add(int64(len(p)))
						if rnd.IntN(4) > 0 {
							<-time.After(time.Duration(rnd.IntN(1_000_000)))
						}
					}
					for end := time.Now().Add(patience); !m.half() && got.Load() < sent.Load(); <-time.After(time.Millisecond) {
						if time.Now().After(end) {
							break // the reader says what is missing
						}
					}
					c.CloseWrite()
				})
				all.Go(func() {
					rnd, want := rand.New(rand.NewPCG(uint64(i), 2)), noise(byte(i))
					p, q := make([]byte, 32<<10), make([]byte, 32<<10)
					for {
						n, err := c.Read(p[:1+rnd.IntN(len(p))])
						want.Read(q[:n])
						if at := got.Add(int64(n)); !bytes.Equal(p[:n], q[:n]) {
							t.Errorf("what came after %d bytes is not what was sent", at-int64(n))
							return
						}
						if err == io.EOF && got.Load() == sent.Load() {
							t.Logf("%d bytes, %d moves", got.Load(), m.k.moved(conn))
							return
						}
						if err != nil {
							t.Errorf("%d of %d bytes came: %v", got.Load(), sent.Load(), err)
							return
						}
						if rnd.IntN(100) == 0 {
							<-time.After(time.Duration(rnd.IntN(3_000_000)))
						}
					}
				})
			}
			all.Wait()
			for range sessions {
				if s := receive(t, "a session's end", ended); s.Bytes[Client]-uint64(len(connect311)) != s.Bytes[Broker]-uint64(len(connack311)) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// thinker answers late, from elsewhere, and stops its session twice: the first word counts.
type thinker struct {
	*watchedOwner
	answers *sync.WaitGroup
	wait    func()
}

func (o *thinker) Route(c Conn, _ Query) (Answer, bool) {
	o.answers.Go(func() {
		o.wait()
		c.Answer(Answer{Target: &o.target})
	})
	return Answer{}, false
}

func (o *thinker) Accepted(c Conn, _ mqtt.Connack, _ time.Duration) {
	o.answers.Go(func() {
		o.wait()
		c.Stop(ReasonMoved)
		c.Stop(ReasonShutdown)
	})
}

// Answer and Stop reach a session wherever it is, and in their order.
func TestHandlesOnTheMove(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	sessions := sized(300, 10_000)
	var answers sync.WaitGroup
	defer answers.Wait()
	reasons := make(chan Summary, sessions)
	ln := mustListen(t)
	defer ln.Close()
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(3, 4))
	wait := func() {
		mu.Lock()
		d := time.Duration(rnd.IntN(2000)) * time.Microsecond
		mu.Unlock()
		<-time.After(d)
	}
	startCarousel(t, 3, true, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) {
			o := &thinker{newWatchedOwner(Target{Addrs: []netip.AddrPort{at}}), &answers, wait}
			o.closed = func(s Summary) { reasons <- s }
			return o, false
		})
	})
	turns := make(chan struct{}, 20)
	var wg sync.WaitGroup
	for range sessions {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Write(connect5)
			want := []byte{0xe0, 2, byte(ReasonMoved.disconnectCode()), 0}
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, append(append([]byte{}, connack311...), want...)) {
				t.Errorf("%x, %v", got, err)
			}
		})
	}
	wg.Wait()
	for range sessions {
		if s := receive(t, "an end", reasons); s.Reason != ReasonMoved {
			t.Errorf("closed: %v", s.Reason)
		}
	}
}

// mail between the same two for the same session stays in order also where it waits while the session moves.
func TestMailGoesAlong(t *testing.T) {
	var loops [2]*Loop
	for i := range loops {
		var err error
		if loops[i], err = NewLoop(LoopConfig{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		defer loops[i].Run(ctx) // frees what it holds
	}
	from, to := loops[0], loops[1]
	moving, staying := &conn{loop: from}, &conn{loop: from}
	for i := range Reason(3) {
		moving.Stop(i + 1)
		staying.Stop(i + 1)
	}
	if !from.handOver([]*conn{moving}, to) {
		t.Fatal("not taken")
	}
	moving.Stop(4)
	told := func(l *Loop, c *conn) (all []Reason) {
		for _, m := range l.mail {
			if m.conn == c {
				all = append(all, m.stop)
			}
		}
		return all
	}
	if got := fmt.Sprint(told(from, moving), told(from, staying), told(to, staying), told(to, moving)); got != fmt.Sprint([]Reason{}, []Reason{1, 2, 3}, []Reason{}, []Reason{1, 2, 3, 4}) {
		t.Errorf("mail: %v", got)
	}
	if to.mail[0].call == nil {
		t.Error("mail precedes the session that it is for")
	}
	for _, l := range loops {
		l.mail = nil
	}
}

// The watch over a session goes on where it goes, and its traces elsewhere do nothing.
func TestKeepAliveOnTheMove(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	const sessions = 20
	ended := make(chan Summary, sessions+1)
	ln := mustListen(t)
	defer ln.Close()
	startCarousel(t, 2, true, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) {
			return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(s Summary) { ended <- s }}, false
		})
	})
	connect := connectWith(mqtt.V311, 1)
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	alive := mustDial(t, to)
	alive.Write(connect)
	for range sessions {
		mustDial(t, to).Write(connect)
	}
	pinging := time.NewTicker(200 * time.Millisecond)
	defer pinging.Stop()
	late := time.After(patience)
	for n := 0; n < sessions; {
		select {
		case <-pinging.C:
			alive.Write(ping)
		case s := <-ended:
			n++
			// Longer than a Keep Alive and a half is by the second, and by the closing's linger.
			if s.Reason != ReasonKeepAlive || s.Total < 1500*time.Millisecond || s.Total > 1500*time.Millisecond+patience/2 {
				t.Errorf("closed for %v after %v", s.Reason, s.Total)
			}
		case <-late:
			t.Fatalf("%d of %d have ended", n, sessions)
		}
	}
	alive.SetDeadline(time.Now().Add(patience))
	alive.Write(publish)
	for p := make([]byte, 1); p[0] != publish[len(publish)-1]; {
		if _, err := alive.Read(p); err != nil {
			t.Fatalf("who was not silent: %v", err)
		}
	}
}

// A session that moves for hours leaves no more in the wheels than their length can hold.
func TestMovesLeaveNothingInTheWheels(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ln := mustListen(t)
	defer ln.Close()
	o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
	k := startCarousel(t, 2, false, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
	})
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	c.Write(connectWith(mqtt.V311, 1))
	conn := receive(t, "route", o.conns)
	receive(t, "accepted", o.accepted)
	k.enter(conn)
	const moves = 200
	for end := time.Now().Add(patience); k.moved(conn) < moves; {
		if time.Now().After(end) {
			t.Fatalf("moved %d times", k.moved(conn))
		}
		for i, l := range k.loops {
			l.Give(k.loops[1-i], 1)
			l.ask(func() {})
			l.ask(func() {}) // the turn of the gift is over
			k.look()
		}
	}
	entries := func() (n int) {
		for _, l := range k.loops {
			l.ask(func() { n += l.wheel.count })
		}
		return n
	}
	most := entries()
	pinging := time.NewTicker(200 * time.Millisecond)
	defer pinging.Stop()
	for end := time.Now().Add(patience); entries() > 3; <-pinging.C { // that of its accept is due later
		if time.Now().After(end) {
			t.Fatalf("%d entries for one session, of %d", entries(), most)
		}
		c.Write(ping)
	}
	if most < moves/2 {
		t.Errorf("only %d entries after %d moves", most, moves)
	}
}

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
						t.Fatalf("%d rounds, and no more", rounds.Load())
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
	began := time.Now()
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
