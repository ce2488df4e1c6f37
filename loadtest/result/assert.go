package result

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxAssertion bounds the text of an assertion.
const maxAssertion = 256

// ErrAssertion is what a text that is no assertion gives.
var ErrAssertion = errors.New("result: not an assertion")

// An Assertion is a condition on a result: "stickiness>=99.99", "lost==0", "connack.p99<50ms", "errors.refused==0",
// "publish.rate>=1000". AssertionNames lists all names. A latency is compared with a duration (50ms, 1.5s), a
// percentage with a number or one with %, the rest with a number.
type Assertion struct {
	text  string
	name  name
	op    string
	bound float64 // microseconds, if the name is a time
}

// An Outcome is what became of an assertion.
type Outcome struct {
	Assertion string `json:"assertion"`
	Passed    bool   `json:"passed"`
	Actual    string `json:"actual"`        // what was measured; empty if nothing was
	Why       string `json:"why,omitempty"` // it failed, in words: by how much
}

// Longer operators stand before their beginnings.
var operators = []string{">=", "<=", "==", "!=", ">", "<"}

// String returns the assertion as it was written.
func (a Assertion) String() string { return a.text }

// MarshalText writes an assertion as it was written; with UnmarshalText one in JSON or YAML is a line of text.
func (a Assertion) MarshalText() ([]byte, error) { return []byte(a.text), nil }

// UnmarshalText reads an assertion as ParseAssertion does.
func (a *Assertion) UnmarshalText(text []byte) (err error) {
	*a, err = ParseAssertion(string(text))
	return err
}

// ParseAssertion reads one assertion. Its errors name the column (from 1) and what may have been meant.
func ParseAssertion(text string) (Assertion, error) {
	if len(text) > maxAssertion {
		return Assertion{}, fmt.Errorf("%w: longer than %d bytes", ErrAssertion, maxAssertion)
	}
	bad := func(at int, format string, args ...any) (Assertion, error) {
		column := utf8.RuneCountInString(text[:at]) + 1
		return Assertion{}, fmt.Errorf("%w: %q, column %d: %s", ErrAssertion, text, column, fmt.Sprintf(format, args...))
	}
	at := strings.IndexAny(text, "<>=!")
	if at < 0 {
		return bad(len(text), "expected one of %s", strings.Join(operators, " "))
	}
	left := strings.TrimSpace(text[:at])
	nameAt := strings.Index(text, left)
	if left == "" {
		return bad(at, "expected a name before %q", text[at:])
	}
	n, err := parseName(left)
	if err != nil {
		return bad(nameAt, "%v", err)
	}
	i := slices.IndexFunc(operators, func(op string) bool { return strings.HasPrefix(text[at:], op) })
	if i < 0 {
		return bad(at, "expected one of %s", strings.Join(operators, " "))
	}
	op := operators[i]
	right := strings.TrimSpace(text[at+len(op):])
	rightAt := at + len(op) + strings.Index(text[at+len(op):], right)
	if right == "" {
		return bad(len(text), "expected %s after %q", n.unit.wants(), op)
	}
	bound, ok := n.unit.parse(right)
	if !ok {
		return bad(rightAt, "%q is not %s", right, n.unit.wants())
	}
	return Assertion{text, n, op, bound}, nil
}

// Evaluate compares the assertion with a result.
func (a Assertion) Evaluate(r *Result) Outcome {
	out := Outcome{Assertion: a.text}
	actual, ok := a.name.value(r)
	if !ok {
		out.Why = a.name.String() + " was not measured in this run"
		return out
	}
	out.Actual = a.name.unit.format(actual)
	switch a.op {
	case ">=":
		out.Passed = actual >= a.bound
	case "<=":
		out.Passed = actual <= a.bound
	case "==":
		out.Passed = actual == a.bound
	case "!=":
		out.Passed = actual != a.bound
	case ">":
		out.Passed = actual > a.bound
	case "<":
		out.Passed = actual < a.bound
	}
	if !out.Passed {
		out.Why = fmt.Sprintf("%s is %s, %s", a.name, out.Actual, a.distance(actual))
	}
	return out
}

// distance says in words how far actual is from what was asserted.
func (a Assertion) distance(actual float64) string {
	by := math.Abs(actual - a.bound)
	if by == 0 {
		return fmt.Sprintf("and may not be %s", a.name.unit.format(a.bound))
	}
	much := "more"
	if actual < a.bound {
		much = "less"
	}
	share := ""
	if a.bound != 0 && a.name.unit != percent {
		share = " (" + short(100*by/math.Abs(a.bound)) + " %)"
	}
	points := ""
	if a.name.unit == percent {
		points = " points"
	}
	return fmt.Sprintf("%s%s%s %s than %s", strings.TrimSuffix(a.name.unit.format(by), " %"), points, share, much, a.name.unit.format(a.bound))
}

// short writes three digits, or all that are before the point.
func short(v float64) string {
	if v >= 1000 && v < 1e15 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// Judge evaluates all assertions and keeps their outcomes in r. It returns the number that failed.
func (r *Result) Judge(all []Assertion) (failed int) {
	r.Assertions = []Outcome{}
	for _, a := range all {
		o := a.Evaluate(r)
		r.Assertions = append(r.Assertions, o)
		if !o.Passed {
			failed++
		}
	}
	return failed
}

// unit is what a name's value is measured in.
type unit uint8

const (
	number unit = iota
	percent
	duration // microseconds
	size     // bytes
)

func (u unit) wants() string {
	return [...]string{"a number", "a percentage like 99.99", "a duration like 50ms", "a size like 100MiB"}[u]
}

var sizes = []struct {
	suffix string
	bytes  float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

func (u unit) parse(text string) (float64, bool) {
	switch u {
	case duration:
		d, err := time.ParseDuration(text)
		return float64(d) / float64(time.Microsecond), err == nil
	case percent:
		text = strings.TrimSpace(strings.TrimSuffix(text, "%"))
	case size:
		for _, s := range sizes {
			if n, ok := strings.CutSuffix(text, s.suffix); ok {
				v, ok := number.parse(strings.TrimSpace(n))
				return v * s.bytes, ok
			}
		}
	}
	v, err := strconv.ParseFloat(text, 64)
	// "inf", "nan" and hexadecimal numbers are floats to strconv, but nobody's bound.
	return v, err == nil && strings.Trim(text, "+-.0123456789eE") == ""
}

func (u unit) format(v float64) string {
	switch u {
	case duration:
		return time.Duration(math.Round(v) * float64(time.Microsecond)).String()
	case percent:
		// Never rounded up to a hundred.
		text := strconv.FormatFloat(math.Floor(v*1e4)/1e4, 'f', -1, 64)
		if v > 0 && v < 1e-4 {
			text = strconv.FormatFloat(v, 'g', 2, 64)
		}
		return text + " %"
	case size:
		if v >= 1<<20 {
			return strconv.FormatFloat(v/(1<<20), 'f', 1, 64) + " MiB"
		}
		return strconv.FormatFloat(v, 'f', 0, 64) + " B"
	}
	if v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
