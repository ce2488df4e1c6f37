package registry

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fed returns a cache that a test feeds by hand, as Run's watch would: listed at a revision, with a pool "p" of brokers b1..b9.
func fed(t testing.TB, revision int64, records ...Change) *Cache {
	t.Helper()
	c := NewCache(CacheConfig{})
	feed(t, c, listing(revision, records...))
	progress(t, c, revision)
	return c
}

func feed(t testing.TB, c *Cache, b Batch) {
	t.Helper()
	if err := c.take(b); err != nil {
		t.Fatalf("batch at %d: %v", b.Revision, err)
	}
}

func progress(t testing.TB, c *Cache, revision int64) {
	t.Helper()
	feed(t, c, Batch{Revision: revision})
}

func listing(revision int64, records ...Change) Batch {
	pool := &Pool{Name: "p", Revision: 1}
	for i := range 9 {
		pool.Brokers = append(pool.Brokers, Broker{ID: fmt.Sprintf("b%d", i+1)})
	}
	changes := append([]Change{{Kind: KindPool, Name: "p", Pool: pool, Revision: 1}}, records...)
	return Batch{Revision: revision, List: true, Done: true, Changes: changes}
}

func rec(key, broker string, revision int64) Change {
	return Change{Kind: KindAffinity, PoolName: "p", Name: key, Revision: revision, Affinity: Affinity{Broker: broker, Revision: revision}}
}

func gone(key string, revision int64) Change {
	return Change{Kind: KindAffinity, PoolName: "p", Name: key, Revision: revision, Deleted: true}
}

func notice(key, broker string, revision int64) Notice {
	return Notice{Pool: "p", Key: key, Affinity: Affinity{Broker: broker}, Revision: revision}
}

// expect asks without waiting; source 0: only the store can say.
func expect(t *testing.T, c *Cache, key, broker string, source Source) {
	t.Helper()
	a, from, ok := c.TryResolve("p", key)
	if a.Broker != broker || from != source || ok != (source != 0) {
		t.Errorf("%s: %q from %v (ok %v), want %q from %v", key, a.Broker, from, ok, broker, source)
	}
	if l, ok := c.Lookup("p", key); l.Broker != broker || ok != (broker != "") {
		t.Errorf("Lookup(%s): %q, %v; want %q", key, l.Broker, ok, broker)
	}
}

func TestCacheTakes(t *testing.T) {
	c := NewCache(CacheConfig{})
	expect(t, c, "k", "", 0)
	if c.State() == nil || c.State().Revision != 0 || c.Current() {
		t.Errorf("before the first listing: %+v, current %v", c.State(), c.Current())
	}
	first := listing(10, rec("a", "b1", 3))
	first.Done = false
	feed(t, c, first)
	expect(t, c, "a", "", 0) // half a listing says nothing
	feed(t, c, Batch{Revision: 10, List: true, Done: true, Changes: []Change{rec("b", "b2", 4)}})
	expect(t, c, "a", "b1", SourceCache)
	expect(t, c, "b", "b2", SourceCache)
	expect(t, c, "c", "", 0) // the listing took a while: only progress says how late it is
	progress(t, c, 10)
	expect(t, c, "c", "", SourceNew)
	state := c.State()
	feed(t, c, Batch{Revision: 12, Changes: []Change{rec("c", "b3", 11), gone("a", 12), rec("b", "b4", 12)}})
	expect(t, c, "a", "", SourceNew)
	expect(t, c, "b", "b4", SourceCache)
	expect(t, c, "c", "b3", SourceCache)
	if c.State() != state {
		t.Error("affinities changed, and so did the state's pointer")
	}
	feed(t, c, Batch{Revision: 13, Changes: []Change{{Kind: KindLeader, Name: "e1", Revision: 13}}})
	if c.State() == state || c.State().Leader != "e1" || state.Leader != "" || c.State().Pools["p"] != state.Pools["p"] {
		t.Errorf("state %+v", c.State())
	}
	if err := c.take(Batch{Revision: 12}); err == nil {
		t.Error("a watch that goes back was believed")
	}
	if st := c.Status(); st.Revision != 13 || !st.Listed || st.Entries != 2 || st.Listings != 1 || st.Source != "watch" {
		t.Errorf("status %+v", st)
	}
}

func TestCacheTells(t *testing.T) {
	c := NewCache(CacheConfig{})
	var told []string
	c.OnAffinity(func(pool, key string, a Affinity) {
		told = append(told, fmt.Sprintf("%s/%s=%s@%d", pool, key, a.Broker, a.Revision))
		if got, _ := c.Lookup(pool, key); got.Broker != a.Broker {
			t.Errorf("told of %s at %q, but the cache says %q", key, a.Broker, got.Broker)
		}
	})
	var states []int64
	c.OnState(func(s *State) {
		states = append(states, s.Revision)
		if c.State() != s {
			t.Error("told of another state than the cache's")
		}
	})
	want := func(what string, changes, revisions string) {
		t.Helper()
		if got := fmt.Sprint(told); got != changes {
			t.Errorf("%s: told of %s, want %s", what, got, changes)
		}
		if got := fmt.Sprint(states); got != revisions {
			t.Errorf("%s: states at %s, want %s", what, got, revisions)
		}
		told, states = nil, nil
	}
	feed(t, c, listing(10, rec("a", "b1", 3)))
	want("first listing", "[p/a=b1@3]", "[10]")
	progress(t, c, 11)
	want("progress", "[]", "[]")
	feed(t, c, Batch{Revision: 12, Changes: []Change{rec("b", "b2", 12), rec("a", "b2", 12)}})
	want("changes", "[p/b=b2@12 p/a=b2@12]", "[]")
	feed(t, c, Batch{Revision: 13, Changes: []Change{gone("b", 13)}})
	want("deletion", "[p/b=@0]", "[]")
	c.Note(notice("n", "b5", 14))
	c.Note(notice("a", "b6", 14))
	want("notices", "[]", "[]")
	feed(t, c, listing(20, rec("a", "b2", 12), rec("c", "b3", 17)))
	want("listing with one more", "[p/c=b3@17]", "[20]")
	feed(t, c, listing(30, rec("a", "b4", 25)))
	if len(told) == 2 && told[0] > told[1] {
		told[0], told[1] = told[1], told[0]
	}
	want("listing with one less and one changed", "[p/a=b4@25 p/c=@0]", "[30]")
}

func TestCacheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fed(t, 10)
		if err := c.Wait(t.Context(), 10); err != nil {
			t.Error(err)
		}
		var calls atomic.Int32
		c.OnState(func(*State) { calls.Add(1) })
		done := make(chan int32, 1)
		go func() {
			if err := c.Wait(t.Context(), 12); err != nil {
				t.Error(err)
			}
			done <- calls.Load()
		}()
		synctest.Wait()
		progress(t, c, 11)
		synctest.Wait()
		select {
		case <-done:
			t.Error("waited for 12, was let go at 11")
		default:
		}
		feed(t, c, Batch{Revision: 13, Changes: []Change{{Kind: KindLeader, Name: "e1", Revision: 13}}})
		if n := <-done; n != 1 {
			t.Error("was let go before the subscribers were told")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Wait(ctx, 99); err != context.DeadlineExceeded {
			t.Errorf("waited in vain: %v", err)
		}
		if len(c.waiters) != 0 {
			t.Errorf("%d waiters left behind", len(c.waiters))
		}
	})
}

func TestCacheCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fed(t, 10, rec("a", "b1", 3))
		time.Sleep(time.Second)
		expect(t, c, "new", "", SourceNew)
		time.Sleep(time.Millisecond)
		expect(t, c, "new", "", 0) // more than a second without progress
		expect(t, c, "a", "b1", SourceCache)
		feed(t, c, Batch{Revision: 11, Changes: []Change{rec("b", "b1", 11)}})
		expect(t, c, "new", "", 0) // a change does not say how late it is
		progress(t, c, 11)
		expect(t, c, "new", "", SourceNew)
		half := listing(20, rec("a", "b1", 3))
		half.Done = false
		feed(t, c, half)
		expect(t, c, "new", "", 0)
		expect(t, c, "b", "b1", SourceCache) // the live table stands meanwhile
		c.broke(context.Canceled, false)
		progress(t, c, 11)
		expect(t, c, "new", "", SourceNew)
	})
}

func TestCacheExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rec("a", "b1", 3)
		r.Affinity.Expires = time.Now().Add(time.Hour)
		c := fed(t, 10, r)
		time.Sleep(time.Hour + ExpiryGrace)
		progress(t, c, 10)
		expect(t, c, "a", "b1", SourceCache)
		time.Sleep(2 * time.Second)
		progress(t, c, 10)
		expect(t, c, "a", "", SourceNew)
		// Nobody could have renewed it while the store was away: then it stands.
		time.Sleep(2 * time.Second)
		expect(t, c, "a", "b1", SourceCache)
	})
}

func TestCacheEvicts(t *testing.T) {
	c := NewCache(CacheConfig{MaxEntries: 2})
	feed(t, c, listing(10, rec("a", "b1", 3), rec("b", "b1", 4)))
	progress(t, c, 10)
	expect(t, c, "new", "", SourceNew)
	feed(t, c, Batch{Revision: 11, Changes: []Change{rec("c", "b1", 11)}})
	progress(t, c, 11)
	expect(t, c, "new", "", 0)
	if st := c.Status(); !st.Evicted || st.Entries > 2 {
		t.Errorf("status %+v", st)
	}
	feed(t, c, listing(12, rec("c", "b1", 11)))
	progress(t, c, 12)
	expect(t, c, "new", "", SourceNew) // all fits again
}

// While a cache lists anew, again and again, nobody who asks for a record that stands all the time misses it.
func TestRelistWithoutAnEmptyMoment(t *testing.T) {
	const keys, rounds = 500, 200
	records := make([]Change, keys)
	for i := range records {
		records[i] = rec(fmt.Sprintf("k%d", i), "b1", 5)
	}
	c := fed(t, 10, records...)
	c.Note(notice("noted", "b2", 1<<19))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var reads, missed atomic.Int64
	for range 3 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if a, ok := c.Lookup("p", records[i%keys].Name); !ok || a.Broker != "b1" {
					missed.Add(1)
				}
				if a, from, _ := c.TryResolve("p", "noted"); a.Broker != "b2" {
					t.Errorf("the notice is gone: %v", from)
					return
				}
				reads.Add(1)
			}
		})
	}
	for round := range rounds {
		revision := int64(11 + round)
		half := listing(revision, records[:keys/2]...)
		half.Done = false
		feed(t, c, half)
		feed(t, c, Batch{Revision: revision, List: true, Done: true, Changes: records[keys/2:]})
		progress(t, c, revision)
		for reads.Load() < int64(round)*10 && !t.Failed() { // the readers get their turn
			time.Sleep(10 * time.Microsecond)
		}
	}
	close(stop)
	readers.Wait()
	if missed.Load() > 0 || reads.Load() == 0 {
		t.Errorf("%d of %d lookups found nothing", missed.Load(), reads.Load())
	}
	if st := c.Status(); st.Listings != rounds+1 || st.Provisional != 1 {
		t.Errorf("status %+v", st)
	}
}
