package result

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRecorderTellsTheWarmupApart(t *testing.T) {
	r := NewRecorder(Config{Start: 100, Wall: wall, Warmup: 1500 * time.Millisecond})
	at := func(s float64) int64 { return 100 + int64(s*1e9) }
	for _, s := range []float64{0.2, 1.9, 2.1, 2.2, 3.5} {
		r.Tick(at(s))
		r.Count(Connects, at(s), 1)
		r.Connack.Record(at(s)-40e6, at(s)-10e6, at(s))
		r.Error("refused", at(s))
	}
	r.Connected(7)
	res := r.Finish(at(4.5))
	if res.Counters[Connects] != 3 || res.Warmup.Counters[Connects] != 2 || res.Warmup.Seconds != 2 {
		t.Errorf("%d connects, %d in %d s of warm-up", res.Counters[Connects], res.Warmup.Counters[Connects], res.Warmup.Seconds)
	}
	if res.Errors["refused"] != 3 || res.Counters[Errors] != 3 || res.Warmup.Errors["refused"] != 2 || res.Errors["tls"] != 0 {
		t.Errorf("errors %v, in the warm-up %v", res.Errors, res.Warmup.Errors)
	}
	if c, s := &res.Latency[Connack], &res.Latency[ConnackService]; c.Count() != 3 || c.Min().Round(time.Millisecond) != 40*time.Millisecond ||
		s.Max().Round(time.Millisecond) != 10*time.Millisecond {
		t.Errorf("connack: %d from %v, sent %v", c.Count(), c.Min(), s.Max())
	}
	if got := res.Measured(); got != 2500*time.Millisecond {
		t.Errorf("measured %v", got)
	}
	if got := res.Rate(Connects); got != 3/2.5 {
		t.Errorf("%g connects a second", got)
	}
	rows := res.Series.Rows
	if len(rows) != 5 || !rows[0].Warmup || !rows[1].Warmup || rows[2].Warmup || rows[2].Connects != 2 || rows[4].ConnectedSeconds != 7 {
		t.Fatalf("rows %+v", rows)
	}
	if got := rows[2].Connack.Count(); got != 2 {
		t.Errorf("%d CONNACKs in second 2", got)
	}
	if got := res.Series.Rate(&rows[4], 10, 4500*time.Millisecond); got != 20 {
		t.Errorf("10 events in the half second at the end are %g a second", got)
	}
}

// TestStragglersAreNotLost: what is recorded with a stamp of a second that is already closed counts later.
func TestStragglersAreNotLost(t *testing.T) {
	r := NewRecorder(Config{})
	r.Tick(second + 5)
	r.Count(Publishes, second-1, 1)
	r.Puback.Record(0, 0, second-1)
	r.Count(Publishes, second+6, 1)
	res := r.Finish(2 * second)
	if res.Counters[Publishes] != 2 || res.Latency[Puback].Count() != 1 {
		t.Errorf("%d publishes, %d acknowledged", res.Counters[Publishes], res.Latency[Puback].Count())
	}
	if n := len(res.Series.Rows); n != 2 {
		t.Errorf("%d rows for two seconds", n)
	}
}

func TestGeneratorFallsBehind(t *testing.T) {
	for _, c := range []struct {
		late  int
		by    time.Duration
		words string
	}{
		{0, 0, ""},
		{1, 20 * time.Millisecond, ""},
		{3, 20 * time.Millisecond, "3 of 200 events (1.5 %) began more than 10ms after their time"},
		{1, 2 * time.Second, "an event began 2"},
	} {
		r := NewRecorder(Config{})
		for i := range 200 {
			var lag time.Duration
			if i < c.late {
				lag = c.by
			}
			r.Fired(second, second+int64(lag))
		}
		g := r.Finish(4 * second).Generator
		if g.Behind != (c.words != "") || !strings.Contains(strings.Join(g.Reasons, "; "), c.words) {
			t.Errorf("%d events %v late: behind %v, %q", c.late, c.by, g.Behind, g.Reasons)
		}
		if g.Events != 200 || g.Late != int64(c.late) || g.Processes != 1 {
			t.Errorf("%+v", g)
		}
	}
}

func TestMeterSeesThisProcess(t *testing.T) {
	m := StartMeter()
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
		_ = text(t, New())
	}
	g := m.Read()
	if g.CPUSeconds <= 0 || g.RSS < 1<<20 || g.PeakRSS < g.RSS || g.Descriptors < 3 || g.Limit < g.Descriptors || g.GOMAXPROCS < 1 {
		t.Errorf("%+v", g)
	}
}

// TestManyGoroutines: nothing is counted twice or lost while seconds are closed.
func TestManyGoroutines(t *testing.T) {
	const goroutines, each = 8, 20000
	r := NewRecorder(Config{})
	var at struct {
		sync.Mutex
		now int64
	}
	clock := func() int64 {
		at.Lock()
		defer at.Unlock()
		at.now += 50_000 // 20,000 stamps a second
		return at.now
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	ticking := make(chan struct{})
	go func() {
		defer close(ticking)
		for {
			select {
			case <-done:
				return
			default:
				r.Tick(clock())
			}
		}
	}()
	for range goroutines {
		wg.Go(func() {
			for range each {
				now := clock()
				r.Count(Receives, now, 1)
				r.E2E.Record(now-1000_000, now-900_000, now)
			}
		})
	}
	wg.Wait()
	close(done)
	<-ticking
	res := r.Finish(clock())
	var rows, spread int64
	for _, row := range res.Series.Rows {
		rows += row.Receives
		spread += row.E2E.Count()
	}
	const want = goroutines * each
	if res.Counters[Receives] != want || rows != want || spread != want || res.Latency[E2E].Count() != want || res.Latency[E2EService].Count() != want {
		t.Errorf("counted %d, in rows %d and %d, latencies %d and %d: want %d each", res.Counters[Receives], rows, spread,
			res.Latency[E2E].Count(), res.Latency[E2EService].Count(), want)
	}
}

func TestRunClosesEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() int64 { return int64(time.Since(began)) }
		r := NewRecorder(Config{Wall: began})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx, clock) }()
		for range 40 {
			time.Sleep(100 * time.Millisecond) // of the bubble's time
			r.Count(Publishes, clock(), 1)
		}
		time.Sleep(50 * time.Millisecond)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		res := r.Finish(clock())
		if len(res.Series.Rows) != 5 || res.Series.Rows[1].Publishes != 10 || res.Counters[Publishes] != 40 {
			t.Errorf("rows %+v", res.Series.Rows)
		}
	})
}

// TestLongRunsStayBounded: five hours at full width of percentiles.
func TestLongRunsStayBounded(t *testing.T) {
	r := NewRecorder(Config{Shards: 1})
	const long = 5 * 3600
	for s := range int64(long) {
		now := s * second
		r.Tick(now)
		r.Count(Connects, now, 1)
		if s%7 == 0 {
			for i := range int64(40) {
				r.Connack.Record(now-i*50_000, now, now)
			}
		}
	}
	res := r.Finish(long * second)
	if n := len(res.Series.Rows); n > maxRows || n < maxRows/2 || res.Series.Width != 4 {
		t.Errorf("%d rows of %d s", n, res.Series.Width)
	}
	if res.Counters[Connects] != long {
		t.Errorf("%d connects", res.Counters[Connects])
	}
	if n := len(text(t, res)); n > 4<<20 {
		t.Errorf("%d bytes of JSON", n)
	}
}

func TestRecordingAllocatesNothing(t *testing.T) {
	r := NewRecorder(Config{Shards: 1})
	now := int64(0)
	record := func() {
		now += 1000
		r.Connack.Record(now-5_000_000, now-4_000_000, now)
		r.Count(Publishes, now, 1)
		r.Fired(now-1000, now)
		r.Error("timeout", now)
	}
	record()
	if n := testing.AllocsPerRun(1000, record); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := NewRecorder(Config{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		now := int64(0)
		for pb.Next() {
			now += 977
			r.E2E.Record(now-5_000_000, now-4_000_000, now)
			r.Count(Receives, now, 1)
		}
	})
}

func BenchmarkTick(b *testing.B) {
	r := NewRecorder(Config{})
	b.ReportAllocs()
	for i := range int64(b.N) {
		for k := range int64(200) {
			r.E2E.Record(i*second, i*second, i*second+k*60_000)
		}
		r.Tick((i + 1) * second)
	}
}
