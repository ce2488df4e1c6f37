package relay

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// A mode is a driver, with what wraps the bytes on either side of it.
type mode struct {
	name           string
	client, broker wrapping
	// relay starts it behind a listening socket. held is what it keeps of bytes, in all; nil where nobody knows.
	relay func(t testing.TB, r relayed) (at netip.AddrPort, held func() int)
	// target is a broker that it reaches. pause, if not nil, takes its time before the dial, where a dial can be slow.
	target func(broker netip.AddrPort, pause func()) Target
}

// narrowBuffer is a socket's for writing that is soon full.
const narrowBuffer = 16 << 10

// relayed is what a relay is started with.
type relayed struct {
	owner  func() Owner
	limits *Limits
	pause  func(net.Conn) time.Duration // how long the welcome of a client takes behind its handshakes; nil: no time
	narrow bool                         // its sockets to clients take little
	failed func(net.Conn)               // the handshakes have; nil: nobody wants to know
}

func (m mode) plain() bool { return m.client == wrapping{} && m.broker == wrapping{} }

// half reports whether one direction goes on after the other has ended.
func (m mode) half() bool { return !m.client.ws && !m.broker.ws }

func plainTarget(at netip.AddrPort, _ func()) Target { return Target{Addrs: []netip.AddrPort{at}} }

func modes() []mode {
	all := []mode{{
		name: "goroutines", target: plainTarget,
		relay: func(t testing.TB, r relayed) (netip.AddrPort, func() int) {
			ln := mustListen(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					if r.narrow {
						c.(*net.TCPConn).SetWriteBuffer(narrowBuffer)
					}
					wg.Go(func() { Serve(c.(*net.TCPConn), r.owner(), r.limits, time.Now(), nil) })
				}
			})
			t.Cleanup(func() { ln.Close(); wg.Wait() })
			return ln.Addr().(*net.TCPAddr).AddrPort(), nil
		},
	}}
	return append(all, loopModes()...)
}

// dial connects to a relay and shakes hands.
func (m mode) dial(t testing.TB, at netip.AddrPort) peer {
	t.Helper()
	c, err := m.client.far(mustDial(t, at), true)
	if err != nil {
		t.Fatal(err)
	}
	return c.(peer)
}

// brokers accepts, shakes hands, and gives each connection, behind its CONNECT and CONNACK, to fn.
func (m mode) brokers(t testing.TB, fn func(c peer)) netip.AddrPort {
	ln := mustListen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				c, err := m.broker.far(conn, false)
				if err == nil && acceptConnect(c) == nil {
					c.Write(connack311)
					fn(c.(peer))
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// sized is how much of something there is: little, or with LIMPET_DRILLS=1 much.
func sized[T any](little, much T) T {
	if os.Getenv("LIMPET_DRILLS") == "1" {
		return much
	}
	return little
}
