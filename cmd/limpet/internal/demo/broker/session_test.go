package broker

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func owed(payload string, qos byte) *delivery {
	return &delivery{message: &message{topic: "t", payload: []byte(payload), qos: qos}, qos: qos}
}

// drain takes all that the session gives now, as short text: payload or PUBREL, packet ID, ! for DUP.
func drain(s *session) (out []string) {
	for {
		pk, ok := s.take(time.Now())
		if !ok {
			return out
		}
		text := string(pk.Payload)
		if pk.FixedHeader.Type == packets.Pubrel {
			text = "PUBREL"
		}
		if text = fmt.Sprintf("%s %d", text, pk.PacketID); pk.FixedHeader.Dup {
			text += "!"
		}
		out = append(out, text)
	}
}

func expect(t *testing.T, s *session, want ...string) {
	t.Helper()
	if got := drain(s); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSessionResumesInOrder(t *testing.T) {
	s := newSession("c")
	s.add(owed("lost", 0)) // nobody is there
	s.add(owed("a", 1))
	s.add(owed("b", 2))
	s.attach(math.MaxUint16)
	s.add(owed("c", 0))
	s.add(owed("d", 2))
	s.add(owed("e", 1))
	expect(t, s, "a 1", "b 2", "c 0", "d 3", "e 4")
	s.puback(4)
	s.pubrec(3, false)
	s.add(owed("unsent", 0))
	s.detach()
	s.add(owed("f", 1))
	s.add(owed("gone", 0))

	s.attach(math.MaxUint16)
	expect(t, s, "a 1!", "b 2!", "PUBREL 3", "f 5")
	s.pubcomp(3)
	s.puback(2) // not how QoS 2 is answered
	s.pubrec(2, false)
	s.pubcomp(2)
	s.puback(1)
	s.puback(5)
	if _, queued, dropped := s.info(); queued != 0 || dropped != 0 || s.unacked != 0 || len(s.byID) != 0 || s.bytes != 0 {
		t.Errorf("left: %d queued, %d dropped, %d unacknowledged, %d IDs, %d bytes", queued, dropped, s.unacked, len(s.byID), s.bytes)
	}
}

func TestSessionRespectsReceiveMaximum(t *testing.T) {
	s := newSession("c")
	s.attach(2)
	for _, d := range []*delivery{owed("a", 1), owed("b", 2), owed("c", 1), owed("d", 1)} {
		s.add(d)
	}
	expect(t, s, "a 1", "b 2")
	s.pubrec(2, false) // PUBCOMP is what counts
	expect(t, s)
	s.puback(1)
	expect(t, s, "c 3")
	s.detach()
	s.attach(1) // less than is in flight
	expect(t, s, "PUBREL 2")
	s.pubcomp(2)
	expect(t, s, "c 3!")
	s.puback(3)
	expect(t, s, "d 4")
}

func TestSessionBounds(t *testing.T) {
	s := newSession("c")
	big := make([]byte, sessionBytes/4)
	deliver := func() bool {
		return s.add(&delivery{message: &message{topic: "t", payload: big, qos: 1}, qos: 1})
	}
	var ok []bool
	for range 6 {
		ok = append(ok, deliver())
	}
	if want := []bool{true, true, true, false, true, true}; !slices.Equal(ok, want) {
		t.Errorf("got %v: only the first that is dropped is reported", ok)
	}
	if _, queued, dropped := s.info(); queued != 3 || dropped != 3 {
		t.Errorf("%d queued, %d dropped", queued, dropped)
	}
}

func TestSessionDropsExpired(t *testing.T) {
	s := newSession("c")
	for _, payload := range []string{"a", "b", "c"} {
		d := owed(payload, 1)
		if payload == "b" {
			d.message.expires = 1
		}
		s.add(d)
	}
	s.attach(math.MaxUint16)
	expect(t, s, "a 1", "c 2")
}

func TestSessionPacketIDsWrapAround(t *testing.T) {
	s := newSession("c")
	s.attach(math.MaxUint16)
	s.add(owed("first", 1))
	expect(t, s, "first 1")
	s.lastID = math.MaxUint16 - 1
	s.add(owed("x", 1))
	s.add(owed("y", 1))
	expect(t, s, "x 65535", "y 2") // neither 0 nor 1, which is in use
}

func TestSessionEndsRefusedDeliveries(t *testing.T) {
	s := newSession("c")
	s.attach(1)
	s.add(owed("a", 2))
	s.add(owed("b", 1))
	s.add(owed("c", 1))
	expect(t, s, "a 1")
	if !s.pubrec(1, true) || s.pubrec(1, true) {
		t.Error("a refused delivery is known once")
	}
	expect(t, s, "b 2")
	s.abandon(2)
	expect(t, s, "c 3")
}
