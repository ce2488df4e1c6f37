package result

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Merge returns the sum of both and changes neither. It is exact, associative and commutative; New is its neutral
// element. Counters, histograms and the rows of equal seconds add up; the sum starts with the earlier and lasts as long
// as the longer. Texts that differ are joined; of two plans the first in byte order stays. Assertions are left out:
// evaluate them again.
func Merge(a, b *Result) *Result {
	sum := a.Clone()
	sum.Assertions = []Outcome{}
	sum.Add(b)
	return sum
}

// Add merges o into r, as Merge does, without copying r first: for sums of many.
func (r *Result) Add(o *Result) {
	r.Schema = Schema
	r.Tool = join(r.Tool, o.Tool)
	r.Verb = join(r.Verb, o.Verb)
	r.Name = join(r.Name, o.Name)
	r.Plan = firstPlan(r.Plan, o.Plan)
	r.Targets = union(r.Targets, o.Targets)
	r.Notes = union(r.Notes, o.Notes)
	r.Start = firstTime(r.Start, o.Start)
	r.Duration = max(r.Duration, o.Duration)
	r.Warmup.Seconds = max(r.Warmup.Seconds, o.Warmup.Seconds)
	r.Warmup.Counters.plus(&o.Warmup.Counters)
	r.Warmup.Errors = r.Warmup.Errors.plus(o.Warmup.Errors)
	r.Interrupted = r.Interrupted || o.Interrupted
	r.Counters.plus(&o.Counters)
	r.Errors = r.Errors.plus(o.Errors)
	for i := range r.Latency {
		r.Latency[i].Add(&o.Latency[i])
	}
	r.Series.plus(&o.Series, maxRows)
	r.Series.mark(r.Warmup.Seconds)
	r.Faults = mergeFaults(r.Faults, o.Faults)
	r.Generator.plus(&o.Generator)
	r.Generator.derive(&r.Latency[Lag])
	r.Verify = mergePart(r.Verify, o.Verify, (*Verify).plus)
	r.Race = mergePart(r.Race, o.Race, (*Race).plus)
	r.Sweep = mergePart(r.Sweep, o.Sweep, (*Sweep).plus)
	r.Assertions = []Outcome{}
}

// Clone returns a copy that shares nothing that changes.
func (r *Result) Clone() *Result {
	c := New()
	c.Add(r)
	c.Assertions = append(c.Assertions, r.Assertions...)
	return c
}

// mergePart adds b to a, either of which may be absent.
func mergePart[T any](a, b *T, plus func(a, b *T)) *T {
	if b == nil {
		return a
	}
	if a == nil {
		a = new(T)
	}
	plus(a, b)
	return a
}

func (c *Counters) plus(o *Counters) {
	for i := range c {
		c[i] += o[i]
	}
}

func (t Tally) plus(o Tally) Tally {
	if t == nil {
		t = make(Tally, len(o))
	}
	for name, n := range o {
		t[name] += n
	}
	return t
}

const joint = ", "

// join returns every part of both once, in order.
func join(a, b string) string {
	if a == b {
		return a
	}
	var parts []string
	for _, s := range []string{a, b} {
		if s != "" {
			parts = append(parts, strings.Split(s, joint)...)
		}
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), joint)
}

// union returns every element of both once, in order.
func union(a, b []string) []string {
	all := append(append([]string{}, a...), b...) // not nil: JSON writes []
	slices.Sort(all)
	return slices.Compact(all)
}

func firstPlan(a, b json.RawMessage) json.RawMessage {
	if len(a) == 0 || len(b) > 0 && bytes.Compare(b, a) < 0 {
		return slices.Clone(b)
	}
	return a
}

func firstTime(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// mergeFaults joins what is known of each fault: one process does it, others see what it costs their clients.
func mergeFaults(a, b []Fault) []Fault {
	out := make([]Fault, 0, len(a)+len(b))
	for _, f := range slices.Concat(a, b) {
		i := slices.IndexFunc(out, func(x Fault) bool { return x.Number == f.Number && x.Spec == f.Spec })
		if i < 0 {
			f.Outage = mergePart(nil, f.Outage, (*Histogram).Add)
			out = append(out, f)
			continue
		}
		x := &out[i]
		if x.Begin == 0 || f.Begin != 0 && f.Begin < x.Begin {
			x.Begin = f.Begin
		}
		x.End = max(x.End, f.End)
		x.Outcome = join(x.Outcome, f.Outcome)
		x.Error = join(x.Error, f.Error)
		x.Outage = mergePart(x.Outage, f.Outage, (*Histogram).Add)
	}
	slices.SortFunc(out, func(x, y Fault) int {
		return cmp.Or(cmp.Compare(x.Number, y.Number), cmp.Compare(x.Spec, y.Spec))
	})
	return out
}

func (v *Verify) plus(o *Verify) {
	from := o.numbers()
	for i, n := range v.numbers() {
		*n += *from[i]
	}
	v.Homes = v.Homes.plus(o.Homes)
	v.SessionsLost.plus(&o.SessionsLost)
	v.Moves.plus(&o.Moves)
	v.Disagreements.plus(&o.Disagreements)
	v.Anomalies.plus(&o.Anomalies)
	if v.Messages == nil {
		v.Messages = make(map[string]*Messages, len(o.Messages))
	}
	for group, m := range o.Messages {
		v.Messages[group] = mergePart(v.Messages[group], m, (*Messages).plus)
	}
}

func (v *Verify) numbers() [11]*int64 {
	return [...]*int64{
		&v.Clients, &v.Connects, &v.Reconnects, &v.Judged, &v.Sticky, &v.NoHome, &v.HomeAway, &v.SentAway, &v.NotLearned,
		&v.MovesUnexplained, &v.SessionsLostUnexplained,
	}
}

func (m *Messages) numbers() [14]*int64 {
	return [...]*int64{
		&m.Sent, &m.Acked, &m.Expected, &m.Received, &m.Lost, &m.LostWithSession, &m.Duplicated, &m.DuplicatedWithDup,
		&m.DuplicatedAfterResend, &m.Reordered, &m.Late, &m.ReceivedUnacked, &m.Unknown, &m.Forgotten,
	}
}

func (m *Messages) plus(o *Messages) {
	from := o.numbers()
	for i, n := range m.numbers() {
		*n += *from[i]
	}
}

func (x *Race) plus(o *Race) {
	x.Gap = max(x.Gap, o.Gap)
	x.Pairs += o.Pairs
	x.Split += o.Split
	x.Unknown += o.Unknown
	x.Splits.plus(&o.Splits)
}

func (s *Sweep) plus(o *Sweep) {
	s.Objective = join(s.Objective, o.Objective)
	s.Steps = slices.Concat(s.Steps, o.Steps)
	slices.SortFunc(s.Steps, SweepStep.compare)
}

func (s SweepStep) compare(o SweepStep) int {
	truth := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(s.Rate, o.Rate), cmp.Compare(s.Achieved, o.Achieved), cmp.Compare(s.P50, o.P50),
		cmp.Compare(s.P99, o.P99), cmp.Compare(s.Max, o.Max), cmp.Compare(truth(s.Kept), truth(o.Kept)),
		cmp.Compare(truth(s.Behind), truth(o.Behind)))
}
