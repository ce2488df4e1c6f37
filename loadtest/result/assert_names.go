package result

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/near"
)

// name is what an assertion speaks of.
type name struct {
	text  string
	unit  unit
	value func(*Result) (v float64, measured bool)
}

func (n name) String() string { return n.text }

// statistics of a latency besides its percentiles.
var statistics = []struct {
	name  string
	unit  unit
	value func(*Histogram) float64
}{
	{"count", number, func(h *Histogram) float64 { return float64(h.Count()) }},
	{"min", duration, func(h *Histogram) float64 { return micros(h.Min()) }},
	{"mean", duration, func(h *Histogram) float64 { return micros(h.Mean()) }},
	{"max", duration, func(h *Histogram) float64 { return micros(h.Max()) }},
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// fixed lists the names that are not composed.
var fixed = func() []name {
	var all []name
	add := func(text string, u unit, value func(*Result) (float64, bool)) {
		all = append(all, name{text, u, value})
	}
	always := func(get func(*Result) float64) func(*Result) (float64, bool) {
		return func(r *Result) (float64, bool) { return get(r), true }
	}
	verified := func(get func(*Verify) int64) func(*Result) (float64, bool) {
		return func(r *Result) (float64, bool) {
			if r.Verify == nil {
				return 0, false
			}
			return float64(get(r.Verify)), true
		}
	}

	add("stickiness", percent, func(r *Result) (float64, bool) { return r.Verify.Stickiness() })
	add("judged", number, verified(func(v *Verify) int64 { return v.Judged }))
	add("not_learned", number, verified(func(v *Verify) int64 { return v.NotLearned }))
	add("disagreements", number, verified(func(v *Verify) int64 { return v.Disagreements.Count }))
	add("moves", number, verified(func(v *Verify) int64 { return v.Moves.Count }))
	add("moves.unexplained", number, verified(func(v *Verify) int64 { return v.MovesUnexplained }))
	add("sessions_lost", number, verified(func(v *Verify) int64 { return v.SessionsLost.Count }))
	add("sessions_lost.unexplained", number, verified(func(v *Verify) int64 { return v.SessionsLostUnexplained }))
	for _, group := range []string{"mesh", "control", "mesh_qos0", "control_qos0"} {
		for i, field := range messageNames {
			text := field
			switch {
			case group == "mesh" && (field == "acked" || field == "sent"):
				continue // "acked" is the counter
			case group != "mesh":
				text = group + "." + field
			}
			add(text, number, func(r *Result) (float64, bool) {
				if r.Verify == nil || r.Verify.Messages[group] == nil {
					return 0, false
				}
				return float64(*r.Verify.Messages[group].numbers()[i]), true
			})
		}
	}
	raced := func(get func(*Race) int64) func(*Result) (float64, bool) {
		return func(r *Result) (float64, bool) {
			if r.Race == nil {
				return 0, false
			}
			return float64(get(r.Race)), true
		}
	}
	add("race.pairs", number, raced(func(x *Race) int64 { return x.Pairs }))
	add("race.split", number, raced(func(x *Race) int64 { return x.Split }))
	add("race.unknown", number, raced(func(x *Race) int64 { return x.Unknown }))
	add("knee", number, func(r *Result) (float64, bool) {
		if r.Sweep == nil {
			return 0, false
		}
		step, ok := r.Sweep.Knee()
		return step.Rate, ok
	})

	for c, text := range counterNames {
		add(text, number, always(func(r *Result) float64 { return float64(r.Counters[c]) }))
	}
	for _, x := range rates {
		add(x.name, number, func(r *Result) (float64, bool) { return r.Rate(x.counter), r.Measured() > 0 })
	}
	for _, reason := range reasons {
		add("errors."+reason, number, always(func(r *Result) float64 { return float64(r.Errors[reason]) }))
	}

	add("generator.late_percent", percent, always(func(r *Result) float64 { return r.Generator.LatePercent }))
	add("generator.cpu_seconds", number, always(func(r *Result) float64 { return r.Generator.CPUSeconds }))
	add("generator.rss", size, always(func(r *Result) float64 { return float64(r.Generator.RSS) }))
	add("generator.peak", size, always(func(r *Result) float64 { return float64(r.Generator.PeakRSS) }))
	add("generator.behind", number, always(func(r *Result) float64 {
		if r.Generator.Behind {
			return 1
		}
		return 0
	}))
	add("duration", duration, always(func(r *Result) float64 { return micros(time.Duration(r.Duration)) }))
	return all
}()

// messageNames are the fields of Messages, in the order of its numbers.
var messageNames = []string{
	"sent", "acked", "expected", "received", "lost", "lost_with_session", "duplicated", "duplicated_with_dup",
	"duplicated_after_resend", "reordered", "late", "received_unacked", "unknown", "forgotten",
}

// AssertionNames lists every name that an assertion may begin with; pN stands for any percentile, as in p99.9.
func AssertionNames() []string {
	var all []string
	for _, n := range fixed {
		all = append(all, n.text)
	}
	for _, l := range latencyNames {
		for _, s := range statistics {
			all = append(all, l+"."+s.name)
		}
		all = append(all, l+".pN")
	}
	return all
}

// parseName finds a name; its error says which may have been meant.
func parseName(text string) (name, error) {
	if counted, ok := strings.CutPrefix(text, "rate."); ok { // as well as publish.rate
		text = counted + ".rate"
	}
	if i := slices.IndexFunc(fixed, func(n name) bool { return n.text == text }); i >= 0 {
		return fixed[i], nil
	}
	// The longest latency first: connack.service.p99 is none of connack's.
	for l := numLatencies; l > 0; l-- {
		latency := l - 1
		statistic, ok := strings.CutPrefix(text, latencyNames[latency]+".")
		if !ok {
			continue
		}
		measured := func(get func(*Histogram) float64) func(*Result) (float64, bool) {
			return func(r *Result) (float64, bool) {
				h := &r.Latency[latency]
				return get(h), h.Count() > 0
			}
		}
		for _, s := range statistics {
			if s.name == statistic {
				n := name{text, s.unit, measured(s.value)}
				if s.name == "count" {
					n.value = func(r *Result) (float64, bool) { return s.value(&r.Latency[latency]), true }
				}
				return n, nil
			}
		}
		if digits, ok := strings.CutPrefix(statistic, "p"); ok {
			p, err := strconv.ParseFloat(digits, 64)
			if err != nil || strings.Trim(digits, ".0123456789") != "" || p > 100 {
				return name{}, fmt.Errorf("%q is no percentile: p50, p99, p99.9 … p100", statistic)
			}
			return name{text, duration, measured(func(h *Histogram) float64 { return micros(h.Percentile(p)) })}, nil
		}
	}
	if word, ok := nearest(text); ok {
		return name{}, fmt.Errorf("unknown name %q: did you mean %q?", text, word)
	}
	return name{}, fmt.Errorf("unknown name %q; there are %s", text, strings.Join(families(), ", "))
}

// families lists all names, but of those with a dot only what stands before it.
func families() []string {
	var all []string
	for _, n := range AssertionNames() {
		if family, _, ok := strings.Cut(n, "."); ok {
			n = family + ".…"
		}
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// nearest returns the name that differs least from text, if it does not differ too much.
func nearest(text string) (string, bool) {
	candidates := AssertionNames()
	for _, l := range latencyNames {
		for _, p := range []string{"p50", "p90", "p95", "p99", "p99.9", "p99.99", "p99.999"} {
			candidates = append(candidates, l+"."+p)
		}
		candidates = append(candidates, l)
	}
	best, least := "", len(text)/3+2
	for _, c := range candidates {
		if d := near.Distance(strings.ToLower(text), c); d < least {
			best, least = c, d
		}
	}
	if slices.Contains(latencyNames[:], best) {
		best += ".p99" // a latency alone is no number
	}
	return best, best != ""
}
