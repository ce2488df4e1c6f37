package client

import (
	"cmp"
	"slices"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// session is what outlives a connection (§4.1): what was sent and is not acknowledged, and which packet IDs of QoS 2 were received.
// A client has one only once it needs one.
type session struct {
	flights  []flight // in the order of sending; those before head are done
	head     int
	unsent   int // at the end of flights: not sent on this connection yet
	flying   int // publishes sent on this connection and not acknowledged: what the Receive Maximum bounds
	lastID   uint16
	lapped   bool     // a flight is so old that the IDs have come round to it: they are no longer in order
	received []uint16 // packet IDs of QoS 2, from PUBLISH to PUBREL
}

// flight is what was sent and awaits its acknowledgement.
type flight struct {
	token  uint64
	packet *buffer   // the PUBLISH, until the broker has it
	await  mqtt.Kind // PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK
	id     uint16
	sent   bool // once at least: the next time it is DUP
}

func (f *flight) isPublish() bool { return f.await <= mqtt.PUBCOMP }

// newID returns a packet ID that is not in use [MQTT-2.2.1-3]; 0 if all are.
func (s *session) newID() uint16 {
	if len(s.flights)-s.head >= 65_535 {
		return 0
	}
	for range 65_535 {
		s.lastID++
		if s.lastID == 0 {
			s.lastID = 1
		}
		if s.head == len(s.flights) {
			return s.lastID
		}
		// IDs are given in order, so those in use lie in the circle from the first flight's to the last: no search is needed until
		// the circle closes.
		s.lapped = s.lapped || s.lastID == s.flights[s.head].id
		if !s.lapped || s.find(s.lastID) < 0 {
			return s.lastID
		}
	}
	return 0
}

// find returns the index in flights of a packet ID, or -1.
func (s *session) find(id uint16) int {
	all := s.flights[s.head:]
	if len(all) == 0 {
		return -1
	}
	if s.lapped {
		for i := range all {
			if all[i].id == id {
				return s.head + i
			}
		}
		return -1
	}
	first := all[0].id
	if i := int(id - first); i < len(all) && all[i].id == id { // nothing before it was acknowledged out of order
		return s.head + i
	}
	i, found := slices.BinarySearchFunc(all, id-first, func(f flight, distance uint16) int { return cmp.Compare(f.id-first, distance) })
	if !found {
		return -1
	}
	return s.head + i
}

func (s *session) add(f flight) {
	if s.head > 0 && len(s.flights) == cap(s.flights) { // slide instead of growing
		n := copy(s.flights, s.flights[s.head:])
		clear(s.flights[n:])
		s.flights, s.head = s.flights[:n], 0
	}
	s.flights = append(s.flights, f)
}

func (s *session) remove(i int) {
	s.flights[i].packet.release()
	if i == s.head {
		s.flights[i] = flight{}
		s.head++
	} else {
		s.flights = slices.Delete(s.flights, i, i+1)
	}
	if s.head == len(s.flights) {
		s.flights, s.head, s.lapped = s.flights[:0], 0, false
	}
}

// drop removes the flights that cond selects and returns their tokens.
func (s *session) drop(cond func(*flight) bool) []uint64 {
	var tokens []uint64
	for i := s.head; i < len(s.flights); {
		if f := &s.flights[i]; cond(f) {
			tokens = append(tokens, f.token)
			s.remove(i)
			i = max(i, s.head) // removing the first moves head, removing another moves what follows
			continue
		}
		i++
	}
	return tokens
}

// restore prepares the session for a new connection and returns the tokens of what is lost. present is the CONNACK's Session Present.
func (s *session) restore(present, resend bool) []uint64 {
	var lost []uint64
	if !present { // [MQTT-3.2.2-5]: the broker knows nothing any more
		s.received = s.received[:0]
		lost = s.drop(func(f *flight) bool {
			f.sent = false
			// After its PUBREC a message is the broker's, and no longer ours to send.
			return !resend || f.await == mqtt.PUBCOMP
		})
	}
	s.flying = 0
	s.unsent = len(s.flights) - s.head
	return lost
}
