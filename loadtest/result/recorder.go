package result

import (
	"context"
	"maps"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how a Recorder counts. Stamps are nanoseconds of one clock that never goes back.
type Config struct {
	Start  int64         // the stamp at which the run starts
	Wall   time.Time     // the time of day at Start
	Warmup time.Duration // from Start: not in the totals; rounded up to whole seconds
	Shards int           // 0 = by GOMAXPROCS
}

// A Recorder counts what happens in a run. Record, Count, Error and Connected may be called from any goroutine; all but
// Error's first use of a reason do so without an allocation. An event counts for the second of its stamp.
//
//	Record, Count ──> shard: the even and the odd second ──Tick──> totals, series
//
// While Tick empties one second, events of the next go to the other.
type Recorder struct {
	Connect, Connack, Puback, Suback, E2E Timer

	start     int64
	wall      time.Time
	warm      int64 // seconds
	meter     Meter
	shards    []shard
	shift     uint
	connected atomic.Int64
	errors    errorTally

	mu     sync.Mutex
	closed int64 // seconds that are in total; those after it are in the shards
	total  *Result
	sums   [3]*spreading // of the second being closed
	width  *spreading
	lag    Histogram // of the parts that were taken
	late   int64
}

// A Timer records one kind of latency in its two forms.
type Timer struct {
	rec       *Recorder
	corrected Latency
}

// Record records a latency that ended at now: from intended, when it should have begun, and from sent, when it did.
func (t Timer) Record(intended, sent, now int64) {
	iv := t.rec.interval(now)
	iv.mu.Lock()
	iv.counts[t.corrected].add(microseconds(now - intended))
	iv.counts[t.corrected+1].add(microseconds(now - sent))
	iv.mu.Unlock()
}

// shard is a part of the recorder that few goroutines use at the same time.
type shard struct {
	seconds [2]interval // even, odd
	_       [64]byte    // of the next shard's cache line
}

type interval struct {
	mu       sync.Mutex
	counters [numCounters]atomic.Int64
	late     int64
	counts   [numLatencies]counts
}

type errorTally struct {
	mu               sync.Mutex
	warmup, measured Tally
}

// NewRecorder returns a recorder. It starts nothing.
func NewRecorder(c Config) *Recorder {
	n := c.Shards
	if n <= 0 {
		n = min(2*runtime.GOMAXPROCS(0), 32)
	}
	n = 1 << bits.Len(uint(n-1)) // a power of two
	r := &Recorder{
		start: c.Start, wall: c.Wall, warm: int64((max(c.Warmup, 0) + time.Second - 1) / time.Second),
		meter: StartMeter(), shards: make([]shard, n), shift: uint(64 - bits.Len(uint(n-1))), width: newSpreading(),
	}
	for i := range r.sums {
		r.sums[i] = newSpreading()
	}
	for timer, l := range map[*Timer]Latency{&r.Connect: Connect, &r.Connack: Connack, &r.Puback: Puback, &r.Suback: Suback, &r.E2E: E2E} {
		*timer = Timer{r, l}
	}
	r.errors = errorTally{warmup: newErrors(), measured: newErrors()}
	r.total = r.fresh()
	return r
}

// fresh returns an empty result of this run.
func (r *Recorder) fresh() *Result {
	res := New()
	res.Start = r.wall
	res.Warmup.Seconds = r.warm
	return res
}

func (r *Recorder) second(now int64) int64 { return max(now-r.start, 0) / int64(time.Second) }

// interval chooses a shard by the low bits of the stamp, which are as good as random, and its second.
func (r *Recorder) interval(now int64) *interval {
	s := &r.shards[uint64(now)*0x9E3779B97F4A7C15>>r.shift]
	return &s.seconds[r.second(now)&1]
}

// Count adds n to a counter.
func (r *Recorder) Count(c Counter, now, n int64) { r.interval(now).counters[c].Add(n) }

// Connected changes the number of connected clients by n.
func (r *Recorder) Connected(n int64) { r.connected.Add(n) }

// Error counts an error under its reason. Reasons beyond those of Reasons are taken up to a bound, then as "other".
func (r *Recorder) Error(reason string, now int64) {
	r.Count(Errors, now, 1)
	t := &r.errors
	t.mu.Lock()
	defer t.mu.Unlock()
	into := t.measured
	if r.second(now) < r.warm {
		into = t.warmup
	}
	if _, known := into[reason]; !known && len(into) >= 2*len(reasons) {
		reason = "other"
	}
	into[reason]++
}

// Fired records that an event of the schedule began at now.
func (r *Recorder) Fired(intended, now int64) {
	iv := r.interval(now)
	iv.mu.Lock()
	iv.counts[Lag].add(microseconds(now - intended))
	if now-intended > int64(LateBound) {
		iv.late++
	}
	iv.mu.Unlock()
}

// Outage records that a client was back at now after the fault (its number in the plan) that began at begin.
func (r *Recorder) Outage(fault int, spec string, begin, now int64) {
	iv := r.interval(now)
	iv.mu.Lock()
	iv.counts[Outage].add(microseconds(now - begin))
	iv.mu.Unlock()
	one := &Histogram{}
	one.Record(time.Duration(now - begin))
	r.Fault(Fault{Number: fault, Spec: spec, Begin: max(begin-r.start, 0), Outage: one})
}

// Fault adds what is known of a fault; what is said of the same Number and Spec is joined.
func (r *Recorder) Fault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total.Faults = mergeFaults(r.total.Faults, []Fault{f})
}

// Run closes every second as it ends, until ctx does. clock returns the stamp of now.
func (r *Recorder) Run(ctx context.Context, clock func() int64) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now := clock()
		r.Tick(now)
		next := r.start + (r.second(now)+1)*int64(time.Second)
		timer.Reset(time.Duration(next - now))
	}
}

// Tick closes the seconds that ended before now. Called less than once a second, it runs seconds together.
func (r *Recorder) Tick(now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick(now)
}

func (r *Recorder) tick(now int64) {
	for end := r.second(now); r.closed < end; r.closed++ {
		// After a long pause only two seconds hold anything, but the others were lived through too.
		r.close(r.closed, r.closed, r.connected.Load())
	}
	r.total.Duration = max(r.total.Duration, r.closed*int64(time.Second))
}

// close moves what the shards hold of one parity to the totals, as a second of the run.
func (r *Recorder) close(second, parity, connected int64) {
	row := Row{T: second, ConnectedSeconds: connected, Warmup: second < r.warm}
	counters, latency := &r.total.Counters, &r.total.Latency
	if row.Warmup {
		counters, latency = &r.total.Warmup.Counters, nil
	}
	var sum Counters
	for i := range r.shards {
		iv := &r.shards[i].seconds[parity&1]
		for c := range iv.counters {
			sum[c] += iv.counters[c].Swap(0)
		}
		iv.mu.Lock()
		for l := range iv.counts {
			var total *Histogram
			if latency != nil {
				total = &latency[l]
			}
			iv.counts[l].drain(total, r.sumOf(Latency(l)))
		}
		row.Late += iv.late
		iv.late = 0
		iv.mu.Unlock()
	}
	counters.plus(&sum)
	row.Connects, row.Closed, row.Publishes = sum[Connects], sum[Closed], sum[Publishes]
	row.Acked, row.Receives, row.Errors = sum[Acked], sum[Receives], sum[Errors]
	for i, s := range row.spreads() {
		*s = r.sums[i].take()
	}
	if !row.Warmup {
		r.total.Generator.Late += row.Late
	}
	r.append(row)
}

// sumOf returns where the series adds up a latency; nil if it does not show it.
func (r *Recorder) sumOf(l Latency) *spreading {
	if i := slices.Index([]Latency{Connack, Puback, E2E}, l); i >= 0 {
		return r.sums[i]
	}
	return nil
}

func (r *Recorder) append(row Row) {
	s := &r.total.Series
	row.T -= row.T % s.Width
	if n := len(s.Rows); n > 0 && s.Rows[n-1].T == row.T {
		s.Rows[n-1].add(&row, r.width)
		return
	}
	s.Rows = append(s.Rows, row)
	if len(s.Rows) > maxRows {
		s.bound(maxRows, r.width)
		s.mark(r.warm)
	}
}

// Snapshot returns what is known up to the last whole second.
func (r *Recorder) Snapshot(now int64) *Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick(now)
	res := r.total.Clone()
	r.errors.mu.Lock()
	res.Errors, res.Warmup.Errors = maps.Clone(r.errors.measured), maps.Clone(r.errors.warmup)
	r.errors.mu.Unlock()
	lag := r.lag.Clone()
	lag.Add(&res.Latency[Lag])
	return r.complete(res, lag, r.late+res.Generator.Late)
}

// Take returns what was counted since the last Take, up to the last whole second: a process sends these to one that
// adds them up. Generator is only in what Finish returns.
func (r *Recorder) Take(now int64) *Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick(now)
	return r.take()
}

func (r *Recorder) take() *Result {
	out := r.total
	out.Generator.Events = out.Latency[Lag].Count()
	r.lag.Add(&out.Latency[Lag])
	r.late += out.Generator.Late
	r.total = r.fresh()
	r.total.Duration = out.Duration
	r.total.Series.Width = out.Series.Width
	t := &r.errors
	t.mu.Lock()
	defer t.mu.Unlock()
	out.Errors, t.measured = t.measured, newErrors()
	out.Warmup.Errors, t.warmup = t.warmup, newErrors()
	return out
}

// Finish ends the run at now and returns what was counted since the last Take: all, if there was none. Nothing may be
// recorded after it.
func (r *Recorder) Finish(now int64) *Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick(now)
	last, connected := r.closed, r.connected.Load()
	if last > 0 && now-r.start <= last*int64(time.Second) {
		last, connected = last-1, 0 // ended with a second
	}
	// The other parity holds what was recorded a little after its second was closed.
	r.close(last, r.closed, connected)
	r.close(last, r.closed+1, 0)
	r.closed++
	r.total.Duration = max(r.total.Duration, now-r.start)
	return r.complete(r.take(), &r.lag, r.late)
}

// complete adds what is not counted but read. The generator is judged by all of the run, also if res is its last part.
func (r *Recorder) complete(res *Result, lag *Histogram, late int64) *Result {
	g := r.meter.Read()
	g.Events, g.Late = lag.Count(), late
	g.judge(lag, time.Duration(res.Duration))
	g.Events, g.Late = res.Latency[Lag].Count(), res.Generator.Late
	res.Generator = g
	return res
}
