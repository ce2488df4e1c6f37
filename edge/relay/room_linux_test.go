package relay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// crowdedRig is a loop with a plain listener and one with a door, in an edge that is full when full says so.
type crowdedRig struct {
	loop        *Loop
	full        atomic.Bool
	plain, door *net.TCPListener
	greeted     chan struct{} // somebody's handshake is over
	ended       chan Summary
}

// silence is how long a client may say nothing in an edge that is full.
const silence = 10 * time.Second / makeRoomAfter

func newCrowdedRig(t *testing.T) *crowdedRig {
	r := &crowdedRig{plain: mustListen(t), door: mustListen(t), greeted: make(chan struct{}, 10), ended: make(chan Summary, 10)}
	t.Cleanup(func() { r.plain.Close(); r.door.Close() })
	at := brokers(t, func(c *net.TCPConn) {
		if acceptConnect(c) == nil {
			c.Write(connack311)
			io.Copy(io.Discard, c)
		}
	})
	owner := func() Owner {
		return &echoOwner{Target{Addrs: []netip.AddrPort{at}}, func(s Summary) { r.ended <- s }}
	}
	limits := &Limits{ConnectTimeout: 10 * time.Second, Full: r.full.Load}
	r.loop = startLoop(t, nil, func(loop *Loop) (func(), error) {
		if _, err := loop.Open(r.door, limits, &slowDoor{testDoor{owner: owner}, r.greeted}); err != nil {
			return nil, err
		}
		return loop.Listen(r.plain, limits, func(_, _ netip.AddrPort) (Owner, bool) { return owner(), false })
	})
	return r
}

// slowDoor is for clients whose handshake is one byte.
type slowDoor struct {
	testDoor
	greeted chan<- struct{}
}

func (d *slowDoor) Come(conn Newcomer, _ time.Time) func(context.Context) (Owner, []Layer, []byte) {
	return func(context.Context) (Owner, []Layer, []byte) {
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			return nil, nil, nil
		}
		conn.MakeRoom()
		d.greeted <- struct{}{}
		return d.owner(), []Layer{identity{}}, nil
	}
}

func dialTo(t *testing.T, ln net.Listener) *net.TCPConn {
	return mustDial(t, ln.Addr().(*net.TCPAddr).AddrPort())
}

// connects says CONNECT and waits for the answer.
func connects(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.Write(connect311)
	answered(t, c)
}

func answered(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
		t.Fatalf("no CONNACK: %v", err)
	}
}

// sits waits until the loop has so many sessions.
func (r *crowdedRig) sits(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); r.loop.Sessions() != n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sessions, not %d", r.loop.Sessions(), n)
		}
	}
}

// A client whose CONNECT has come while the loop was held up does not make room.
func TestRoomIsNotMadeByWhoHasSpoken(t *testing.T) {
	t.Parallel()
	r := newCrowdedRig(t)
	c := dialTo(t, r.plain)
	r.sits(t, 1)
	release := make(chan struct{})
	r.loop.send(mail{call: func() { <-release }})
	time.Sleep(20 * time.Millisecond) // the loop is held up, or will be: whoever comes now waits
	newcomer := dialTo(t, r.plain)
	r.full.Store(true)
	time.Sleep(silence + 100*time.Millisecond)
	c.Write(connect311)
	close(release)
	answered(t, c)
	connects(t, newcomer)
}

// Time for a CONNECT begins behind the handshake.
func TestRoomIsNotMadeByWhoHasJustShakenHands(t *testing.T) {
	t.Parallel()
	r := newCrowdedRig(t)
	c := dialTo(t, r.door)
	time.Sleep(silence + 100*time.Millisecond)
	c.Write([]byte("x"))
	receive(t, "the handshake", r.greeted)
	r.full.Store(true)
	connects(t, dialTo(t, r.plain))
	connects(t, c)
}

// Whoever is silent makes room when a newcomer's owner is asked for, behind its handshake, and not before; and where MakeRoom is called.
func TestRoomIsMadeAtTheDoor(t *testing.T) {
	t.Parallel()
	r := newCrowdedRig(t)
	for range 2 {
		dialTo(t, r.plain)
	}
	r.sits(t, 2)
	time.Sleep(silence + 100*time.Millisecond)
	r.full.Store(true)
	c := dialTo(t, r.door)
	r.sits(t, 3)
	c.Write([]byte("x"))
	if s := receive(t, "the end of a silent one", r.ended); s.Reason != ReasonOverload || s.Detail == "" {
		t.Errorf("ended: %v, %q", s.Reason, s.Detail)
	}
	connects(t, c)
	r.loop.MakeRoom()
	if s := receive(t, "the end of the other", r.ended); s.Reason != ReasonOverload {
		t.Errorf("ended: %v", s.Reason)
	}
	r.loop.MakeRoom() // nobody is left who could
	r.loop.MakeRoom()
	time.Sleep(20 * time.Millisecond)
	r.sits(t, 1)
}

// identity is a layer that adds nothing.
type identity struct{}

func (identity) Open(raw []byte) (payload, rest []byte, err error) { return raw, nil, nil }
func (identity) Seal(dst, p []byte) []byte                         { return append(dst, p...) }
func (identity) Reply(dst []byte) []byte                           { return dst }
func (identity) End(dst []byte) []byte                             { return dst }
