package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The wheel against a list: everything is looked at once, when add said, not before it is due unless that is beyond the wheel, and a
// loop that sleeps as long as timeout says misses nothing and does not spin.
func TestWheel(t *testing.T) {
	type item struct{ due, look int64 }
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		var w wheel
		var now int64 = 1
		waiting := map[*conn]item{}
		add := func() {
			due := now + rnd.Int64N(int64(time.Second)<<rnd.IntN(7)) - int64(10*time.Millisecond)
			c := new(conn)
			look := w.add(now, due, wheelEntry{conn: c})
			if look < due && due < (w.at+wheelSize-1)*wheelTick {
				t.Fatalf("seed %d: due in %v, looked at %v early", seed, time.Duration(due-now), time.Duration(due-look))
			}
			if look > max(due, now)+wheelTick {
				t.Fatalf("seed %d: due in %v, looked at %v late", seed, time.Duration(due-now), time.Duration(look-due))
			}
			waiting[c] = item{due, look}
		}
		fire := func(at int64, e wheelEntry) {
			it, ok := waiting[e.conn]
			if !ok {
				t.Fatalf("seed %d: fired twice", seed)
			}
			if it.look > now || it.look != at {
				t.Fatalf("seed %d: fired %v before it said, as what is due %v later", seed, time.Duration(it.look-now), time.Duration(at-it.look))
			}
			delete(waiting, e.conn)
			if rnd.IntN(4) == 0 {
				add()
			}
		}
		idle := 0
		for range 300 {
			for range rnd.IntN(4) {
				add()
			}
			switch ms := w.timeout(now); {
			case ms < 0:
				now += rnd.Int64N(int64(time.Hour))
			case ms == 0:
				if idle++; idle > 3 {
					t.Fatalf("seed %d: spins", seed)
				}
			default:
				now += rnd.Int64N(int64(ms)*int64(time.Millisecond) + 1)
				if rnd.IntN(2) == 0 {
					now += int64(ms) * int64(time.Millisecond)
				}
			}
			before := len(waiting)
			for most := 1 + rnd.IntN(5); ; { // in so many turns as it takes
				fired := 0
				w.advance(now, most, func(at int64, e wheelEntry) { fired++; fire(at, e) })
				if fired > most {
					t.Fatalf("seed %d: fired %d, not %d", seed, fired, most)
				}
				if fired < most {
					break
				}
				if w.fired > 0 && w.timeout(now) != 0 {
					t.Fatalf("seed %d: waits %d ms amid what is due", seed, w.timeout(now))
				}
			}
			if len(waiting) != before {
				idle = 0
			}
			for _, it := range waiting {
				if it.look <= now {
					t.Fatalf("seed %d: %v late", seed, time.Duration(now-it.look))
				}
			}
			if w.count != len(waiting) {
				t.Fatalf("seed %d: counts %d of %d", seed, w.count, len(waiting))
			}
		}
	}
}

// However many entries there are, and however long the turns of a loop that is busy: the wheel is late by a moment, and catches up.
func TestWheelCatchesUp(t *testing.T) {
	for _, turn := range []time.Duration{time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond} {
		var w wheel
		var now int64 = 1
		again := func(_ int64, e wheelEntry) { w.add(now, now+int64(90*time.Second), e) }
		for range 100_000 {
			w.add(now, now+int64(90*time.Second), wheelEntry{conn: new(conn)})
		}
		latest := time.Duration(0)
		for end := now + int64(3*time.Minute); now < end; now += int64(turn) {
			w.advance(now, w.most(now), again)
			latest = max(latest, time.Duration(now-w.at*wheelTick))
		}
		if latest > 5*time.Second { // all of them are due within one bucket
			t.Errorf("with turns of %v the wheel is up to %v late", turn, latest)
		}
	}
}

// A crowd of messages is read in some dozens of turns, none of which has much of it, and the bell rings until the last one.
func TestMuchMail(t *testing.T) {
	l, err := NewLoop(LoopConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.epfd)
	defer unix.Close(l.wake)
	const crowd = 20_000
	next := 0
	for i := range crowd {
		l.send(mail{call: func() {
			if i != next {
				t.Errorf("message %d comes as number %d", i, next)
			}
			next++
		}})
	}
	turns := 0
	for rings(t, l) {
		before := next
		l.readMail()
		if turns++; next-before > max(loopTimers, (crowd-before)/16) {
			t.Errorf("%d of %d messages in a turn", next-before, crowd-before)
		}
	}
	if next != crowd || turns > 100 {
		t.Errorf("%d of %d messages were read, in %d turns", next, crowd, turns)
	}
	if l.send(mail{}); !rings(t, l) {
		t.Error("a message later does not ring")
	}
}

// rings reports whether the loop's bell would wake it up.
func rings(t *testing.T, l *Loop) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.wake), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// On one host a connect can meet itself; here it is made to.
func TestConnectionToItself(t *testing.T) {
	for _, c := range []struct {
		family int
		any    unix.Sockaddr
	}{
		{unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}},
		{unix.AF_INET6, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}},
	} {
		fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, c.any); err != nil {
			t.Fatal(err)
		}
		self, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, self); err != nil {
			t.Fatal(err)
		}
		at := localAddr(fd)
		if !toItself(fd, at) {
			t.Errorf("%v connected to itself is not recognised", at)
		}
		if toItself(fd, netip.AddrPortFrom(at.Addr(), at.Port()^1)) || toItself(fd, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port())) {
			t.Errorf("another than %v is taken for itself", at)
		}
	}
}

// Loops share a listening socket, and one that stops leaves the clients to the others.
func TestLoopsShareAListener(t *testing.T) {
	t.Parallel()
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ln := mustListen(t)
	defer ln.Close()
	var by [2]atomic.Int64
	var stop [2]func()
	for i := range by {
		startLoop(t, nil, func(loop *Loop) (func(), error) {
			var err error
			stop[i], err = loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) {
				by[i].Add(1)
				return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(Summary) {}}, false
			})
			return nil, err
		})
	}
	talk := func(n int) {
		var wg sync.WaitGroup
		for range n {
			c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
			wg.Go(func() {
				c.SetDeadline(time.Now().Add(patience))
				c.Write(append(append([]byte{}, connect311...), publish...))
				if _, err := io.ReadFull(c, make([]byte, len(connack311)+len(publish))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	talk(100)
	if n := by[0].Load() + by[1].Load(); n != 100 {
		t.Errorf("%d accepted", n)
	}
	stop[0]()
	before := by[0].Load()
	talk(20)
	if by[0].Load() != before || by[1].Load() != 120-before {
		t.Errorf("%d and %d accepted, %d by the first before it stopped", by[0].Load(), by[1].Load(), before)
	}
	stop[0]()
	stop[1]()
}

// Without descriptors a loop waits, says so, and goes on when there are some. The limit is the process's, so another process has it.
func TestOutOfDescriptors(t *testing.T) {
	const env = "RELAY_TEST_OUT_OF_DESCRIPTORS"
	if os.Getenv(env) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOutOfDescriptors$", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), env+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ln := mustListen(t)
	defer ln.Close()
	failed := make(chan error, 100)
	queries := make(chan Query, 100)
	startLoop(t, nil, func(loop *Loop) (func(), error) {
		return loop.Listen(ln, &Limits{AcceptFailed: func(err error) {
			select {
			case failed <- err:
			default:
			}
		}}, func(_, _ netip.AddrPort) (Owner, bool) {
			o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
			o.queries = queries
			return o, false
		})
	})
	var clients []*net.TCPConn
	talk := func(c *net.TCPConn) error {
		c.SetDeadline(time.Now().Add(patience))
		c.Write(connect311)
		_, err := io.ReadFull(c, make([]byte, len(connack311)))
		return err
	}
	first := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	if err := talk(first); err != nil {
		t.Fatal(err)
	}
	highest := func() uint64 {
		fd, err := unix.Dup(0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return uint64(fd)
	}()
	limit := func(n uint64) { // the hard limit stays far above
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(n, highest+100), Max: highest + 100}); err != nil {
			t.Fatal(err)
		}
	}
	limit(highest + 20)
	for n := highest + 20; len(failed) == 0 && len(clients) < 100; {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil { // the last descriptor went to an accept: one for the next client, and none for its accept
			n++
			limit(n)
			continue
		}
		clients = append(clients, c.(*net.TCPConn))
	}
	err := receive(t, "accept fails", failed)
	if !strings.Contains(err.Error(), "too many open files") {
		t.Errorf("accept: %v", err)
	}
	for _, c := range clients {
		c.Close()
	}
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	if err := talk(c); err != nil {
		t.Errorf("no session once there are descriptors again: %v", err)
	}
	first.Write(publish)
	if _, err := io.ReadFull(first, make([]byte, len(publish))); err != nil {
		t.Errorf("the first session: %v", err)
	}
}

// A session that floods its loop both ways takes its turn like the others.
func TestAFloodStarvesNobody(t *testing.T) {
	t.Parallel()
	wss := wrappings[3]
	for many, m := range map[int]mode{3: loopMode("plain", wrapping{}, wrapping{}), 1: loopMode(wss.String(), wss, wss)} {
		t.Run(m.name, func(t *testing.T) {
			at := m.brokers(t, func(c peer) { io.Copy(c, c); c.CloseWrite() })
			ended := make(chan Summary, 8)
			addr, _ := m.relay(t, relayed{limits: &Limits{}, owner: func() Owner {
				return &echoOwner{m.target(at, nil), func(s Summary) { ended <- s }}
			}})
			over := make(chan struct{})
			var floods sync.WaitGroup
			for range many {
				c := m.dial(t, addr)
				c.Write(connect311)
				floods.Go(func() { io.Copy(io.Discard, c) })
				floods.Go(func() {
					defer c.CloseWrite()
					p := bytes.Repeat(publish, 64<<10)
					for {
						select {
						case <-over:
							return
						default:
							c.Write(p)
						}
					}
				})
			}
			for range many + 1 { // new ones too: accept and dial have their turns
				c := m.dial(t, addr)
				c.SetDeadline(time.Now().Add(patience))
				c.Write(connect311)
				if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					c.Write(publish)
					if _, err := io.ReadFull(c, make([]byte, len(publish))); err != nil {
						t.Fatal(err)
					}
				}
				c.Close()
				receive(t, "its end", ended)
			}
			close(over)
			floods.Wait()
		})
	}
}

// A crowd that says nothing is closed in time, all of it.
func TestASilentCrowd(t *testing.T) {
	t.Parallel()
	const crowd = 1000
	at := brokers(t, func(*net.TCPConn) { t.Error("somebody reached the broker") })
	ended := make(chan Summary, crowd)
	addr := relays()["epoll"](t, at, &Limits{ConnectTimeout: 200 * time.Millisecond}, func(s Summary) { ended <- s })
	for range crowd {
		mustDial(t, addr)
	}
	for range crowd {
		s := receive(t, "a close", ended)
		if s.Reason != ReasonConnectTimeout || s.Total < 200*time.Millisecond {
			t.Fatalf("closed for %v after %v", s.Reason, s.Total)
		}
	}
}

// The raw wait and the collector, which must stop the loop to work: connections come and go while it runs all the time.
func TestLoopUnderTheCollector(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ended := make(chan Summary, 1<<16)
	addr := relays()["epoll"](t, at, &Limits{}, func(s Summary) { ended <- s })
	var n atomic.Int64
	for end := time.Now().Add(collectorRun); n.Load() < 50 || time.Now().Before(end); {
		var round sync.WaitGroup
		for range 8 {
			round.Go(func() {
				c := mustDial(t, addr)
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				c.Write(append(append([]byte{}, connect311...), publish...))
				if _, err := io.ReadFull(c, make([]byte, len(connack311)+len(publish))); err != nil {
					t.Error(err)
				}
				n.Add(1)
			})
		}
		round.Wait()
		runtime.GC()
	}
	for range n.Load() {
		receive(t, "a session's end", ended)
	}
}

// collectorRun is how long TestLoopUnderTheCollector lasts.
var collectorRun = func() time.Duration {
	d, err := time.ParseDuration(os.Getenv("RELAY_TEST_COLLECTOR"))
	if err != nil {
		return 300 * time.Millisecond
	}
	return d
}()

// A loop that ends takes its sessions along.
func TestSessionsEndWithTheirLoop(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	o := newWatchedOwner(Target{Addrs: []netip.AddrPort{at}})
	sums := make(chan Summary, 1)
	o.closed = func(s Summary) { sums <- s }
	loop, err := NewLoop(LoopConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	ln := mustListen(t)
	defer ln.Close()
	stop, err := loop.Listen(ln, &Limits{}, func(_, _ netip.AddrPort) (Owner, bool) { return o, false })
	if err != nil {
		t.Fatal(err)
	}
	c := mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
	c.Write(connect311)
	conn := receive(t, "route", o.conns)
	receive(t, "accepted", o.accepted)
	cancel()
	if err := receive(t, "the loop's end", ended); err != nil {
		t.Error(err)
	}
	if s := receive(t, "the session's end", sums); s.Reason != ReasonShutdown {
		t.Errorf("closed: %v", s.Reason)
	}
	// Nothing that is left over waits for the loop.
	stop()
	conn.Stop(ReasonMoved)
	if _, err := loop.Listen(ln, &Limits{}, nil); !errors.Is(err, errLoopClosed) {
		t.Errorf("Listen after the end: %v", err)
	}
}
