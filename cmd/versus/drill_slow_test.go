//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// slow is a connection that says a little now and then.
type slow struct {
	fd   int
	says func(i int) []byte // its i-th word
	said int
	came time.Time
	gone bool
}

// crowd is many of them, at one listener.
type crowd struct {
	s     *site
	all   []*slow
	epfd  int
	last  time.Duration // from coming to being cut, of the one that took longest
	first time.Duration
	gone  int
}

// newCrowd connects n, as bare descriptors. prepare does what comes before the first word; nil: nothing.
func (s *site) crowd(listener string, n int, says func(i int) []byte, prepare func(c net.Conn) (func(i int) []byte, error)) *crowd {
	t := s.t
	t.Helper()
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{s: s, epfd: epfd, all: make([]*slow, n)}
	t.Cleanup(c.close)
	at := netip.MustParseAddrPort(s.at[listener])
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				var err error
				if c.all[i], err = connectSlow(at, says, prepare); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(i)}
				if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, c.all[i].fd, &ev); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return c
}

func connectSlow(at netip.AddrPort, says func(int) []byte, prepare func(net.Conn) (func(int) []byte, error)) (*slow, error) {
	s := &slow{says: says, came: time.Now()}
	if prepare != nil {
		c, err := net.DialTimeout("tcp", at.String(), patience)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if s.says, err = prepare(c); err != nil {
			return nil, err
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return nil, err
		}
		if e := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
			return nil, fmt.Errorf("%v, %v", e, err)
		}
	} else {
		var err error
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return nil, err
		}
		if err := unix.Connect(s.fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
			unix.Close(s.fd)
			return nil, err
		}
	}
	s.say()
	return s, nil
}

// say says the next word; one that has been cut says it to nobody.
func (s *slow) say() {
	_, _ = unix.SendmsgN(s.fd, s.says(s.said), nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	s.said++
}

func (c *crowd) close() {
	for _, s := range c.all {
		if s != nil {
			unix.Close(s.fd)
		}
	}
	if c.epfd >= 0 {
		unix.Close(c.epfd)
	}
	c.all, c.epfd = nil, -1 // the numbers are somebody else's by now
}

// look finds who has been cut.
func (c *crowd) look() {
	var evs [256]unix.EpollEvent
	var buf [4 << 10]byte
	for {
		n, err := unix.EpollWait(c.epfd, evs[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			c.s.t.Fatal(err)
		}
		for _, ev := range evs[:n] {
			s := c.all[ev.Fd]
			for !s.gone {
				got, _, err := unix.Recvfrom(s.fd, buf[:], unix.MSG_DONTWAIT)
				if err == unix.EAGAIN {
					break
				}
				if err != nil || got == 0 {
					s.gone = true
					took := time.Since(s.came)
					if c.gone++; c.gone == 1 {
						c.first = took
					}
					c.last = max(c.last, took)
				}
			}
		}
		if n < len(evs) {
			return
		}
	}
}

// speak lets each say a word every pause, evenly, until so many have been cut or it takes too long.
func (c *crowd) speak(pause, within time.Duration, gone int) {
	c.s.t.Helper()
	const tick = 10 * time.Millisecond
	begun := time.Now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for turn := 0; ; <-ticker.C {
		until := int(int64(len(c.all)) * int64(time.Since(begun)) / int64(pause))
		for turn = max(turn, until-len(c.all)); turn < until; turn++ { // one word each at most
			if s := c.all[turn%len(c.all)]; !s.gone {
				s.say()
			}
		}
		late := time.Since(begun) > within // before the look: a machine that stood still is no fault of the edge
		if c.look(); c.gone >= gone {
			return
		}
		if late {
			c.s.t.Fatalf("%d of %d have been cut after %v; the edge: %v, ended: %v", c.gone, gone, within, c.s.holds(), c.s.ends())
		}
	}
}

// each is what says b byte by byte, and then its last byte for ever.
func each(b []byte) func(int) []byte {
	return func(i int) []byte { i = min(i, len(b)-1); return b[i : i+1] }
}

// longConnect is a CONNECT of MQTT 3.1.1 with a client ID of 4,000 bytes.
func longConnect() []byte {
	id := bytes.Repeat([]byte("x"), 4000)
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, byte(len(id) >> 8), byte(len(id) & 0xff)}, id...)
	return append([]byte{0x10, byte(len(body)&0x7f | 0x80), byte(len(body) >> 7)}, body...)
}

// TestDrillSlow: crowds that send a byte a second, at every layer, are cut at their deadline, hold little memory, and harm nobody. Goal: p99 of
// those who are there at most twice the quiet one; at most 16 KiB held for each.
func TestDrillSlow(t *testing.T) {
	beside(t)
	n := sized(300, 9500) // an edge with 20,000 descriptors takes (20,000-256)/2 connections, whatever they have said
	timeout, every := sized(time.Second, 10*time.Second), sized(50*time.Millisecond, time.Second)
	quietly := sized(500*time.Millisecond, 10*time.Second)
	const most, spare = 32 << 10, 32 << 20 // bytes for each, beside the garbage that an edge's heap may hold before it is looked through
	stranger, err := newNewcomer()
	if err != nil {
		t.Fatal(err)
	}
	inTLS := func(text []byte) func(net.Conn) (func(int) []byte, error) {
		return func(c net.Conn) (func(int) []byte, error) {
			_ = c.SetDeadline(time.Now().Add(patience))
			out, err := stranger.shakeHands(c)
			says := each(text)
			return func(i int) []byte { return out.seal(recordApplication, says(i)) }, err
		}
	}
	hello := append([]byte{recordHandshake, 3, 1, 4, 0, 1, 0, 3, 0xfc, 3, 3}, make([]byte, 1024)...)
	upgrade := append([]byte("GET /mqtt HTTP/1.1\r\nHost: localhost\r\nX: "), bytes.Repeat([]byte("x"), 1000)...)
	proxied := append([]byte(signatureV2), 0x21, 0x11, 1, 0)
	for _, layer := range []struct {
		name, listener, scheme string
		says                   []byte
		prepare                func(net.Conn) (func(int) []byte, error)
	}{
		{"CONNECT", "tcp", "mqtt", longConnect(), nil},
		{"ClientHello", "tls", "mqtts", hello, nil},
		{"HTTP request", "ws", "ws", upgrade, nil},
		{"ClientHello below HTTP", "wss", "wss", hello, nil},
		{"PROXY header", "proxied", "", append(proxied, make([]byte, 256)...), nil},
		{"CONNECT inside TLS", "tls", "mqtts", nil, inTLS(longConnect())},
		{"HTTP request inside TLS", "wss", "wss", nil, inTLS(upgrade)},
	} {
		t.Run(layer.name, func(t *testing.T) {
			beside(t)
			s := newSite(t, urgent(), []listener{{"tcp", "tcp", ""}, {"tls", "tls", ""}, {"ws", "ws", ""}, {"wss", "wss", ""}, {"proxied", "tcp", ", proxy_protocol: {from: [127.0.0.0/8]}"}},
				"tls_records: limpet", fmt.Sprintf("limits: {connect_timeout: %v}", timeout))
			live := s.generator("mqtt", "tcp")
			live.connect(load.Connects{Count: 50, Rate: 200, Hold: true})
			live.traffic(sized(100.0, 500.0))
			var newcomers *generator
			if layer.scheme != "" {
				newcomers = s.generator(layer.scheme, layer.listener)
				newcomers.connect(load.Connects{First: 1000, Count: 1}) // who has begun
			}
			wait := func(d time.Duration) {
				if err := pause(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			wait(quietly / 5)
			live.mark()
			wait(quietly)
			quiet := live.mark().Latency
			until(t, patience, "who has left is gone", func() (bool, any) { h := s.holds(); return h.sessions == 50, h })
			before, ended := s.holds(), s.ends()

			// Newcomers of good will, all the while, at the same listener.
			var welcome load.Connected
			served := make(chan error, 1)
			go func() {
				if newcomers == nil {
					served <- nil
					return
				}
				c := load.Connects{First: 2000, Count: int(20 * timeout.Seconds()), Rate: 20}
				err := newcomers.ask(request{Op: "connect", Connects: c}, &welcome)
				if err == nil && welcome.Accepted != c.Count {
					err = fmt.Errorf("of %d newcomers %d were served: %v", c.Count, welcome.Accepted, welcome.Errors)
				}
				served <- err
			}()
			var peak holds
			var watching sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			watching.Go(func() { // a failure of holds ends this goroutine, and the test afterwards
				for pause(ctx, sized(50*time.Millisecond, 500*time.Millisecond)) == nil {
					if h := s.holds(); h.descriptors > peak.descriptors {
						peak = h
					}
				}
			})
			c := s.crowd(layer.listener, n, each(append(layer.says, 0)), layer.prepare)
			came := time.Since(c.all[0].came)
			coming := live.mark().Latency
			c.speak(every, timeout+patience, 1)
			loud := live.mark().Latency
			c.speak(every, patience, n)
			leaving := live.mark().Latency
			cancel()
			watching.Wait()
			if err := <-served; err != nil {
				t.Error(err)
			}
			total := live.stop()
			why := ""
			for reason, count := range s.ends() {
				if count -= ended[reason]; count > 0 {
					why += fmt.Sprintf(" %s %.0f", reason, count)
				}
			}
			held := max(1, peak.descriptors-before.descriptors)
			per := (peak.rss - before.rss) / int64(held)
			if most := most + int64(spare/held); held > n/10 && per > most {
				t.Errorf("%d bytes for each of %d, want %d at most", per, held, most)
			}
			if layer.scheme == "" {
				welcome.Connack.P99 = 0
			}
			figure(t, "slow, %s: %d sockets (came within %v), a byte each %v, deadline %v: cut %v to %v after they came;%s; at most %d held at once, %d bytes each; p99 of live clients quiet %s, "+
				"while they come %s, while they speak %s: ratio %.2f (goal 2), while they are cut %s; CONNACK of %d newcomers p99 %s; generator: %s", layer.name, n, came.Round(time.Millisecond), every, timeout, c.first.Round(time.Millisecond),
				c.last.Round(time.Millisecond), why, held, per, ms(quiet.P99), ms(coming.P99), ms(loud.P99), float64(loud.P99)/float64(quiet.P99), ms(leaving.P99), welcome.Accepted, ms(welcome.Connack.P99), total.Lag)
			s.calm(before)
		})
	}
}

// signatureV2 begins a PROXY header of version 2 (proxy-protocol.txt §2.2).
const signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"

// limitDescriptors leaves a process so many more descriptors, and returns how to set it right.
func limitDescriptors(t *testing.T, pid, more int) (undo func()) {
	t.Helper()
	names, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	taken := map[int]bool{}
	for _, name := range names {
		if fd, err := strconv.Atoi(name.Name()); err == nil {
			taken[fd] = true
		}
	}
	limit := 0 // a descriptor is the lowest free number below it
	for free := 0; free < more; limit++ {
		if !taken[limit] {
			free++
		}
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDrillDescriptors: an edge whose descriptors are used up, below what it believes to have, accepts nobody for the time, says so once, and
// goes on with those whom it has; with descriptors it accepts again, and says that once.
func TestDrillDescriptors(t *testing.T) {
	beside(t)
	const spare = 40
	exhausted := sized(time.Second, 25*time.Second)
	for _, listeners := range []struct{ name, scheme string }{{"tcp", "mqtt"}, {"tls", "mqtts"}, {"ws", "ws"}} {
		t.Run(listeners.name, func(t *testing.T) {
			beside(t)
			s := newSite(t, urgent(), []listener{{listeners.name, listeners.name, ""}}, "tls_records: limpet", "log: {level: info}")
			live, newcomers := s.generator(listeners.scheme, listeners.name), s.generator(listeners.scheme, listeners.name)
			live.connect(load.Connects{Count: 20, Rate: 200, Hold: true})
			live.traffic(100)
			before := s.holds()
			live.mark()
			undo := limitDescriptors(t, s.edge.pid(), spare)
			c := s.crowd(listeners.name, 3*spare, each([]byte{0x10, recordHandshake}[:1]), nil)
			until(t, patience, "accept fails", func() (bool, any) { n := s.linesWith("accept failed"); return n > 0, s.holds() })
			if err := pause(t.Context(), exhausted); err != nil { // it has that long to say it again, ten times a second
				t.Fatal(err)
			}
			if n := s.linesWith("accept failed"); n != 1 {
				t.Errorf("said %d times that accepting fails", n)
			}
			seen := live.mark()
			c.close()
			until(t, patience, "the crowd is gone", func() (bool, any) { h := s.holds(); return h.descriptors <= before.descriptors, h })
			newcomers.connect(load.Connects{First: 1000, Count: 15, Hold: true})
			undo()
			newcomers.connect(load.Connects{First: 2000, Count: 100, Hold: true})
			until(t, patience, "it is said that accepting works again", func() (bool, any) { n := s.linesWith("accept works again"); return n > 0, n })
			if failed, works := s.linesWith("accept failed"), s.linesWith("accept works again"); failed != 1 || works != 1 {
				t.Errorf("said %d times that accepting fails, and %d times that it works again", failed, works)
			}
			live.stop()
			figure(t, "descriptors, %s: used up for %v; %d messages of live clients meanwhile, p99 %s, longest %s", listeners.name, exhausted, seen.Received, ms(seen.Latency.P99), ms(seen.Latency.Max))
			newcomers.end()
			s.calm(before)
		})
	}
}
