package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Decode reads one result and checks that it could have been written. It reads at most 64 MiB.
func Decode(r io.Reader) (*Result, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxResult+1))
	if err != nil {
		return nil, fmt.Errorf("result: reading: %w", err)
	}
	if len(text) > maxResult {
		return nil, fmt.Errorf("%w: longer than %d MiB", ErrInvalid, maxResult>>20)
	}
	return Unmarshal(text)
}

// Unmarshal reads a result from text, as Decode does.
func Unmarshal(text []byte) (*Result, error) {
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, explain(text, err)
	}
	switch {
	case head.Schema == 0:
		return nil, fmt.Errorf("%w: no field \"schema\"", ErrInvalid)
	case head.Schema != Schema:
		return nil, fmt.Errorf("%w: its schema is %d, and this program reads %d", ErrInvalid, head.Schema, Schema)
	}
	res := New()
	if err := json.Unmarshal(text, res); err != nil {
		return nil, explain(text, err)
	}
	if err := res.check(); err != nil {
		return nil, err
	}
	return res, nil
}

// explain adds the line to what encoding/json says.
func explain(text []byte, err error) error {
	offset := int64(-1)
	if s := (*json.SyntaxError)(nil); errors.As(err, &s) {
		offset = s.Offset
	}
	if t := (*json.UnmarshalTypeError)(nil); errors.As(err, &t) {
		offset = t.Offset
	}
	if offset < 0 || offset > int64(len(text)) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	before := text[:offset]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Errorf("%w: line %d, column %d: %w", ErrInvalid, line, len(before)-bytes.LastIndexByte(before, '\n')-1, err)
}

// check refuses what would break adding up, or grow beyond bounds, and fills in what may be absent.
func (r *Result) check() error {
	for what, n := range map[string]int64{
		"duration_ns": r.Duration, "warmup.seconds": r.Warmup.Seconds,
	} {
		if n < 0 {
			return fmt.Errorf("%w: %s is %d", ErrInvalid, what, n)
		}
	}
	if y := r.Start.Year(); y < 1 || y > 9999 {
		return fmt.Errorf("%w: start is in the year %d", ErrInvalid, y)
	}
	if r.Warmup.Seconds > math.MaxInt32 {
		return fmt.Errorf("%w: warmup.seconds is %d", ErrInvalid, r.Warmup.Seconds)
	}
	if err := r.Errors.check("errors"); err != nil {
		return err
	}
	if err := r.Warmup.Errors.check("warmup.errors"); err != nil {
		return err
	}
	if err := r.Series.check(); err != nil {
		return err
	}
	r.Series.mark(r.Warmup.Seconds)
	if len(r.Faults) > maxNames || len(r.Targets) > maxNames || len(r.Notes) > maxNames || len(r.Assertions) > maxNames {
		return fmt.Errorf("%w: a list has more than %d entries", ErrInvalid, maxNames)
	}
	for i, f := range r.Faults {
		if f.Begin < 0 || f.End < 0 || f.Number < 0 {
			return fmt.Errorf("%w: faults[%d] has a negative number", ErrInvalid, i)
		}
	}
	if err := r.Generator.check(); err != nil {
		return err
	}
	r.Generator.derive(&r.Latency[Lag])
	if err := r.Verify.check(); err != nil {
		return err
	}
	if r.Race != nil {
		if err := counted("race", r.Race.Pairs, r.Race.Split, r.Race.Unknown); err != nil {
			return err
		}
		if err := r.Race.Splits.check("race.splits"); err != nil {
			return err
		}
	}
	if r.Sweep != nil && len(r.Sweep.Steps) > maxNames {
		return fmt.Errorf("%w: sweep.steps has more than %d entries", ErrInvalid, maxNames)
	}
	return nil
}

func (v *Verify) check() error {
	if v == nil {
		return nil
	}
	for _, n := range v.numbers() {
		if err := counted("verify", *n); err != nil {
			return err
		}
	}
	if v.Sticky > v.Judged {
		return fmt.Errorf("%w: verify.sticky is %d of %d judged", ErrInvalid, v.Sticky, v.Judged)
	}
	if err := v.Homes.check("verify.homes"); err != nil {
		return err
	}
	if len(v.Messages) > maxNames {
		return fmt.Errorf("%w: verify.messages has more than %d groups", ErrInvalid, maxNames)
	}
	for group, m := range v.Messages {
		if m == nil {
			return fmt.Errorf("%w: verify.messages.%s is null", ErrInvalid, group)
		}
		for _, n := range m.numbers() {
			if err := counted("verify.messages", *n); err != nil {
				return err
			}
		}
	}
	return errors.Join(v.SessionsLost.check("verify.sessions_lost"), v.Moves.check("verify.moves"),
		v.Disagreements.check("verify.disagreements"), v.Anomalies.check("verify.anomalies"))
}

func counted(what string, all ...int64) error {
	for _, n := range all {
		if n < 0 || n > maxCount {
			return fmt.Errorf("%w: %s holds the count %d", ErrInvalid, what, n)
		}
	}
	return nil
}

func (t Tally) check(what string) error {
	if len(t) > maxNames {
		return fmt.Errorf("%w: %s has more than %d names", ErrInvalid, what, maxNames)
	}
	for name, n := range t {
		if err := counted(what+"."+name, n); err != nil {
			return err
		}
	}
	return nil
}

// MarshalJSON writes every counter by name.
func (c Counters) MarshalJSON() ([]byte, error) {
	return object(len(c), func(i int) (string, any) { return counterNames[i], c[i] })
}

// UnmarshalJSON reads counters by name; unknown ones, of a newer program, are left out.
func (c *Counters) UnmarshalJSON(text []byte) error {
	var m map[string]int64
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	for i, name := range counterNames {
		if err := counted("counters."+name, m[name]); err != nil {
			return err
		}
		c[i] = m[name]
	}
	return nil
}

// MarshalJSON writes every histogram by name.
func (h *Histograms) MarshalJSON() ([]byte, error) {
	return object(len(h), func(i int) (string, any) { return latencyNames[i], &h[i] })
}

// UnmarshalJSON reads histograms by name; unknown ones, of a newer program, are left out.
func (h *Histograms) UnmarshalJSON(text []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	for i, name := range latencyNames {
		if m[name] == nil {
			continue
		}
		if err := h[i].UnmarshalJSON(m[name]); err != nil {
			return fmt.Errorf("latency.%s: %w", name, err)
		}
	}
	return nil
}

// object writes n fields in their order.
func object(n int, field func(i int) (string, any)) ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		name, value := field(i)
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", name, text)
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}
