package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func newScriptOwner(answers []answer) *scriptOwner {
	return &scriptOwner{answers: answers, changed: make(chan struct{}), done: make(chan Summary, 1)}
}

// dialed holds the broker's ends of the connections that a session made.
type dialed struct {
	conns chan net.Conn
	last  net.Conn
}

// end is the connection at hand; it waits for the first.
func (d *dialed) end(t *testing.T) end {
	t.Helper()
	if d.last == nil {
		select {
		case d.last = <-d.conns:
		case <-time.After(patience):
			t.Fatal("the broker was not dialed")
		}
	}
	return connEnd{d.last}
}

// renew lets go of the connection at hand: the next one is meant.
func (d *dialed) renew() { d.last = nil }

// tcpBroker listens, and hands out connections in order.
type tcpBroker struct {
	dialed
	ln *net.TCPListener
}

// newTCPBroker starts one; wrap shakes hands on its connections.
func newTCPBroker(t *testing.T, wrap ...func(net.Conn) (net.Conn, error)) *tcpBroker {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &tcpBroker{dialed: dialed{conns: make(chan net.Conn, 16)}, ln: ln.(*net.TCPListener)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			for _, f := range wrap {
				raw := c
				if c, err = f(raw); err != nil {
					raw.Close() // the session gave it up
				}
			}
			if err == nil {
				b.conns <- c
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
		close(b.conns)
		for c := range b.conns {
			c.Close()
		}
		if b.last != nil {
			b.last.Close()
		}
	})
	return b
}

func (b *tcpBroker) addr() netip.AddrPort { return b.ln.Addr().(*net.TCPAddr).AddrPort() }

// rigKind is one way of running sessions.
type rigKind struct {
	name    string
	wrapped bool // with layers: what precedes MQTT is nothing of the session's
	ws      bool // a close frame ends both directions
	make    func(t *testing.T, own *scriptOwner, l *Limits, preamble bool) *rig
}

func rigKinds() []rigKind {
	kinds := []rigKind{
		{name: "bare", make: func(_ *testing.T, o *scriptOwner, l *Limits, p bool) *rig { return newBareRig(o, l, p, false, false) }},
		{name: "bare torn", make: func(_ *testing.T, o *scriptOwner, l *Limits, p bool) *rig { return newBareRig(o, l, p, false, true) }},
		{name: "bare written out and read back", make: func(_ *testing.T, o *scriptOwner, l *Limits, p bool) *rig { return newBareRig(o, l, p, true, true) }},
		{name: "goroutines in memory", make: memoryRig},
		{name: "goroutines on TCP", make: func(t *testing.T, o *scriptOwner, l *Limits, p bool) *rig { return goroutineRig(t, o, l, p, false) }},
		{name: "goroutines on TLS", make: func(t *testing.T, o *scriptOwner, l *Limits, p bool) *rig { return goroutineRig(t, o, l, p, true) }},
	}
	if Supported {
		kinds = append(kinds, rigKind{name: "epoll", make: loopRig})
	}
	return append(kinds, wrappedKinds()...)
}

// conn returns the owner's Conn once there is one; before, a session can only be stopped by closing its end.
func (o *scriptOwner) stop(r Reason) {
	o.mu.Lock()
	c := o.conn
	o.mu.Unlock()
	c.Stop(r)
}

func goroutineRig(t *testing.T, own *scriptOwner, l *Limits, preamble, secure bool) *rig {
	b := newTCPBroker(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cl, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	own.target = func() *Target { return &Target{Addrs: []netip.AddrPort{b.addr()}, Prelude: prelude} }
	near := Stream(srv.(*net.TCPConn))
	if secure {
		tlsServer, tlsClient := tls.Server(srv, testTLS()), tls.Client(cl, &tls.Config{InsecureSkipVerify: true})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := tlsServer.Handshake(); err != nil {
				t.Error(err)
			}
		})
		if err := tlsClient.Handshake(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		near, cl = tlsServer, tlsClient
	}
	r := served(t, own, l, preamble, near, cl, func() end { return b.end(t) })
	r.renew = b.renew
	return r
}

// testTLS has a certificate that nobody need trust.
var testTLS = sync.OnceValue(func() *tls.Config {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
})

// memoryRig runs the goroutine driver on connections that are no sockets, and dials by Target.Dial.
func memoryRig(t *testing.T, own *scriptOwner, l *Limits, preamble bool) *rig {
	srv, cl := newMemPair()
	b := &dialed{conns: make(chan net.Conn, 16)}
	own.target = func() *Target {
		return &Target{Prelude: prelude, Dial: func(context.Context) (Stream, error) {
			near, far := newMemPair()
			b.conns <- far
			return near, nil
		}}
	}
	r := served(t, own, l, preamble, srv, cl, func() end { return b.end(t) })
	r.renew = b.renew
	return r
}

func served(t *testing.T, own *scriptOwner, l *Limits, preamble bool, srv Stream, cl net.Conn, broker func() end) *rig {
	var wg sync.WaitGroup
	d := newDriver(srv, own)
	d.s.Start(l, d.now(), preamble)
	wg.Go(d.run)
	t.Cleanup(func() {
		cl.Close()
		wg.Wait()
	})
	return &rig{own: own, client: connEnd{cl}, broker: broker, wait: func(time.Duration) {}, stop: own.stop}
}

// loopRig runs the epoll driver.
func loopRig(t *testing.T, own *scriptOwner, l *Limits, preamble bool) *rig {
	b := newTCPBroker(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own.target = func() *Target { return &Target{Addrs: []netip.AddrPort{b.addr()}, Prelude: prelude} }
	startLoop(t, nil, func(loop *Loop) (func(), error) {
		return loop.Listen(ln.(*net.TCPListener), l, func(_, _ netip.AddrPort) (Owner, bool) { return own, preamble })
	})
	cl, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	t.Cleanup(func() { cl.Close() })
	return &rig{own: own, client: connEnd{cl}, broker: func() end { return b.end(t) }, wait: func(time.Duration) {}, stop: own.stop, renew: b.renew}
}

// startLoop runs a loop until the test ends.
func startLoop(t testing.TB, shared Shared, listen func(*Loop) (func(), error)) *Loop {
	t.Helper()
	loop, err := NewLoop(LoopConfig{Shared: shared})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if _, err := listen(loop); err != nil {
		t.Fatal(err)
	}
	return loop
}
