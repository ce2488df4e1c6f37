package pace

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"
)

// LagBound is how late an event may be fired before it counts as late.
const LagBound = 10 * time.Millisecond

// lateShare is the share of late events above which, and worstLag the lag of a single event above which, the figures of a run say
// more about the generator than about what it tests.
const (
	lateShare = 0.01
	worstLag  = time.Second
)

// fine is the number of bits that a bucket keeps of a lag: 32 buckets to a doubling, so at most 3 % off.
const fine = 5

const buckets = (64 - fine) << fine

// A Lag records how late events were fired. Any number of goroutines may record at once; the zero value is empty.
type Lag struct {
	count, late, max atomic.Int64
	bucket           [buckets]atomic.Int64
}

// Record notes an event that was fired d after its time. It allocates nothing.
func (l *Lag) Record(d time.Duration) {
	d = max(d, 0)
	l.count.Add(1)
	if d > LagBound {
		l.late.Add(1)
	}
	l.raise(int64(d))
	l.bucket[bucketOf(uint64(d))].Add(1)
}

func (l *Lag) raise(to int64) {
	for {
		was := l.max.Load()
		if to <= was || l.max.CompareAndSwap(was, to) {
			return
		}
	}
}

// bucketOf keeps the highest bit of v and the fine bits below it.
func bucketOf(v uint64) int {
	if v < 1<<fine {
		return int(v)
	}
	e := bits.Len64(v) - fine - 1
	return e<<fine + int(v>>e)
}

// top is the largest value of a bucket.
func top(i int) int64 {
	if i < 1<<fine {
		return int64(i)
	}
	e := i>>fine - 1
	return int64(uint64(i-e<<fine+1)<<e - 1)
}

// Merge adds what other has recorded. The result is what one Lag would have recorded of all events.
func (l *Lag) Merge(other *Lag) {
	l.count.Add(other.count.Load())
	l.late.Add(other.late.Load())
	l.raise(other.max.Load())
	for i := range other.bucket {
		if n := other.bucket[i].Load(); n != 0 {
			l.bucket[i].Add(n)
		}
	}
}

// LagStats sums up a Lag.
type LagStats struct {
	Count int64         `json:"count"`
	Late  int64         `json:"late"` // later than LagBound
	P99   time.Duration `json:"p99"`  // at most 3 % too high
	Max   time.Duration `json:"max"`
}

// Stats may be called at any time.
func (l *Lag) Stats() LagStats {
	s := LagStats{Count: l.count.Load(), Late: l.late.Load(), Max: time.Duration(l.max.Load())}
	var counts [buckets]int64
	var sum int64
	for i := range counts {
		counts[i] = l.bucket[i].Load()
		sum += counts[i]
	}
	above := sum / 100 // as many may lie above the 99th percentile
	for i := buckets - 1; i >= 0; i-- {
		above -= counts[i]
		if above < 0 {
			s.P99 = min(time.Duration(top(i)), s.Max)
			break
		}
	}
	return s
}

// Behind reports whether the generator fell behind its schedule: more than 1 % of the events were late, or one by more than 1 s.
func (s LagStats) Behind() bool {
	return float64(s.Late) > lateShare*float64(s.Count) || s.Max > worstLag
}

func (s LagStats) String() string {
	return fmt.Sprintf("%d of %d events more than %s late, p99 %s, at most %s", s.Late, s.Count, LagBound,
		s.P99.Round(time.Microsecond), s.Max.Round(time.Microsecond))
}

// lagJSON is how one process tells another; buckets are those of this package.
type lagJSON struct {
	Late    int64         `json:"late"`
	Max     int64         `json:"max"`
	Buckets map[int]int64 `json:"buckets,omitempty"`
}

// MarshalJSON keeps everything, so that lags of several processes merge exactly.
func (l *Lag) MarshalJSON() ([]byte, error) {
	j := lagJSON{Late: l.late.Load(), Max: l.max.Load(), Buckets: map[int]int64{}}
	for i := range l.bucket {
		if n := l.bucket[i].Load(); n != 0 {
			j.Buckets[i] = n
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON sets l, which must be empty, to what MarshalJSON wrote.
func (l *Lag) UnmarshalJSON(text []byte) error {
	var j lagJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("pace: bad lag: %w", err)
	}
	for i, n := range j.Buckets {
		if i < 0 || i >= buckets || n < 0 {
			return fmt.Errorf("pace: bad lag: bucket %d with %d events", i, n)
		}
		l.bucket[i].Store(n)
		l.count.Add(n)
	}
	l.late.Store(j.Late)
	l.max.Store(j.Max)
	return nil
}
