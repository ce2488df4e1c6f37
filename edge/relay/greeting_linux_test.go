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
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
)

// ask calls fn in the loop.
func (l *Loop) ask(fn func()) {
	done := make(chan struct{})
	if l.send(mail{call: func() { fn(); close(done) }}) {
		<-done
	}
}

// pauseUntil ends steps of a welcome until over says so: it looks again with each event, or by resume.
func pauseUntil(conn net.Conn, over func() bool) {
	for !over() {
		conn.(*greeting).hand.wait(false)
	}
}

// pauseFor is pauseUntil for a time.
func pauseFor(conn net.Conn, d time.Duration) {
	end := time.Now().Add(d)
	conn.SetReadDeadline(end)
	pauseUntil(conn, func() bool { return !time.Now().Before(end) })
	conn.SetReadDeadline(time.Time{})
}

// resume makes all greetings take a step.
func (l *Loop) resume() {
	l.ask(func() {
		for _, c := range l.conns {
			if c != nil && c.greet != nil {
				c.greet.queue()
			}
		}
	})
}

// A client that has said all, and ended, while the handshake was still under way: the kernel tells the end once.
func TestAnEndDuringTheGreeting(t *testing.T) {
	t.Parallel()
	for _, w := range wrappings {
		t.Run(w.String(), func(t *testing.T) {
			heard := make(chan []byte, 1)
			at := brokers(t, func(c *net.TCPConn) {
				p, _ := io.ReadAll(c)
				heard <- p
			})
			ended := make(chan Summary, 1)
			inside, over := make(chan struct{}), new(atomic.Bool)
			door := &testDoor{
				w: w, server: tls13.NewServer(testTLS(), w.policy), pause: func(c net.Conn) { close(inside); pauseUntil(c, over.Load) },
				owner: func() Owner {
					return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(s Summary) { ended <- s }}
				},
			}
			ln := mustListen(t)
			defer ln.Close()
			loop := startLoop(t, new(ciphers), func(loop *Loop) (func(), error) { return loop.Open(ln, &Limits{}, door) })
			raw := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			c, err := w.far(raw, true)
			if err != nil {
				t.Fatal(err)
			}
			c.Write(connect311)
			receive(t, "the welcome", inside)
			c.Write(publish) // stays in the socket, with the end right behind it
			raw.CloseWrite() // neither close_notify nor a close frame
			seen := false
			for end := time.Now().Add(patience); !seen; {
				if time.Now().After(end) {
					t.Fatal("the loop does not see the end")
				}
				loop.ask(func() {
					for _, c := range loop.conns {
						seen = seen || c != nil && c.greet != nil && c.greet.ended
					}
				})
			}
			over.Store(true)
			loop.resume()
			if p := receive(t, "what the broker heard", heard); !bytes.Equal(p, publish) {
				t.Errorf("the broker heard %x", p)
			}
			if s := receive(t, "the session's end", ended); s.Reason != ReasonClientClosed {
				t.Errorf("closed: %v %s", s.Reason, s.Detail)
			}
		})
	}
}

// A client that pings without end and reads nothing is not read either, before its pongs are many; when it reads, all goes on.
func TestPingsWithoutEnd(t *testing.T) {
	t.Parallel()
	heard := make(chan []byte, 1)
	at := brokers(t, func(c *net.TCPConn) {
		p := make([]byte, len(publish))
		io.ReadFull(c, p)
		heard <- p
		io.Copy(io.Discard, c)
	})
	door := &testDoor{w: wrapping{ws: true}, server: tls13.NewServer(testTLS(), tls13.Own), owner: func() Owner {
		return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(Summary) {}}
	}}
	ln := mustListen(t)
	defer ln.Close()
	small(t, ln) // inherited
	loop := startLoop(t, nil, func(loop *Loop) (func(), error) { return loop.Open(ln, &Limits{}, door) })
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	small(t, c)
	rnd := rand.New(rand.NewPCG(1, 1))
	frame := func(op byte, p []byte) []byte { return appendFrame(nil, op, true, true, p, rnd) }
	c.Write(frame(2, connect311))
	if _, err := io.ReadFull(c, make([]byte, 2+len(connack311))); err != nil {
		t.Fatal(err)
	}
	ping := frame(9, make([]byte, 125))
	left := ping
	for range 50_000 {
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Write(left)
		if left = left[n:]; errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		left = ping
		loop.ask(func() {}) // it has read this one
	}
	if n := loop.held(); n > 4*maxOwed {
		t.Errorf("%d bytes are held", n)
	}
	go io.Copy(io.Discard, c)
	c.SetWriteDeadline(time.Now().Add(patience))
	c.Write(left)
	c.Write(frame(2, publish))
	if p := receive(t, "what the broker heard", heard); !bytes.Equal(p, publish) {
		t.Errorf("the broker heard %x", p)
	}
}

// small gives a socket buffers of the least size.
func small(t *testing.T, c syscall.Conn) {
	narrow(t, c, unix.SO_SNDBUF, 4<<10)
	narrow(t, c, unix.SO_RCVBUF, 4<<10)
}

// The first reason why a greeting ends is the one that its welcome hears.
func TestAGreetingEndsOnce(t *testing.T) {
	t.Parallel()
	var g greeting
	g.cut(os.ErrDeadlineExceeded)
	g.cut(net.ErrClosed)
	if err := g.may(&g.read); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("may: %v, want the deadline", err)
	}
}

// A greeting is a net.Conn: its deadlines pass, and Close, from anywhere, ends what waits.
func TestTheGreetingsConn(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1)
	run := func(c net.Conn) error {
		p := make([]byte, 1<<20)
		if n, err := io.ReadFull(c, p[:2]); n != 2 || err != nil {
			return err
		}
		passed := func(what string, err error) error {
			var ne net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
				return fmt.Errorf("%s: %v", what, err)
			}
			return nil
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := c.Read(p)
		if err = passed("a read", err); err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		for err == nil { // nobody reads
			_, err = c.Write(p)
		}
		if err = passed("a write", err); err != nil {
			return err
		}
		c.SetDeadline(time.Time{})
		time.AfterFunc(20*time.Millisecond, func() { c.Close() })
		if _, err := c.Read(p); !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("a read that Close ends: %v", err)
		}
		if _, err := c.Write(p); !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("a write after Close: %v", err)
		}
		return nil
	}
	door := &connDoor{run: func(c net.Conn) { failed <- run(c) }}
	ln := mustListen(t)
	defer ln.Close()
	small(t, ln)
	startLoop(t, nil, func(loop *Loop) (func(), error) { return loop.Open(ln, &Limits{}, door) })
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	small(t, c)
	c.Write([]byte("hi"))
	if err := receive(t, "the door", failed); err != nil {
		t.Error(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is left open")
	}
}

// connDoor turns everybody away.
type connDoor struct {
	testDoor
	run func(net.Conn)
}

func (d *connDoor) Come(conn Newcomer, _ time.Time) func(context.Context) (Owner, []Layer, []byte) {
	return func(context.Context) (Owner, []Layer, []byte) {
		d.run(conn)
		return nil, nil, nil
	}
}

// A Rest of any length is opened whole.
func TestMuchBehindTheHandshakes(t *testing.T) {
	t.Parallel()
	want := payload(rand.New(rand.NewPCG(4, 4)), 5*loopBuffer)
	heard := make(chan []byte, 1)
	at := brokers(t, func(c *net.TCPConn) {
		p, _ := io.ReadAll(c)
		heard <- p
	})
	ln := mustListen(t)
	defer ln.Close()
	door := &restDoor{want: want, testDoor: testDoor{owner: func() Owner {
		return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(Summary) {}}
	}}}
	startLoop(t, nil, func(loop *Loop) (func(), error) { return loop.Open(ln, &Limits{}, door) })
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	c.Write([]byte("x"))
	c.CloseWrite()
	if p := receive(t, "what the broker heard", heard); !bytes.Equal(p, want) {
		t.Errorf("the broker heard %d bytes, not the %d that were sent", len(p), len(want))
	}
}

// restDoor has read a lot behind the handshakes.
type restDoor struct {
	testDoor
	want []byte
}

func (d *restDoor) Come(conn Newcomer, _ time.Time) func(context.Context) (Owner, []Layer, []byte) {
	return func(context.Context) (Owner, []Layer, []byte) {
		io.ReadFull(conn, make([]byte, 1))
		far, near := ws.New(ws.Client), ws.New(ws.Server)
		return d.owner(), []Layer{&near}, far.Seal(nil, append(append([]byte{}, connect311...), d.want...))
	}
}

// leavesNone fails if there are more descriptors than before.
func leavesNone(t testing.TB, before map[string]string) {
	t.Helper()
	for end := time.Now().Add(patience); ; <-time.After(10 * time.Millisecond) {
		left := leftOpen(before)
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left open: %v", left)
		}
	}
}

// A lasting is an owner whose sessions must end once each.
type lasting struct{ begun, ended atomic.Int64 }

func (l *lasting) owner(target Target) Owner {
	l.begun.Add(1)
	return &echoOwner{target, func(Summary) { l.ended.Add(1) }}
}

// A loop that ends takes along what is under way, whatever it waits for: no session, goroutine or descriptor is left.
func TestTheEndOfALoopUnderWay(t *testing.T) {
	secure := wrapping{tls: true, policy: tls13.Own}
	hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 252} // the first bytes of a ClientHello
	silent := func(t *testing.T) Target {         // accepts, and says nothing
		ln := mustListen(t)
		t.Cleanup(func() { ln.Close() })
		return *secure.target(ln.Addr().(*net.TCPAddr).AddrPort(), nil, nil)
	}
	connects := func(t *testing.T, c net.Conn) {
		tc, err := secure.far(c, true)
		if err != nil {
			t.Error(err)
			return
		}
		tc.Write(connect311)
	}
	for _, state := range []struct {
		name   string
		client func(*testing.T, net.Conn)
		wait   bool // in the door
		target func(*testing.T) Target
		there  func(*conn) bool
	}{
		{name: "nothing has come", there: func(c *conn) bool { return c.greet != nil && !c.greet.begun }},
		{
			name: "a handshake waits", client: func(_ *testing.T, c net.Conn) { c.Write(hello) },
			there: func(c *conn) bool { return c.greet != nil && c.greet.begun },
		},
		{
			name: "a door waits", client: connects, wait: true,
			there: func(c *conn) bool { return c.greet != nil && c.greet.begun },
		},
		{
			name: "a broker shakes no hands", client: connects, target: silent,
			there: func(c *conn) bool { return c.way != nil && c.way.hangUp != nil },
		},
		{
			name: "a broker is not connected", client: connects,
			target: func(t *testing.T) Target { return *secure.target(swallow(t), nil, nil) },
			there:  func(c *conn) bool { return c.way != nil && c.way.hangUp != nil },
		},
		{
			name: "a session relays", client: connects,
			target: func(t *testing.T) Target {
				m := mode{broker: secure}
				return *secure.target(m.brokers(t, func(c peer) { io.Copy(io.Discard, c) }), nil, nil)
			},
			there: func(c *conn) bool { return c.s.Phase == Relaying },
		},
	} {
		t.Run(state.name, func(t *testing.T) {
			mustListen(t).Close() // the descriptors of Go's own poller
			before := descriptors()
			t.Cleanup(func() { leavesNone(t, before) })
			var owners lasting
			var target Target
			if state.target != nil {
				target = state.target(t)
			}
			door := &waitingDoor{wait: state.wait, testDoor: testDoor{
				w: secure, server: tls13.NewServer(testTLS(), tls13.Own), owner: func() Owner { return owners.owner(target) },
			}}
			ln := mustListen(t)
			defer ln.Close()
			loop, err := NewLoop(LoopConfig{Shared: new(ciphers)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- loop.Run(ctx) }()
			defer cancel()
			if _, err := loop.Open(ln, &Limits{}, door); err != nil {
				t.Fatal(err)
			}
			const clients = 5
			var wg sync.WaitGroup
			defer wg.Wait()
			for range clients {
				c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
				if state.client != nil {
					wg.Go(func() { state.client(t, c) })
				}
			}
			there := 0
			for end := time.Now().Add(patience); there < clients; {
				if time.Now().After(end) {
					t.Fatalf("%d of %d are where they should be", there, clients)
				}
				there = 0
				loop.ask(func() {
					for _, c := range loop.conns {
						if c != nil && state.there(c) {
							there++
						}
					}
				})
			}
			wg.Wait()
			cancel()
			if err := receive(t, "the loop's end", ended); err != nil {
				t.Error(err)
			}
			if b, e := owners.begun.Load(), owners.ended.Load(); b != e {
				t.Errorf("%d sessions, %d ends", b, e)
			}
		})
	}
}

// waitingDoor may wait, with a handshake done, until it is told that there is no sense in it any more.
type waitingDoor struct {
	testDoor
	wait bool
}

func (d *waitingDoor) Come(conn Newcomer, at time.Time) func(context.Context) (Owner, []Layer, []byte) {
	welcome := d.testDoor.Come(conn, at)
	return func(ctx context.Context) (Owner, []Layer, []byte) {
		owner, layers, rest := welcome(ctx)
		if d.wait {
			pauseUntil(conn, func() bool { return ctx.Err() != nil })
		}
		return owner, layers, rest
	}
}

// The same at any moment of a crowd's arrival.
func TestTheEndOfALoopAtAnyMoment(t *testing.T) {
	for _, w := range []wrapping{wrappings[0], wrappings[3]} {
		t.Run(w.String(), func(t *testing.T) {
			before := descriptors()
			t.Cleanup(func() { leavesNone(t, before) })
			m := mode{broker: w}
			at := m.brokers(t, func(c peer) { io.Copy(io.Discard, c) })
			for round := range sized(20, 300) {
				if err := endOfALoop(w, *w.target(at, nil, nil), time.Duration(round%20)*700*time.Microsecond); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
		})
	}
}

func endOfALoop(w wrapping, target Target, after time.Duration) error {
	var owners lasting
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	loop, err := NewLoop(LoopConfig{Shared: new(ciphers)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	door := &testDoor{w: w, server: tls13.NewServer(testTLS(), w.policy), owner: func() Owner { return owners.owner(target) }}
	_, err = loop.Open(ln.(*net.TCPListener), &Limits{}, door)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			if far, err := w.far(c, true); err == nil {
				far.Write(connect311)
				io.Copy(io.Discard, far)
			}
		})
	}
	<-time.After(after)
	cancel()
	select {
	case e := <-ended:
		err = errors.Join(err, e)
	case <-time.After(patience):
		err = errors.Join(err, errors.New("the loop does not end"))
	}
	ln.Close()
	wg.Wait()
	if b, e := owners.begun.Load(), owners.ended.Load(); b != e {
		err = errors.Join(err, fmt.Errorf("%d sessions, %d ends", b, e))
	}
	return err
}

// Handshakes that compute for long take turns with the sessions: no more than one of them between two looks at the sockets.
func TestHandshakesTakeTurns(t *testing.T) {
	t.Parallel()
	const clients = 20
	begun := 0
	door := &connDoor{run: func(net.Conn) {
		begun++
		for until := time.Now().Add(2 * handTime); time.Now().Before(until); {
		}
	}}
	ln := mustListen(t)
	defer ln.Close()
	loop := startLoop(t, nil, func(loop *Loop) (func(), error) { return loop.Open(ln, &Limits{}, door) })
	served := make(chan []int, 1)
	loop.ask(func() { // the loop stands here
		for range clients {
			c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			c.Write([]byte("x"))
		}
		for key := range loop.acceptors {
			for range 2 * clients { // a batch grows from one connection
				loop.acceptFrom(key)
			}
		}
		var left []int
		for loop.now = loop.clock(); len(loop.steps) > 0; loop.now = loop.clock() {
			left = append(left, len(loop.steps))
			loop.shakeHands()
		}
		served <- left
	})
	left := receive(t, "the turns", served)
	if len(left) != clients || begun != clients {
		t.Errorf("%d handshakes in turns of %d, want one in each", begun, left)
	}
}
