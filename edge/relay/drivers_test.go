package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Whatever the tests have started has ended when the last of them has, and nothing that they opened is left open.
func TestMain(m *testing.M) {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { // the descriptors of Go's own poller
		ln.Close()
	}
	before := descriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		var left []string
		for end := time.Now().Add(patience); code == 0; <-time.After(10 * time.Millisecond) {
			if left = leftOpen(before); len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				fmt.Fprintln(os.Stderr, "left open:", left)
				code = 1
			}
		}
		os.Exit(code)
	}))
}

// descriptors are the open ones, with what they are; nil on systems that do not tell.
func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	m := map[string]string{}
	for _, e := range all {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil { // not the one that reads the directory
			m[e.Name()] = to
		}
	}
	return m
}

// leftOpen names descriptors if there are more than before.
func leftOpen(before map[string]string) (left []string) {
	now := descriptors()
	if len(now) <= len(before) {
		return nil
	}
	runtime.GC() // package net keeps the pipes of splice(2) until then: next time they are gone
	for fd, to := range now {
		if before[fd] != to {
			left = append(left, fd+" -> "+to)
		}
	}
	return left
}

// watchedOwner is an echoOwner that tells what it is asked.
type watchedOwner struct {
	echoOwner
	conns    chan Conn  // of Route
	queries  chan Query // of Route, without its Connect
	accepted chan struct{}
	ended    chan struct{} // closed by BrokerEnded
	leaving  func()        // called by Goodbye
}

func newWatchedOwner(target Target) *watchedOwner {
	o := &watchedOwner{conns: make(chan Conn, 200), queries: make(chan Query, 200), accepted: make(chan struct{}), ended: make(chan struct{}), leaving: func() {}}
	o.target, o.closed = target, func(Summary) {}
	return o
}

func (o *watchedOwner) Route(c Conn, q Query) (Answer, bool) {
	q.Connect = nil
	o.conns <- c
	o.queries <- q
	return o.echoOwner.Route(c, q)
}

func (o *watchedOwner) Accepted(Conn, mqtt.Connack, time.Duration) { close(o.accepted) }
func (o *watchedOwner) Goodbye(Conn, mqtt.Disconnect)              { o.leaving() }
func (o *watchedOwner) BrokerEnded(Conn)                           { close(o.ended) }

// receive is a channel receive that does not wait for ever.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing in %v", what, patience)
		panic("unreachable")
	}
}

// runs are the two drivers, each with one session of owner; the client's end is returned.
func runs() map[string]func(t *testing.T, o Owner, l *Limits) *net.TCPConn {
	m := map[string]func(t *testing.T, o Owner, l *Limits) *net.TCPConn{
		"goroutines": func(t *testing.T, o Owner, l *Limits) *net.TCPConn {
			ln := mustListen(t)
			defer ln.Close()
			c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			srv, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { Serve(srv.(*net.TCPConn), o, l, time.Now(), nil) })
			t.Cleanup(func() { c.Close(); wg.Wait() })
			return c
		},
	}
	if Supported {
		m["epoll"] = func(t *testing.T, o Owner, l *Limits) *net.TCPConn {
			ln := mustListen(t)
			defer ln.Close()
			startLoop(t, nil, func(loop *Loop) (func(), error) {
				return loop.Listen(ln, l, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
			})
			return mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
		}
	}
	return m
}

// Stop may be called by somebody who holds a lock that the owner takes, and by the owner itself: it waits for nobody.
func TestStopWaitsForNobody(t *testing.T) {
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			at := brokers(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			ended := make(chan Summary, 1)
			o.closed = func(s Summary) { ended <- s }
			var lock sync.Mutex
			inside := make(chan struct{})
			o.leaving = func() {
				close(inside)
				lock.Lock() // as an owner does whose lock the caller of Stop holds
				defer lock.Unlock()
				(<-o.conns).Stop(ReasonMoved)
			}
			c := run(t, o, &Limits{Linger: time.Second})
			c.Write(connect311)
			conn := receive(t, "route", o.conns)
			o.conns <- conn
			receive(t, "accepted", o.accepted)
			lock.Lock()
			c.Write(goodbye)
			receive(t, "the owner's lock is wanted", inside)
			stopped := make(chan struct{})
			go func() {
				conn.Stop(ReasonMoved)
				close(stopped)
			}()
			receive(t, "Stop", stopped)
			lock.Unlock()
			c.CloseWrite()
			if s := receive(t, "the end", ended); s.Reason != ReasonClientDisconnect {
				t.Errorf("closed: %v", s.Reason)
			}
		})
	}
}

// Calls of a Conn after its session has ended do nothing.
func TestConnAfterTheEnd(t *testing.T) {
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			at := brokers(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			ended := make(chan Summary, 2)
			o.closed = func(s Summary) { ended <- s }
			c := run(t, o, &Limits{})
			c.Write(connect311)
			conn := receive(t, "route", o.conns)
			c.Close()
			receive(t, "the end", ended)
			conn.Stop(ReasonMoved)
			conn.Answer(Answer{Target: &o.target})
			if len(ended) > 0 {
				t.Error("closed twice")
			}
		})
	}
}

// pushed writes to c until nothing is taken any more for a while; it returns how much was.
func pushed(t *testing.T, c *net.TCPConn, limit int) (total int) {
	t.Helper()
	p := bytes.Repeat(publish, 4<<10)
	for still := 0; still < 10 && total < limit; {
		c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := c.Write(p)
		if total += n; n > 0 {
			still = 0
		} else {
			still++
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	c.SetWriteDeadline(time.Time{})
	return total
}

// A client that pipelines without end while its broker, reached already, reads nothing: what is kept for it is bounded.
func TestPipeliningToAStalledBroker(t *testing.T) {
	t.Parallel()
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			ln := mustListen(t) // nobody accepts: the kernel takes what its buffers hold
			defer ln.Close()
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{ln.Addr().(*net.TCPAddr).AddrPort()}, Timeout: time.Minute})
			l := &Limits{Counters: &Counters{}}
			c := run(t, o, l)
			c.Write(connect311)
			const limit = 256 << 20
			if n := pushed(t, c, limit); n >= limit {
				t.Fatalf("%d bytes went somewhere", n)
			}
			b, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			// What the relay has taken and the broker's socket has not is what it keeps. Nobody knows the socket's share, but it cannot be more
			// than what a stalled reader's takes.
			total := int(l.Counters.Bytes[Client].Load())
			b.Write(connack311)
			go c.CloseWrite()
			n, err := io.Copy(io.Discard, b)
			if err != nil || n < int64(total) {
				t.Errorf("the broker got %d bytes (%v), the relay had %d from the client when it stood still", n, err, total)
			}
			t.Logf("stood still after %d bytes", total)
		})
	}
}

// The same, where the goroutine that dialed is still at the CONNECT: what the client's reads meanwhile is not piled up behind it.
func TestPipeliningBehindAStuckConnect(t *testing.T) {
	t.Parallel()
	srv, cl := newMemPair()
	near, far := newMemPair()
	o := newWatchedOwner(Target{Timeout: time.Minute, Dial: func(context.Context) (Stream, error) { return near, nil }})
	own := &laterOwner{watchedOwner: o}
	l := &Limits{Counters: &Counters{}}
	var wg sync.WaitGroup
	wg.Go(func() { Serve(srv, own, l, time.Now(), nil) })
	t.Cleanup(func() { cl.Close(); far.Close(); wg.Wait() })
	const total = 16 << 20
	stream := append(append([]byte{}, connect311...), make([]byte, total)...)
	wg.Go(func() {
		cl.Write(stream)
		cl.CloseWrite()
	})
	conn := receive(t, "route", o.conns)
	taken := func() uint64 {
		for last, still := uint64(0), 0; ; {
			<-time.After(5 * time.Millisecond)
			if n := l.Counters.Bytes[Client].Load(); n != last {
				last, still = n, 0
			} else if still++; still == 20 {
				return n
			}
		}
	}
	if n := taken(); n < maxPipelined {
		t.Fatalf("%d bytes taken while the owner thinks", n)
	}
	conn.Answer(Answer{Target: &o.target})
	if n := taken(); n > 1<<20 {
		t.Errorf("%d bytes were taken for a broker that reads nothing", n)
	}
	got := make(chan []byte, 1)
	wg.Go(func() {
		p, _ := io.ReadAll(far)
		got <- p
	})
	if p := receive(t, "what the broker got", got); !bytes.Equal(p, stream) {
		t.Errorf("the broker got %d bytes, not the %d that were sent", len(p), len(stream))
	}
}

// laterOwner has to think before it answers.
type laterOwner struct{ *watchedOwner }

func (o *laterOwner) Route(c Conn, q Query) (Answer, bool) {
	o.watchedOwner.Route(c, q)
	return Answer{}, false
}

// The client of a broker that has frozen is stopped while its own writes are stuck: it hears why, and no reset.
func TestStopOfAStuckClient(t *testing.T) {
	t.Parallel()
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			defer wg.Wait()
			frozen := make(chan struct{})
			defer close(frozen)
			ln := mustListen(t)
			defer ln.Close()
			wg.Go(func() {
				b, err := ln.Accept()
				if err != nil {
					return
				}
				defer b.Close()
				io.ReadFull(b, make([]byte, len(connect5)))
				b.Write(connack5)
				<-frozen
			})
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{ln.Addr().(*net.TCPAddr).AddrPort()}})
			c := run(t, o, &Limits{Linger: patience})
			c.Write(connect5)
			conn := receive(t, "route", o.conns)
			receive(t, "accepted", o.accepted)
			pushed(t, c, 256<<20)
			written := make(chan error, 1)
			go func() {
				_, err := c.Write(publish)
				written <- err
			}()
			conn.Stop(ReasonBrokerDown)
			if err := receive(t, "the client's write", written); err != nil {
				t.Errorf("the client's write: %v", err)
			}
			c.SetReadDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(c)
			if want := append(append([]byte{}, connack5...), mqtt.AppendDisconnect(nil, mqtt.V5, mqtt.ServerShuttingDown)...); !bytes.Equal(got, want) || err != nil {
				t.Errorf("the client got %x, %v; want %x", got, err, want)
			}
			c.Close()
		})
	}
}

// A client that is flooded says goodbye and closes without having read all, which its kernel makes a reset: the broker hears the goodbye.
func TestGoodbyeBeforeAReset(t *testing.T) {
	t.Parallel()
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			heard := make(chan []byte, 1)
			full := make(chan struct{})
			at := brokers(t, func(c *net.TCPConn) {
				go func() {
					pushed(t, c, 256<<20)
					close(full)
				}()
				<-full
				c.SetReadDeadline(time.Now().Add(patience))
				p, _ := io.ReadAll(c)
				heard <- p
			})
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			ended := make(chan Summary, 1)
			o.closed = func(s Summary) { ended <- s }
			c := run(t, o, &Limits{})
			c.Write(connect311)
			receive(t, "accepted", o.accepted)
			receive(t, "the broker is held back", full)
			c.Write(publish)
			c.Write(goodbye)
			c.Close()
			if got := receive(t, "what the broker heard", heard); !bytes.Equal(got, append(append([]byte{}, publish...), goodbye...)) {
				t.Errorf("the broker heard %x", got)
			}
			if s := receive(t, "the end", ended); s.Reason != ReasonClientDisconnect {
				t.Errorf("closed: %v %q", s.Reason, s.Detail)
			}
		})
	}
}

// swallow is an address that answers nothing: its queue is full.
func swallow(t *testing.T) netip.AddrPort {
	t.Helper()
	at := fullQueue(t)
	for range 8 { // until the kernel drops what comes
		d := net.Dialer{Timeout: 200 * time.Millisecond}
		c, err := d.Dial("tcp", at.String())
		if err != nil {
			return at
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue takes everybody")
	return at
}

// An address that swallows everything does not keep the broker's others from being tried, and is told as what it is.
func TestDialingTakesTurns(t *testing.T) {
	t.Parallel()
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	silent := swallow(t)
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{silent, deadAddress, at}, DialTimeout: 1500 * time.Millisecond})
			c := run(t, o, &Limits{})
			c.Write(connect311)
			receive(t, "accepted", o.accepted)
			if n := len(o.queries); n != 1 {
				t.Errorf("routed %d times", n)
			}
			c.Close()
		})
		t.Run(name+", in vain", func(t *testing.T) {
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{silent}, DialTimeout: 200 * time.Millisecond})
			c := run(t, o, &Limits{})
			defer c.Close()
			c.Write(connect311)
			receive(t, "first question", o.queries)
			q := receive(t, "second question", o.queries)
			var ne interface{ Timeout() bool }
			if q.Cause != CauseDial || q.Attempt != 1 || !errors.As(q.Err, &ne) || !ne.Timeout() {
				t.Errorf("asked again with %+v, %v", q, q.Err)
			}
		})
	}
}

// What a broker said before it ended reaches a client that reads slowly, and talks meanwhile: to close its socket sooner would be a reset, which
// destroys what is on its way.
func TestASlowClientGetsTheBrokersLastWords(t *testing.T) {
	for name, run := range runs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size, piece = 3 << 20, 32 << 10
			sent := make(chan struct{})
			at := brokers(t, func(c *net.TCPConn) {
				c.Write(make([]byte, size))
				c.CloseWrite()
				close(sent)
				io.Copy(io.Discard, c)
			})
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			ended := make(chan Summary, 1)
			o.closed = func(s Summary) { ended <- s }
			c := run(t, o, &Limits{Linger: 500 * time.Millisecond})
			c.SetReadBuffer(64 << 10)
			c.Write(connect311)
			receive(t, "all is said", sent)
			receive(t, "the broker's end", o.ended)
			got := 0
			pace := time.NewTicker(20 * time.Millisecond) // four times what a client may take that reads nothing
			defer pace.Stop()
			c.SetReadDeadline(time.Now().Add(2 * patience))
			for p := make([]byte, piece); ; <-pace.C {
				n, err := io.ReadFull(c, p)
				got += n
				if err != nil {
					break
				}
				c.Write(ping)
			}
			if want := size + len(connack311); got != want {
				t.Errorf("got %d of %d bytes", got, want)
			}
			c.Close()
			if s := receive(t, "the end", ended); s.Reason != ReasonBrokerClosed {
				t.Errorf("closed for %v", s.Reason)
			}
		})
	}
}
