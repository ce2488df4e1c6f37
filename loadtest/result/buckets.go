package result

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"time"
)

// Buckets of a histogram: up to 2^(n+1) every value has its own; above, each power of two is cut into 2^n equal
// parts. With n = 10 these are HdrHistogram's for three digits, index by index.
const (
	fine   = 10 // the totals: a part in a thousand
	coarse = 5  // the seconds of the series: three parts in a hundred
)

func bucket(v int64, n int) int {
	b := max(bits.Len64(uint64(v))-1-n, 0)
	return b<<n + int(v>>b)
}

// bucketLow returns the smallest value of a bucket.
func bucketLow(i, n int) int64 {
	b := max(i>>n-1, 0)
	return int64(i-b<<n) << b
}

// bucketHigh returns the largest value of a bucket.
func bucketHigh(i, n int) int64 { return bucketLow(i+1, n) - 1 }

var (
	fineBuckets   = bucket(longest, fine) + 1
	coarseBuckets = bucket(longest, coarse) + 1
)

// counts gathers the times of one second: no pointers, and only the touched pages of it are ever in memory.
type counts struct {
	n      []uint32
	lo, hi int // the touched part; lo > hi: none
	max    int64
}

// add counts one time of us microseconds.
func (c *counts) add(us int64) {
	if c.n == nil {
		c.n = make([]uint32, fineBuckets)
		c.lo, c.hi = fineBuckets, -1
	}
	i := bucket(us, fine)
	c.n[i]++
	c.lo, c.hi, c.max = min(c.lo, i), max(c.hi, i), max(c.max, us)
}

// drain adds what was gathered to total and to second, either of which may be nil, and empties c.
func (c *counts) drain(total *Histogram, second *spreading) {
	if c.n == nil {
		return
	}
	for i := c.lo; i <= c.hi; i++ {
		n := int64(c.n[i])
		if n == 0 {
			continue
		}
		c.n[i] = 0
		if total != nil {
			total.add(bucketLow(i, fine), n)
		}
		if second != nil {
			second.n[bucket(bucketLow(i, fine), coarse)] += n
		}
	}
	if second != nil {
		second.max = max(second.max, c.max)
	}
	c.lo, c.hi, c.max = fineBuckets, -1, 0
}

// spreading is a Spread while it is being added up.
type spreading struct {
	n   []int64
	max int64
}

func newSpreading() *spreading { return &spreading{n: make([]int64, coarseBuckets)} }

func (s *spreading) add(o Spread) {
	s.max = max(s.max, int64(o.Max))
	_ = o.each(func(i int, n int64) { s.n[i] += n })
}

// take returns what was added up, and empties s.
func (s *spreading) take() Spread {
	var packed []byte
	next := 0
	for i, n := range s.n {
		if n == 0 {
			continue
		}
		packed = binary.AppendUvarint(packed, uint64(i-next))
		packed = binary.AppendUvarint(packed, uint64(n))
		next = i + 1
		s.n[i] = 0
	}
	out := Spread{Max: Micros(s.max), packed: packed}
	s.max = 0
	return out
}

// Micros is a time in microseconds.
type Micros int64

// Duration returns m as a time.Duration.
func (m Micros) Duration() time.Duration { return time.Duration(m) * time.Microsecond }

// A Spread is the distribution of one second's times, to three parts in a hundred, in some hundred bytes: pairs of
// varints, the number of empty buckets skipped and the count of the next one. It is a value: nothing changes one.
type Spread struct {
	Max    Micros
	packed []byte
}

var errSpread = errors.New("result: not the distribution of a second")

// each calls fn for every bucket in use.
func (s Spread) each(fn func(i int, n int64)) error {
	next, total := 0, int64(0)
	for p := s.packed; len(p) > 0; {
		skip, a := binary.Uvarint(p)
		if a <= 0 || skip >= uint64(coarseBuckets-next) {
			return errSpread
		}
		n, b := binary.Uvarint(p[a:])
		if b <= 0 || n == 0 || n > uint64(math.MaxInt64/mergeable-total) {
			return errSpread
		}
		total += int64(n)
		next += int(skip)
		fn(next, int64(n))
		next++
		p = p[a+b:]
		if next == coarseBuckets && len(p) > 0 {
			return errSpread
		}
	}
	return nil
}

// Count returns the number of times.
func (s Spread) Count() int64 {
	var total int64
	_ = s.each(func(_ int, n int64) { total += n })
	return total
}

// Percentiles returns the times that p[i] percent of all did not exceed; p must be ascending.
func (s Spread) Percentiles(p ...float64) []Micros {
	out := make([]Micros, len(p))
	total := s.Count()
	if total == 0 {
		return out
	}
	k, seen := 0, int64(0)
	_ = s.each(func(i int, n int64) {
		seen += n
		for k < len(p) && float64(seen) >= p[k]/100*float64(total) {
			out[k] = min(Micros(bucketHigh(i, coarse)), s.Max)
			k++
		}
	})
	for ; k < len(p); k++ {
		out[k] = s.Max
	}
	return out
}

// plus returns the sum of both.
func (s Spread) plus(o Spread, sum *spreading) Spread {
	if len(s.packed) == 0 {
		return o
	}
	if len(o.packed) == 0 {
		return s
	}
	sum.add(s)
	sum.add(o)
	return sum.take()
}
