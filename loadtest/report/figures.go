package report

import (
	"strconv"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// A figure is one of the few numbers that a reader looks for first.
type figure struct{ Value, Label, Class string }

// mostFigures is how many there are room for.
const mostFigures = 6

// figures picks what a run was for: first what it proved, then how fast it was.
func figures(r *result.Result) []figure {
	var all []figure
	add := func(value, label string) { all = append(all, figure{Value: value, Label: label}) }
	judged := func(value, label string, good bool) {
		class := "bad"
		if good {
			class = "good"
		}
		all = append(all, figure{value, label, class})
	}
	if v := r.Verify; v != nil {
		if p, ok := v.Stickiness(); ok {
			judged(percentage(p), "stickiness of "+plural(v.Clients, "client"), p == 100)
		}
		if m := v.Messages["mesh"]; m != nil {
			judged(count(m.Lost), "of "+plural(m.Expected, "message")+" lost", m.Lost == 0)
		}
		judged(count(v.SessionsLostUnexplained), "sessions lost by no fault, "+count(v.SessionsLost.Count-v.SessionsLostUnexplained)+" by faults",
			v.SessionsLostUnexplained == 0)
	}
	if x := r.Race; x != nil {
		judged(count(x.Split), "of "+plural(x.Pairs, "pair")+" on two brokers", x.Split == 0)
	}
	if x := r.Sweep; x != nil {
		if step, ok := x.Knee(); ok {
			add(rate(step.Rate)+"/s", "kept "+x.Objective)
		}
	}
	if n := r.Counters[result.Connects]; n > 0 {
		add(count(n), "connects accepted")
	}
	for _, x := range []struct {
		of    result.Counter
		label string
	}{{result.Publishes, "published"}, {result.Receives, "received"}} {
		if r.Counters[x.of] > 0 && r.Verify == nil {
			add(rate(r.Rate(x.of))+"/s", x.label)
		}
	}
	for _, x := range []struct {
		of    result.Latency
		p     float64
		label string
	}{
		{result.Connack, 99, "p99 of connect to CONNACK"},
		{result.E2E, 99, "p99 of publish to receipt"},
		{result.Puback, 99, "p99 of publish to acknowledgement"},
		{result.Outage, 50, "median outage of a client"},
	} {
		if h := &r.Latency[x.of]; h.Count() > 0 {
			add(brief(h.Percentile(x.p)), x.label)
		}
	}
	return all[:min(len(all), mostFigures)]
}

// faultMark is what stands for a fault on the axis of time: its number in the plan, or a dot for what the plan does not number.
func faultMark(number int) string {
	if number == 0 {
		return "•"
	}
	return strconv.Itoa(number)
}
