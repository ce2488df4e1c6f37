package result

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var wall = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const second = int64(time.Second)

// event is something that a recorder is told.
type event struct {
	kind    int
	at      int64
	latency int64
	waited  int64
}

func (e event) tell(r *Recorder) {
	switch timers := []Timer{r.Connect, r.Connack, r.Puback, r.Suback, r.E2E}; e.kind {
	case 0, 1, 2, 3, 4:
		timers[e.kind].Record(e.at-e.latency-e.waited, e.at-e.latency, e.at)
	case 5:
		r.Count(Counter(e.waited%int64(Errors)), e.at, e.waited)
	case 6:
		r.Error([]string{"refused", "tls", "of a new kind"}[e.waited%3], e.at)
	case 7:
		r.Fired(e.at-e.waited, e.at)
	case 8:
		r.Connected(e.waited % 3)
	case 9:
		r.Outage(1, "at 1s kill broker b1", second, e.at)
	}
}

func events() *rapid.Generator[[]event] {
	one := rapid.Custom(func(t *rapid.T) event {
		return event{
			rapid.IntRange(0, 9).Draw(t, "kind"), rapid.Int64Range(0, 9*second).Draw(t, "at"),
			rapid.Int64Range(-second, 4000*second).Draw(t, "latency"), rapid.Int64Range(0, 100e6).Draw(t, "waited"),
		}
	})
	return rapid.Custom(func(t *rapid.T) []event {
		all := rapid.SliceOfN(one, 0, 15).Draw(t, "events")
		// A recorder is told in the order of time, by and large.
		for i := range all {
			for j := i; j > 0 && all[j].at < all[j-1].at; j-- {
				all[j], all[j-1] = all[j-1], all[j]
			}
		}
		return all
	})
}

// run tells a new recorder all events and returns what it made of them.
func run(all []event, end int64) *Result {
	r := NewRecorder(Config{Wall: wall, Warmup: 2 * time.Second})
	for _, e := range all {
		r.Tick(e.at)
		e.tell(r)
	}
	res := r.Finish(end)
	res.Generator = Generator{Events: res.Generator.Events, Late: res.Generator.Late, Reasons: []string{}}
	res.Generator.derive(&res.Latency[Lag])
	return res
}

// results draws results that use every field.
func results() *rapid.Generator[*Result] {
	count := rapid.Int64Range(0, 1000)
	word := rapid.SampledFrom([]string{"", "a", "b", "a, c", "<b>"})
	return rapid.Custom(func(t *rapid.T) *Result {
		r := run(events().Draw(t, "events"), rapid.Int64Range(9*second, 12*second).Draw(t, "end"))
		r.Tool, r.Verb, r.Name = word.Draw(t, "tool"), word.Draw(t, "verb"), word.Draw(t, "name")
		if rapid.Bool().Draw(t, "has plan") {
			r.Plan = json.RawMessage(fmt.Sprintf(`{"n":%d}`, count.Draw(t, "plan")))
		}
		r.Targets = union(nil, []string{word.Draw(t, "target")})
		r.Notes = union(nil, []string{word.Draw(t, "note")})
		r.Start = wall.Add(time.Duration(count.Draw(t, "start")) * time.Second)
		r.Warmup.Seconds = rapid.Int64Range(0, 3).Draw(t, "warm-up")
		r.Series.mark(r.Warmup.Seconds)
		r.Interrupted = rapid.Bool().Draw(t, "interrupted")
		if rapid.Bool().Draw(t, "wide") {
			r.Series.widen(1<<rapid.IntRange(1, 3).Draw(t, "width"), newSpreading())
			r.Series.mark(r.Warmup.Seconds)
		}
		g := &r.Generator
		g.Machine, g.GOMAXPROCS, g.Behind = word.Draw(t, "machine"), count.Draw(t, "procs"), rapid.Bool().Draw(t, "behind")
		g.setCPU(rapid.Int64Range(0, 1e9).Draw(t, "cpu"))
		g.Processes, g.RSS, g.PeakRSS = count.Draw(t, "processes"), count.Draw(t, "rss"), count.Draw(t, "peak")
		g.Reasons = union(nil, []string{word.Draw(t, "reason")})
		g.derive(&r.Latency[Lag])
		if rapid.Bool().Draw(t, "verified") {
			r.Verify = &Verify{Homes: Tally{word.Draw(t, "home"): count.Draw(t, "clients")}, Messages: map[string]*Messages{}}
			judged := count.Draw(t, "judged")
			r.Verify.Clients, r.Verify.Judged, r.Verify.Sticky = count.Draw(t, "clients"), judged, judged/2
			for range rapid.IntRange(0, 3).Draw(t, "listed") {
				r.Verify.SessionsLost.Add(Loss{At: count.Draw(t, "lost"), Client: word.Draw(t, "client")})
				r.Verify.Moves.Add(Move{At: count.Draw(t, "moved"), To: word.Draw(t, "to")})
				r.Verify.Anomalies.Add(Anomaly{At: count.Draw(t, "odd"), Sequence: count.Draw(t, "sequence")})
			}
			r.Verify.Messages[word.Draw(t, "group")] = &Messages{Expected: count.Draw(t, "expected"), Late: count.Draw(t, "late")}
		}
		if rapid.Bool().Draw(t, "raced") {
			r.Race = &Race{Gap: count.Draw(t, "gap"), Pairs: count.Draw(t, "pairs")}
			r.Race.Splits.Add(Split{At: count.Draw(t, "split"), Client: word.Draw(t, "pair")})
		}
		if rapid.Bool().Draw(t, "swept") {
			r.Sweep = &Sweep{Objective: word.Draw(t, "objective"), Steps: []SweepStep{
				{Rate: float64(count.Draw(t, "rate")), Kept: rapid.Bool().Draw(t, "kept"), P99: Micros(count.Draw(t, "p99"))},
			}}
		}
		return r
	})
}

func text(t testing.TB, r *Result) string {
	t.Helper()
	out, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// fatal is what rapid.T and testing.T have in common.
type fatal interface{ Fatalf(string, ...any) }

// same fails unless both are the same in every field, computed or not.
func same(t fatal, what string, got, want *Result) {
	a, errA := json.MarshalIndent(got, "", " ")
	b, errB := json.MarshalIndent(want, "", " ")
	if errA != nil || errB != nil {
		t.Fatalf("%s: %v %v", what, errA, errB)
	}
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%s: %s", what, difference(a, b))
	}
	for i := range got.Latency {
		if !got.Latency[i].Equal(&want.Latency[i]) {
			t.Fatalf("%s: latency %s differs", what, Latency(i))
		}
	}
}

// difference shows the first line in which two texts differ, and those before it.
func difference(got, want []byte) string {
	a, b := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d: got\n%s\nwant\n%s\nafter\n%s", i+1, a[i], b[i], strings.Join(b[max(0, i-12):i], "\n"))
		}
	}
	return fmt.Sprintf("got %d lines, want %d", len(a), len(b))
}
