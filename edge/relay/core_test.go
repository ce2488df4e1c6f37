package relay

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// sessionIn is a session that has got to a phase by the usual events.
func sessionIn(t *testing.T, phase Phase, l *Limits) *Session {
	t.Helper()
	s := new(Session)
	s.Start(l, 1, false)
	for _, event := range []func(){
		func() { s.Received(Client, connect311, 1, nil) },
		func() { s.Routed(Answer{Target: &Target{}}, 1, nil) },
		func() { s.Dialed(nil, 1, nil) },
		func() { s.Received(Broker, connack311, 1, nil) },
	} {
		if s.Phase == phase {
			return s
		}
		event()
	}
	if s.Phase != phase {
		t.Fatalf("phase %d", s.Phase)
	}
	return s
}

func ops(out []Action) (list []Op) {
	for _, a := range out {
		list = append(list, a.Op)
	}
	return list
}

// A transport's error is the reason of the close, whenever it comes; that of a broker which is then replaced is not.
func TestTransportErrorIsTheReason(t *testing.T) {
	for _, phase := range []Phase{AwaitConnect, Routing, Dialing, AwaitConnack, Relaying} {
		s := sessionIn(t, phase, &Limits{})
		s.Failed(Client, ReasonTransport, "unmasked frame", 2, nil)
		if s.Phase != Closed {
			s.Ended(Broker, 3, nil)
			s.Finished(nil)
		}
		if s.Phase != Closed || s.Reason != ReasonTransport || s.kept().Detail != "unmasked frame" {
			t.Errorf("phase %d: ended in phase %d with %v %q", phase, s.Phase, s.Reason, s.kept().Detail)
		}
	}

	s := sessionIn(t, AwaitConnack, &Limits{})
	s.Failed(Broker, ReasonTransport, "masked frame", 2, nil)
	if s.Phase != Routing {
		t.Fatalf("phase %d: a broker that broke is not replaced", s.Phase)
	}
	s.Routed(Answer{Target: &Target{}}, 3, nil)
	s.Dialed(nil, 3, nil)
	s.Received(Broker, connack311, 3, nil)
	s.Received(Client, goodbye, 4, nil)
	s.Ended(Client, 5, nil)
	s.Ended(Broker, 6, nil)
	s.Finished(nil)
	if s.Phase != Closed || s.Reason != ReasonClientDisconnect || s.kept().Detail != "" {
		t.Errorf("phase %d, %v %q: the first broker's fault is the session's", s.Phase, s.Reason, s.kept().Detail)
	}
}

// A client that vanishes while the broker is awaited has closed, whatever the broker does.
func TestTheDeadAreNotWaitedFor(t *testing.T) {
	s := sessionIn(t, AwaitConnack, &Limits{})
	s.Failed(Client, ReasonNone, "reset", 2, nil)
	if s.Deadline != 2+int64(DefaultLinger) {
		t.Errorf("deadline %v", time.Duration(s.Deadline))
	}
	if s.Tick(s.Deadline, nil); s.Phase != Closed || s.Reason != ReasonClientClosed || s.kept().Detail != "reset" {
		t.Errorf("phase %d, %v %q", s.Phase, s.Reason, s.kept().Detail)
	}

	s = sessionIn(t, AwaitConnack, &Limits{})
	s.Failed(Client, ReasonNone, "reset", 2, nil)
	if s.Received(Broker, connack311, 3, nil); s.Deadline != 3+int64(DefaultLinger) {
		t.Errorf("deadline %v after the CONNACK", time.Duration(s.Deadline))
	}
}

// A broker that refuses closes [MQTT-3.2.2-5]; where neither it nor the client does, we do.
func TestARefusedClientDoesNotStay(t *testing.T) {
	s := sessionIn(t, AwaitConnack, &Limits{})
	s.Received(Broker, refused311, 2, nil)
	if s.Deadline == 0 {
		t.Fatal("no deadline")
	}
	if s.Tick(s.Deadline, nil); s.Phase != Closed || s.Reason != ReasonBrokerRefused {
		t.Errorf("phase %d, %v", s.Phase, s.Reason)
	}
}

// A client whose broker has ended gets what is on its way to it for as long as it takes it, within a bound, and no longer.
func TestABrokersLastWordsAreRead(t *testing.T) {
	ended := func(left int) *Session {
		s := sessionIn(t, Relaying, &Limits{})
		if got := ops(s.Ended(Broker, 2, nil)); !slices.Equal(got, []Op{OpBrokerEnded, OpShutdown, OpFlow}) {
			t.Fatalf("asks for %v", got)
		}
		if s.Flow(left, 2, nil); s.Phase != Relaying || s.Deadline != 2+int64(DefaultLinger) {
			t.Fatalf("phase %d, deadline %v", s.Phase, time.Duration(s.Deadline))
		}
		return s
	}
	for _, c := range []struct {
		what string
		left []int // at each look
		ends time.Duration
	}{
		{"all is read", []int{0, 0}, DefaultLinger},
		{"nothing is read", []int{5000, 5000}, DefaultLinger},
		{"some is read, then all", []int{5000, 3000, 1, 0}, 3 * DefaultLinger},
		{"some is read, then no more", []int{5000, 3000, 3000}, 2 * DefaultLinger},
		{"something is always read", []int{99, 98, 97, 96, 95, 94, 93, 92, 91, 90, 89, 88, 87, 86, 85, 84, 83, 82, 81}, halfCloseTimeout},
	} {
		s := ended(c.left[0])
		now := int64(0)
		for _, left := range c.left[1:] {
			now = s.Deadline
			if got := ops(s.Tick(now, nil)); !slices.Contains(got, OpFlow) {
				break
			}
			s.Flow(left, now, nil)
		}
		if s.Phase != Closed || s.Reason != ReasonBrokerClosed || now != 2+int64(c.ends) {
			t.Errorf("%s: phase %d, %v after %v; want closed after %v", c.what, s.Phase, s.Reason, time.Duration(now-2), c.ends)
		}
	}
}

// Every phase but Relaying (and there, after any side's end) has a deadline, and its Tick leads on: no session stays for ever.
func TestEveryWaitHasAnEnd(t *testing.T) {
	events := map[string]func(s *Session, now int64) []Action{
		"nothing":          func(*Session, int64) []Action { return nil },
		"client ended":     func(s *Session, now int64) []Action { return s.Ended(Client, now, nil) },
		"broker ended":     func(s *Session, now int64) []Action { return s.Ended(Broker, now, nil) },
		"client failed":    func(s *Session, now int64) []Action { return s.Failed(Client, ReasonNone, "", now, nil) },
		"broker failed":    func(s *Session, now int64) []Action { return s.Failed(Broker, ReasonNone, "", now, nil) },
		"client shut":      func(s *Session, now int64) []Action { return s.Unwritable(Client, "", now, nil) },
		"broker shut":      func(s *Session, now int64) []Action { return s.Unwritable(Broker, "", now, nil) },
		"stopped":          func(s *Session, now int64) []Action { return s.Stop(ReasonMoved, now, nil) },
		"client's goodbye": func(s *Session, now int64) []Action { return s.Received(Client, goodbye, now, nil) },
		"garbage":          func(s *Session, now int64) []Action { return s.Received(Client, []byte{0, 0, 0}, now, nil) },
	}
	for phase := AwaitConnect; phase <= Relaying; phase++ {
		for first, a := range events {
			for second, b := range events {
				s := sessionIn(t, phase, &Limits{})
				brokerThere := phase >= AwaitConnack
				if !brokerThere && (strings.HasPrefix(first, "broker") || strings.HasPrefix(second, "broker")) {
					continue
				}
				now, left := int64(2), 1_000_000
				a(s, now)
				if s.Phase < AwaitConnack && strings.HasPrefix(second, "broker") {
					continue // there is no broker any more
				}
				b(s, now)
				for range 3*maxAttempts + 10 {
					if s.Phase == Closed || s.Deadline == 0 {
						break
					}
					now = s.Deadline
					for _, op := range ops(s.Tick(now, nil)) {
						if op == OpFlow {
							left-- // the client reads, and does not close
							s.Flow(left, now, nil)
						}
					}
				}
				idle := s.Phase == Relaying && s.EOF == [2]bool{} && s.Dead == [2]bool{}
				if s.Phase != Closed && !idle {
					t.Errorf("phase %d, %s, then %s: stays in phase %d, deadline %d", phase, first, second, s.Phase, s.Deadline)
				}
			}
		}
	}
}

// What precedes the CONNACK is bounded over all sessions, and small CONNECTs pass even when nothing is left.
func TestBudget(t *testing.T) {
	b := NewBudget(100 << 10)
	l := &Limits{Held: b}
	var greedy []*Session
	big := make([]byte, 60<<10)
	copy(big, []byte{0x10, 0x80, 0x80, 5, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60}) // 80 KiB are announced
	for range 2 {
		s := new(Session)
		s.Start(l, 1, false)
		s.Received(Client, big, 2, nil)
		greedy = append(greedy, s)
	}
	if greedy[0].Phase != AwaitConnect || greedy[1].Phase != Closed || greedy[1].Reason != ReasonOverload {
		t.Fatalf("phases %d %d, %v", greedy[0].Phase, greedy[1].Phase, greedy[1].Reason)
	}
	if got, want := b.Used(), int64(len(big)-freeHeld); got != want {
		t.Errorf("%d bytes taken, want %d", got, want)
	}
	b.used.Add(100 << 10) // nothing is left
	small := new(Session)
	small.Start(l, 1, false)
	if out := small.Received(Client, append(append([]byte{}, connect311...), publish...), 2, nil); small.Phase != Routing {
		t.Errorf("a small CONNECT is shut out: %v", ops(out))
	}
	if small.Received(Client, make([]byte, 4<<10), 2, nil); small.Phase != Closing || small.Reason != ReasonOverload {
		t.Errorf("what is pipelined is not counted: phase %d, %v", small.Phase, small.Reason)
	}
	b.used.Add(-100 << 10)

	// It is given back on every way out.
	greedy[0].Ended(Client, 3, nil)
	if b.Used() != 0 {
		t.Errorf("%d bytes taken after a close", b.Used())
	}
	s := sessionIn(t, Routing, l)
	s.Received(Client, make([]byte, 10<<10), 2, nil)
	if b.Used() == 0 {
		t.Error("nothing taken for what is pipelined")
	}
	moved := new(Session)
	moved.Resume(l, s.State)
	s.letGo()
	if got := b.Used(); got != int64(moved.Charged) || got == 0 {
		t.Errorf("%d bytes taken by a session that moved, want %d", got, moved.Charged)
	}
	moved.Routed(Answer{Target: &Target{}}, 3, nil)
	moved.Dialed(nil, 3, nil)
	moved.Received(Broker, connack311, 3, nil)
	if moved.Phase != Relaying || b.Used() != 0 {
		t.Errorf("phase %d, %d bytes taken after the CONNACK", moved.Phase, b.Used())
	}
}

// A broker's first packets in single bytes cost what they weigh.
func TestConnackInPieces(t *testing.T) {
	big := append([]byte{0xf0, 0x80, 0x80, 4}, make([]byte, 64<<10)...)
	stream := append(append(append([]byte{}, big...), auth5...), connack5...)
	var s *Session
	got, out := make([]byte, 0, len(stream)), make([]Action, 0, 8)
	allocs := testing.AllocsPerRun(1, func() {
		s, got = sessionIn(t, AwaitConnack, &Limits{}), got[:0]
		s.Version = mqtt.V5
		for i := range stream {
			out = s.Received(Broker, stream[i:i+1], 2, out[:0])
			for _, a := range out {
				if a.Op == OpWrite {
					got = append(got, a.Data...)
				}
			}
		}
	})
	if !bytes.Equal(got, stream) || s.Phase != Relaying {
		t.Errorf("phase %d, %d of %d bytes passed", s.Phase, len(got), len(stream))
	}
	if allocs > 200 {
		t.Errorf("%v allocations for %d bytes", allocs, len(stream))
	}
}

// The same bytes, torn differently, do the same: to either side, and to the owner.
func FuzzTearing(f *testing.F) {
	f.Add(append(append(append([]byte{}, connect311...), publish...), goodbye...), append(append([]byte{}, connack311...), pong...), uint64(1))
	f.Add(append(append([]byte{}, connect5...), goodbye5...), append(append(append([]byte{}, auth5...), connack5...), bigPublish...), uint64(2))
	f.Add([]byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), []byte{}, uint64(3))
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5}, []byte{}, uint64(4))
	f.Add(append(append(append([]byte{}, connect5...), goodbye5...), 0, 0, 0), refused311, uint64(5))
	f.Fuzz(func(t *testing.T, fromClient, fromBroker []byte, seed uint64) {
		if len(fromClient) > 1<<15 || len(fromBroker) > 1<<15 {
			return
		}
		whole := tear(fromClient, fromBroker, nil)
		rnd := rand.New(rand.NewPCG(seed, 7))
		if torn := tear(fromClient, fromBroker, rnd); torn != whole {
			t.Fatalf("torn %+v\nwhole %+v", torn, whole)
		}
	})
}

// outcome is all that anybody sees of a session.
type outcome struct {
	toClient, toBroker, told string
	phase                    Phase
	reason                   Reason
	packets                  [2]uint64
}

// tear gives a session the client's bytes and then the broker's, in pieces as rnd says; nil: each at once.
func tear(fromClient, fromBroker []byte, rnd *rand.Rand) (o outcome) {
	var s Session
	s.Start(&Limits{ConnectSize: 1 << 12, Held: NewBudget(0)}, 1, false)
	var out [2][]byte
	connected := false
	run := func(as []Action) {
		for i := 0; i < len(as); i++ {
			switch a := as[i]; a.Op {
			case OpWrite:
				out[a.Side] = append(out[a.Side], a.Data...)
			case OpRoute:
				as = s.Routed(Answer{Target: &Target{}}, 2, as)
			case OpDial:
				// The broker is reached when the client has said all: what it pipelines is held.
			case OpDrop:
				connected = false
			case OpAccepted, OpGoodbye:
				o.told += string('A'+rune(a.Op)) + string(a.Data[:min(len(a.Data), 64)])
			case OpFlow:
				as = s.Flow(0, 2, as)
			case OpFinish:
				as = s.Finished(as)
			}
		}
	}
	feed := func(side Side, p []byte) {
		for len(p) > 0 && (side == Client || connected) {
			n := len(p)
			if rnd != nil {
				n = min(n, 1+rnd.IntN(1+rnd.IntN(40)))
			}
			run(s.Received(side, p[:n], 2, nil))
			p = p[n:]
		}
	}
	feed(Client, fromClient)
	if s.Phase == Dialing {
		connected = true
		run(s.Dialed([]byte("P"), 2, nil))
		feed(Broker, fromBroker)
	}
	o.toClient, o.toBroker = string(out[Client]), string(out[Broker])
	if s.Phase == Relaying {
		run(s.Stop(ReasonShutdown, 2, nil))
		o.toClient += "|" + string(out[Client][len(o.toClient):]) // whether we stood between two packets
	}
	o.phase, o.reason, o.packets = s.Phase, s.Reason, s.Packets
	return o
}
