package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
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
				return loop.Open(ln, r.limits, r.door(w))
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
				c.SetDeadline(time.Now().Add(sized(time.Minute, 20*time.Minute)))
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
	t.Parallel()
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
	const moves = 100
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
