package pace

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ErrSpec is wrapped by every error of Parse; the text names the column.
var ErrSpec = errors.New("pace: bad schedule")

// Bounds of what Parse accepts: beyond them is a slip of the keyboard, not a load.
const (
	MaxRate  = 10_000_000       // events a second
	MaxCount = 1_000_000_000    // events of one stage that counts
	MaxSpan  = 1000 * time.Hour // of one stage
	maxSteps = 10_000           // of one staircase
	syntax   = "a schedule is stages with commas between, such as 100/s for 30s, 3000 at 500/s, ramp 100..1000 over 60s, steps 100..500 by 100 each 10s, poisson 200/s for 1m, burst 1000, pause 5s"
)

// A Spec is a schedule as people write it: stages, one after the other. It is a value: each New makes an iterator of its own.
//
//	100/s for 30s                      evenly, also 6000/m or 10/h; without "for" it never ends
//	3000 at 500/s                      evenly, until 3,000 are done
//	ramp 100..1000 over 60s            the rate grows (or falls) evenly
//	steps 100..500 by 100 each 10s     a staircase
//	poisson 200/s for 1m               at random, 200 a second on average; also "3000 at poisson 500/s"
//	burst 1000                         all at once
//	pause 5s
type Spec struct {
	text   string
	stages []stage
}

// A stage is one item of a Spec.
type stage struct {
	kind     string  // constant, ramp, steps, poisson, burst, pause
	from, to float64 // rates a second; equal unless they change
	by       float64 // of steps
	over     time.Duration
	count    int // of burst, and of "N at"; -1 without
}

func (s stage) endless() bool {
	return s.over == Forever && s.count < 0
}

func (s stage) build(seed uint64) Schedule {
	var made Schedule
	switch s.kind {
	case "ramp":
		made = Ramp(s.from, s.to, s.over)
	case "steps":
		made = Steps(s.steps())
	case "poisson":
		made = Poisson(s.from, s.over, seed)
	case "burst":
		return Burst(s.count)
	default: // constant, pause
		made = Constant(s.from, s.over)
	}
	if s.count >= 0 {
		made = Limit(made, s.count)
	}
	return made
}

func (s stage) steps() []Step {
	var all []Step
	for i := range s.stairs() {
		rate := s.from + float64(i)*s.by
		if s.to < s.from {
			rate = s.from - float64(i)*s.by
		}
		all = append(all, Step{Rate: rate, Over: s.over})
	}
	return all
}

func (s stage) stairs() int {
	return int(math.Floor(math.Abs(s.to-s.from)/s.by+1e-9)) + 1
}

// New returns the schedule from its beginning. Random stages draw from seed: equal seeds, equal times.
func (s Spec) New(seed uint64) Schedule {
	parts := make([]Schedule, len(s.stages))
	for i, st := range s.stages {
		parts[i] = st.build(seed + uint64(i)*0x9e3779b97f4a7c15)
	}
	return Concat(parts...)
}

// Endless reports whether the schedule never ends by itself. The zero Spec is empty, not endless.
func (s Spec) Endless() bool {
	return len(s.stages) > 0 && s.stages[len(s.stages)-1].endless()
}

// String returns the text that was parsed.
func (s Spec) String() string { return s.text }

// MarshalText makes a Spec a string in JSON and YAML.
func (s Spec) MarshalText() ([]byte, error) { return []byte(s.text), nil }

// UnmarshalText is Parse.
func (s *Spec) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = Spec{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err == nil {
		*s = parsed
	}
	return err
}

// Parse reads a Spec. Its errors wrap ErrSpec and say what was expected at which column.
func Parse(text string) (Spec, error) {
	spec := Spec{text: strings.Join(strings.Fields(text), " ")}
	column := 1
	for part := range strings.SplitSeq(text, ",") {
		p := parser{words: split(part, column), at: column}
		if spec.Endless() {
			return Spec{}, p.errorf("the stage before has no end: say for how long, such as \"for 30s\"")
		}
		st, err := p.stage()
		if err == nil && len(p.words) > 0 {
			err = p.errorf("unexpected %q", p.words[0].text)
		}
		if err != nil {
			return Spec{}, err
		}
		spec.stages = append(spec.stages, st)
		column += len(part) + 1
	}
	return spec, nil
}

type word struct {
	text   string
	column int
}

func split(part string, column int) []word {
	var words []word
	rest := part
	for {
		rest = strings.TrimLeft(rest, " \t\r\n")
		if rest == "" {
			return words
		}
		n := strings.IndexAny(rest, " \t\r\n")
		if n < 0 {
			n = len(rest)
		}
		words = append(words, word{rest[:n], column + len(part) - len(rest)})
		rest = rest[n:]
	}
}

// A parser eats the words of one stage.
type parser struct {
	words []word
	at    int // column of the word eaten last
}

func (p *parser) errorf(format string, args ...any) error {
	at := p.at
	if len(p.words) > 0 {
		at = p.words[0].column
	}
	return p.fail(at, format, args...)
}

func (p *parser) fail(column int, format string, args ...any) error {
	return fmt.Errorf("%w at column %d: %s (%s)", ErrSpec, column, fmt.Sprintf(format, args...), syntax)
}

func (p *parser) next(want string) (string, error) {
	if len(p.words) == 0 {
		return "", p.errorf("expected %s", want)
	}
	w := p.words[0]
	p.words, p.at = p.words[1:], w.column
	return w.text, nil
}

// take eats w if it comes next.
func (p *parser) take(w string) bool {
	if len(p.words) == 0 || p.words[0].text != w {
		return false
	}
	p.at = p.words[0].column
	p.words = p.words[1:]
	return true
}

func (p *parser) keyword(w string) error {
	if !p.take(w) {
		return p.errorf("expected %q", w)
	}
	return nil
}

func (p *parser) stage() (stage, error) {
	st := stage{count: -1}
	var err error
	switch {
	case p.take("ramp"):
		st.kind = "ramp"
		if st.from, st.to, err = p.span(); err == nil {
			st.over, err = p.duration("over")
		}
	case p.take("steps"):
		st.kind = "steps"
		err = p.staircase(&st)
	case p.take("burst"):
		st.kind = "burst"
		st.count, err = p.number()
	case p.take("pause"):
		st.kind = "pause"
		st.over, err = p.duration("")
	default:
		err = p.steady(&st)
	}
	return st, err
}

// steady reads [N at] [poisson] RATE [for DURATION].
func (p *parser) steady(st *stage) error {
	var err error
	if len(p.words) > 1 && p.words[1].text == "at" {
		if st.count, err = p.number(); err != nil {
			return err
		}
		p.take("at")
	}
	st.kind = "constant"
	if p.take("poisson") {
		st.kind = "poisson"
	}
	text, err := p.next("a rate, such as 100/s")
	if err != nil {
		return err
	}
	if !strings.Contains(text, "/") {
		return p.fail(p.at, "expected a rate, such as 100/s, not %q", text)
	}
	if st.from, err = p.rate(text); err != nil {
		return err
	}
	st.to = st.from
	if st.from == 0 {
		return p.fail(p.at, "a rate of 0 is written \"pause 5s\"")
	}
	if len(p.words) == 0 {
		return nil
	}
	st.over, err = p.duration("for")
	return err
}

// staircase reads FROM..TO by RATE each DURATION.
func (p *parser) staircase(st *stage) error {
	var err error
	if st.from, st.to, err = p.span(); err != nil {
		return err
	}
	if err = p.keyword("by"); err != nil {
		return err
	}
	text, err := p.next("the height of a step")
	if err != nil {
		return err
	}
	if st.by, err = p.rate(text); err != nil {
		return err
	}
	if st.by == 0 || math.Abs(st.to-st.from)/st.by > maxSteps {
		return p.fail(p.at, "steps of %s never get there (at most %d)", text, maxSteps)
	}
	st.over, err = p.duration("each")
	return err
}

// span reads FROM..TO, where TO may carry the unit of both.
func (p *parser) span() (from, to float64, err error) {
	text, err := p.next("two rates, such as 100..1000")
	if err != nil {
		return 0, 0, err
	}
	a, b, ok := strings.Cut(text, "..")
	if !ok {
		return 0, 0, p.fail(p.at, "expected two rates, such as 100..1000, not %q", text)
	}
	if _, unit, has := strings.Cut(b, "/"); has && !strings.Contains(a, "/") {
		a += "/" + unit
	}
	if from, err = p.rate(a); err != nil {
		return 0, 0, err
	}
	if to, err = p.rate(b); err != nil {
		return 0, 0, err
	}
	if from == 0 && to == 0 {
		return 0, 0, p.fail(p.at, "a rate of 0 is written \"pause 5s\"")
	}
	return from, to, nil
}

// rate reads NUMBER[/s|/m|/h] as a rate a second.
func (p *parser) rate(text string) (float64, error) {
	number, unit, _ := strings.Cut(text, "/")
	per := 1.0
	switch unit {
	case "", "s", "sec", "second":
	case "m", "min", "minute":
		per = 60
	case "h", "hour":
		per = 3600
	default:
		return 0, p.fail(p.at, "%q is no unit of time: /s, /m or /h", unit)
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) {
		return 0, p.fail(p.at, "expected a rate, such as 100/s, not %q", text)
	}
	if n/per > MaxRate {
		return 0, p.fail(p.at, "%s is more than %d/s", text, MaxRate)
	}
	return n / per, nil
}

func (p *parser) number() (int, error) {
	text, err := p.next("a number of events")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n > MaxCount {
		return 0, p.fail(p.at, "expected a number of events up to %d, not %q", MaxCount, text)
	}
	return int(n), nil
}

// duration reads a duration, after keyword if there is one.
func (p *parser) duration(keyword string) (time.Duration, error) {
	if keyword != "" {
		if err := p.keyword(keyword); err != nil {
			return 0, err
		}
	}
	text, err := p.next("a duration, such as 30s")
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > MaxSpan {
		return 0, p.fail(p.at, "expected a duration, such as 30s, up to %s, not %q", MaxSpan, text)
	}
	return d, nil
}
