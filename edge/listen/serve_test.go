package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
)

// pipes is a net.Listener in memory, for fake time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return nil }

// peerConn is one end of a pipe that claims an address.
type peerConn struct {
	net.Conn
	peer netip.AddrPort
}

func (c peerConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// startInMemory serves cfg without a socket; connect returns a client's end of a new connection.
func startInMemory(t *testing.T, cfg Config, h Handler) (s *served, connect func() net.Conn) {
	t.Helper()
	s = prepare(&cfg)
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	p := &pipes{make(chan net.Conn), make(chan struct{})}
	l := &Listener{cfg: cfg, queue: newHandshakes(cfg.maxHandshakes(), cfg.handshakeTimeout()/evictAfter), closing: make(chan struct{}), done: make(chan struct{})}
	if cfg.secure() {
		var err error
		if l.certs, err = newCertificates(*cfg.TLS, cfg.alpn(), false); err != nil {
			t.Fatal(err)
		}
	}
	s.Listener = l
	s.run(t, h, func(ctx context.Context, h Handler) {
		defer context.AfterFunc(ctx, func() { close(p.closed) })()
		l.serve(ctx, p, h)
	})
	return s, func() net.Conn {
		c, conn := net.Pipe()
		p.conns <- peerConn{conn, netip.MustParseAddrPort("192.0.2.9:999")}
		return c
	}
}

func (q *handshakes) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.flying.Len()
}

// trickle writes a byte a second until nobody takes it.
func trickle(c net.Conn, b []byte) {
	for i := range b {
		time.Sleep(time.Second)
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
	}
}

// swallow reads whatever comes, so that a pipe's writer goes on, and tells when the end came.
func swallow(c io.Reader) <-chan time.Time {
	end := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, c)
		end <- time.Now()
	}()
	return end
}

// One deadline covers PROXY header, TLS and upgrade together, however the bytes are spread.
func TestOneDeadlineFromAccept(t *testing.T) {
	ca := newAuthority(t)
	slow := "GET /mqtt HTTP/1.1\r\nHost: x\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	header := []byte("PROXY TCP4 192.0.2.1 198.51.100.2 5000 1883\r\n")
	for name, c := range map[string]struct {
		transport string
		trusted   bool
		client    func(net.Conn)
	}{
		"silence, TLS":            {TLS, false, func(net.Conn) {}},
		"silence, WS":             {WS, false, func(net.Conn) {}},
		"silence, trusted":        {TCP, true, func(net.Conn) {}},
		"a byte a second, PROXY":  {TCP, true, func(c net.Conn) { trickle(c, header) }},
		"a byte a second, PROXY2": {WSS, true, func(c net.Conn) { trickle(c, rawV2(0x21, 0x11, 12, "abcdefgh")) }},
		"a byte a second, TLS": {TLS, false, func(c net.Conn) {
			trickle(c, append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 99)...))
		}},
		"a byte a second, WS": {WS, false, func(c net.Conn) { trickle(c, []byte(slow)) }},
		"every layer takes its time": {WSS, true, func(c net.Conn) {
			trickle(c, header[:3])
			_, _ = c.Write(header[3:])
			time.Sleep(3 * time.Second)
			tc := tls.Client(c, ca.client())
			if err := tc.Handshake(); err != nil {
				t.Errorf("handshake: %v", err)
			}
			trickle(tc, []byte(slow))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := config(t, c.transport, ca)
				if c.trusted {
					cfg.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
				}
				l, connect := startInMemory(t, cfg, echo)
				begun := time.Now()
				conn := connect()
				var end <-chan time.Time
				if name != "every layer takes its time" { // that one reads by itself
					end = swallow(conn)
				}
				done := make(chan struct{})
				go func() { c.client(conn); close(done) }()
				l.rejected(t, ReasonTimeout)
				if d := time.Since(begun); d != defaultHandshakeTimeout {
					t.Errorf("cut after %v, want %v", d, defaultHandshakeTimeout)
				}
				if end != nil {
					<-end
				}
				<-done
				_ = conn.Close()
			})
		})
	}
}

// What is handed over carries no deadline of ours, and the time from which the next one counts.
func TestHandOverEndsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, connect := startInMemory(t, Config{Transport: WS}, echo)
		begun := time.Now()
		c := connect()
		time.Sleep(3 * time.Second)
		upgradeRaw(t, c)
		a := <-l.arrivals
		if !a.accepted.Equal(begun) {
			t.Errorf("accepted %v after the connection came", a.accepted.Sub(begun))
		}
		time.Sleep(time.Hour)
		send(t, c, clientFrame(true, 2, []byte("still there?")))
		if b := readN(t, c, 14); string(b[2:]) != "still there?" {
			t.Errorf("read %q", b)
		}
		_ = c.Close()
	})
}

// Silent clients fill every place. Newcomers get in once the oldest are old enough, and honest ones among them are served.
func TestSilentClientsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, connect := startInMemory(t, Config{Transport: WS, MaxHandshakes: 4, HandshakeTimeout: 9 * time.Second}, echo)
		begun := time.Now()
		for range 4 {
			time.Sleep(100 * time.Millisecond)
			swallow(connect())
		}
		for range 3 {
			c := connect() // waits in the queue until there is room
			upgradeRaw(t, c)
			l.arrival(t)
			_ = c.Close()
		}
		l.rejected(t, ReasonOverload)
		// The first came after 100 ms and was 3 s old then: one place was enough for the honest ones, one after the other.
		if d := time.Since(begun); d != 3100*time.Millisecond {
			t.Errorf("served after %v", d)
		}
		if n := len(l.rejections); n != 0 {
			t.Errorf("%d more were cut", n)
		}
		for range 3 {
			l.rejected(t, ReasonTimeout)
		}
		if d := time.Since(begun); d != 9400*time.Millisecond {
			t.Errorf("the last was cut after %v", d)
		}
	})
}

// A crowd of honest clients is served in order: nobody is cut to let the next one in.
func TestACrowdWaitsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound, crowd = 4, 40
		l, connect := startInMemory(t, Config{Transport: WS, MaxHandshakes: bound}, echo)
		var wg sync.WaitGroup
		for range crowd {
			wg.Go(func() {
				c := connect()
				if n := l.queue.length(); n > bound {
					t.Errorf("%d handshakes in flight", n)
				}
				time.Sleep(200 * time.Millisecond) // the way to the client and back
				upgradeRaw(t, c)
				send(t, c, clientFrame(true, 2, []byte("x")))
				readN(t, c, 3)
				_ = c.Close()
			})
		}
		wg.Wait()
		if n := len(l.rejections); n != 0 {
			t.Errorf("%d were rejected: %v", n, <-l.rejections)
		}
		if n := len(l.arrivals); n != crowd {
			t.Errorf("%d were handed over", n)
		}
	})
}

func TestCloseWhileTheQueueIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, connect := startInMemory(t, Config{Transport: WS, MaxHandshakes: 1}, echo)
		swallow(connect())
		synctest.Wait() // the accept loop waits for room
		close(l.closing)
		time.Sleep(time.Second)
		l.cancel()
		l.rejected(t, ReasonShutdown)
		<-l.returned
	})
}

// Slow clients by the hundred, over real sockets: each is cut at the deadline, and honest ones get through meanwhile.
func TestSlowClientsDoNotKeepOthersOut(t *testing.T) {
	ca := newAuthority(t)
	const crowd = 200
	cfg := config(t, WSS, ca)
	cfg.MaxHandshakes, cfg.HandshakeTimeout = 50, 600*time.Millisecond
	l := start(t, cfg)
	var slow []net.Conn
	for i := range crowd {
		c := dial(t, l.Addr())
		_, _ = c.Write([]byte{0x16, 3, 1, 2, 0, 1}[:i%6]) // some say the beginning of a ClientHello
		slow = append(slow, c)
	}
	for range 5 {
		echoed(t, connect(t, WSS, l.Addr(), ca), []byte("hello"))
	}
	counts := make(map[Reason]int)
	for range crowd {
		counts[receive(t, l.rejections, "rejection").reason]++
	}
	if counts[ReasonTimeout]+counts[ReasonOverload] != crowd || counts[ReasonOverload] == 0 {
		t.Errorf("%v", counts)
	}
	for _, c := range slow {
		ended(t, c)
	}
}

// headConn must not let a copy slip past what it holds.
func TestHeadConnKeepsTheOrder(t *testing.T) {
	c, conn := net.Pipe()
	defer func() { _ = conn.Close() }()
	h := &headConn{Conn: conn, rest: []byte("ahead ")}
	go func() {
		_, _ = c.Write([]byte("behind"))
		_ = c.Close()
	}()
	b, err := io.ReadAll(h)
	if err != nil || string(b) != "ahead behind" {
		t.Errorf("%q, %v", b, err)
	}
	if err := h.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite of a pipe: %v", err)
	}
	var _ relay.Stream = h
	if _, ok := any(h).(io.WriterTo); ok {
		t.Error("io.Copy would go around Read")
	}
}
