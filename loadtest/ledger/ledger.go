package ledger

import (
	"sync"
	"time"
)

// Defaults of Config, and bounds.
const (
	DefaultLate     = time.Second
	DefaultExamples = 100
	DefaultHoles    = 1024

	// force is how many times Config.Holes a stream may have while settling early would judge numbers that a subscriber who is
	// away still waits for. Beyond it they are judged all the same: memory is bounded.
	force = 16
)

// Config of a Ledger. Zero fields are defaults.
type Config struct {
	Late     time.Duration // a delivery is late if both ends were connected for longer than this meanwhile; negative: never
	Examples int           // kept of each Kind; negative: none
	Holes    int           // intervals kept of a stream's numbers before the oldest are settled early
}

// A Ledger keeps the books of any number of streams. Its methods, and those of its streams and flows, may be called from any number
// of goroutines; equal calls in equal order give equal reports.
type Ledger struct {
	late     int64
	examples int
	holes    int

	mu      sync.Mutex
	streams []*Stream
	kept    examples
}

// New returns an empty Ledger.
func New(cfg Config) *Ledger {
	l := &Ledger{late: int64(cfg.Late), examples: cfg.Examples, holes: cfg.Holes}
	if l.late == 0 {
		l.late = int64(DefaultLate)
	}
	if l.examples == 0 {
		l.examples = DefaultExamples
	}
	if l.holes <= 0 {
		l.holes = DefaultHoles
	}
	return l
}

// Counts are numbers of messages.
type Counts struct {
	Sent  uint64 `json:"sent"`
	Acked uint64 `json:"acked"` // acknowledged to the publisher; none at QoS 0

	// Expected = those that were acknowledged (at QoS 0: sent) while the subscriber was subscribed. Each of them was received, is
	// Lost, or is LostWithSession.
	Expected        uint64 `json:"expected"`
	Received        uint64 `json:"received"` // first deliveries, also of messages that nobody owed
	Lost            uint64 `json:"lost"`
	LostWithSession uint64 `json:"lost_with_session"` // what the subscriber's lost session held, and what was sent until it subscribed again

	Duplicated            uint64 `json:"duplicated"`              // deliveries after the first that nothing excuses
	DuplicatedWithDup     uint64 `json:"duplicated_with_dup"`     // at QoS 1, marked as such
	DuplicatedAfterResend uint64 `json:"duplicated_after_resend"` // unmarked, but the publisher may have sent the message twice

	Reordered uint64 `json:"reordered"` // first deliveries behind a higher number
	Late      uint64 `json:"late"`      // first deliveries later than Config.Late

	ReceivedUnacked uint64 `json:"received_unacked"` // received, never acknowledged to the publisher: allowed
	Unknown         uint64 `json:"unknown"`          // received, never sent
	Forgotten       uint64 `json:"forgotten"`        // received after they were settled early: not judged
}

// Add adds other to c.
func (c *Counts) Add(other Counts) {
	c.Sent += other.Sent
	c.Acked += other.Acked
	c.Expected += other.Expected
	c.Received += other.Received
	c.Lost += other.Lost
	c.LostWithSession += other.LostWithSession
	c.Duplicated += other.Duplicated
	c.DuplicatedWithDup += other.DuplicatedWithDup
	c.DuplicatedAfterResend += other.DuplicatedAfterResend
	c.Reordered += other.Reordered
	c.Late += other.Late
	c.ReceivedUnacked += other.ReceivedUnacked
	c.Unknown += other.Unknown
	c.Forgotten += other.Forgotten
}

// A Kind of anomaly: the closed set of what examples are kept of.
type Kind string

const (
	Lost                  Kind = "lost"
	LostWithSession       Kind = "lost_with_session"
	Duplicated            Kind = "duplicated"
	DuplicatedWithDup     Kind = "duplicated_with_dup"
	DuplicatedAfterResend Kind = "duplicated_after_resend"
	Reordered             Kind = "reordered"
	Late                  Kind = "late"
	Unknown               Kind = "unknown"
)

// kinds is the order in which a Report lists them.
var kinds = []Kind{Lost, Duplicated, Reordered, Late, Unknown, LostWithSession, DuplicatedAfterResend, DuplicatedWithDup}

// An Anomaly is an example of what a count counts.
type Anomaly struct {
	Kind       Kind   `json:"kind"`
	Publisher  string `json:"publisher"`
	Topic      string `json:"topic"`
	QoS        byte   `json:"qos"` // of the delivery
	Subscriber string `json:"subscriber"`
	Sequence   uint64 `json:"sequence"`
	To         uint64 `json:"to"` // the last of a range that was lost; else equal to Sequence

	// At is when it was noticed: the delivery itself; of a loss the next delivery with a higher number, or the settling.
	At int64 `json:"at"`
}

// examples are the first anomalies of each kind.
type examples map[Kind][]Anomaly

func (e *examples) add(a Anomaly, bound int) {
	if len((*e)[a.Kind]) >= bound {
		return
	}
	if *e == nil {
		*e = examples{}
	}
	(*e)[a.Kind] = append((*e)[a.Kind], a)
}

// A Report says what became of all messages.
type Report struct {
	QoS       [3]Counts `json:"qos"` // by QoS of the delivery; Sent and Acked by that of the publication
	Anomalies []Anomaly `json:"anomalies"`
}

// Messages sums up QoS 1 and 2: those that a loss is a broken promise of.
func (r Report) Messages() Counts {
	sum := r.QoS[1]
	sum.Add(r.QoS[2])
	return sum
}

// Settle judges all numbers as they stand. It changes nothing, so it can be called again later. If each is not nil, it is called for
// every stream with that stream's counts over all its flows.
func (l *Ledger) Settle(at int64, each func(*Stream, Counts)) Report {
	l.mu.Lock()
	streams := l.streams
	found := examples{}
	for kind, kept := range l.kept {
		found[kind] = append([]Anomaly(nil), kept...)
	}
	l.mu.Unlock()
	var r Report
	for _, s := range streams {
		counts := s.settle(at, func(a Anomaly) { found.add(a, l.examples) })
		var sum Counts
		for qos := range counts {
			r.QoS[qos].Add(counts[qos])
			sum.Add(counts[qos])
		}
		if each != nil {
			each(s, sum)
		}
	}
	for _, kind := range kinds {
		r.Anomalies = append(r.Anomalies, found[kind]...)
	}
	return r
}

// Live returns the counts of QoS 1 and 2 as of now, without those that only Settle knows: what is expected and what is lost.
func (l *Ledger) Live() Counts {
	l.mu.Lock()
	streams := l.streams
	l.mu.Unlock()
	var sum Counts
	for _, s := range streams {
		counts := s.live()
		sum.Add(counts[1])
		sum.Add(counts[2])
	}
	return sum
}

func (l *Ledger) note(a Anomaly) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept.add(a, l.examples)
}
