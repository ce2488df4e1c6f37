package loadtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// target is something that does so many a second, and lets everything beyond wait.
type target struct {
	knee   float64
	behind float64 // from this rate on the generator is too slow; 0: never
	fails  int     // the run of this number fails; 0: none
	tried  []float64
}

func (x *target) sweep(t *testing.T, s Sweep) *Sweep {
	objective, err := result.ParseAssertion("puback.p99<50ms")
	if err != nil {
		t.Fatal(err)
	}
	s.Objective = objective
	s.Plan = func(rate float64) *Plan { return &Plan{Name: fmt.Sprint(rate)} }
	s.Run = func(_ context.Context, p *Plan) (*result.Result, error) {
		var rate float64
		fmt.Sscan(p.Name, &rate)
		x.tried = append(x.tried, rate)
		if len(x.tried) == x.fails {
			return nil, errors.New("cable pulled")
		}
		rec := result.NewRecorder(result.Config{})
		took := int64(time.Millisecond)
		if rate > x.knee {
			took *= 100
		}
		for i := range int64(100) {
			rec.Puback.Record(i, i, i+took)
		}
		rec.Count(result.Publishes, 0, int64(rate))
		res := rec.Finish(int64(time.Second))
		res.Generator.Behind = x.behind > 0 && rate >= x.behind
		return res, nil
	}
	return &s
}

func TestSweepFindsTheKnee(t *testing.T) {
	for _, knee := range []float64{1000, 1500, 7777, 123456} {
		x := target{knee: knee}
		told := 0
		res, err := x.sweep(t, Sweep{From: 1000, Tell: func(result.SweepStep) { told++ }}).Find(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at, ok := res.Sweep.Knee()
		if !ok || at.Rate > knee || at.Rate < knee/1.11 {
			t.Errorf("the knee is %v; found %+v, tried %v", knee, at, x.tried)
		}
		if told != len(x.tried) || len(res.Sweep.Steps) != told || told > 20 {
			t.Errorf("%d steps, %d told of, %d tried", len(res.Sweep.Steps), told, len(x.tried))
		}
		if res.Counters[result.Publishes] != int64(at.Rate) {
			t.Errorf("the result is that of %d a second, the knee is at %v", res.Counters[result.Publishes], at.Rate)
		}
	}
}

// TestSweepIsNotFooled: a rate that broke it, that was not reached, or that the generator could not keep is no knee.
func TestSweepIsNotFooled(t *testing.T) {
	x := target{knee: 10}
	res, err := x.sweep(t, Sweep{From: 1000}).Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := res.Sweep.Knee(); ok || len(x.tried) != 1 {
		t.Errorf("found %+v, tried %v", at, x.tried)
	}
	x = target{knee: 1e6, behind: 3000}
	if res, err = x.sweep(t, Sweep{From: 1000}).Find(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at, ok := res.Sweep.Knee(); !ok || at.Rate >= 3000 || !strings.Contains(strings.Join(res.Notes, "\n"), "the generator fell behind before the target did") {
		t.Errorf("found %+v, notes %q", at, res.Notes)
	}
	x = target{knee: 1e6}
	slow := x.sweep(t, Sweep{From: 1000})
	run := slow.Run
	slow.Run = func(ctx context.Context, p *Plan) (*result.Result, error) {
		res, err := run(ctx, p)
		res.Counters[result.Publishes] = min(res.Counters[result.Publishes], 1500)
		return res, err
	}
	if res, err = slow.Find(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at, _ := res.Sweep.Knee(); at.Rate < 1500 || at.Rate > 1500/reachedShare {
		t.Errorf("1,500 a second were done at most; found %+v", at)
	}
	x = target{knee: 1e6}
	if res, err = x.sweep(t, Sweep{From: 1000, To: 3000}).Find(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at, _ := res.Sweep.Knee(); at.Rate != 3000 || len(x.tried) != 3 {
		t.Errorf("up to 3,000: found %+v, tried %v", at, x.tried)
	}
}

// TestSweepEndsEarly with what it knows.
func TestSweepEndsEarly(t *testing.T) {
	x := target{knee: 1e6, fails: 3}
	res, err := x.sweep(t, Sweep{From: 1000}).Find(t.Context())
	if err == nil || err.Error() != "cable pulled" || res == nil || len(res.Sweep.Steps) != 2 {
		t.Errorf("%v, %v", res, err)
	}
	x = target{knee: 1e6, fails: 1}
	if res, err := x.sweep(t, Sweep{From: 1000}).Find(t.Context()); err == nil || res != nil {
		t.Errorf("%v, %v", res, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	x = target{knee: 1e6}
	s := x.sweep(t, Sweep{From: 1000, Tell: func(result.SweepStep) { cancel() }})
	if res, err := s.Find(ctx); err != nil || !res.Interrupted || len(x.tried) != 1 {
		t.Errorf("%v, %v, tried %v", res, err, x.tried)
	}
}

func TestSweepRefuses(t *testing.T) {
	for want, s := range map[string]Sweep{
		"from:": {}, "from: ": {From: maxSweepRate + 1}, "to:": {From: 10, To: 5}, "factor:": {From: 1, Factor: 1}, "precision:": {From: 1, Precision: 1},
	} {
		if _, err := s.Find(t.Context()); !errors.Is(err, ErrSweep) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", s, err, want)
		}
	}
}

func TestSweepOf(t *testing.T) {
	for objective, want := range map[string]string{
		"connack.p99<1s": "conn", "connect.rate>=5": "conn", "e2e.p99<1s": "pubsub", "puback.p99<1s": "pub", "errors==0": "pub", "receive.rate>1": "pubsub",
	} {
		a, err := result.ParseAssertion(objective)
		if err != nil {
			t.Fatal(err)
		}
		if got := SweepOf(a); got != want {
			t.Errorf("%s raises %s, want %s", objective, got, want)
		}
	}
}
