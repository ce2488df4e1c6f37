package relay

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

const second = int64(time.Second)

// There is a Session for every client that is connected.
func TestASessionIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Session{}); n > 144 {
		t.Errorf("%d bytes", n)
	}
	s := sessionIn(t, Relaying, &Limits{})
	if s.Ends != nil {
		t.Errorf("keeps what only its beginning needed: %+v", s.Ends)
	}
}

// watched is a session that is being relayed from second 1 on.
func watched(t *testing.T, l *Limits, connect, connack []byte) *Session {
	t.Helper()
	s := new(Session)
	s.Start(l, second, false)
	s.Received(Client, connect, second, nil)
	s.Routed(Answer{Target: &Target{}}, second, nil)
	s.Dialed(nil, second, nil)
	s.Received(Broker, connack, second, nil)
	if s.Phase != Relaying {
		t.Fatalf("phase %d", s.Phase)
	}
	return s
}

func connectWith(v mqtt.Version, keepAlive uint16) []byte {
	return mqtt.AppendConnect(nil, &mqtt.Connect{Version: v, ClientID: []byte("dev"), CleanStart: true, KeepAlive: keepAlive})
}

// serverKeepAlive is a CONNACK of MQTT 5 with one [MQTT5 §3.2.2.3.14].
func serverKeepAlive(n byte) []byte { return []byte{0x20, 6, 0, 0, 3, 0x13, 0, n} }

func TestKeepAlive(t *testing.T) {
	for _, c := range []struct {
		what             string
		limits           Limits
		connect, connack []byte
		due              int64 // in seconds; 0 = never
	}{
		{"one and a half times", Limits{}, connectWith(mqtt.V311, 60), connack311, 91},
		{"MQTT 3.1", Limits{}, connectWith(mqtt.V31, 60), connack311, 91},
		{"a second", Limits{}, connectWith(mqtt.V311, 1), connack311, 3},
		{"the longest", Limits{}, connectWith(mqtt.V311, 65_535), connack311, 98_304},
		{"none", Limits{}, connectWith(mqtt.V311, 0), connack311, 0},
		{"another factor", Limits{KeepAlive: 2.5}, connectWith(mqtt.V5, 60), connack5, 151},
		{"nobody watches", Limits{KeepAlive: -1}, connectWith(mqtt.V311, 60), connack311, 0},
		{"the server's, shorter", Limits{}, connectWith(mqtt.V5, 60), serverKeepAlive(10), 16},
		{"the server's, longer", Limits{}, connectWith(mqtt.V5, 10), serverKeepAlive(100), 151},
		{"the server's, where the client has none", Limits{}, connectWith(mqtt.V5, 0), serverKeepAlive(10), 16},
		{"the server's: none", Limits{}, connectWith(mqtt.V5, 60), serverKeepAlive(0), 0},
		{"a refusal has a deadline of its own", Limits{}, connectWith(mqtt.V311, 600), refused311, 31},
	} {
		if s := watched(t, &c.limits, c.connect, c.connack); s.Deadline != c.due*second {
			t.Errorf("%s: due after %v, want %d s", c.what, time.Duration(s.Deadline), c.due)
		}
	}
}

// A client that is silent is told, and its broker is not: the connection is cut, so that the Will is published.
func TestASilentClientIsEnded(t *testing.T) {
	s := watched(t, &Limits{}, connectWith(mqtt.V5, 60), connack5)
	s.Received(Client, publish, 50*second, nil)
	s.Received(Broker, publish, 90*second, nil) // what the broker sends does not count
	if out := s.Tick(91*second, nil); len(out) > 0 || s.Deadline != 140*second {
		t.Fatalf("asks for %v, due after %v", ops(out), time.Duration(s.Deadline))
	}
	if got := s.Tick(140*second, nil); len(got) != 1 || got[0].Op != OpUnread || got[0].Side != Client {
		t.Fatalf("asks for %v", got)
	}
	// It has sent something that nobody has read yet.
	if out := s.Unread(Client, 1, 140*second, nil); len(out) > 0 || s.Deadline != 230*second || s.Phase != Relaying {
		t.Fatalf("phase %d, asks for %v, due after %v", s.Phase, ops(out), time.Duration(s.Deadline))
	}
	s.Tick(230*second, nil)
	out := s.Unread(Client, 0, 230*second, nil)
	if !slices.Equal(ops(out), []Op{OpDrop, OpWrite, OpShutdown}) || !bytes.Equal(out[1].Data, []byte{0xe0, 2, mqtt.KeepAliveTimeout, 0}) {
		t.Errorf("asks for %v", out)
	}
	if s.Phase != Closing || s.Reason != ReasonKeepAlive || s.Deadline != 230*second+int64(DefaultLinger) {
		t.Errorf("phase %d, %v, due after %v", s.Phase, s.Reason, time.Duration(s.Deadline))
	}
	if out := s.Unread(Client, 0, 231*second, nil); len(out) > 0 {
		t.Errorf("an answer to nothing does %v", ops(out))
	}

	// One that has said goodbye and does not close has left by itself.
	s = watched(t, &Limits{}, connectWith(mqtt.V5, 60), connack5)
	s.Received(Client, goodbye, 2*second, nil)
	s.Tick(s.Deadline, nil)
	now := s.Deadline
	if out := s.Unread(Client, 0, now, nil); len(out) > 0 || s.Deadline != now+int64(DefaultLinger) {
		t.Errorf("asks for %v, due after %v", ops(out), time.Duration(s.Deadline))
	}
	if s.Tick(s.Deadline, nil); s.Phase != Closed || s.Reason != ReasonClientDisconnect {
		t.Errorf("phase %d, %v", s.Phase, s.Reason)
	}
}

// A broker has to answer a PINGREQ, with whatever it says.
func TestASilentBrokerIsGivenUp(t *testing.T) {
	for _, c := range []struct {
		what      string
		keepAlive uint16
		events    func(s *Session)
		due       int64 // in seconds: when it is; 0 = it is not
	}{
		{"a PINGREQ without an answer", 100, func(s *Session) { s.Received(Client, ping, 50*second, nil) }, 200},
		{"no sooner than TCP would", 10, func(s *Session) { s.Received(Client, ping, 10*second, nil) }, 70},
		{"in pieces, between others", 10, func(s *Session) {
			s.Received(Client, append(append([]byte{}, publish...), ping[0]), 9*second, nil)
			s.Received(Client, append(ping[1:2:2], publish...), 10*second, nil)
		}, 70},
		{"the first of many counts", 10, func(s *Session) {
			for i := range int64(5) {
				s.Received(Client, ping, (10+i)*second, nil)
			}
		}, 70},
		{"it had answered another", 10, func(s *Session) {
			s.Received(Client, ping, 10*second, nil)
			s.Received(Broker, pong, 11*second, nil)
			s.Received(Client, ping, 20*second, nil)
		}, 80},
		{"it answers", 10, func(s *Session) {
			s.Received(Client, ping, 10*second, nil)
			s.Received(Broker, pong[:1], 11*second, nil)
		}, 0},
		{"nobody asked", 10, func(s *Session) { s.Received(Client, publish, 10*second, nil) }, 0},
	} {
		s := watched(t, &Limits{}, connectWith(mqtt.V5, c.keepAlive), connack5)
		c.events(s)
		ended := int64(0)
		for now := 15 * second; now < 300*second && ended == 0; now += second {
			s.Received(Client, publish, now, nil) // it lives
			for _, a := range s.Tick(now, nil) {
				if a.Op != OpUnread || a.Side != Broker {
					t.Fatalf("%s: asks for %v after %v", c.what, a, time.Duration(now))
				}
				s.Unread(Broker, 0, now, nil)
				ended = now
			}
		}
		late := int64(float64(c.keepAlive) * DefaultKeepAlive) // looks are no more frequent than that
		if ended < c.due*second || ended > (c.due+late)*second || c.due == 0 && ended != 0 {
			t.Errorf("%s: after %v, want %d s", c.what, time.Duration(ended), c.due)
		}
		if c.due != 0 && (s.Phase != Closing || s.Reason != ReasonBrokerTimeout) {
			t.Errorf("%s: phase %d, %v", c.what, s.Phase, s.Reason)
		}
	}
}

// What ends a session has its own time: the next look is none of it.
func TestTheWatchEndsWithTheSession(t *testing.T) {
	for what, event := range map[string]func(s *Session, now int64){
		"the client takes no more": func(s *Session, now int64) { s.Unwritable(Client, "", now, nil) },
		"the broker takes no more": func(s *Session, now int64) { s.Unwritable(Broker, "", now, nil) },
		"the client is reset":      func(s *Session, now int64) { s.Failed(Client, ReasonNone, "", now, nil) },
		"stopped after a goodbye": func(s *Session, now int64) {
			s.Received(Client, goodbye, now, nil)
			s.Stop(ReasonShutdown, now, nil)
		},
	} {
		s := watched(t, &Limits{}, connectWith(mqtt.V5, 60), connack5)
		now := s.Deadline - 10
		s.Received(Client, publish, now, nil)
		if event(s, now); s.Deadline != now+int64(DefaultLinger) {
			t.Errorf("%s: %v are left", what, time.Duration(s.Deadline-now))
		}
		for range 5 {
			if s.Phase != Closed {
				s.Tick(s.Deadline, nil)
			}
		}
		if s.Phase != Closed || s.Reason == ReasonKeepAlive {
			t.Errorf("%s: phase %d, %v", what, s.Phase, s.Reason)
		}
	}
}

// The same through every driver.
func TestKeepAliveThroughDrivers(t *testing.T) {
	l := Limits{KeepAlive: 0.1}
	for _, kind := range rigKinds() {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			own, l := newScriptOwner(nil), l
			r := kind.make(t, own, &l, false)
			connect := connectWith(mqtt.V5, 1)
			for _, s := range []step{
				client(connect), brokerGets(prelude, connect), broker(connack5), clientGets(connack5), client(ping), brokerGets(ping), broker(pong),
				clientGets(pong), after(3 * time.Second), clientGets([]byte{0xe0, 2, mqtt.KeepAliveTimeout, 0}), clientEnds, brokerEnds, clientFIN,
				told("closed keep_alive"),
			} {
				s(t, r)
			}
		})
	}
}

// A client that its broker holds back is not silent: what it sends waits in its socket.
func TestWhoIsHeldBackIsNotSilent(t *testing.T) {
	for name, run := range relays() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stall := make(chan struct{})
			got := make(chan int64, 1)
			first := make(chan struct{}, 1)
			first <- struct{}{}
			at := brokers(t, func(c *net.TCPConn) {
				select {
				case <-first:
					<-stall
					n, _ := io.Copy(io.Discard, c)
					got <- n
				default:
					io.Copy(io.Discard, c)
				}
			})
			ended := make(chan Summary, 4)
			addr := run(t, at, &Limits{KeepAlive: 0.1}, func(s Summary) { ended <- s })
			connect := connectWith(mqtt.V311, 1)
			dial := func() *net.TCPConn {
				c := mustDial(t, addr)
				c.SetDeadline(time.Now().Add(patience))
				c.Write(connect)
				if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
					t.Fatal(err)
				}
				return c
			}
			held := dial()
			sent := make(chan int64, 1)
			all := int64(len(publish)) << 21 // more than sockets take
			go func() {
				n, _ := io.Copy(held, io.LimitReader(endless{publish}, all))
				sent <- n
			}()
			for range 2 { // those who come after it and are silent are ended meanwhile
				c := dial()
				if s := receive(t, "an end", ended); s.Reason != ReasonKeepAlive {
					t.Fatalf("closed: %v", s.Reason)
				}
				c.Close()
			}
			close(stall)
			if n := receive(t, "all is sent", sent); n != all {
				t.Errorf("%d bytes sent", n)
			}
			held.CloseWrite()
			if n := receive(t, "all has come", got); n != all {
				t.Errorf("%d bytes came, want %d", n, all)
			}
		})
	}
}

// endless repeats p.
type endless struct{ p []byte }

func (e endless) Read(b []byte) (n int, err error) {
	for n+len(e.p) <= len(b) {
		n += copy(b[n:], e.p)
	}
	return n, nil
}
