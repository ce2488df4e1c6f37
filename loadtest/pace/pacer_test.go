package pace

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	before := time.Now()
	stamp := Now()
	wall := Wall(stamp)
	if d := wall.Sub(before.Round(0)); d < -time.Minute || d > time.Minute { // the calendar's clock may be corrected meanwhile
		t.Errorf("Wall says %v at %v", wall, before)
	}
	if got := Stamp(wall); got != stamp {
		t.Errorf("Stamp(Wall(%d)) = %d", stamp, got)
	}
	if Now() < stamp {
		t.Error("the clock goes back")
	}
}

// TestPacerInFakeTime runs a minute of schedule, with a handler that blocks now and then, on a clock that stands still between events.
func TestPacerInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec, err := Parse("10/s for 10s, burst 5, 1/s for 50s")
		if err != nil {
			t.Fatal(err)
		}
		p := Pacer{Coarse: true}
		start := Now() + int64(time.Second)
		var offsets []time.Duration
		err = p.Run(t.Context(), start, spec.New(1), func(i int, intended int64) {
			if i != len(offsets) {
				t.Errorf("event %d comes as number %d", i, len(offsets))
			}
			lag := Now() - intended
			switch {
			case i > 20 && i <= 35: // those that piled up behind event 20 come in one go
				if want := int64(1500*time.Millisecond) - int64(i-20)*int64(100*time.Millisecond); lag != want {
					t.Errorf("event %d is %v late, expected %v", i, time.Duration(lag), time.Duration(want))
				}
			case lag != 0:
				t.Errorf("event %d is %v late", i, time.Duration(lag))
			}
			if i == 20 {
				time.Sleep(1500 * time.Millisecond)
			}
			offsets = append(offsets, time.Duration(intended-start))
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := all(spec.New(1), 1000); !slices.Equal(offsets, want) {
			t.Errorf("fired %v\nwant  %v", offsets, want)
		}
		s := p.Lag.Stats()
		if s.Count != 155 || s.Late != 14 || s.Max != 1400*time.Millisecond || !s.Behind() {
			t.Errorf("%+v: expected 14 of 155 late, the worst by 1.4 s", s)
		}
	})
}

func TestPacerEndsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		p := Pacer{Coarse: true}
		fired := 0
		err := p.Run(ctx, Now(), Constant(1, Forever), func(i int, _ int64) {
			fired++
			if i == 9 {
				time.AfterFunc(500*time.Millisecond, func() { cancel(cause) })
			}
		})
		if !errors.Is(err, cause) || fired != 10 {
			t.Errorf("%d events, then %v", fired, err)
		}
		if err := p.Run(ctx, Now(), Burst(1), func(int, int64) { t.Error("fired after the end") }); !errors.Is(err, cause) {
			t.Errorf("a context that was done: %v", err)
		}
	})
}

// TestPacerForReal uses the machine's own clock and sleep. How late it is depends on the machine, so nothing is said about it: but
// never early, in order, all of them, and at the rate asked for.
func TestPacerForReal(t *testing.T) {
	for _, coarse := range []bool{false, true} {
		p := Pacer{Coarse: coarse}
		start := Now() + int64(5*time.Millisecond)
		n := 0
		err := p.Run(t.Context(), start, Concat(Constant(2000, 100*time.Millisecond), Burst(10), Poisson(20_000, 50*time.Millisecond, 1)),
			func(i int, intended int64) {
				if i != n {
					t.Errorf("event %d comes as number %d", i, n)
				}
				n++
				if early := intended - Now(); early > 0 {
					t.Errorf("event %d is %v early", i, time.Duration(early))
				}
			})
		if err != nil || n < 210+800 {
			t.Errorf("coarse %v: %d events, %v", coarse, n, err)
		}
		if took := time.Duration(Now() - start); took < 148*time.Millisecond { // the last gap is random
			t.Errorf("coarse %v: done after %v", coarse, took)
		}
		t.Logf("coarse %v: %v", coarse, p.Lag.Stats())
	}
}

func TestLag(t *testing.T) {
	var l Lag
	for i := range 990 {
		l.Record(time.Duration(i) * time.Microsecond)
	}
	if s := l.Stats(); s.Behind() || s.Late != 0 || s.P99 < 979*time.Microsecond || s.P99 > 1010*time.Microsecond {
		t.Errorf("%+v", s)
	}
	for range 10 {
		l.Record(20 * time.Millisecond)
	}
	if s := l.Stats(); s.Behind() || s.Late != 10 || s.Max != 20*time.Millisecond || s.P99 > 1100*time.Microsecond {
		t.Errorf("1 %% late is what a machine does: %+v", s)
	}
	l.Record(10*time.Millisecond + 1)
	if s := l.Stats(); !s.Behind() || s.Late != 11 {
		t.Errorf("more than 1 %% late: %+v", s)
	}
	var stalled Lag
	for range 100_000 {
		stalled.Record(-1)
	}
	stalled.Record(1001 * time.Millisecond)
	if s := stalled.Stats(); !s.Behind() || s.P99 != 0 {
		t.Errorf("a stall of a second: %+v", s)
	}
	if s := new(Lag).Stats(); s.Behind() || s != (LagStats{}) {
		t.Errorf("nothing: %+v", s)
	}
}

// TestLagBuckets checks that every duration falls into a bucket whose top is not below it and at most a 32nd above it.
func TestLagBuckets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		v := r.Int64() >> (i % 63)
		b := bucketOf(uint64(v))
		if b < 0 || b >= buckets {
			t.Fatalf("%d falls into bucket %d of %d", v, b, buckets)
		}
		if over := top(b) - v; over < 0 || over > v>>fine {
			t.Fatalf("%d falls into bucket %d, whose top is %d", v, b, top(b))
		}
	}
}

func TestLagsMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var whole, merged Lag
	parts := make([]Lag, 3)
	var wg sync.WaitGroup
	for range 3000 {
		d := time.Duration(r.ExpFloat64() * float64(5*time.Millisecond))
		whole.Record(d)
		part := &parts[r.IntN(3)]
		wg.Go(func() { part.Record(d) })
	}
	wg.Wait()
	for i := range parts {
		text, err := json.Marshal(&parts[i])
		if err != nil {
			t.Fatal(err)
		}
		var told Lag
		if err := json.Unmarshal(text, &told); err != nil {
			t.Fatal(err)
		}
		merged.Merge(&told)
	}
	if merged.Stats() != whole.Stats() {
		t.Errorf("merged %+v, whole %+v", merged.Stats(), whole.Stats())
	}
	for _, bad := range []string{`{"buckets":{"9999":1}}`, `{"buckets":{"-1":1}}`, `{"buckets":{"1":-1}}`, `[]`} {
		if err := json.Unmarshal([]byte(bad), new(Lag)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestRetryProfiles(t *testing.T) {
	const s = time.Second
	r := rand.New(rand.NewPCG(5, 6))
	for name, want := range map[string][]time.Duration{ // the most that an attempt waits, in seconds
		"none":         {Never, Never},
		"paho":         {0, 1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 512 * s, 600 * s, 600 * s},
		"autopaho":     {0, 10 * s, 10 * s},
		"paho-java":    {1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 128 * s},
		"paho-python":  {1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 120 * s, 120 * s},
		"mqttjs":       {1 * s, 1 * s},
		"esp":          {10 * s, 10 * s},
		"aws311":       {1 * s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 128 * s},
		"fixed:250ms":  {s / 4, s / 4},
		"fixed:0s":     {0, 0},
		"fixed:1m0.5s": {60*s + s/2},
	} {
		p, err := ParseRetry(name)
		if err != nil {
			t.Error(err)
			continue
		}
		for i, d := range want {
			if got := p.Delay(i, r); got != d {
				t.Errorf("%s waits %v before attempt %d, expected %v", name, got, i, d)
			}
		}
	}
	for _, p := range Profiles() {
		if p.Name != "none" && (p.Library == "" || !strings.Contains(p.Source, ":")) {
			t.Errorf("%s: where is that from?", p.Name)
		}
		for _, attempt := range []int{-1, 100, 1 << 40} { // no overflow
			if d := p.Delay(attempt, r); d < Never || d > 10*time.Minute {
				t.Errorf("%s waits %v before attempt %d", p.Name, d, attempt)
			}
		}
	}
}

// TestJitter compares the two profiles that draw with the bounds that their sources give.
func TestJitter(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct {
		name      string
		attempt   int
		low, high time.Duration
	}{
		{"paho-c", 0, 0, 4 * time.Second}, // 1 s ± 20 % in whole seconds is 0 or 1 s, then up to 3 s until somebody looks
		{"paho-c", 3, 6 * time.Second, 12 * time.Second},
		{"paho-c", 9, 50 * time.Second, 75 * time.Second},
		{"aws", 0, 0, time.Second},
		{"aws", 3, 0, 8 * time.Second},
		{"aws", 6, 0, 64 * time.Second},
	} {
		p, err := ParseRetry(c.name)
		if err != nil {
			t.Fatal(err)
		}
		var low, high time.Duration = 1 << 62, 0
		for range 10_000 {
			d := p.Delay(c.attempt, r)
			low, high = min(low, d), max(high, d)
		}
		slack := (c.high - c.low) / 20
		if low < c.low || low > c.low+slack || high > c.high || high < c.high-slack {
			t.Errorf("%s, attempt %d: %v to %v, expected %v to %v", c.name, c.attempt, low, high, c.low, c.high)
		}
	}
	aws, err := ParseRetry("aws")
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	for range 10_000 {
		if aws.Delay(12, r) == 120*time.Second {
			cut++
		}
	}
	if cut < 9500 { // 4,096 s are drawn from, and cut after the draw: nearly all wait for 120 s, without jitter
		t.Errorf("aws: %d of 10,000 late attempts wait for the maximum", cut)
	}
}

func TestRetrySettles(t *testing.T) {
	p, err := ParseRetry("aws")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.After(4, 29*time.Second); got != 5 {
		t.Errorf("lost after 29 s: attempt %d", got)
	}
	if got := p.After(4, 30*time.Second); got != 0 {
		t.Errorf("lost after 30 s: attempt %d", got)
	}
}

func TestParseRetryKnowsItsNames(t *testing.T) {
	for _, name := range []string{"", "pahoo", "fixed", "fixed:", "fixed:-1s", "fixed:2000h"} {
		if _, err := ParseRetry(name); !errors.Is(err, ErrRetry) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := ParseRetry("x"); err == nil || !strings.Contains(err.Error(), "none, paho,") {
		t.Errorf("the names are not named: %v", err)
	}
}
