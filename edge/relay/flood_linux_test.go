package relay

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// size is how many of something a test has: few, or with LIMPET_DRILLS=1 all, as far as each of them has its descriptors.
func size(t *testing.T, few, all, descriptors int) int {
	t.Helper()
	if os.Getenv("LIMPET_DRILLS") != "1" {
		return few
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	n := min(all, (int(limit.Cur)-500)/descriptors)
	t.Logf("%d of %d", n, all)
	return n
}

// goodClient sends messages on c and waits for their echoes until the test says so; then it tells how long they took.
func goodClient(t *testing.T, c net.Conn) (over func()) {
	t.Helper()
	round := func(send []byte, back int) bool {
		c.SetDeadline(time.Now().Add(patience))
		c.Write(send)
		if _, err := io.ReadFull(c, make([]byte, back)); err != nil {
			t.Errorf("a good client: %v", err)
			return false
		}
		return true
	}
	if !round(connect311, len(connack311)) {
		t.FailNow()
	}
	var slowest time.Duration
	n := 0
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for pause := time.NewTicker(time.Millisecond); ; <-pause.C {
			begun := time.Now()
			if !round(publish, len(publish)) {
				return
			}
			n++
			slowest = max(slowest, time.Since(begun))
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	over = sync.OnceFunc(func() {
		close(stop)
		<-stopped
		c.Close()
		t.Logf("a good client's messages: %d, the slowest %v", n, slowest)
	})
	t.Cleanup(over)
	return over
}

// heapOf is what the heap and the stacks hold.
func heapOf() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// until waits for what should take milliseconds.
func until(t *testing.T, what string, ok func() (bool, any)) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		done, saw := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v: %v", what, patience, saw)
		}
	}
}

// crowd has n connections to at, as bare descriptors, which cost the heap nothing. Each has sent p.
func crowd(t *testing.T, at netip.AddrPort, n int, p []byte) []int {
	t.Helper()
	fds := make([]int, 0, n)
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	to := &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, p); err != nil {
			t.Fatal(err)
		}
	}
	return fds
}

var nobody = netip.MustParseAddrPort("127.0.0.1:1")

// A packet may claim to be 268,435,455 bytes long: what has not come takes no memory. A CONNECT that claims it is refused at once.
func TestAClaimTakesNoMemory(t *testing.T) {
	const most = 16 << 10 // for each
	longest := []byte{0xff, 0xff, 0xff, 0x7f}
	level := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60}
	measure := func(t *testing.T, n int, open func(n int)) {
		t.Helper()
		open(50) // what there is once for all
		before := heapOf()
		open(n)
		per := (heapOf() - before) / int64(n)
		if t.Logf("%d bytes for each of %d", per, n); per > most {
			t.Errorf("%d bytes for each of %d, want %d at most", per, n, most)
		}
	}
	t.Run("CONNECT", func(t *testing.T) {
		n := size(t, 1000, 10_000, 2)
		ended := make(chan Summary, n)
		at := relays()["epoll"](t, nobody, &Limits{}, func(s Summary) { ended <- s })
		measure(t, n, func(n int) {
			crowd(t, at, n, append(append([]byte{0x10}, longest...), level...))
			for range n {
				if s := receive(t, "an end", ended); s.Reason != ReasonTooLarge {
					t.Fatalf("closed: %v", s.Reason)
				}
			}
		})
	})
	t.Run("CONNECT as long as is allowed", func(t *testing.T) {
		n, l := size(t, 1000, 10_000, 2), &Limits{Counters: &Counters{}}
		at := relays()["epoll"](t, nobody, l, func(Summary) {})
		p := append([]byte{0x10, 0x80, 0x80, 7}, level...)
		var sent uint64
		measure(t, n, func(n int) {
			crowd(t, at, n, p)
			sent += uint64(n * len(p))
			until(t, "all is read", func() (bool, any) { got := l.Counters.Bytes[Client].Load(); return got == sent, got })
		})
	})
	t.Run("PUBLISH", func(t *testing.T) {
		n, w := size(t, 1000, 10_000, 4), newWires(t)
		var fds []int
		t.Cleanup(func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		})
		p := append(append([]byte{0x30}, longest...), 0, 1, 't')
		measure(t, n, func(n int) {
			for range n {
				c, b := w.connect()
				fds = append(fds, c, b)
				w.say(c, b, p)
				w.say(b, c, p)
			}
		})
	})
}

// Thousands that connect and break their connections at once, at every stage: each is a session that ends, nothing of it stays, and others do not
// notice.
func TestAFloodOfResets(t *testing.T) {
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, m := range loopModes() {
		if m.broker == (wrapping{}) {
			t.Run(m.name, func(t *testing.T) { floodOfResets(t, m, at) })
		}
	}
}

func floodOfResets(t *testing.T, m mode, at netip.AddrPort) {
	plain := m.client == (wrapping{})
	n := size(t, 400, 20_000, 1)
	if plain {
		n = size(t, 2000, 20_000, 1)
	}
	var ended, served atomic.Int64
	addr, _ := m.relay(t, relayed{
		limits: &Limits{AcceptFailed: func(err error) { t.Errorf("accept: %v", err) }},
		owner:  func() Owner { return &echoOwner{m.target(at, nil), func(Summary) { ended.Add(1) }} },
	})
	over := goodClient(t, m.dial(t, addr))
	before := openDescriptors(t)
	// one connects, says so much, and breaks its connection.
	one := func(stage int) error {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetLinger(0)
		c.SetDeadline(time.Now().Add(patience))
		if stage == 0 {
			return nil
		}
		if stage == 1 { // of whatever is expected first
			_, err := c.Write([]byte{map[bool]byte{true: connect311[0], false: 22}[plain], 3})
			return err
		}
		through, err := m.client.far(c, true)
		if err != nil {
			return err
		}
		if stage == 2 {
			_, err := through.Write(append(append([]byte{}, connect311...), publish...))
			return err
		}
		through.Write(connect311)
		if _, err := io.ReadFull(through, make([]byte, len(connack311))); err != nil {
			return err
		}
		served.Add(1)
		_, err = through.Write(bigPublish)
		return err
	}
	var flood sync.WaitGroup
	for i := range 8 {
		flood.Go(func() {
			for j := i; j < n; j += 8 {
				if err := one(j / 8 % 4); err != nil {
					t.Errorf("stage %d: %v", j/8%4, err)
					return
				}
			}
		})
	}
	flood.Wait()
	over()
	until(t, "each has ended", func() (bool, any) {
		e := ended.Load()
		if plain {
			return e == int64(n)+1, e // the good one too
		}
		return e > served.Load(), e // who breaks off in the handshakes had no session
	})
	until(t, "the descriptors are closed", func() (bool, any) { now := openDescriptors(t); return now <= before, [2]int{before, now} })
}

// A crowd that sends a byte now and then is cut when its time is over, each of them, while others are served.
func TestACrowdOfSlowClients(t *testing.T) {
	n := size(t, 500, 10_000, 2)
	timeout, pause := time.Second, 50*time.Millisecond
	if n > 500 {
		timeout, pause = DefaultConnectTimeout, time.Second
	}
	at := brokers(t, func(c *net.TCPConn) { io.Copy(c, c) })
	ended := make(chan Summary, n+1)
	addr := relays()["epoll"](t, at, &Limits{ConnectTimeout: timeout}, func(s Summary) { ended <- s })
	over := goodClient(t, mustDial(t, addr))
	slow := mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V311, ClientID: bytes.Repeat([]byte("slow"), 1000)})
	fds := crowd(t, addr, n, slow[:1])
	cut, sent := 0, 1
	var longest time.Duration
	for tick := time.NewTicker(pause); cut < n; {
		select {
		case s := <-ended:
			if s.Reason != ReasonConnectTimeout || s.Total < timeout {
				t.Fatalf("closed for %v after %v", s.Reason, s.Total)
			}
			cut, longest = cut+1, max(longest, s.Total)
		case <-tick.C:
			for _, fd := range fds {
				unix.SendmsgN(fd, slow[sent:sent+1], nil, nil, unix.MSG_NOSIGNAL) // some are cut already
			}
			if sent++; time.Duration(sent)*pause > timeout+patience {
				t.Fatalf("%d of %d are cut after %v", cut, n, time.Duration(sent)*pause)
			}
		}
	}
	over()
	t.Logf("%d cut, the last after %v", cut, longest)
}
