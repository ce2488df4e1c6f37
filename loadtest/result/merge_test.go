package result

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestMergeInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := results().Draw(t, "a"), results().Draw(t, "b"), results().Draw(t, "c")
		same(t, "commutative", Merge(b, a), Merge(a, b))
		same(t, "associative", Merge(Merge(a, b), c), Merge(a, Merge(b, c)))
		same(t, "neutral", Merge(a, New()), a)
		same(t, "neutral", Merge(New(), a), a)
	})
}

// TestMergeIsExact: events told to several recorders give the same as told to one.
func TestMergeIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := events().Draw(t, "events")
		parts := make([][]event, rapid.IntRange(1, 4).Draw(t, "parts"))
		for _, e := range all {
			i := rapid.IntRange(0, len(parts)-1).Draw(t, "part")
			parts[i] = append(parts[i], e)
		}
		sum := New()
		for _, p := range parts {
			sum.Add(run(p, 10*second))
		}
		same(t, "sum of the parts", sum, run(all, 10*second))
	})
}

// TestTakenPartsAddUp: what Take and Finish return adds up to what Finish alone would have.
func TestTakenPartsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := events().Draw(t, "events")
		r := NewRecorder(Config{Wall: wall, Warmup: 2 * time.Second})
		sum := New()
		for _, e := range all {
			r.Tick(e.at)
			e.tell(r)
			if rapid.Bool().Draw(t, "take") {
				sum.Add(r.Take(e.at))
			}
		}
		last := r.Finish(10 * second)
		behind, why := last.Generator.Behind, last.Generator.Reasons
		last.Generator = Generator{Events: last.Generator.Events, Late: last.Generator.Late, Reasons: []string{}}
		sum.Add(last)
		same(t, "sum of the parts", sum, run(all, 10*second))
		if want := sum.Generator.Late*lateShare > sum.Generator.Events; behind != want {
			t.Fatalf("%d of %d events were late: behind is %v (%v)", sum.Generator.Late, sum.Generator.Events, behind, why)
		}
	})
}

func TestMergeChangesNeither(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := results().Draw(t, "a"), results().Draw(t, "b")
		a2, b2 := a.Clone(), b.Clone()
		sum := Merge(a, b)
		sum.Add(sum.Clone())
		sum.Errors["refused"]++
		same(t, "a", a, a2)
		same(t, "b", b, b2)
	})
}

func TestResultSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := results().Draw(t, "result")
		r.Judge([]Assertion{must("errors<5"), must("e2e.p99<1s")})
		var b bytes.Buffer
		if err := r.Encode(&b); err != nil {
			t.Fatal(err)
		}
		read, err := Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "read back", read, r)
		same(t, "sum of what was read", Merge(read, read), Merge(r, r))
	})
}

func must(text string) Assertion {
	a, err := ParseAssertion(text)
	if err != nil {
		panic(err)
	}
	return a
}

// TestWideningAndMergingCommute: with a low bound, so that it happens often.
func TestWideningAndMergingCommute(t *testing.T) {
	const limit = 4
	series := rapid.Custom(func(t *rapid.T) *Series {
		s := &Series{Width: 1}
		for at := range int64(20) {
			if rapid.Bool().Draw(t, "row") {
				s.Rows = append(s.Rows, Row{T: at, Connects: 1 + at, ConnectedSeconds: 1})
			}
		}
		s.bound(limit, newSpreading())
		return s
	})
	plus := func(a, b *Series) *Series {
		sum := &Series{}
		sum.plus(a, limit)
		sum.plus(b, limit)
		return sum
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := series.Draw(t, "a"), series.Draw(t, "b"), series.Draw(t, "c")
		left, right := plus(plus(a, b), c), plus(a, plus(c, b))
		if fmt.Sprint(left) != fmt.Sprint(right) || len(left.Rows) > limit {
			t.Fatalf("got %v and %v", left, right)
		}
		var want, got int64
		for _, s := range []*Series{a, b, c} {
			for _, r := range s.Rows {
				want += r.Connects
			}
		}
		for _, r := range left.Rows {
			got += r.Connects
		}
		if got != want {
			t.Fatalf("%d connects of %d", got, want)
		}
	})
}

// TestListKeepsTheFirst: the same thousand, in whatever parts they came.
func TestListKeepsTheFirst(t *testing.T) {
	var whole List[Loss]
	var parts [3]List[Loss]
	for i := range 2500 {
		loss := Loss{At: rand.Int64N(500), Client: fmt.Sprint(i)}
		whole.Add(loss)
		parts[i%3].Add(loss)
	}
	parts[0].plus(&parts[2])
	parts[1].plus(&parts[0])
	if got := parts[1]; fmt.Sprint(got) != fmt.Sprint(whole) || got.Count != 2500 || len(got.Entries) != maxList {
		t.Errorf("got %d of %d, want %d of %d, and the same ones", len(got.Entries), got.Count, len(whole.Entries), whole.Count)
	}
}

func TestFaultsOfSeveralProcesses(t *testing.T) {
	does, sees := New(), New()
	does.Faults = []Fault{{Number: 1, Spec: "at 1s kill broker b2", Begin: 7, End: 9, Outcome: "done"}}
	r := NewRecorder(Config{})
	r.Outage(1, "at 1s kill broker b2", 7, 7+3*second)
	sees.Add(r.Finish(5 * second))
	got := Merge(sees, does).Faults
	if len(got) != 1 || got[0].End != 9 || got[0].Outcome != "done" || got[0].Outage.Count() != 1 {
		t.Errorf("got %+v", got)
	}
}
