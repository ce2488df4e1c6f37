package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// headline says what was run, when and for how long.
func headline(r *result.Result) string {
	s := title(r) + ": " + spoken(time.Duration(r.Duration))
	if !r.Start.IsZero() {
		s += " from " + r.Start.UTC().Format("2006-01-02 15:04:05 MST")
	}
	if r.Warmup.Seconds > 0 {
		s += fmt.Sprintf(", the first %s as warm-up", spoken(time.Duration(r.Warmup.Seconds)*time.Second))
	}
	if r.Interrupted {
		s += "; ended before its plan did"
	}
	return s
}

// title says what was run.
func title(r *result.Result) string {
	s := "limpet loadtest"
	if r.Verb != "" {
		s += " " + r.Verb
	}
	if r.Name != "" {
		s += " " + quoted(r.Name)
	}
	return s
}

func quoted(s string) string { return "“" + s + "”" }

// spoken writes how long something took.
func spoken(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	case d < 2*time.Hour && d%time.Minute < time.Second:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return clock(d)
}

// verdict sums the run up in one sentence; good is false if an assertion failed or the generator fell behind.
func verdict(r *result.Result) (words string, good bool) {
	failed := int64(len(r.Failed()))
	switch {
	case failed > 0 && failed == int64(len(r.Assertions)):
		words = plural(failed, "assertion") + " failed"
	case failed > 0:
		words = fmt.Sprintf("%s of %s failed", count(failed), plural(int64(len(r.Assertions)), "assertion"))
	case len(r.Assertions) > 0:
		words = "All assertions hold"
		if len(r.Assertions) == 1 {
			words = "The assertion holds"
		}
	default:
		words = "Nothing was asserted"
	}
	if r.Generator.Behind {
		words += "; the generator fell behind its schedule, so the latencies include its own delay"
	}
	return words + ".", failed == 0 && !r.Generator.Behind
}

// A fact is one line of the summary: a label and a sentence.
type fact struct{ Label, Words string }

// facts tells the run in words, without what has a table of its own.
func facts(r *result.Result) []fact {
	c := &r.Counters
	var all []fact
	add := func(label, format string, args ...any) { all = append(all, fact{label, fmt.Sprintf(format, args...)}) }
	if c[result.ConnectsStarted]+c[result.Connects] > 0 {
		s := fmt.Sprintf("%s accepted (%s a second)", plural(c[result.Connects], "connect"), rate(r.Rate(result.Connects)))
		if n := c[result.SessionsPresent]; n > 0 {
			s += fmt.Sprintf(", %s with their session", count(n))
		}
		if n := c[result.Refusals]; n > 0 {
			s += fmt.Sprintf(", %s refused", count(n))
		}
		if n := c[result.Closed]; n > 0 {
			s += fmt.Sprintf("; %s closed by the other side", count(n))
		}
		add("Connections", "%s", s)
	}
	if n := c[result.Publishes]; n > 0 {
		s := fmt.Sprintf("%s published (%s a second)", count(n), rate(r.Rate(result.Publishes)))
		if a := c[result.Acked]; a > 0 {
			s += fmt.Sprintf(", %s acknowledged", count(a))
		}
		if a := c[result.Resends]; a > 0 {
			s += fmt.Sprintf(", %s sent again", count(a))
		}
		add("Published", "%s", s)
	}
	if n := c[result.Receives]; n > 0 {
		s := fmt.Sprintf("%s received (%s a second)", count(n), rate(r.Rate(result.Receives)))
		if d := c[result.ReceivesDup]; d > 0 {
			s += fmt.Sprintf(", %s marked as duplicates", count(d))
		}
		add("Received", "%s", s)
	}
	if n := c[result.BytesOut] + c[result.BytesIn]; n > 0 {
		add("Bytes", "%s sent, %s received", size(c[result.BytesOut]), size(c[result.BytesIn]))
	}
	all = append(all, proven(r)...)
	if n := r.Warmup.Counters[result.Errors]; n > 0 {
		add("Warm-up", "%s in it, not counted below", plural(n, "error"))
	}
	all = append(all, fact{"Generator", generator(r)})
	for _, n := range r.Notes {
		all = append(all, fact{"Note", n})
	}
	return all
}

// proven tells what verify, race and sweep found.
func proven(r *result.Result) []fact {
	var all []fact
	add := func(label, format string, args ...any) { all = append(all, fact{label, fmt.Sprintf(format, args...)}) }
	if v := r.Verify; v != nil {
		if p, ok := v.Stickiness(); ok {
			add("Stickiness", "%s: %s of %s came home", percentage(p), count(v.Sticky), plural(v.Judged, "reconnect"))
		} else {
			add("Stickiness", "no reconnect could be judged")
		}
		var not []string
		for _, x := range []struct {
			n   int64
			why string
		}{
			{v.HomeAway, "the home was down"},
			{v.SentAway, "the mesh had sent the client away"},
			{v.NoHome, "there was no home"},
			{v.NotLearned, "the broker could not be told"},
		} {
			if x.n > 0 {
				not = append(not, count(x.n)+" as "+x.why)
			}
		}
		if len(not) > 0 {
			add("Not judged", "%s", strings.Join(not, ", "))
		}
		if n := v.Disagreements.Count; n > 0 {
			add("Doubtful", "on %s the ways of telling the broker contradict each other", plural(n, "connect"))
		}
		add("Sessions", "%s; %s", sessions(v), moves(v))
		for _, group := range groups(v.Messages) {
			add("Messages", "%s: %s", group, messages(v.Messages[group]))
		}
	}
	if x := r.Race; x != nil {
		s := fmt.Sprintf("%s of %s ended on two brokers", count(x.Split), plural(x.Pairs, "pair"))
		if x.Unknown > 0 {
			s += fmt.Sprintf("; of %s it could not be told", count(x.Unknown))
		}
		add("Race", "%s (%s apart)", s, brief(time.Duration(x.Gap)))
	}
	if x := r.Sweep; x != nil {
		if step, ok := x.Knee(); ok {
			add("Knee", "%s a second still kept %s", rate(step.Rate), x.Objective)
		} else {
			add("Knee", "not even the first step kept %s", x.Objective)
		}
	}
	return all
}

// sessions tells what became of the sessions.
func sessions(v *result.Verify) string {
	switch lost, odd := v.SessionsLost.Count, v.SessionsLostUnexplained; {
	case lost == 0:
		return "none lost"
	case odd == 0:
		return count(lost) + " lost, all by faults of the run"
	default:
		return fmt.Sprintf("%s lost, %s by no fault of the run", count(lost), count(odd))
	}
}

// moves tells who met another broker than its home.
func moves(v *result.Verify) string {
	switch n, odd := v.Moves.Count, v.MovesUnexplained; {
	case n == 0:
		return "nobody moved to another broker"
	case odd == 0:
		return plural(n, "move") + " to another broker, none with the home up"
	default:
		return fmt.Sprintf("%s to another broker, %s with the home up", plural(n, "move"), count(odd))
	}
}

// groups lists the groups of messages, those of the mesh first.
func groups(all map[string]*result.Messages) []string {
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		rank := func(s string) int {
			if strings.HasPrefix(s, "mesh") {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
}

// messages tells what became of a group's messages: the good first, then only what there was.
func messages(m *result.Messages) string {
	s := fmt.Sprintf("%s expected, %s lost", count(m.Expected), count(m.Lost))
	if m.Expected == 0 && m.Received > 0 { // while a run goes on nobody knows what is lost
		s = count(m.Received) + " received"
	}
	for _, x := range []struct {
		n    int64
		what string
	}{
		{m.LostWithSession, "lost with their session"},
		{m.Duplicated, "duplicated"},
		{m.DuplicatedWithDup, "duplicated and marked so"},
		{m.DuplicatedAfterResend, "duplicated after the publisher sent them again"},
		{m.Reordered, "out of order"},
		{m.Late, "late"},
		{m.Unknown, "never sent"},
		{m.Forgotten, "not judged"},
	} {
		if x.n > 0 {
			s += fmt.Sprintf(", %s %s", count(x.n), x.what)
		}
	}
	return s
}

// generator says what the run cost where it ran.
func generator(r *result.Result) string {
	g := &r.Generator
	s := "kept its schedule"
	switch {
	case g.Behind:
		s = "fell behind: " + strings.Join(g.Reasons, "; ")
	case g.Events == 0:
		s = "had no schedule to keep"
	}
	if g.Processes == 0 {
		return s
	}
	if g.Events > 0 && !g.Behind {
		s += fmt.Sprintf(" (%s of %s late; the longest lag is %s)", count(g.Late), plural(g.Events, "event"), brief(g.LagMax.Duration()))
	}
	s += fmt.Sprintf("; %s, %.1f s of CPU, %s of memory", plural2(g.Processes, "process", "processes"), g.CPUSeconds, size(g.RSS))
	n := int64(0) // the warm-up cost CPU too
	for _, c := range []*result.Counters{&r.Counters, &r.Warmup.Counters} {
		n += c[result.Publishes] + c[result.Receives]
	}
	if n > 0 && g.CPUSeconds > 0 {
		s += fmt.Sprintf(", %.1f µs of CPU a message", 1e6*g.CPUSeconds/float64(n))
	}
	return s
}

func plural2(n int64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + more
}

// failures lists the errors that happened, the most frequent first.
func failures(r *result.Result) []fact {
	names := slices.SortedFunc(maps.Keys(r.Errors), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Errors[b], r.Errors[a]), cmp.Compare(a, b))
	})
	var all []fact
	for _, name := range names {
		if n := r.Errors[name]; n > 0 {
			all = append(all, fact{name, count(n)})
		}
	}
	return all
}

// faultWords tells one fault: when, what came of it, and what it cost the clients.
func faultWords(f *result.Fault) (when, words string) {
	when = clock(time.Duration(f.Begin))
	if end := clock(time.Duration(f.End)); f.End > f.Begin && end != when {
		when += "–" + end
	}
	words = f.Outcome
	if f.Error != "" {
		words = strings.TrimPrefix(words+"; failed: "+f.Error, "; ")
	}
	if n := f.Outage.Count(); n > 0 {
		words += fmt.Sprintf("; %s back after %s (median), %s (99 %%), %s (all)", plural(n, "client"),
			brief(f.Outage.Percentile(50)), brief(f.Outage.Percentile(99)), brief(f.Outage.Max()))
	}
	return when, strings.TrimPrefix(words, "; ")
}

// percentiles are those that tables show.
var percentiles = []float64{50, 90, 99, 99.9, 99.99, 99.999}

// latencyRows are the lines of the table of latencies: a name, the count, the percentiles, the longest.
func latencyRows(r *result.Result) [][]string {
	var rows [][]string
	for _, l := range result.Latencies() {
		h := &r.Latency[l]
		if h.Count() == 0 {
			continue
		}
		row := []string{l.String(), count(h.Count())}
		for _, p := range percentiles {
			row = append(row, brief(h.Percentile(p)))
		}
		rows = append(rows, append(row, brief(h.Max())))
	}
	return rows
}

func latencyHead() []string {
	head := []string{"latency", "count"}
	for _, p := range percentiles {
		head = append(head, fmt.Sprintf("p%g", p))
	}
	return append(head, "max")
}
