package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// patience is how long a script waits for what should take milliseconds.
const patience = 10 * time.Second

// A step is one thing that happens in a scripted session, or one that must be seen.
type step func(t *testing.T, r *rig)

// rig runs scripts against one way of running sessions.
type rig struct {
	own    *scriptOwner
	client end
	broker func() end // the broker's end of the connection that the session dialed last
	wait   func(time.Duration)
	stop   func(Reason)
	renew  func() // forget the broker's connection: the next one is meant
}

// end is what a client or a broker holds of a session.
type end interface {
	send(p []byte)
	fin()
	abort()
	// read returns what arrived; io.EOF at the end, or another error if the connection was reset.
	read(t *testing.T, n int) ([]byte, error)
}

// scriptOwner answers routes in the order given and remembers what it was told.
type scriptOwner struct {
	mu      sync.Mutex
	target  func() *Target // to a live broker
	answers []answer
	told    []string
	conn    Conn
	changed chan struct{}
	done    chan Summary
}

type answer int

const (
	toBroker   answer = iota // route to the live broker
	toNowhere                // to one that cannot be dialed
	later                    // pending; the script answers
	refuseBusy               // refuse with 0x89
)

func (o *scriptOwner) tell(s string) {
	o.told = append(o.told, s)
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *scriptOwner) Preamble(b []byte) (int, error) {
	if b[0] != '<' {
		return 0, errors.New("no preamble")
	}
	return bytes.IndexByte(b, '>') + 1, nil
}

func (o *scriptOwner) Route(c Conn, q Query) (Answer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = c
	a := toBroker
	if len(o.answers) > 0 {
		a, o.answers = o.answers[0], o.answers[1:]
	}
	o.tell(fmt.Sprintf("route %s %d cause %d", q.Connect.ClientID, q.Attempt, q.Cause))
	switch a {
	case toNowhere:
		return Answer{Target: &Target{Addrs: []netip.AddrPort{deadAddress}}}, true
	case refuseBusy:
		return Answer{Code: mqtt.ServerBusy, Reason: ReasonOverload}, true
	case later:
		return Answer{}, false
	}
	return Answer{Target: o.target()}, true
}

func (o *scriptOwner) Accepted(_ Conn, k mqtt.Connack, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tell(fmt.Sprintf("accepted %v %s", k.SessionPresent, k.AssignedClientID))
}

func (o *scriptOwner) Goodbye(_ Conn, d mqtt.Disconnect) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tell(fmt.Sprintf("goodbye %d %v %d", d.Reason, d.HasSessionExpiry, d.SessionExpiry))
}

func (o *scriptOwner) BrokerEnded(Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tell("broker ended")
}

func (o *scriptOwner) Closed(s Summary) {
	o.mu.Lock()
	o.tell("closed " + s.Reason.String())
	o.mu.Unlock()
	o.done <- s
}

// deadAddress refuses connections: the port is bound by nobody, and outside the ephemeral range.
var deadAddress = netip.MustParseAddrPort("127.0.0.1:1")

var prelude = []byte("PRE ")

func client(p ...[]byte) step {
	return func(_ *testing.T, r *rig) { r.client.send(bytes.Join(p, nil)) }
}

func broker(p ...[]byte) step {
	return func(_ *testing.T, r *rig) { r.broker().send(bytes.Join(p, nil)) }
}

func clientFIN(_ *testing.T, r *rig)   { r.client.fin() }
func brokerFIN(_ *testing.T, r *rig)   { r.broker().fin() }
func clientAbort(_ *testing.T, r *rig) { r.client.abort() }
func brokerAbort(_ *testing.T, r *rig) { r.broker().abort() }

func clientGets(p ...[]byte) step {
	return func(t *testing.T, r *rig) { t.Helper(); gets(t, "client", r.client, bytes.Join(p, nil)) }
}

func brokerGets(p ...[]byte) step {
	return func(t *testing.T, r *rig) { t.Helper(); gets(t, "broker", r.broker(), bytes.Join(p, nil)) }
}

func gets(t *testing.T, who string, e end, want []byte) {
	t.Helper()
	got, err := e.read(t, len(want))
	if !bytes.Equal(got, want) {
		t.Fatalf("%s got %q (%v), want %q", who, got, err, want)
	}
}

func clientEnds(t *testing.T, r *rig) { t.Helper(); ends(t, "client", r.client) }
func brokerEnds(t *testing.T, r *rig) { t.Helper(); ends(t, "broker", r.broker()) }

func ends(t *testing.T, who string, e end) {
	t.Helper()
	if got, err := e.read(t, 1); err == nil || len(got) > 0 {
		t.Fatalf("%s got %q, want the end", who, got)
	}
}

// told waits until the owner was told of s, and forgets what came before it.
func told(s string) step {
	return func(t *testing.T, r *rig) {
		t.Helper()
		o := r.own
		timeout := time.After(patience)
		for {
			o.mu.Lock()
			for i, got := range o.told {
				if got == s {
					o.told = o.told[i+1:]
					o.mu.Unlock()
					return
				}
			}
			all, changed := fmt.Sprintf("%q", o.told), o.changed
			o.mu.Unlock()
			select {
			case <-changed:
			case <-timeout:
				t.Fatalf("owner was told %s, want %q", all, s)
			}
		}
	}
}

func neverTold(s string) step {
	return func(t *testing.T, r *rig) {
		t.Helper()
		r.own.mu.Lock()
		defer r.own.mu.Unlock()
		for _, got := range r.own.told {
			if got == s {
				t.Fatalf("owner was told %q", s)
			}
		}
	}
}

func answerNow(t *testing.T, r *rig) {
	r.own.mu.Lock()
	c, target := r.own.conn, r.own.target()
	r.own.mu.Unlock()
	c.Answer(Answer{Target: target})
}

// refuseNow answers the question that is open with a refusal.
func refuseNow(_ *testing.T, r *rig) {
	r.own.mu.Lock()
	c := r.own.conn
	r.own.mu.Unlock()
	c.Answer(Answer{Code: mqtt.ServerBusy, Reason: ReasonOverload})
}

func stop(reason Reason) step { return func(_ *testing.T, r *rig) { r.stop(reason) } }

func after(d time.Duration) step { return func(_ *testing.T, r *rig) { r.wait(d) } }

// bareRig carries the actions out in memory, with a clock of its own. thaw writes the state out and reads it back before every event;
// torn feeds single bytes.
type bareRig struct {
	s      Session
	own    *scriptOwner
	limits *Limits
	now    int64
	thaw   bool
	torn   bool
	open   [2]bool
	out    [2]bytes.Buffer
	closed [2]bool // the session has ended its direction
	target *Target
}

func newBareRig(own *scriptOwner, l *Limits, preamble, thaw, torn bool) *rig {
	b := &bareRig{own: own, limits: l, now: 1, thaw: thaw, torn: torn, open: [2]bool{true, false}}
	live := &Target{Prelude: prelude}
	own.target = func() *Target { return live }
	b.s.Start(l, b.now, preamble)
	return &rig{
		own: own, client: bareEnd{b, Client}, broker: func() end { return bareEnd{b, Broker} },
		wait: func(d time.Duration) {
			b.now += int64(d)
			if due := b.s.Deadline; due != 0 && due <= b.now {
				b.feed(func(out []Action) []Action { return b.s.Tick(b.now, out) })
			}
		},
		stop: func(r Reason) { b.feed(func(out []Action) []Action { return b.s.Stop(r, b.now, out) }) },
	}
}

func (b *bareRig) feed(event func(out []Action) []Action) {
	b.now++
	if b.thaw {
		var frozen bytes.Buffer
		if err := gob.NewEncoder(&frozen).Encode(b.s.State); err != nil {
			panic(err)
		}
		var st State
		if err := gob.NewDecoder(&frozen).Decode(&st); err != nil {
			panic(err)
		}
		b.s = Session{}
		b.s.Resume(b.limits, st)
	}
	out := event(nil)
	for i := 0; i < len(out); i++ {
		switch a := out[i]; a.Op {
		case OpWrite:
			if b.open[a.Side] {
				b.out[a.Side].Write(a.Data)
			}
		case OpShutdown:
			b.closed[a.Side] = true
		case OpPreamble:
			n, err := b.own.Preamble(a.Data)
			out = b.s.Preamble(n, err, b.now, out)
		case OpRoute:
			c, err := b.s.Connect()
			if err != nil {
				panic(err)
			}
			if ans, ok := b.own.Route(b, Query{Connect: &c, Attempt: int(b.s.Attempt), Cause: b.s.Cause}); ok {
				b.target = ans.Target
				out = b.s.Routed(ans, b.now, out)
			}
		case OpDial:
			if len(b.target.Addrs) > 0 {
				out = b.s.DialFailed(b.now, out)
				continue
			}
			b.open[Broker], b.closed[Broker] = true, false
			b.out[Broker].Reset()
			out = b.s.Dialed(b.target.Prelude, b.now, out)
		case OpDrop:
			b.open[Broker], b.closed[Broker] = false, true
		case OpAccepted:
			k, err := mqtt.ParseConnack(a.Data, b.s.Version)
			if err != nil {
				panic(err)
			}
			b.own.Accepted(b, k, 0)
		case OpGoodbye:
			d, err := mqtt.ParseDisconnect(a.Data, b.s.Version)
			if err != nil {
				panic(err)
			}
			b.own.Goodbye(b, d)
		case OpBrokerEnded:
			b.own.BrokerEnded(b)
		case OpFlow:
			out = b.s.Flow(b.out[Client].Len(), b.now, out)
		case OpUnread:
			out = b.s.Unread(a.Side, 0, b.now, out)
		case OpFinish:
			out = b.s.Finished(out)
		case OpClose:
			b.open, b.closed = [2]bool{}, [2]bool{true, true}
			b.own.Closed(b.s.summary(b.now, nil))
		}
	}
}

// Answer and Stop make the rig the session's Conn.
func (b *bareRig) Answer(a Answer) {
	b.target = a.Target
	b.feed(func(out []Action) []Action { return b.s.Routed(a, b.now, out) })
}

func (b *bareRig) Stop(r Reason) {
	b.feed(func(out []Action) []Action { return b.s.Stop(r, b.now, out) })
}

type bareEnd struct {
	b    *bareRig
	side Side
}

func (e bareEnd) send(p []byte) {
	step := len(p)
	if e.b.torn {
		step = 1 + len(p)/500
	}
	for ; len(p) > 0; p = p[min(step, len(p)):] {
		chunk := append([]byte{}, p[:min(step, len(p))]...)
		e.b.feed(func(out []Action) []Action { return e.b.s.Received(e.side, chunk, e.b.now, out) })
	}
}

func (e bareEnd) fin() {
	e.b.feed(func(out []Action) []Action { return e.b.s.Ended(e.side, e.b.now, out) })
}

func (e bareEnd) abort() {
	e.b.feed(func(out []Action) []Action { return e.b.s.Failed(e.side, ReasonNone, "reset", e.b.now, out) })
}

func (e bareEnd) read(_ *testing.T, n int) ([]byte, error) {
	p := e.b.out[e.side].Next(n)
	if len(p) == 0 && e.b.closed[e.side] {
		return nil, io.EOF
	}
	return append([]byte{}, p...), nil
}

// connEnd is a real connection's other end.
type connEnd struct {
	net.Conn
}

func (e connEnd) send(p []byte) { e.Write(p) } // a session that has closed already takes nothing: what it should do is expected elsewhere
func (e connEnd) fin()          { e.Conn.(interface{ CloseWrite() error }).CloseWrite() }

func (e connEnd) abort() {
	under := e.Conn
	if tc, ok := under.(*tls.Conn); ok {
		under = tc.NetConn() // no close_notify
	}
	if tc, ok := under.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	under.Close()
}

func (e connEnd) read(t *testing.T, n int) ([]byte, error) {
	t.Helper()
	e.SetReadDeadline(time.Now().Add(patience))
	p := make([]byte, n)
	m, err := io.ReadFull(e, p)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errTimeout(err)) {
		t.Fatalf("nothing came in %v: got %q so far", patience, p[:m])
	}
	return p[:m], err
}

func errTimeout(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return err
	}
	return io.ErrNoProgress
}
