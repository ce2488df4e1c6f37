package result

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// measured returns a result in which every kind of name has a value.
func measured() *Result {
	r := NewRecorder(Config{Wall: wall})
	for i := range int64(1000) {
		now := i * 10e6
		r.Tick(now)
		r.Count(Publishes, now, 2)
		r.Connack.Record(now-(i+1)*100_000, now, now)
	}
	r.Error("refused", 5*second)
	res := r.Finish(10 * second)
	res.Generator.RSS, res.Generator.Behind = 300<<20, true
	res.Verify = &Verify{Judged: 1_000_000, Sticky: 999_999, Messages: map[string]*Messages{
		"mesh": {Expected: 100, Lost: 3}, "control": {Lost: 4, Reordered: 5},
	}}
	res.Race = &Race{Pairs: 1000, Split: 7}
	return res
}

func TestAssertions(t *testing.T) {
	res := measured()
	for _, c := range []struct {
		text   string
		passed bool
		why    string // words of it
	}{
		{"stickiness>=99.99", true, ""},
		{"stickiness >= 99.99%", true, ""},
		{"stickiness==100", false, "stickiness is 99.9999 %, 0.0001 points less than 100 %"},
		{"lost==0", false, "lost is 3, 3 more than 0"},
		{"lost<3", false, "lost is 3, and may not be 3"},
		{"control.lost<=4", true, ""},
		{"control.reordered!=5", false, "control.reordered is 5, and may not be 5"},
		{"connack.p99<50ms", false, "connack.p99 is 99.007ms, 49.007ms (98 %) more than 50ms"},
		{"connack.p99.9<0.1s", true, ""},
		{"connack.service.p99<1us", true, ""},
		{"connack.max>1s", false, "less than 1s"},
		{"connack.count>=1000", true, ""},
		{"e2e.count==0", true, ""},
		{"e2e.p99<50ms", false, "e2e.p99 was not measured in this run"},
		{"errors.refused==0", false, "errors.refused is 1, 1 more than 0"},
		{"errors<=1", true, ""},
		{"publish.rate>=1000", false, "publish.rate is 200, 800 (80 %) less than 1000"},
		{"rate.publish>=100", true, ""},
		{"race.split==0", false, "race.split is 7"},
		{"knee>100", false, "knee was not measured"},
		{"generator.rss<200MiB", false, "generator.rss is 300.0 MiB, 100.0 MiB (50 %) more than 200.0 MiB"},
		{"generator.behind==0", false, "generator.behind is 1"},
		{"duration>=10s", true, ""},
	} {
		a, err := ParseAssertion(c.text)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		o := a.Evaluate(res)
		if o.Passed != c.passed || o.Assertion != c.text || !strings.Contains(o.Why, c.why) || c.passed && o.Why != "" {
			t.Errorf("%s: %+v", c.text, o)
		}
	}
	if n := res.Judge([]Assertion{must("lost==0"), must("race.pairs>1"), must("moves==0")}); n != 1 || len(res.Failed()) != 1 {
		t.Errorf("%d failed: %+v", n, res.Assertions)
	}
}

func TestAssertionErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", `column 1: expected one of >= <= == != > <`},
		{"lost", `column 5: expected one of`},
		{"lost=0", `column 5: expected one of`},
		{"lost!0", `column 5: expected one of`},
		{"==0", `column 1: expected a name before "==0"`},
		{"lost==", `column 7: expected a number after "=="`},
		{"lost==50ms", `column 7: "50ms" is not a number`},
		{"lost==nan", `"nan" is not a number`},
		{"lost==0x10", `"0x10" is not a number`},
		{"lost=>0", `column 5: expected one of`},
		{"connack.p99<50", `column 13: "50" is not a duration like 50ms`},
		{"connack.p101<50ms", `"p101" is no percentile`},
		{"connack.pfoo<50ms", `"pfoo" is no percentile`},
		{"conack.p99<50ms", `unknown name "conack.p99": did you mean "connack.p99"?`},
		{"connack<50ms", `did you mean "connack.p99"?`},
		{"  stickyness>=99", `column 3: unknown name "stickyness": did you mean "stickiness"?`},
		{"errors.refuse==0", `did you mean "errors.refused"?`},
		{"Lost==0", `did you mean "lost"?`},
		{"é.lost==0", `column 1: unknown name`},
		{"somethingelseentirely==0", `there are stickiness, judged,`},
		{"stickiness>=ninety", `"ninety" is not a percentage`},
		{"generator.rss<1parsec", `not a size`},
		{strings.Repeat("x", 300), `longer than 256 bytes`},
	} {
		_, err := ParseAssertion(c.text)
		if err == nil || !errors.Is(err, ErrAssertion) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %s", c.text, err, c.want)
		}
	}
}

// TestAssertionNamesParse: everything that is listed can be asserted.
func TestAssertionNamesParse(t *testing.T) {
	all := AssertionNames()
	for _, n := range all {
		if _, err := parseName(strings.Replace(n, "pN", "p99.99", 1)); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(all)
	if got := len(slices.Compact(all)); got != len(AssertionNames()) {
		t.Errorf("%d names, %d different ones", len(AssertionNames()), got)
	}
}

func TestPercentIsNeverRoundedUp(t *testing.T) {
	if got := percent.format(99.999999); got != "99.9999 %" {
		t.Errorf("got %s", got)
	}
}

func FuzzParseAssertion(f *testing.F) {
	for _, s := range []string{"stickiness>=99.99", "connack.p99 < 50ms", "rate.publish!=1e3", "a.pN==", "errors.tls>0", "generator.rss<1MiB", "\xff<"} {
		f.Add(s)
	}
	res := measured()
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAssertion(text)
		if err != nil {
			if !errors.Is(err, ErrAssertion) || len(err.Error()) > 8<<10 {
				t.Errorf("%v", err)
			}
			return
		}
		o := a.Evaluate(res)
		if o.Assertion != text || o.Passed == (o.Why != "") {
			t.Errorf("%+v", o)
		}
		if again, err := ParseAssertion(a.String()); err != nil || again.Evaluate(New()).Assertion != text {
			t.Errorf("%q does not parse again: %v", a, err)
		}
	})
}
