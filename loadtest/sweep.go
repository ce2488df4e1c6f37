package loadtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// Sweep looks for the knee: it raises the rate until an objective breaks, then halves the gap between the last rate that kept it and the
// first that broke it.
type Sweep struct {
	Objective result.Assertion // such as puback.p99<50ms
	From, To  float64          // a second; To = 0: until it breaks
	Factor    float64          // from one rate to the next while raising; 0 = 2
	Precision float64          // the gap at which to stop, as a share of the rate; 0 = 0.1
	Plan      func(rate float64) *Plan
	Run       func(context.Context, *Plan) (*result.Result, error)
	Tell      func(result.SweepStep) // after each step; nil: nobody is told
}

const (
	maxSteps     = 40
	maxSweepRate = 10_000_000
	// A rate that was not reached by so much says nothing good of the target, whatever the latencies were.
	reachedShare = 0.9
)

// ErrSweep is what a sweep that makes no sense gives.
var ErrSweep = errors.New("loadtest: sweep")

// Check says what is wrong with the numbers.
func (s *Sweep) Check() error {
	switch {
	case !(s.From > 0 && s.From <= maxSweepRate):
		return fmt.Errorf("%w: from: expected a rate above 0, up to %d, found %g", ErrSweep, maxSweepRate, s.From)
	case s.To != 0 && !(s.To >= s.From && s.To <= maxSweepRate):
		return fmt.Errorf("%w: to: expected a rate from %g to %d, found %g", ErrSweep, s.From, maxSweepRate, s.To)
	case s.Factor != 0 && !(s.Factor > 1 && s.Factor <= 100):
		return fmt.Errorf("%w: factor: expected above 1, up to 100, found %g", ErrSweep, s.Factor)
	case s.Precision != 0 && !(s.Precision >= 0.001 && s.Precision < 1):
		return fmt.Errorf("%w: precision: expected 0.001 to 1, found %g", ErrSweep, s.Precision)
	}
	return nil
}

// Find runs the plan at one rate after the other. The result is that of the knee (or of the first rate, if even that broke the objective),
// with all steps in its Sweep. With an error, or when ctx ended it early, it is what is known by then; nil if that is nothing.
func (s *Sweep) Find(ctx context.Context) (*result.Result, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	var (
		steps          []result.SweepStep
		knee, last     *result.Result
		kept           float64 // the highest rate that did
		broken         = math.Inf(1)
		top            = cmp.Or(s.To, maxSweepRate)
		behind         = false
		factor         = cmp.Or(s.Factor, 2)
		rate, runError = s.From, error(nil)
	)
	for len(steps) < maxSteps && ctx.Err() == nil {
		res, err := s.Run(ctx, s.Plan(rate))
		if runError = err; err != nil || res == nil || ctx.Err() != nil {
			break // of a step that was cut short nothing is known
		}
		step := s.judge(rate, res)
		steps = append(steps, step)
		last = res
		if s.Tell != nil {
			s.Tell(step)
		}
		behind = behind || step.Behind
		if step.Kept && !step.Behind {
			kept, knee = rate, res
		} else {
			broken = rate
		}
		if rate = s.next(kept, broken, top, factor); rate == 0 {
			break
		}
	}
	if knee == nil && len(steps) > 0 {
		knee = last
	}
	if knee == nil {
		return nil, cmpErr(runError, ctx.Err())
	}
	slices.SortFunc(steps, func(a, b result.SweepStep) int { return cmp.Compare(a.Rate, b.Rate) })
	knee.Verb, knee.Interrupted = "sweep", ctx.Err() != nil
	knee.Sweep = &result.Sweep{Objective: s.Objective.String(), Steps: steps}
	if at, ok := knee.Sweep.Knee(); ok {
		knee.Notes = append(knee.Notes, fmt.Sprintf("latencies and graphs are those of the step at %.0f a second", at.Rate))
	}
	if behind {
		knee.Notes = append(knee.Notes, "the generator fell behind before the target did: the knee is higher than what was found; use more --workers, or another machine")
	}
	return knee, runError
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// next is the rate to try now; 0: the knee is known.
func (s *Sweep) next(kept, broken, top, factor float64) float64 {
	switch {
	case kept == 0: // even the first broke it
		return 0
	case math.IsInf(broken, 1):
		if kept >= top {
			return 0
		}
		return math.Min(kept*factor, top)
	case (broken-kept)/kept <= cmp.Or(s.Precision, 0.1):
		return 0
	}
	return round(math.Sqrt(kept * broken))
}

// round makes a rate that people can read: three digits.
func round(rate float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(rate))-2)
	return math.Round(rate/unit) * unit
}

// judge says how a step went.
func (s *Sweep) judge(rate float64, r *result.Result) result.SweepStep {
	counter, latency := subject(s.Objective)
	h := &r.Latency[latency]
	micros := func(d time.Duration) result.Micros { return result.Micros(d.Microseconds()) }
	achieved := r.Rate(counter)
	return result.SweepStep{
		Rate: rate, Achieved: achieved, Behind: r.Generator.Behind,
		Kept: s.Objective.Evaluate(r).Passed && achieved >= reachedShare*rate,
		P50:  micros(h.Percentile(50)), P99: micros(h.Percentile(99)), Max: micros(h.Max()),
	}
}

// SweepOf says what a sweep for an objective has to raise: connects ("conn"), publishes ("pub"), or publishes that are received ("pubsub").
func SweepOf(objective result.Assertion) string {
	switch name := objective.String(); {
	case strings.HasPrefix(name, "conn"):
		return "conn"
	case strings.HasPrefix(name, "e2e"), strings.HasPrefix(name, "receive"):
		return "pubsub"
	}
	return "pub"
}

// subject is what an objective is about: the counter that should reach the rate, and the latency to show.
func subject(objective result.Assertion) (result.Counter, result.Latency) {
	latency := result.Puback
	for _, l := range result.Latencies() { // the longest name that fits is the last
		if strings.HasPrefix(objective.String(), l.String()+".") {
			latency = l
		}
	}
	switch SweepOf(objective) {
	case "conn":
		if latency == result.Puback {
			latency = result.Connack
		}
		return result.Connects, latency
	case "pubsub":
		if latency == result.Puback {
			latency = result.E2E
		}
	}
	return result.Publishes, latency
}
