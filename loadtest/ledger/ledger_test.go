package ledger

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

// pair returns a stream with one subscriber, subscribed from the first number on, of which n are sent and acknowledged.
func pair(cfg Config, qos byte, n uint64) (*Ledger, *Stream, *Flow) {
	books := New(cfg)
	s := books.Stream("p", "t", qos)
	f := s.Flow("s", qos)
	f.Subscribed(1)
	for i := range n {
		s.Sent(i + 1)
		s.Acked(i + 1)
	}
	return books, s, f
}

func receive(f *Flow, numbers ...uint64) {
	for _, n := range numbers {
		f.Received(n, false, 0, int64(n)*ms)
	}
}

func TestNothingToReport(t *testing.T) {
	for qos := range byte(3) {
		books, _, f := pair(Config{}, qos, 3)
		receive(f, 1, 2, 3)
		r := books.Settle(100, nil)
		want := Counts{Sent: 3, Acked: 3, Expected: 3, Received: 3}
		if qos == 0 {
			want.Acked = 0
		}
		if r.QoS[qos] != want || len(r.Anomalies) != 0 {
			t.Errorf("QoS %d: %+v", qos, r)
		}
	}
}

// TestEachLieHasItsWord: what a lying proxy does to a stream is found under one word, and under no other.
func TestEachLieHasItsWord(t *testing.T) {
	perfect := Counts{Sent: 5, Acked: 5, Expected: 5, Received: 5}
	for name, c := range map[string]struct {
		come []uint64
		lie  func(*Counts)
		kind Kind
		seq  uint64
	}{
		"drop":       {[]uint64{1, 2, 4, 5}, func(c *Counts) { c.Lost, c.Received = 1, 4 }, Lost, 3},
		"drop last":  {[]uint64{1, 2, 3, 4}, func(c *Counts) { c.Lost, c.Received = 1, 4 }, Lost, 5},
		"drop first": {[]uint64{2, 3, 4, 5}, func(c *Counts) { c.Lost, c.Received = 1, 4 }, Lost, 1},
		"duplicate":  {[]uint64{1, 2, 3, 3, 4, 5}, func(c *Counts) { c.Duplicated = 1 }, Duplicated, 3},
		"swap":       {[]uint64{1, 2, 4, 3, 5}, func(c *Counts) { c.Reordered = 1 }, Reordered, 3},
		"old copy":   {[]uint64{1, 2, 3, 4, 2, 5}, func(c *Counts) { c.Duplicated = 1 }, Duplicated, 2},
		"invent":     {[]uint64{1, 2, 3, 4, 5, 6}, func(c *Counts) { c.Unknown = 1 }, Unknown, 6},
	} {
		for qos := byte(1); qos <= 2; qos++ {
			books, _, f := pair(Config{}, qos, 5)
			receive(f, c.come...)
			want := perfect
			c.lie(&want)
			r := books.Settle(100, nil)
			if r.Messages() != want || r.QoS[qos] != want {
				t.Errorf("%s at QoS %d:\ngot  %+v\nwant %+v", name, qos, r.Messages(), want)
			}
			if len(r.Anomalies) != 1 || r.Anomalies[0].Kind != c.kind || r.Anomalies[0].Sequence != c.seq {
				t.Errorf("%s at QoS %d: %+v", name, qos, r.Anomalies)
			}
		}
	}
}

func TestQoS0IsCountedApart(t *testing.T) {
	books, s, f := pair(Config{}, 0, 5)
	receive(f, 1, 2, 4) // 3 is lost, 5 was on its way
	f.Offline(10 * ms)
	s.Sent(6) // nobody is there
	f.Online(20 * ms)
	s.Sent(7)
	receive(f, 7)
	r := books.Settle(100, nil)
	if r.Messages() != (Counts{}) {
		t.Errorf("QoS 1 and 2: %+v", r.Messages())
	}
	if want := (Counts{Sent: 7, Expected: 5, Received: 4, Lost: 1}); r.QoS[0] != want {
		t.Errorf("got  %+v\nwant %+v", r.QoS[0], want)
	}
}

// TestGrantedQoS: a subscription at QoS 0 to a stream of QoS 1 is owed nothing, and its losses are none of QoS 1.
func TestGrantedQoS(t *testing.T) {
	books := New(Config{})
	s := books.Stream("p", "t", 1)
	f0, f2 := s.Flow("zero", 0), s.Flow("two", 2)
	f0.Subscribed(1)
	f2.Subscribed(1)
	s.Sent(1)
	s.Acked(1)
	f2.Received(1, false, 0, ms)
	f2.Received(1, true, 0, ms) // came at QoS 1, where a marked copy is legal
	r := books.Settle(5, func(got *Stream, c Counts) {
		if got != s || c.Lost != 1 || c.Received != 1 || c.Sent != 1 {
			t.Errorf("stream %+v: %+v", got, c)
		}
	})
	if r.QoS[0] != (Counts{Expected: 1, Lost: 1}) {
		t.Errorf("QoS 0: %+v", r.QoS[0])
	}
	if r.QoS[1] != (Counts{Sent: 1, Acked: 1, Expected: 1, Received: 1, DuplicatedWithDup: 1}) {
		t.Errorf("QoS 1: %+v", r.QoS[1])
	}
}

func TestDuplicatesThatAreLegal(t *testing.T) {
	for qos := range byte(3) {
		books, s, f := pair(Config{}, qos, 1)
		receive(f, 1)
		f.Received(1, true, 0, 2*ms) // marked
		if c := books.Settle(5, nil).QoS[qos]; c.DuplicatedWithDup+c.Duplicated != 1 || (c.DuplicatedWithDup == 1) != (qos == 1) {
			t.Errorf("QoS %d, marked: %+v", qos, c)
		}
		s.Sent(2)
		receive(f, 2)
		s.Offline(3 * ms) // not acknowledged: the publisher sends it again
		receive(f, 2)
		s.Online(4 * ms)
		if c := books.Settle(5, nil).QoS[qos]; (c.DuplicatedAfterResend == 1) != (qos == 1) {
			t.Errorf("QoS %d, sent again: %+v", qos, c)
		}
		s.SessionLost() // and as new
		receive(f, 2)
		if c := books.Settle(5, nil).QoS[qos]; (c.DuplicatedAfterResend > 0) != (qos > 0) {
			t.Errorf("QoS %d, sent again as new: %+v", qos, c)
		}
		receive(f, 1) // was acknowledged, so never sent again
		if c := books.Settle(5, nil).QoS[qos]; c.Duplicated == 0 {
			t.Errorf("QoS %d, copied: %+v", qos, c)
		}
	}
}

// TestLostSession: what a session held is lost with it, what had been lost before stays lost.
func TestLostSession(t *testing.T) {
	books, s, f := pair(Config{}, 1, 10)
	receive(f, 1, 2, 4, 5) // 3 is lost in the first life
	f.Offline(10 * ms)
	f.Online(20 * ms)
	f.Received(6, false, 0, 21*ms)
	f.Received(8, false, 0, 22*ms) // 7 may still come: the server sends its queue in no order
	f.Offline(30 * ms)
	s.Sent(11) // 7, 9, 10 and 11 were in the session
	s.Acked(11)
	s.Sent(12) // never acknowledged
	f.SessionLost()
	f.Online(40 * ms)
	s.Sent(13) // before the SUBACK
	s.Acked(13)
	s.Sent(14)
	s.Acked(14)
	f.Received(14, false, 0, 41*ms) // sent before the SUBACK, and came
	f.Subscribed(15)
	s.Sent(15)
	s.Acked(15)
	f.Received(15, false, 0, 42*ms)
	r := books.Settle(100*ms, nil)
	want := Counts{Sent: 15, Acked: 14, Expected: 14, Received: 8, Lost: 1, LostWithSession: 5}
	if r.Messages() != want {
		t.Errorf("got  %+v\nwant %+v", r.Messages(), want)
	}
	if a := r.Anomalies[0]; a.Kind != Lost || a.Sequence != 3 || a.To != 3 || a.At != 4*ms {
		t.Errorf("%+v", a)
	}
}

// TestLostSessionsAtTheirEdges: a hole that is noticed by the first delivery of a life belongs to that life; and sessions that are lost
// while nothing happens leave nothing in the books.
func TestLostSessionsAtTheirEdges(t *testing.T) {
	books, s, f := pair(Config{}, 1, 3)
	receive(f, 1)
	f.Offline(10 * ms)
	f.Online(20 * ms)
	f.Received(3, false, 0, 20*ms) // 2 may still come
	f.Offline(30 * ms)
	f.Online(40 * ms)
	f.SessionLost()
	f.Subscribed(s.Last() + 1)
	if c, want := books.Settle(100*ms, nil).Messages(), (Counts{Sent: 3, Acked: 3, Expected: 3, Received: 2, LostWithSession: 1}); c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	kept := len(f.regions)
	for i := range int64(100) {
		f.Offline((50 + i) * ms)
		f.SessionLost()
		f.Online((50 + i) * ms)
		f.Subscribed(s.Last() + 1)
	}
	if len(f.regions) != kept {
		t.Errorf("%d regions are kept, before it were %d", len(f.regions), kept)
	}
}

// TestHistoryStays: what became of a message is not changed by what the subscriber does later.
func TestHistoryStays(t *testing.T) {
	books, s, f := pair(Config{}, 1, 1)
	f.SessionLost()
	f.Subscribed(s.Last() + 1)
	f.SessionLost()
	f.Unsubscribed()
	if c, want := books.Settle(100, nil).Messages(), (Counts{Sent: 1, Acked: 1, Expected: 1, LostWithSession: 1}); c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestUnsubscribed(t *testing.T) {
	books, s, f := pair(Config{}, 1, 3)
	receive(f, 2) // 1 is lost, 3 on its way
	f.Unsubscribed()
	s.Sent(4)
	s.Acked(4)
	f.Subscribed(s.Last() + 1)
	s.Sent(5)
	s.Acked(5)
	receive(f, 5)
	if c, want := books.Settle(100, nil).Messages(), (Counts{Sent: 5, Acked: 5, Expected: 3, Received: 2, Lost: 1}); c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestLate(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(*Stream, *Flow) // message 1 is sent at 0 and comes at 1,000 ms; at most 300 ms is in time
		late    bool
	}{
		"nobody away":    {func(*Stream, *Flow) {}, true},
		"receiver away":  {func(_ *Stream, f *Flow) { f.Offline(100 * ms); f.Online(800 * ms) }, false},
		"away too short": {func(_ *Stream, f *Flow) { f.Offline(100 * ms); f.Online(799 * ms) }, true},
		"sender away":    {func(s *Stream, _ *Flow) { s.Offline(100 * ms); s.Online(800 * ms) }, false},
		"both, in turns": {func(s *Stream, f *Flow) { f.Offline(0); f.Online(300 * ms); s.Offline(500 * ms); s.Online(901 * ms) }, false},
		"both, at once": {func(s *Stream, f *Flow) {
			f.Offline(200 * ms)
			s.Offline(300 * ms)
			s.Online(800 * ms)
			f.Online(850 * ms)
		}, true},
		"away before":     {func(_ *Stream, f *Flow) { f.Offline(-2000 * ms); f.Online(-1 * ms) }, true},
		"came while away": {func(_ *Stream, f *Flow) { f.Offline(250 * ms) }, false},
	} {
		books, s, f := pair(Config{Late: 300 * time.Millisecond}, 1, 1)
		c.happens(s, f)
		f.Received(1, false, 1, 1000*ms+1)
		if got := books.Settle(5000*ms, nil).Messages().Late == 1; got != c.late {
			t.Errorf("%s: late is %v", name, got)
		}
	}
	books, _, f := pair(Config{Late: 300 * time.Millisecond}, 1, 3)
	f.Received(1, false, 0, 1000*ms)        // nobody knows when it was sent
	f.Received(2, false, 1, 300*ms+1)       // just in time
	f.Received(1, false, 1*ms, 5000*ms)     // a copy has its own word
	f.Received(3, false, 1*ms, 301*ms+1000) // late
	if c := books.Settle(5000*ms, nil).Messages(); c.Late != 1 || c.Duplicated != 1 {
		t.Errorf("%+v", c)
	}
	never, _, f := pair(Config{Late: -1}, 1, 1)
	f.Received(1, false, 1, 1<<60)
	if c := never.Settle(5000*ms, nil).Messages(); c.Late != 0 {
		t.Errorf("%+v", c)
	}
}

// TestManyAbsences: only the newest absences are kept, and what is older is nobody's fault.
func TestManyAbsences(t *testing.T) {
	books, _, f := pair(Config{Late: time.Second}, 1, 1)
	for i := range int64(1000) {
		f.Offline(i * 10_000 * ms)
		f.Online(i*10_000*ms + 1)
	}
	if n := len(f.away.spans); n > maxAbsences {
		t.Errorf("%d absences are kept", n)
	}
	f.Received(1, false, 1, 9_999_000*ms)
	if c := books.Settle(0, nil).Messages(); c.Late != 1 {
		t.Errorf("it waited in many connections: %+v", c)
	}
	books, _, f = pair(Config{Late: 1000 * time.Second}, 1, 1)
	for i := range int64(1000) {
		f.Offline(i * 10_000 * ms)
		f.Online(i*10_000*ms + 1)
	}
	f.Received(1, false, 1, 9_999_000*ms)
	if c := books.Settle(0, nil).Messages(); c.Late != 0 {
		t.Errorf("of connections that are forgotten nothing is held against anybody: %+v", c)
	}
}

// TestAMillionInOrder: numbers in order take no memory, whatever their count, and no allocation each.
func TestAMillionInOrder(t *testing.T) {
	books, s, f := pair(Config{}, 1, 0)
	n := uint64(0)
	step := func() {
		n++
		s.Sent(n)
		s.Acked(n)
		f.Received(n, false, int64(n)*ms, int64(n)*ms+1)
	}
	step()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for n < 1_000_000 {
		step()
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
		t.Errorf("%d bytes were allocated for a million messages", got)
	}
	if len(s.acked) != 1 || len(f.received) != 1 || len(s.resent) != 0 || len(f.regions) != 2 {
		t.Errorf("kept: %d, %d, %d, %d", len(s.acked), len(f.received), len(s.resent), len(f.regions))
	}
	want := Counts{Sent: 1_000_000, Acked: 1_000_000, Expected: 1_000_000, Received: 1_000_000}
	if c := books.Settle(0, nil).Messages(); c != want {
		t.Errorf("%+v", c)
	}
	if allocs := testing.AllocsPerRun(1000, step); allocs != 0 {
		t.Errorf("%v allocations per message", allocs)
	}
}

// TestDisorderIsBounded: disorder is bounded too, and counted right.
func TestDisorderIsBounded(t *testing.T) {
	books, s, f := pair(Config{Holes: 64}, 2, 0)
	for n := uint64(1); n <= 200_000; n++ {
		s.Sent(n)
		s.Acked(n)
		if n%2 == 0 {
			f.Received(n, false, 0, int64(n))
		}
	}
	if n := cap(f.received); n > 4*force*64 {
		t.Errorf("%d intervals are kept", n)
	}
	f.Received(2, false, 0, 1<<40)
	r := books.Settle(1<<41, nil)
	want := Counts{Sent: 200_000, Acked: 200_000, Expected: 200_000, Received: 100_000, Lost: 100_000, Forgotten: 1}
	if c := r.Messages(); c != want || len(r.Anomalies) != DefaultExamples {
		t.Errorf("%d anomalies, %+v", len(r.Anomalies), c)
	}
}

// TestASubscriberWhoIsAwayForLong: his numbers are not settled behind his back while there is room.
func TestASubscriberWhoIsAwayForLong(t *testing.T) {
	books, s, f := pair(Config{Holes: 8}, 1, 0)
	f.Offline(1)
	for n := uint64(1); n <= 100; n++ { // every second is refused: 50 holes
		s.Sent(n)
		if n%2 == 0 {
			s.Acked(n)
		}
	}
	f.Online(2)
	for n := uint64(2); n <= 100; n += 2 {
		f.Received(n, false, 0, int64(n))
	}
	if c := books.Settle(1000, nil).Messages(); c != (Counts{Sent: 100, Acked: 50, Expected: 50, Received: 50}) {
		t.Errorf("%+v", c)
	}
}

func TestManyAtOnce(t *testing.T) {
	books := New(Config{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s := books.Stream("p", "t", 1)
			f := s.Flow("s", 1)
			f.Subscribed(1)
			acked := make(chan uint64, 100)
			wg.Go(func() {
				for n := range acked {
					f.Received(n, false, 0, int64(n))
					f.Received(n, false, 0, int64(n))
				}
			})
			for n := uint64(1); n <= 1000; n++ {
				s.Sent(n)
				acked <- n
				s.Acked(n)
			}
			close(acked)
		})
	}
	for range 20 {
		books.Settle(1, nil)
		books.Live()
	}
	wg.Wait()
	if c, want := books.Settle(1, nil).Messages(), uint64(8000); c.Received != want || c.Duplicated != want || c.Lost != 0 || c.ReceivedUnacked != 0 {
		t.Errorf("%+v", c)
	}
}

func TestSet(t *testing.T) {
	var s set
	for _, n := range []uint64{5, 3, 4, 9, 1, 10, 8} {
		if !s.add(n, int64(n)) || s.add(n, 0) {
			t.Fatalf("%d is added twice, or not at all", n)
		}
	}
	if want := (set{{1, 1, 5}, {3, 5, 5}, {8, 10, 9}}); !slices.Equal(s, want) {
		t.Errorf("got %v, want %v", s, want)
	}
	s.addRange(6, 7)
	s.addRange(2, 2)
	s.addRange(12, 11)
	if len(s) != 1 || s[0].from != 1 || s[0].to != 10 {
		t.Errorf("%v", s)
	}
	s.addRange(20, 30)
	s.addRange(15, 40)
	s.cut(5)
	if len(s) != 2 || s[0].from != 5 || s[1].from != 15 || s[1].to != 40 || s.has(4) || !s.has(5) || s.has(11) {
		t.Errorf("%v", s)
	}
	s.cut(100)
	if len(s) != 0 || s.max() != 0 {
		t.Errorf("%v", s)
	}
}
