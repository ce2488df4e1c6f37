package ledger

import "sync"

// A Stream is what one publisher sends on one topic at one QoS, numbered from 1: the unit in which MQTT promises order.
type Stream struct {
	Publisher, Topic string
	QoS              byte
	ledger           *Ledger

	mu     sync.Mutex // guards what follows, and all flows of the stream
	now    int64      // the latest time told
	last   uint64     // highest number sent
	floor  uint64     // lowest number that is not settled
	counts Counts     // Sent and Acked
	acked  set
	resent set // numbers that the publisher may have sent twice
	away   absences
	flows  []*Flow
}

// Stream opens the books of a stream. Each call makes a new one.
func (l *Ledger) Stream(publisher, topic string, qos byte) *Stream {
	s := &Stream{Publisher: publisher, Topic: topic, QoS: min(qos, 2), ledger: l, floor: 1}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = append(l.streams, s)
	return s
}

// Last returns the highest number sent so far, 0 at first.
func (s *Stream) Last() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Sent notes that seq is about to be sent for the first time: before it is written, since it may arrive before the write returns. Numbers
// must grow; one that could not be written after all may be noted again.
func (s *Stream) Sent(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq > s.last {
		s.last = seq
		s.counts.Sent++
	}
}

// Acked notes that the server took responsibility for seq: PUBACK, or PUBCOMP, with a code of success.
func (s *Stream) Acked(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.QoS == 0 || seq < s.floor || seq > s.last {
		return
	}
	if s.acked.add(seq, 0) {
		s.counts.Acked++
		s.bound(s.acked)
	}
}

// Offline notes that the publisher's connection broke. At QoS 1 it may send again whatever is not acknowledged by now.
func (s *Stream) Offline(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away.leave(at)
	if s.QoS == 1 {
		s.mayResend()
	}
}

// Online notes that the publisher is connected again.
func (s *Stream) Online(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away.back(at)
}

// SessionLost notes that the publisher's session is gone: what it sends again of QoS 2 is new to the server.
func (s *Stream) SessionLost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.QoS > 0 {
		s.mayResend()
	}
}

func (s *Stream) mayResend() {
	s.acked.holes(s.floor, s.last, func(from, to uint64, _ int64) { s.resent.addRange(from, to) })
	s.bound(s.resent)
}

// owed calls fn for the ranges in [from, to] that whoever is subscribed may expect.
func (s *Stream) owed(from, to uint64, fn func(from, to uint64)) {
	if s.QoS > 0 {
		s.acked.within(from, to, fn)
	} else if to = min(to, s.last); from <= to {
		fn(from, to)
	}
}

// bound settles the older half of a set, early, when it has too many holes. It tries only now and then: what cannot be settled yet
// should not be looked through for each message.
func (s *Stream) bound(full set) {
	n, most := len(full), s.ledger.holes
	if n >= force*most || n > 0 && n%most == 0 {
		s.settleBelow(full[n/2].from, n >= force*most)
	}
}

// settleBelow judges all numbers below floor once and for all. Unless forced it leaves out what a subscriber's session may still hold.
func (s *Stream) settleBelow(floor uint64, forced bool) {
	for _, f := range s.flows {
		if !forced {
			floor = min(floor, f.held())
		}
	}
	if floor <= s.floor {
		return
	}
	for _, f := range s.flows {
		f.judge(s.floor, floor-1, s.now, &f.counts, s.ledger.note)
		f.received.cut(floor)
		f.forgetRegions(floor)
	}
	s.acked.cut(floor)
	s.resent.cut(floor)
	s.floor = floor
}

// live returns what is known without judging, by QoS.
func (s *Stream) live() [3]Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known()
}

func (s *Stream) known() [3]Counts {
	var counts [3]Counts
	counts[s.QoS].Add(s.counts)
	for _, f := range s.flows {
		counts[f.qos].Add(f.counts)
	}
	return counts
}

func (s *Stream) settle(at int64, note func(Anomaly)) [3]Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.known()
	for _, f := range s.flows {
		f.judge(s.floor, s.last, at, &counts[f.qos], note)
	}
	return counts
}
