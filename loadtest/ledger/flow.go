package ledger

import "slices"

// A Flow is a stream on its way to one subscriber.
type Flow struct {
	Subscriber string
	stream     *Stream
	qos        byte // of the deliveries

	// All guarded by the stream's lock.
	counts   Counts // what needs no judging, and what was judged early
	received set
	regions  []region
	away     absences
	resume   bool // at QoS 0: nothing is owed while away, but again when back
}

// A standing is what a subscriber may expect.
type standing byte

const (
	stranger   standing = iota // nothing
	subscribed                 // everything
	bereft                     // what its session held is gone with it
)

// A region gives the standing of all numbers from from on, up to the next region.
type region struct {
	from uint64
	standing
}

// Flow opens the books of a subscriber, to whom deliveries come at the lower of the stream's QoS and the granted one. Until
// Subscribed it expects nothing.
func (s *Stream) Flow(subscriber string, granted byte) *Flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &Flow{Subscriber: subscriber, stream: s, qos: min(s.QoS, granted), regions: []region{{0, stranger}}}
	s.flows = append(s.flows, f)
	return f
}

// Subscribed notes that the subscriber expects all numbers from the given one on: the first to be sent after its SUBACK.
func (f *Flow) Subscribed(from uint64) {
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	f.turn(from, subscribed)
}

// Unsubscribed notes that the subscriber expects nothing more, not even what is on its way: it unsubscribed, or a session that does not
// outlast its connection ended.
func (f *Flow) Unsubscribed() {
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	f.resume = false
	f.turn(f.received.max()+1, stranger)
}

// Offline notes that the subscriber's connection broke.
func (f *Flow) Offline(at int64) {
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	f.away.leave(at)
	if f.qos == 0 && f.standing() == subscribed {
		f.resume = true
		f.turn(f.received.max()+1, stranger)
	}
}

// Online notes that the subscriber is connected again.
func (f *Flow) Online(at int64) {
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	f.away.back(at)
	if f.resume {
		f.resume = false
		f.turn(f.stream.last+1, subscribed)
	}
}

// SessionLost notes that the subscriber's session is gone, and its subscription with it: found at its return, by a CONNACK without
// Session Present where one was due. Call it right before or right after Online.
//
// What the session may have held is excused: all numbers above the highest that came. A hole below that was there before, so it is
// not excused, unless it was noticed during the session's last connection: the server may have been sending its queue out of order.
func (f *Flow) SessionLost() {
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	f.resume = false
	if f.standing() != subscribed {
		return
	}
	if f.qos == 0 {
		f.turn(f.received.max()+1, stranger)
		return
	}
	f.turn(f.held(), bereft)
}

// held is the lowest number that the subscriber's session may still hold.
func (f *Flow) held() uint64 {
	from, since := f.received.max()+1, f.away.lifeStart()
	f.received.holes(f.regions[len(f.regions)-1].from, f.received.max(), func(hole, _ uint64, noticed int64) {
		if noticed >= since {
			from = min(from, hole)
		}
	})
	return from
}

// standing is the current one.
func (f *Flow) standing() standing { return f.regions[len(f.regions)-1].standing }

// turn changes the standing of all numbers from from on, but not that of earlier regions: those are history.
func (f *Flow) turn(from uint64, to standing) {
	last := &f.regions[len(f.regions)-1]
	if last.standing == to {
		return
	}
	if from > last.from {
		f.regions = append(f.regions, region{from, to})
	} else {
		last.standing = to
	}
}

// forgetRegions drops those that end below floor.
func (f *Flow) forgetRegions(floor uint64) {
	n := 0
	for n+1 < len(f.regions) && f.regions[n+1].from <= floor {
		n++
	}
	f.regions = slices.Delete(f.regions, 0, n)
}

// Received notes a delivery: its number, whether it was marked as a duplicate, when it was sent (as the payload says; 0 if that is
// not known, which is never late) and when it came.
func (f *Flow) Received(seq uint64, dup bool, sent, at int64) {
	s := f.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = max(s.now, at)
	switch {
	case seq == 0 || seq > s.last:
		f.counts.Unknown++
		f.note(Unknown, seq, at)
		return
	case seq < s.floor:
		f.counts.Forgotten++
		return
	}
	highest := f.received.max()
	if !f.received.add(seq, at) {
		f.duplicate(seq, dup, at)
		return
	}
	f.counts.Received++
	if seq < highest {
		f.counts.Reordered++
		f.note(Reordered, seq, at)
	}
	if sent != 0 && s.ledger.late > 0 && waited(&s.away, &f.away, sent, at) > s.ledger.late {
		f.counts.Late++
		f.note(Late, seq, at)
	}
	s.bound(f.received)
	if n := len(f.regions); n > s.ledger.holes {
		s.settleBelow(f.regions[n/2].from, n >= force*s.ledger.holes)
	}
}

func (f *Flow) duplicate(seq uint64, dup bool, at int64) {
	switch {
	case dup && f.qos == 1: // at QoS 0 the mark itself would be wrong [MQTT-3.3.1-2]
		f.counts.DuplicatedWithDup++
		f.note(DuplicatedWithDup, seq, at)
	case f.stream.resent.has(seq):
		f.counts.DuplicatedAfterResend++
		f.note(DuplicatedAfterResend, seq, at)
	default:
		f.counts.Duplicated++
		f.note(Duplicated, seq, at)
	}
}

func (f *Flow) note(kind Kind, seq uint64, at int64) {
	f.stream.ledger.note(f.anomaly(kind, seq, seq, at))
}

func (f *Flow) anomaly(kind Kind, from, to uint64, at int64) Anomaly {
	return Anomaly{
		Kind: kind, Publisher: f.stream.Publisher, Topic: f.stream.Topic, QoS: f.qos, Subscriber: f.Subscriber,
		Sequence: from, To: to, At: at,
	}
}

// judge counts what became of the numbers in [from, to]: at is now, for what nothing else has told the time of.
func (f *Flow) judge(from, to uint64, at int64, counts *Counts, note func(Anomaly)) {
	for i, r := range f.regions {
		last := to
		if i+1 < len(f.regions) {
			last = min(last, f.regions[i+1].from-1)
		}
		first := max(r.from, from)
		if r.standing == stranger || first > last {
			continue
		}
		kind, lost := Lost, &counts.Lost
		if r.standing == bereft {
			kind, lost = LostWithSession, &counts.LostWithSession
		}
		f.stream.owed(first, last, func(from, to uint64) {
			counts.Expected += to - from + 1
			f.received.holes(from, to, func(from, to uint64, noticed int64) {
				*lost += to - from + 1
				if noticed == 0 {
					noticed = at
				}
				note(f.anomaly(kind, from, to, noticed))
			})
		})
	}
	if f.stream.QoS > 0 {
		f.received.within(from, to, func(from, to uint64) {
			f.stream.acked.holes(from, to, func(from, to uint64, _ int64) { counts.ReceivedUnacked += to - from + 1 })
		})
	}
}
