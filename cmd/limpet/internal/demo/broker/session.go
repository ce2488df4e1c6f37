package broker

import (
	"container/list"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// session is what the broker keeps for one client ID: the messages it owes the client, in order, and the
// packet IDs that it owes the client an answer for. It outlives connections as the client's MQTT session does.
//
// It replaces mochi's own list of messages in flight, which has one map for both directions (a client's packet ID
// overwrites the broker's equal one), is sorted by whole seconds, loses messages beyond the Receive Maximum, and
// drops what does not fit a channel.
//
//	owed:   | sent, awaiting PUBACK, PUBREC or PUBCOMP | not sent on this connection |
//	                                                     next
type session struct {
	id   string
	wake chan struct{} // capacity 1: there may be something to send

	mu       sync.Mutex
	online   bool
	window   int                      // messages with QoS > 0 that the client takes unacknowledged
	unacked  int                      // of them, sent on this connection
	owed     *list.List               // of *delivery
	next     *list.Element            // the first to send; nil: none
	byID     map[uint16]*list.Element // deliveries that have a packet ID
	lastID   uint16
	bytes    int
	dropped  uint64
	incoming map[uint16]struct{} // QoS 2 packet IDs published, awaiting PUBREL [MQTT-4.3.3-10]
}

// delivery is one message on its way to one client.
type delivery struct {
	message  *message // nil once the client has it (PUBREC): PUBREL is owed
	qos      byte
	retain   bool
	subIDs   []int
	packetID uint16 // 0: never sent
	sent     bool   // on this connection
	size     int
}

func newSession(id string) *session {
	return &session{
		id: id, wake: make(chan struct{}, 1), owed: list.New(),
		byID: make(map[uint16]*list.Element), incoming: make(map[uint16]struct{}),
	}
}

// add appends a delivery and reports whether there was room. QoS 0 is not kept for a client that is away.
func (s *session) add(d *delivery) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.qos == 0 && !s.online {
		return true
	}
	d.size = d.message.size()
	if s.owed.Len() >= sessionMessages || s.bytes+d.size > sessionBytes && s.owed.Len() > 0 {
		s.dropped++
		return s.dropped > 1 // the first is worth a line in the log
	}
	s.bytes += d.size
	if e := s.owed.PushBack(d); s.next == nil {
		s.next = e
	}
	s.signal()
	return true
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// attach begins a connection: everything unacknowledged is sent again, in its order, with its packet ID
// [MQTT-4.4.0-1], [MQTT-4.6.0-1].
func (s *session) attach(window int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online, s.window, s.unacked = true, window, 0
	s.next = s.owed.Front()
	for e := s.next; e != nil; e = e.Next() {
		e.Value.(*delivery).sent = false
	}
}

// detach ends a connection.
func (s *session) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online = false
	for e := s.owed.Front(); e != nil; {
		following := e.Next()
		if e.Value.(*delivery).qos == 0 {
			s.remove(e)
		}
		e = following
	}
}

// take returns the next packet to send, if there is one and the client takes it now.
func (s *session) take(now time.Time) (pk packets.Packet, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.next != nil {
		e := s.next
		d := e.Value.(*delivery)
		if d.packetID == 0 && d.message.expired(now) { // [MQTT-3.3.2-5]
			s.remove(e)
			continue
		}
		if d.qos == 0 {
			pk = d.publish(now)
			s.remove(e)
			return pk, true
		}
		if s.unacked >= s.window { // [MQTT-3.3.4-9]
			return pk, false
		}
		if d.packetID == 0 {
			d.packetID = s.newID()
			s.byID[d.packetID] = e
			pk = d.publish(now)
		} else {
			pk = d.again(now)
		}
		d.sent = true
		s.unacked++
		s.next = e.Next()
		return pk, true
	}
	return pk, false
}

// newID returns a packet ID that is not in use [MQTT-2.2.1-4]. There is one: fewer than window are.
func (s *session) newID() uint16 {
	for {
		s.lastID++
		if _, used := s.byID[s.lastID]; s.lastID != 0 && !used {
			return s.lastID
		}
	}
}

// publish is the PUBLISH of a delivery.
func (d *delivery) publish(now time.Time) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: d.qos, Retain: d.retain},
		PacketID:    d.packetID,
		TopicName:   d.message.topic,
		Payload:     d.message.payload,
		Properties:  d.message.properties(now),
	}
	pk.Properties.SubscriptionIdentifier = d.subIDs
	return pk
}

// again is what a delivery continues with on a new connection.
func (d *delivery) again(now time.Time) packets.Packet {
	if d.message == nil {
		return packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, // its flags are 0010 [MQTT-3.6.1-1]
			PacketID:    d.packetID,
		}
	}
	pk := d.publish(now)
	pk.FixedHeader.Dup = true // [MQTT-3.3.1-1]
	return pk
}

// remove ends a delivery. s.mu is held.
func (s *session) remove(e *list.Element) {
	d := e.Value.(*delivery)
	if s.next == e {
		s.next = e.Next()
	}
	if d.sent {
		s.unacked--
		s.signal()
	}
	if d.packetID != 0 {
		delete(s.byID, d.packetID)
	}
	s.bytes -= d.size
	s.owed.Remove(e)
}

// puback, pubrec and pubcomp take the client's answers. Those that fit nothing are ignored.
func (s *session) puback(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil && e.Value.(*delivery).qos == 1 {
		s.remove(e)
	}
}

// pubrec reports whether the packet ID is one of a QoS 2 delivery.
func (s *session) pubrec(id uint16, refused bool) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil || e.Value.(*delivery).qos != 2 {
		return false
	}
	if refused { // that ends it [MQTT-4.3.3-4]
		s.remove(e)
		return true
	}
	d := e.Value.(*delivery)
	d.message = nil // [MQTT-4.3.3-5]
	s.bytes -= d.size
	d.size = 0
	return true
}

func (s *session) pubcomp(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil && e.Value.(*delivery).message == nil {
		s.remove(e)
	}
}

// abandon ends the delivery of a packet that is too large for the client, as if it had taken it [MQTT-3.1.2-25].
func (s *session) abandon(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil {
		s.remove(e)
	}
}

// received notes a QoS 2 packet ID whose message has been published; released undoes it and reports whether
// it had been noted, holds whether it is.
func (s *session) received(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incoming[id] = struct{}{}
}

func (s *session) released(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.incoming[id]
	delete(s.incoming, id)
	return ok
}

func (s *session) holds(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.incoming[id]
	return ok
}

func (s *session) info() (online bool, queued int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.online, s.owed.Len(), s.dropped
}
