package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestLifetime(t *testing.T) {
	for want, granted := range map[time.Duration]time.Duration{
		time.Second:             2 * time.Second,
		1500 * time.Millisecond: 2 * time.Second,
		2 * time.Second:         3 * time.Second,
		time.Minute:             75 * time.Second,
		48 * time.Hour:          60 * time.Hour,
	} {
		if got := lifetime(want); got != granted {
			t.Errorf("lifetime(%v) = %v, want %v", want, got, granted)
		}
	}
}

func TestBucketServesUntilItIsTooShort(t *testing.T) {
	var b buckets
	now := time.Unix(1e9, 0)
	if _, ok := b.take(now, time.Minute); ok {
		t.Fatal("a lease out of nothing")
	}
	b.add(7, now.Add(75*time.Second))
	for _, c := range []struct {
		after, want time.Duration
		ok          bool
	}{
		{0, time.Minute, true},
		{11 * time.Second, time.Minute, true},
		{12*time.Second + 1, time.Minute, false}, // a commit that takes 3 s would leave less than a minute
		{0, 59 * time.Second, false},             // a quarter longer is 74 s
		{12 * time.Second, 59 * time.Second, true},
		{45 * time.Second, 24 * time.Second, true}, // 30 s are left: a quarter longer
		{45 * time.Second, 20 * time.Second, false},
		{75 * time.Second, time.Second, false},
		{0, time.Minute, false}, // it has run out meanwhile, and is forgotten
	} {
		id, ok := b.take(now.Add(c.after), c.want)
		if ok != c.ok || ok && id != 7 {
			t.Errorf("%v later, for %v: lease %d, %v; want %v", c.after, c.want, id, ok, c.ok)
		}
	}
}

func TestBucketIsBounded(t *testing.T) {
	var b buckets
	now := time.Unix(1e9, 0)
	b.add(1, now.Add(75*time.Second))
	b.add(2, now.Add(75*time.Second))
	count := map[int64]int{}
	for {
		id, ok := b.take(now, time.Minute)
		if !ok {
			break
		}
		count[id]++
	}
	if count[1] != maxBucketKeys || count[2] != maxBucketKeys {
		t.Errorf("keys by lease: %v, want %d each", count, maxBucketKeys)
	}
	b.add(3, now.Add(75*time.Second))
	b.drop([]int64{3, 4})
	if id, ok := b.take(now, time.Minute); ok {
		t.Errorf("lease %d was dropped and is used", id)
	}
}

// Whatever is asked and whenever: no lease is shorter than asked, or more than a quarter and a second longer.
func TestBucketKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b buckets
		now := time.Unix(1e9, 0)
		ends := map[int64]time.Time{}
		for i := range rapid.IntRange(1, 200).Draw(t, "writes") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "pause")))
			want := time.Duration(rapid.Int64Range(1, int64(100*time.Hour)).Draw(t, "want"))
			id, ok := b.take(now, want)
			if !ok {
				b.add(int64(i+1), now.Add(lifetime(want)))
				ends[int64(i+1)] = now.Add(lifetime(want))
				if id, ok = b.take(now, want); !ok {
					t.Fatalf("a lease of %v was granted for %v and does not serve", lifetime(want), want)
				}
			}
			if left := ends[id].Sub(now); left < want || left > want+want/4+time.Second {
				t.Fatalf("asked for %v, got a lease with %v left", want, left)
			}
		}
	})
}

// fakeGrants counts what a store is asked for, and takes a while.
type fakeGrants struct {
	mu   sync.Mutex
	asks []time.Duration
	err  error
}

func (f *fakeGrants) grant(ctx context.Context, ttl time.Duration) (int64, time.Duration, error) {
	time.Sleep(100 * time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, 0, f.err
	}
	f.asks = append(f.asks, ttl)
	return int64(len(f.asks)), ttl, ctx.Err()
}

func newLeases(f *fakeGrants) *leases {
	return &leases{grant: f.grant, granting: make(chan struct{}, 1)}
}

func TestOneGrantForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fakeGrants)
		l := newLeases(f)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if id, err := l.acquire(t.Context(), time.Minute); err != nil || id != 1 {
					t.Errorf("lease %d, %v; want the first", id, err)
				}
			})
		}
		wg.Wait()
		if !slices.Equal(f.asks, []time.Duration{75 * time.Second}) {
			t.Errorf("granted %v, want one lease of 75 s", f.asks)
		}
	})
}

// A day of refreshes: a lease is granted when the last one is too short, and serves all until then.
func TestGrantsOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fakeGrants)
		l := newLeases(f)
		for range 24 * 60 {
			if _, err := l.acquire(t.Context(), 3*time.Hour); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		// A lease of 3 h 45 serves writes of 3 h for 45 min, less the margin.
		if n := len(f.asks); n < 24*60/45 || n > 24*60/45+4 {
			t.Errorf("%d leases in a day for writes of three hours", n)
		}
	})
}

func TestLostLeasesAreGrantedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fakeGrants)
		l := newLeases(f)
		first, _ := l.acquire(t.Context(), time.Minute)
		l.lost([]int64{first})
		if second, err := l.acquire(t.Context(), time.Minute); err != nil || second == first {
			t.Errorf("lease %d again, %v", second, err)
		}
	})
}

func TestAWaiterForAGrantGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeGrants{err: errors.New("away")}
		l := newLeases(f)
		if _, err := l.acquire(t.Context(), time.Minute); !errors.Is(err, f.err) {
			t.Errorf("a grant that failed: %v", err)
		}
		l.granting <- struct{}{} // a grant that never ends
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := l.acquire(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("gave up after %v, want 1 s", took)
		}
	})
}

func TestNoLeaseForNoEnd(t *testing.T) {
	f := &fakeGrants{err: fmt.Errorf("never asked")}
	if id, err := newLeases(f).acquire(t.Context(), 0); id != 0 || err != nil {
		t.Errorf("lease %d, %v; want none", id, err)
	}
}
