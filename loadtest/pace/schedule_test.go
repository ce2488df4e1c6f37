package pace

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// all returns the offsets of s, at most n.
func all(s Schedule, n int) []time.Duration {
	var got []time.Duration
	for len(got) < n {
		at, ok := s.Next()
		if !ok {
			break
		}
		got = append(got, at)
	}
	return got
}

// within counts the offsets in [from, to).
func within(offsets []time.Duration, from, to time.Duration) int {
	n := 0
	for _, at := range offsets {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

func TestConstantDoesNotDrift(t *testing.T) {
	s := Constant(3, time.Hour)
	got := all(s, math.MaxInt)
	if len(got) != 3*3600 {
		t.Fatalf("%d events in an hour at 3/s", len(got))
	}
	for i, at := range got {
		want := time.Duration(i) * time.Second / 3
		if d := at - want; d < -1 || d > 1 {
			t.Fatalf("event %d is due at %v, expected %v", i, at, want)
		}
	}
}

func TestRampSpreadsByRate(t *testing.T) {
	for _, c := range []struct {
		from, to float64
		first    int // in the first half; the rest in the second
		second   int
	}{
		{0, 1000, 1250, 3750},
		{1000, 0, 3750, 1250},
		{100, 1000, 1625, 3875},
		{500, 500, 2500, 2500},
	} {
		got := all(Ramp(c.from, c.to, 10*time.Second), math.MaxInt)
		first, second := within(got, 0, 5*time.Second), within(got, 5*time.Second, 10*time.Second)
		if d := first - c.first; d < -1 || d > 1 {
			t.Errorf("ramp %v..%v: %d events in the first half, expected %d", c.from, c.to, first, c.first)
		}
		if d := second - c.second; d < -1 || d > 1 {
			t.Errorf("ramp %v..%v: %d events in the second half, expected %d", c.from, c.to, second, c.second)
		}
		if first+second != len(got) || !slices.IsSorted(got) {
			t.Errorf("ramp %v..%v: events out of order or out of its time", c.from, c.to)
		}
	}
}

func TestPoissonIsRandomAndRepeats(t *testing.T) {
	got := all(Poisson(1000, 100*time.Second, 7), math.MaxInt)
	if !slices.Equal(got, all(Poisson(1000, 100*time.Second, 7), math.MaxInt)) {
		t.Error("equal seeds, different times")
	}
	if slices.Equal(got[:100], all(Poisson(1000, 100*time.Second, 8), 100)) {
		t.Error("different seeds, equal times")
	}
	if n := len(got); n < 98_000 || n > 102_000 {
		t.Errorf("%d events in 100 s at 1000/s on average", n)
	}
	// Gaps of a Poisson process are as far from their mean, on average, as the mean is long.
	var sum, squares float64
	for i := 1; i < len(got); i++ {
		gap := (got[i] - got[i-1]).Seconds()
		sum += gap
		squares += gap * gap
	}
	n := float64(len(got) - 1)
	mean := sum / n
	if cv := math.Sqrt(squares/n-mean*mean) / mean; cv < 0.95 || cv > 1.05 {
		t.Errorf("the gaps' coefficient of variation is %.3f, expected 1", cv)
	}
}

func TestStagesFollowEachOther(t *testing.T) {
	spec, err := Parse("2/s for 1s, pause 1s, burst 2, 3 at 1/s, 1/s for 2s")
	if err != nil {
		t.Fatal(err)
	}
	const s = time.Second
	want := []time.Duration{0, s / 2, 2 * s, 2 * s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s}
	if got := all(spec.New(1), 100); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := all(Steps([]Step{{1, s}, {0, s}, {2, s}}), 100); !slices.Equal(got, []time.Duration{0, 2 * s, 2*s + s/2}) {
		t.Errorf("steps: %v", got)
	}
}

func TestParse(t *testing.T) {
	for text, count := range map[string]int{
		"100/s for 30s":                            3000,
		" 6000/m   for 1m ":                        6000,
		"3600/h for 10s":                           10,
		"3000 at 500/s":                            3000,
		"700 at poisson 500/s":                     700,
		"10 at 5/s for 1s":                         5,
		"ramp 100..1000 over 60s":                  33000,
		"ramp 6000..0/m over 10s":                  500,
		"steps 100..500 by 100 each 10s":           15000,
		"steps 5..1 by 2 each 1s":                  9,
		"burst 1000":                               1000,
		"pause 5s":                                 0,
		"0.5/s for 10s,burst 5":                    10,
		"steps 0.1..0.3 by 0.1 each 10s, pause 1s": 6,
	} {
		spec, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := len(all(spec.New(3), math.MaxInt)); got != count && got != count+1 { // a ramp's last event may be one too many
			t.Errorf("%s: %d events, expected %d", text, got, count)
		}
		if spec.Endless() {
			t.Errorf("%s: endless", text)
		}
	}
	for _, text := range []string{"100/s", "poisson 3/s", "burst 3, 7/s"} {
		if spec, err := Parse(text); err != nil || !spec.Endless() || len(all(spec.New(1), 1000)) != 1000 {
			t.Errorf("%s: expected it to be endless (%v)", text, err)
		}
	}
}

func TestParseSaysWhere(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "column 1: expected a rate",
		"burst 3,":                          "column 9: expected a rate",
		"100":                               `column 1: expected a rate, such as 100/s, not "100"`,
		"100/s for":                         "column 7: expected a duration",
		"100/s four 3s":                     `column 7: expected "for"`,
		"100/s for 3":                       `column 11: expected a duration, such as 30s, up to 1000h0m0s, not "3"`,
		"100/s for 3s 4":                    `column 14: unexpected "4"`,
		"100/d for 3s":                      `column 1: "d" is no unit of time`,
		"-1/s for 3s":                       `column 1: expected a rate`,
		"NaN/s for 3s":                      `column 1: expected a rate`,
		"1e9/s for 3s":                      `column 1: 1e9/s is more than 10000000/s`,
		"0/s for 3s":                        `column 1: a rate of 0 is written "pause 5s"`,
		"100/s, burst 1":                    "column 8: the stage before has no end",
		"burst 3, ramp 1..2":                `column 15: expected "over"`,
		"ramp 100 over 3s":                  "column 6: expected two rates",
		"ramp 0..0 over 3s":                 "column 6: a rate of 0",
		"burst 1e3":                         "column 7: expected a number of events",
		"burst 99999999999":                 "column 7: expected a number of events",
		"steps 1..2 by 0 each 1s":           "column 15: steps of 0 never get there",
		"steps 1..9 by 0.000001 each 1s":    "column 15: steps of",
		"pause -1s":                         "column 7: expected a duration",
		"x at 3/s":                          "column 1: expected a number of events",
		"steps 1..2 every 1 for 3s":         `column 12: expected "by"`,
		"steps 1..2 by 1 for 3s":            `column 17: expected "each"`,
		"ramp 1..2 over 9999999h, pause 1s": "column 16: expected a duration",
	} {
		_, err := Parse(text)
		if err == nil || !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; expected %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("100/s for 30s, ramp 100..1000 over 60s")
	f.Add("steps 100..500 by 100 each 10s, poisson 200/s")
	f.Add("3 at poisson 1/h, burst 4, pause 5s")
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrSpec) {
				t.Fatal(err)
			}
			return
		}
		got := all(spec.New(1), 1000)
		if !slices.IsSorted(got) || len(got) > 0 && got[0] < 0 {
			t.Fatalf("%q goes back in time: %v", text, got)
		}
		again, err := Parse(spec.String())
		if err != nil || !slices.Equal(got, all(again.New(1), 1000)) {
			t.Fatalf("%q does not parse as %q: %v", spec, text, err)
		}
	})
}

func TestSpecIsText(t *testing.T) {
	var plan struct{ Connects, Publishes Spec }
	in := `{"Connects":"100/s for  30s","Publishes":""}`
	if err := json.Unmarshal([]byte(in), &plan); err != nil {
		t.Fatal(err)
	}
	if n := len(all(plan.Connects.New(1), 10_000)); n != 3000 {
		t.Errorf("%d connects", n)
	}
	if n := len(all(plan.Publishes.New(1), 10_000)); n != 0 || plan.Publishes.Endless() {
		t.Errorf("the empty schedule has %d events", n)
	}
	if out, err := json.Marshal(plan); err != nil || string(out) != `{"Connects":"100/s for 30s","Publishes":""}` {
		t.Errorf("%s, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"Connects":"1"}`), &plan); !errors.Is(err, ErrSpec) {
		t.Errorf("bad schedule: %v", err)
	}
}

// specs draws schedules of all kinds.
func specs(t *rapid.T) string {
	rate := rapid.SampledFrom([]string{"1/s", "7/s", "100/s", "90/m", "0.3/s"})
	over := rapid.SampledFrom([]string{"100ms", "1s", "3s", "2500ms"})
	part := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			return rate.Draw(t, "rate") + " for " + over.Draw(t, "over")
		case 1:
			return "poisson " + rate.Draw(t, "rate") + " for " + over.Draw(t, "over")
		case 2:
			return rapid.SampledFrom([]string{"0", "1", "17"}).Draw(t, "n") + " at " + rate.Draw(t, "rate")
		case 3:
			return "ramp " + rapid.SampledFrom([]string{"0..50", "50..0", "10..20"}).Draw(t, "span") + " over " + over.Draw(t, "over")
		case 4:
			return "burst " + rapid.SampledFrom([]string{"0", "1", "9"}).Draw(t, "n")
		default:
			return "pause " + over.Draw(t, "over")
		}
	})
	return strings.Join(rapid.SliceOfN(part, 1, 5).Draw(t, "stages"), ", ")
}

func TestShardsPartitionTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec, err := Parse(specs(t))
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		whole := all(spec.New(seed), math.MaxInt)
		if !slices.IsSorted(whole) {
			t.Fatalf("%v goes back in time: %v", spec, whole)
		}
		n := rapid.IntRange(1, 5).Draw(t, "n")
		merged := make([]time.Duration, len(whole))
		left := len(whole)
		for k := range n {
			for i, at := range all(Shard(spec.New(seed), k, n), math.MaxInt) {
				merged[k+i*n] = at // panics if it is beyond the whole
				left--
			}
		}
		if left != 0 || !slices.Equal(merged, whole) {
			t.Fatalf("%d shards of %v: %d events are missing, or have other times", n, spec, left)
		}
	})
}

// Who shares players with others gives each of them the events that it would have had alone.
func TestDealGivesEachPlayerItsTurns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec, err := Parse(specs(t))
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		players, shards := rapid.IntRange(1, 7).Draw(t, "players"), rapid.IntRange(1, 9).Draw(t, "shards")
		alone, shared := make([][]time.Duration, players), make([][]time.Duration, players)
		for i, at := range all(spec.New(seed), math.MaxInt) {
			alone[i%players] = append(alone[i%players], at)
		}
		for k := range shards {
			var mine []int
			for p := k; p < players; p += shards {
				mine = append(mine, p)
			}
			for i, at := range all(Deal(spec.New(seed), players, k, shards), math.MaxInt) {
				p := mine[i%len(mine)] // panics if it is nobody's
				shared[p] = append(shared[p], at)
			}
		}
		if !slices.EqualFunc(alone, shared, slices.Equal[[]time.Duration]) {
			t.Fatalf("%d players in %d shards of %v: %v, alone %v", players, shards, spec, shared, alone)
		}
	})
}

func TestScheduleAllocatesNothing(t *testing.T) {
	spec, err := Parse("ramp 1..1000 over 1000h")
	if err != nil {
		t.Fatal(err)
	}
	s := Shard(spec.New(1), 1, 3)
	s.Next()
	if n := testing.AllocsPerRun(1000, func() { s.Next() }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}
