package result

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// maxRows bounds a series: beyond it, rows are merged in pairs. 7,200 rows take about 3 MB.
const maxRows = 7200

// A Series is what happened second by second, the warm-up included.
type Series struct {
	Width int64 `json:"width_s"` // seconds of a row: 1, or a power of two after rows were merged
	Rows  []Row `json:"rows"`    // ascending by T; a row may be absent
}

// A Row is what happened in Width seconds.
type Row struct {
	T                int64  `json:"t"`                 // seconds from the start of the run to the row's; a multiple of Width
	Warmup           bool   `json:"warmup,omitempty"`  // begins in the warm-up: not in the totals
	ConnectedSeconds int64  `json:"connected_seconds"` // clients connected at the end of each second, added up
	Connects         int64  `json:"connects"`
	Closed           int64  `json:"closed"`
	Publishes        int64  `json:"publishes"`
	Acked            int64  `json:"acked"`
	Receives         int64  `json:"receives"`
	Errors           int64  `json:"errors"`
	Late             int64  `json:"late"` // events that the generator itself began too late
	Connack          Spread `json:"connack"`
	Puback           Spread `json:"puback"`
	E2E              Spread `json:"e2e"`
}

// Connected returns how many clients were connected, on average over a row of a series.
func (s *Series) Connected(r *Row) float64 {
	return float64(r.ConnectedSeconds) / float64(max(s.Width, 1))
}

// Rate returns n of a row's events as events a second. ran is how long the run took, which tells how long its last
// row is.
func (s *Series) Rate(r *Row, n int64, ran time.Duration) float64 {
	seconds := float64(max(s.Width, 1))
	if left := ran.Seconds() - float64(r.T); left > 0 {
		seconds = min(seconds, left)
	}
	return float64(n) / seconds
}

// numbers lists what is simply added when rows are merged.
func (r *Row) numbers() [8]*int64 {
	return [...]*int64{&r.ConnectedSeconds, &r.Connects, &r.Closed, &r.Publishes, &r.Acked, &r.Receives, &r.Errors, &r.Late}
}

func (r *Row) spreads() [3]*Spread { return [...]*Spread{&r.Connack, &r.Puback, &r.E2E} }

func (r *Row) add(o *Row, sum *spreading) {
	from := o.numbers()
	for i, n := range r.numbers() {
		*n += *from[i]
	}
	spreads := o.spreads()
	for i, s := range r.spreads() {
		*s = s.plus(*spreads[i], sum)
	}
}

// widen merges rows until each is width seconds long.
func (s *Series) widen(width int64, sum *spreading) {
	if s.Width >= width {
		return
	}
	s.Width = width
	out := s.Rows[:0]
	for i := range s.Rows {
		r := s.Rows[i]
		r.T -= r.T % width
		if n := len(out); n > 0 && out[n-1].T == r.T {
			out[n-1].add(&r, sum)
		} else {
			out = append(out, r)
		}
	}
	s.Rows = slices.Clip(out)
}

// bound widens the rows until there are at most limit.
func (s *Series) bound(limit int, sum *spreading) {
	for len(s.Rows) > limit {
		s.widen(2*s.Width, sum)
	}
}

// plus adds the rows of o. The sum's width is the least at which both fit, whatever the order of several additions.
func (s *Series) plus(o *Series, limit int) {
	if len(o.Rows) == 0 && o.Width <= s.Width {
		return
	}
	sum := newSpreading()
	other := Series{max(o.Width, 1), slices.Clone(o.Rows)}
	s.Width = max(s.Width, 1)
	s.widen(other.Width, sum)
	other.widen(s.Width, sum)
	rows := make([]Row, 0, max(len(s.Rows), len(other.Rows)))
	a, b := s.Rows, other.Rows
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].T < b[0].T:
			rows, a = append(rows, a[0]), a[1:]
		case a[0].T > b[0].T:
			rows, b = append(rows, b[0]), b[1:]
		default:
			rows = append(rows, a[0])
			rows[len(rows)-1].add(&b[0], sum)
			a, b = a[1:], b[1:]
		}
	}
	s.Rows = append(append(rows, a...), b...)
	s.bound(limit, sum)
}

// mark says which rows begin in the warm-up.
func (s *Series) mark(warmup int64) {
	for i := range s.Rows {
		s.Rows[i].Warmup = s.Rows[i].T < warmup
	}
}

func (s *Series) check() error {
	if s.Width == 0 && len(s.Rows) == 0 {
		s.Width = 1
	}
	if s.Width < 1 || s.Width > 1<<30 || s.Width&(s.Width-1) != 0 {
		return fmt.Errorf("%w: series.width_s is %d, not a power of two", ErrInvalid, s.Width)
	}
	if len(s.Rows) > maxRows {
		return fmt.Errorf("%w: series has %d rows, more than %d", ErrInvalid, len(s.Rows), maxRows)
	}
	last := int64(-1)
	for i := range s.Rows {
		r := &s.Rows[i]
		if r.T <= last || r.T%s.Width != 0 || r.T > maxCount {
			return fmt.Errorf("%w: series.rows[%d].t is %d after %d", ErrInvalid, i, r.T, last)
		}
		last = r.T
		for _, n := range r.numbers() {
			if *n < 0 || *n > maxCount {
				return fmt.Errorf("%w: series.rows[%d] holds the count %d", ErrInvalid, i, *n)
			}
		}
	}
	return nil
}

// spreadJSON is a Spread on the wire. Only Max and Buckets count when it is read.
type spreadJSON struct {
	Count   int64  `json:"count"`
	P50     Micros `json:"p50_us"`
	P99     Micros `json:"p99_us"`
	Max     Micros `json:"max_us"`
	Buckets []byte `json:"buckets"`
}

// MarshalJSON writes the spread losslessly; null if it is empty.
func (s Spread) MarshalJSON() ([]byte, error) {
	if len(s.packed) == 0 {
		return []byte("null"), nil
	}
	p := s.Percentiles(50, 99)
	return json.Marshal(spreadJSON{s.Count(), p[0], p[1], s.Max, s.packed})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Spread) UnmarshalJSON(text []byte) error {
	var j spreadJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	read := Spread{j.Max, j.Buckets}
	last := -1
	if err := read.each(func(i int, _ int64) { last = i }); err != nil {
		return err
	}
	if last < 0 {
		*s = Spread{}
		return nil
	}
	if j.Max < 0 || int64(j.Max) > longest || bucket(int64(j.Max), coarse) != last {
		return fmt.Errorf("%w: its longest time, %d µs, is not in its last bucket", errSpread, j.Max)
	}
	*s = read
	return nil
}
