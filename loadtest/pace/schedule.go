package pace

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Schedule hands out the times at which events are due, as offsets from the start: in order, each once. It is an iterator: used up
// when it returns false.
type Schedule interface {
	Next() (time.Duration, bool)
}

// An ender knows where it ended, which can be after its last event: three events at 1/s fill three seconds. Valid once Next has
// returned false.
type ender interface {
	end() time.Duration
}

// Forever is the length of a schedule without an end.
const Forever time.Duration = 0

// Constant has an event every 1/rate seconds from the start on, until over has passed. A rate of 0 is a pause.
func Constant(rate float64, over time.Duration) Schedule {
	return &constant{gap: 1e9 / rate, over: over}
}

type constant struct {
	gap  float64 // nanoseconds; infinite for rate 0
	over time.Duration
	i    float64
}

func (c *constant) Next() (time.Duration, bool) {
	at := 0.0
	if c.i > 0 || math.IsInf(c.gap, 1) {
		at = c.i * c.gap // multiplied, not added up: no drift
	}
	if !(at < limit(c.over)) { // NaN, of 0 × infinity, ends too
		return 0, false
	}
	c.i++
	return time.Duration(at), true
}

func (c *constant) end() time.Duration { return c.over }

// limit is the first offset, in nanoseconds, that no longer belongs to a schedule that lasts over.
func limit(over time.Duration) float64 {
	if over == Forever {
		return math.MaxInt64
	}
	return float64(over)
}

// Ramp goes evenly from one rate (per second) to another.
func Ramp(from, to float64, over time.Duration) Schedule {
	return &ramp{from: from / 1e9, slope: (to - from) / 1e9 / float64(over), over: over}
}

type ramp struct {
	from  float64 // events per nanosecond at offset 0
	slope float64 // change of that per nanosecond
	over  time.Duration
	i     float64
}

// Next solves i = from·t + slope·t²/2 for t, in the form that does not subtract nearly equal numbers.
func (r *ramp) Next() (time.Duration, bool) {
	at := 0.0
	if r.i > 0 {
		d := r.from*r.from + 2*r.slope*r.i
		if d < 0 {
			return 0, false // a rate that falls never gets to i
		}
		at = 2 * r.i / (r.from + math.Sqrt(d))
	}
	if !(at < float64(r.over)) {
		return 0, false
	}
	r.i++
	return time.Duration(at), true
}

func (r *ramp) end() time.Duration { return r.over }

// A Step is a rate (per second) and how long it holds.
type Step struct {
	Rate float64
	Over time.Duration
}

// Steps holds one rate after the other.
func Steps(steps []Step) Schedule {
	parts := make([]Schedule, len(steps))
	for i, s := range steps {
		parts[i] = Constant(s.Rate, s.Over)
	}
	return Concat(parts...)
}

// Poisson has events at random, independent of each other, on average rate a second: what many unrelated clients look like. Equal
// seeds give equal schedules.
func Poisson(rate float64, over time.Duration, seed uint64) Schedule {
	return &poisson{gap: 1e9 / rate, over: over, r: rand.New(rand.NewPCG(seed, 0x706f6973736f6e))}
}

type poisson struct {
	gap  float64
	over time.Duration
	at   float64
	r    *rand.Rand
}

func (p *poisson) Next() (time.Duration, bool) {
	if p.at < limit(p.over) {
		p.at += p.r.ExpFloat64() * p.gap
	}
	if !(p.at < limit(p.over)) {
		return 0, false
	}
	return time.Duration(p.at), true
}

func (p *poisson) end() time.Duration { return p.over }

// Burst has n events, all at once.
func Burst(n int) Schedule { return &burst{left: n} }

type burst struct{ left int }

func (b *burst) Next() (time.Duration, bool) {
	b.left--
	return 0, b.left >= 0
}

func (b *burst) end() time.Duration { return 0 }

// Limit ends s after n events. What is appended to it (Concat) starts where the next event would have been.
func Limit(s Schedule, n int) Schedule { return &limited{s: s, left: n} }

type limited struct {
	s     Schedule
	left  int
	ended bool
	last  time.Duration
}

func (l *limited) Next() (time.Duration, bool) {
	if l.ended {
		return 0, false
	}
	at, ok := l.s.Next()
	if ok {
		l.last = at
	} else {
		l.last = endOf(l.s, l.last)
	}
	l.left--
	l.ended = !ok || l.left < 0
	if l.ended {
		return 0, false
	}
	return at, true
}

func (l *limited) end() time.Duration { return l.last }

// Concat plays one schedule after the other. Only the last may be endless.
func Concat(parts ...Schedule) Schedule { return &concat{parts: parts} }

type concat struct {
	parts []Schedule
	base  time.Duration // where the first of parts starts
	last  time.Duration // of the first of parts, from its start
}

func (c *concat) Next() (time.Duration, bool) {
	for len(c.parts) > 0 {
		at, ok := c.parts[0].Next()
		if ok {
			c.last = at
			return c.base + at, true
		}
		c.base += endOf(c.parts[0], c.last)
		c.last = 0
		c.parts = c.parts[1:]
	}
	return 0, false
}

func (c *concat) end() time.Duration { return c.base }

func endOf(s Schedule, last time.Duration) time.Duration {
	if e, ok := s.(ender); ok {
		return e.end()
	}
	return last
}

// Deal keeps the events of a part of n players who take turns: event i is player i mod n's, and shard k of of has the players whose number
// leaves the remainder k when divided by of. Processes with shards 0…of-1 of equal schedules do together what one would do with the whole,
// for each player as well. The events of a shard go to its players in turn.
func Deal(s Schedule, n, k, of int) Schedule {
	if of <= 1 {
		return s
	}
	return &deal{s: s, n: n, k: k, of: of}
}

type deal struct {
	s        Schedule
	n, k, of int
	turn     int
	last     time.Duration
}

func (d *deal) Next() (time.Duration, bool) {
	if d.k >= d.n {
		return 0, false // nobody
	}
	for {
		at, ok := d.s.Next()
		if !ok {
			return 0, false
		}
		d.last = at
		mine := d.turn%d.of == d.k
		if d.turn++; d.turn == d.n {
			d.turn = 0
		}
		if mine {
			return at, true
		}
	}
}

func (d *deal) end() time.Duration { return endOf(d.s, d.last) }

// Shard keeps the events whose number leaves the remainder k when divided by n: event i of the shard is event k + i·n of the whole.
func Shard(s Schedule, k, n int) Schedule { return Deal(s, n, k, n) }
