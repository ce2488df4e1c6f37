// Package result is what a load test found: counters, latencies, a series by the second, faults, and what was proven
// about sessions and messages.
//
//	rec := result.NewRecorder(result.Config{Start: now, Wall: time.Now(), Warmup: 5 * time.Second})
//	go rec.Run(ctx, clock)                      // closes each second
//	rec.Connack.Record(intended, sent, now)     // from any goroutine: no allocation
//	rec.Count(result.Connects, now, 1)
//	res := rec.Finish(clock())
//	a, err := result.ParseAssertion("connack.p99<50ms")
//	outcome := a.Evaluate(res)
//	sum := result.Merge(res, other)             // exact, in any order
//
// Every latency is kept in two forms: from the time at which the request was intended, so that a stall also counts for
// what it kept waiting, and from the time at which it was sent. The warm-up is not in the totals, but in the series.
//
// Results of several processes or machines add up exactly: counters and the buckets of histograms are sums, bounded
// lists keep their first entries in one order that all results share. So merging is associative and commutative, and
// what can be computed (percentiles, rates, stickiness) is computed from sums and never merged itself.
//
// SCHEMA.md in the folder above documents the JSON. It refuses to read what could not have been written: a result comes
// from a file or another process.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Schema is the version of the JSON that this package writes and reads. New fields do not raise it; a change of a
// field's meaning does.
const Schema = 1

const (
	// mergeable results can be added up without an overflow.
	mergeable = 1 << 10
	// maxCount is the largest count that is read; it is also the largest integer that every JSON reader keeps.
	maxCount = 1 << 53
	// maxResult bounds a result's JSON; an hour's is about 2 MB.
	maxResult = 64 << 20
	// maxNames bounds the keys of a map whose keys come from outside.
	maxNames = 4096
)

// ErrInvalid is what reading something that is no result gives.
var ErrInvalid = errors.New("result: not a result")

// A Result is what one run found, or several of them added up.
type Result struct {
	Schema      int             `json:"schema"`
	Tool        string          `json:"tool"`           // program and version
	Verb        string          `json:"verb"`           // conn, pub, sub, pubsub, storm, verify, race, sweep, scenario
	Name        string          `json:"name"`           // what the run is called, if anything
	Plan        json.RawMessage `json:"plan,omitempty"` // what was to be done
	Targets     []string        `json:"targets"`        // endpoints
	Start       time.Time       `json:"start"`
	Duration    int64           `json:"duration_ns"` // from the start to the end, warm-up included
	Warmup      Warmup          `json:"warmup"`
	Interrupted bool            `json:"interrupted"` // ended before the plan did
	Counters    Counters        `json:"counters"`    // after the warm-up
	Errors      Tally           `json:"errors"`      // by reason, after the warm-up
	Latency     Histograms      `json:"latency"`     // after the warm-up
	Series      Series          `json:"series"`
	Faults      []Fault         `json:"faults"`
	Generator   Generator       `json:"generator"`
	Verify      *Verify         `json:"verify,omitempty"`
	Race        *Race           `json:"race,omitempty"`
	Sweep       *Sweep          `json:"sweep,omitempty"`
	Assertions  []Outcome       `json:"assertions"` // of this result; merging leaves them out
	Notes       []string        `json:"notes"`      // what a reader should know, in words
}

// Warmup is what was left out of the totals.
type Warmup struct {
	Seconds  int64    `json:"seconds"`
	Counters Counters `json:"counters"`
	Errors   Tally    `json:"errors"`
}

// Counters holds one number for each Counter.
type Counters [numCounters]int64

// Tally is a number for each name.
type Tally map[string]int64

// Histograms holds one distribution for each Latency.
type Histograms [numLatencies]Histogram

// A Fault is something that was done to the system under test.
type Fault struct {
	Number  int        `json:"number"` // from 1, in the order of the plan
	Spec    string     `json:"spec"`   // as it was written: "at 30s kill broker b2"
	Begin   int64      `json:"begin_ns"`
	End     int64      `json:"end_ns"` // of the fault, not of its consequences; both from the start of the run
	Outcome string     `json:"outcome"`
	Error   string     `json:"error,omitempty"`  // why it could not be done, or undone
	Outage  *Histogram `json:"outage,omitempty"` // per client, from Begin to its first acknowledged publish
}

// Verify is what was proven about sessions and messages.
type Verify struct {
	Clients    int64 `json:"clients"`
	Connects   int64 `json:"connects"`   // accepted
	Reconnects int64 `json:"reconnects"` // of these, after a client's first; each is judged, or counts below
	Judged     int64 `json:"judged"`     // the client's home was up and the broker could be told
	Sticky     int64 `json:"sticky"`     // of Judged: met the home
	NoHome     int64 `json:"no_home"`    // there was no home to come back to
	HomeAway   int64 `json:"home_away"`  // the home was down
	SentAway   int64 `json:"sent_away"`  // the mesh itself had sent the client to another broker
	NotLearned int64 `json:"not_learned"`
	Homes      Tally `json:"homes"` // clients by the broker that they met last

	SessionsLost            List[Loss]         `json:"sessions_lost"`
	SessionsLostUnexplained int64              `json:"sessions_lost_unexplained"` // of these, by no fault of the run
	Moves                   List[Move]         `json:"moves"`
	MovesUnexplained        int64              `json:"moves_unexplained"` // of these, with the home up
	Disagreements           List[Disagreement] `json:"disagreements"`     // between the ways of telling a broker

	Messages  map[string]*Messages `json:"messages"` // by group: mesh, control (QoS 1 and 2), mesh_qos0, control_qos0
	Anomalies List[Anomaly]        `json:"anomalies"`
}

// Stickiness returns the percentage of judged reconnects that met the client's home; ok is false if none was judged.
func (v *Verify) Stickiness() (percent float64, ok bool) {
	if v == nil || v.Judged == 0 {
		return 0, false
	}
	return 100 * float64(v.Sticky) / float64(v.Judged), true
}

// Messages are the counts of a group's messages.
type Messages struct {
	Sent                  int64 `json:"sent"`
	Acked                 int64 `json:"acked"`    // to the publisher
	Expected              int64 `json:"expected"` // acknowledged (at QoS 0: sent) while the subscriber was subscribed
	Received              int64 `json:"received"` // first deliveries
	Lost                  int64 `json:"lost"`     // of Expected, though the session lived
	LostWithSession       int64 `json:"lost_with_session"`
	Duplicated            int64 `json:"duplicated"`              // received again, and nothing excuses it
	DuplicatedWithDup     int64 `json:"duplicated_with_dup"`     // received again, marked so
	DuplicatedAfterResend int64 `json:"duplicated_after_resend"` // the publisher may have sent it twice
	Reordered             int64 `json:"reordered"`               // behind a later one
	Late                  int64 `json:"late"`                    // after the bound for lateness
	ReceivedUnacked       int64 `json:"received_unacked"`        // though never acknowledged to the publisher: allowed
	Unknown               int64 `json:"unknown"`                 // never sent
	Forgotten             int64 `json:"forgotten"`               // not judged
}

// A Loss is a session that was due and not there.
type Loss struct {
	At     int64  `json:"at_ns"` // from the start of the run
	Client string `json:"client"`
	Broker string `json:"broker"`           // that should have had it
	Met    string `json:"met"`              // that answered
	Reason string `json:"reason,omitempty"` // in words
	Fault  string `json:"fault,omitempty"`  // that explains it
}

// A Move is a client that met another broker than its home.
type Move struct {
	At     int64  `json:"at_ns"`
	Client string `json:"client"`
	From   string `json:"from"`
	To     string `json:"to"`
	Reason string `json:"reason"` // in words
	Fault  string `json:"fault,omitempty"`
}

// A Disagreement is a connect on which the ways of telling a broker contradict each other.
type Disagreement struct {
	At     int64  `json:"at_ns"`
	Client string `json:"client"`
	Detail string `json:"detail"` // in words
}

// An Anomaly is one message, or a range of lost ones, that did not arrive as it should.
type Anomaly struct {
	At         int64  `json:"at_ns"`
	Kind       string `json:"kind"` // a field of Messages
	Group      string `json:"group"`
	Publisher  string `json:"publisher"`
	Topic      string `json:"topic"`
	Subscriber string `json:"subscriber"`
	QoS        int    `json:"qos"`
	Sequence   int64  `json:"sequence"`
	To         int64  `json:"to"` // the last of a range; else Sequence
}

// Race is what pairs of connects of one client ID found.
type Race struct {
	Gap     int64       `json:"gap_ns"` // between the two connects of a pair
	Pairs   int64       `json:"pairs"`
	Split   int64       `json:"split"`   // ended on two brokers
	Unknown int64       `json:"unknown"` // at least one did not connect, or its broker could not be told
	Splits  List[Split] `json:"splits"`
}

// A Split is a client ID that ended on two brokers.
type Split struct {
	At      int64  `json:"at_ns"`
	Client  string `json:"client"`
	Brokers string `json:"brokers"`
}

// Sweep is what raising the rate found.
type Sweep struct {
	Objective string      `json:"objective"` // the assertion that each step was judged by
	Steps     []SweepStep `json:"steps"`     // ascending by Rate
}

// A SweepStep is one run of a sweep.
type SweepStep struct {
	Rate     float64 `json:"rate"`     // asked for, a second
	Achieved float64 `json:"achieved"` // done, a second
	P50      Micros  `json:"p50_us"`   // of the objective's latency
	P99      Micros  `json:"p99_us"`
	Max      Micros  `json:"max_us"`
	Kept     bool    `json:"kept"`   // the objective
	Behind   bool    `json:"behind"` // the generator fell behind: says nothing of the target
}

// Knee returns the last step before the first that broke the objective; ok is false if even the first did.
func (s *Sweep) Knee() (step SweepStep, ok bool) {
	for _, x := range s.Steps {
		if !x.Kept || x.Behind {
			break
		}
		step, ok = x, true
	}
	return step, ok
}

// New returns an empty result: every counter and reason is there, at zero.
func New() *Result {
	return &Result{
		Schema: Schema, Targets: []string{}, Faults: []Fault{}, Assertions: []Outcome{}, Notes: []string{},
		Errors: newErrors(), Warmup: Warmup{Errors: newErrors()}, Series: Series{Width: 1, Rows: []Row{}},
		Generator: Generator{Reasons: []string{}},
	}
}

func newErrors() Tally {
	t := make(Tally, len(reasons))
	for _, name := range reasons {
		t[name] = 0
	}
	return t
}

// Measured returns for how long the totals counted.
func (r *Result) Measured() time.Duration {
	return max(time.Duration(r.Duration)-time.Duration(r.Warmup.Seconds)*time.Second, 0)
}

// Rate returns the measured average of a counter, a second.
func (r *Result) Rate(c Counter) float64 {
	seconds := r.Measured().Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(r.Counters[c]) / seconds
}

// End returns when the run ended.
func (r *Result) End() time.Time { return r.Start.Add(time.Duration(r.Duration)) }

// Failed returns the assertions that did not hold.
func (r *Result) Failed() []Outcome {
	var failed []Outcome
	for _, o := range r.Assertions {
		if !o.Passed {
			failed = append(failed, o)
		}
	}
	return failed
}

// Encode writes the result as one line of JSON.
func (r *Result) Encode(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("result: writing: %w", err)
	}
	return nil
}
