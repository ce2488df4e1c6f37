package registry

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

var errReset = fmt.Errorf("%w: another", ErrReset)

// empty is the listing of a store that knows nothing but these changes.
func empty(revision int64, changes ...Change) Batch {
	return Batch{Revision: revision, List: true, Done: true, Changes: changes}
}

func poolChange(name string, revision int64) Change {
	return Change{Kind: KindPool, Name: name, Revision: revision, Pool: &Pool{Name: name, Brokers: []Broker{{ID: "b1"}}, Revision: revision}}
}

// A store that comes back empty takes nothing away from an edge that runs: pools, what operators wanted of their brokers, pins.
func TestCacheKeepsPoolsThroughAReset(t *testing.T) {
	out := BrokerRef{"p", "b2"}
	c := fed(t, 10,
		poolChange("q", 2),
		Change{Kind: KindAdmin, PoolName: "p", Name: "b2", Revision: 4, Admin: Admin{AdminOut, 4}},
		Change{Kind: KindPin, PoolName: "q", Name: "k", Revision: 5, Broker: "b1"},
		Change{Kind: KindVerdict, PoolName: "p", Name: "b1", Revision: 6, Verdict: Verdict{State: BrokerDown, Revision: 6}},
		Change{Kind: KindEdge, Name: "e1", Revision: 7, Edge: Edge{ID: "e1"}},
	)
	before := c.State().Pools["p"]
	told := 0
	c.OnState(func(s *State) {
		if told++; s.Pools["p"] == nil || s.Pools["q"] == nil {
			t.Errorf("told of a state without them: %+v", s)
		}
	})
	reset := func(b Batch) {
		t.Helper()
		c.broke(errReset, false)
		feed(t, c, b)
	}
	reset(empty(3))
	st := c.State()
	if p := st.Pools["p"]; p == nil || len(p.Brokers) != 9 || p.Revision != 0 || before.Revision != 1 || !st.Former["p"] || !st.Former["q"] {
		t.Fatalf("pool p: %+v, before %+v; former %v", p, before, st.Former)
	}
	if st.Admin[out] != (Admin{State: AdminOut}) || st.Pins[PinRef{"q", "k"}] != "b1" {
		t.Errorf("admin %v, pins %v", st.Admin, st.Pins)
	}
	if len(st.Verdicts) != 0 || len(st.Edges) != 0 {
		t.Errorf("what edges say they will say again: %+v", st)
	}
	// Again, and a listing for another reason: they still stand.
	reset(empty(2))
	c.broke(fmt.Errorf("%w", ErrCompacted), false)
	feed(t, c, empty(20))
	// The first pool that is written says nothing about the other.
	feed(t, c, Batch{Revision: 21, Changes: []Change{poolChange("p", 21)}})
	st = c.State()
	if p := st.Pools["p"]; len(p.Brokers) != 1 || p.Revision != 21 || st.Former["p"] || len(st.Admin) != 0 {
		t.Errorf("p is the new store's now: %+v, former %v, admin %v", p, st.Former, st.Admin)
	}
	if st.Pools["q"] == nil || !st.Former["q"] || len(st.Pins) != 1 {
		t.Errorf("q: %+v, former %v, pins %v", st.Pools["q"], st.Former, st.Pins)
	}
	c.onState = nil
	// What an operator deletes goes, and does not come back.
	feed(t, c, Batch{Revision: 23, Changes: []Change{poolChange("q", 22), {Kind: KindPool, Name: "p", Revision: 23, Deleted: true}}})
	feed(t, c, Batch{Revision: 24, Changes: []Change{{Kind: KindPool, Name: "q", Revision: 24, Deleted: true}}})
	if st = c.State(); len(st.Pools) != 0 || len(st.Former) != 0 || c.former != nil {
		t.Errorf("after the deletions: %+v", st)
	}
	if told < 4 {
		t.Errorf("told of %d states", told)
	}
}

// A cache that starts with an empty store, or meets a compaction, keeps nothing.
func TestCacheKeepsNothingWithoutAReset(t *testing.T) {
	c := fed(t, 10, rec("k", "b1", 3))
	c.broke(fmt.Errorf("%w", ErrCompacted), false)
	feed(t, c, empty(20))
	progress(t, c, 20)
	if st := c.State(); len(st.Pools) != 0 || len(st.Former) != 0 {
		t.Errorf("%+v", st)
	}
	expect(t, c, "k", "", SourceNew)
	c = NewCache(CacheConfig{})
	c.broke(errReset, false)
	feed(t, c, empty(3))
	if st := c.State(); len(st.Pools) != 0 || len(st.Former) != 0 {
		t.Errorf("%+v", st)
	}
}

// Records are kept too, as ones that are due for a write, and until they expire.
func TestCacheKeepsRecordsThroughAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, ended := rec("live", "b1", 3), rec("ended", "b1", 4)
		live.Affinity.Expires, ended.Affinity.Expires = time.Now().Add(time.Hour), time.Now().Add(-ExpiryGrace-2*time.Second)
		live.Affinity.Home = "b7"
		c := fed(t, 10, live, ended, rec("elsewhere", "b1", 5), rec("deleted", "b1", 6))
		c.broke(errReset, false)
		feed(t, c, listing(4, rec("elsewhere", "b2", 2)))
		progress(t, c, 4)
		expect(t, c, "live", "b1", SourceCache)
		expect(t, c, "ended", "", SourceNew)
		expect(t, c, "elsewhere", "b2", SourceCache)
		a, _ := c.Lookup("p", "live")
		life := (&Pool{}).Lifetime(ExpiryMQTT3(false))
		if a.Revision != 0 || a.Home != "b7" || life.RefreshIn(a.Expires, time.Now()) != 0 {
			t.Errorf("a record that is kept must be written by the next who has its client: %+v", a)
		}
		// The watch's word stands over it.
		feed(t, c, Batch{Revision: 5, Changes: []Change{rec("live", "b3", 5)}})
		expect(t, c, "live", "b3", SourceCache)
		feed(t, c, Batch{Revision: 7, Changes: []Change{rec("deleted", "b1", 6), gone("deleted", 7)}})
		progress(t, c, 7)
		expect(t, c, "deleted", "", SourceNew)

		c = fed(t, 10, live)
		c.broke(errReset, false)
		feed(t, c, empty(4))
		time.Sleep(time.Minute)
		c.broke(fmt.Errorf("%w", ErrCompacted), false)
		feed(t, c, empty(40)) // not for this one's lack of it, either
		progress(t, c, 40)
		expect(t, c, "live", "b1", SourceCache)
		time.Sleep(time.Hour + ExpiryGrace)
		progress(t, c, 40)
		expect(t, c, "live", "", SourceNew)
		c.broke(fmt.Errorf("%w", ErrCompacted), false)
		feed(t, c, empty(50))
		if n := c.Status().Entries; n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}

func TestCacheKeepsRecordsWithinItsBound(t *testing.T) {
	c := NewCache(CacheConfig{MaxEntries: 3})
	feed(t, c, listing(10, rec("a", "b1", 3), rec("b", "b1", 4), rec("c", "b1", 5)))
	c.broke(errReset, false)
	feed(t, c, listing(4, rec("d", "b1", 3), rec("e", "b1", 4)))
	if st := c.Status(); st.Entries != 3 || st.Evicted {
		t.Errorf("%+v", st)
	}
	expect(t, c, "d", "b1", SourceCache)
	expect(t, c, "e", "b1", SourceCache)
}

// What is told after a reset closes nobody for a record that comes from a backup, and has every record offered again.
func TestCacheTellsAfterAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(c Change, when time.Time) Change {
			c.Affinity.Written = when
			return c
		}
		before := time.Now()
		time.Sleep(time.Minute)
		c := fed(t, 100, rec("gone", "b1", 50), rec("same", "b1", 51), rec("identical", "b1", 5), rec("older", "b1", 53), rec("newer", "b1", 54), rec("away", "b1", 55))
		told := map[string][]string{}
		c.OnAffinity(func(_, key string, a Affinity) { told[key] = append(told[key], a.Broker) })
		c.broke(context.DeadlineExceeded, false)
		time.Sleep(time.Minute)
		c.broke(errReset, false)
		half := listing(20, at(rec("same", "b1", 6), before), rec("identical", "b1", 5))
		half.Done = false
		feed(t, c, half)
		c.broke(context.DeadlineExceeded, false) // the listing breaks, and begins anew
		now := time.Now()
		feed(t, c, listing(20,
			at(rec("same", "b1", 6), before), rec("identical", "b1", 5), at(rec("older", "b2", 7), before), at(rec("newer", "b2", 8), now),
			at(rec("unknown", "b1", 9), before), at(rec("fresh", "b1", 10), now)))
		want := "map[away:[] fresh:[b1] gone:[] newer:[ b2] same:[ b1]]"
		if got := fmt.Sprint(told); got != want {
			t.Errorf("told %s, want %s", got, want)
		}
		clear(told)
		c.broke(fmt.Errorf("%w", ErrCompacted), false)
		feed(t, c, listing(30, at(rec("same", "b1", 6), before), at(rec("older", "b2", 7), before), at(rec("newer", "b3", 25), now),
			at(rec("unknown", "b1", 9), before), at(rec("fresh", "b1", 10), now)))
		if got := fmt.Sprint(told); got != "map[identical:[] newer:[b3]]" {
			t.Errorf("told %s by a listing of the same store", got)
		}
	})
}

// What an unreadable value was before stands, in changes and in listings; only a deletion ends it.
func TestCacheKeepsPoolsThatDoNotRead(t *testing.T) {
	c := fed(t, 10, poolChange("q", 2))
	bad := func(revision int64) Change {
		return Change{Kind: KindPool, Name: "p", Revision: revision, Unreadable: "version 2"}
	}
	about := Subject{Kind: KindPool, Name: "p"}
	check := func(what string, brokers int, revision int64) {
		t.Helper()
		st := c.State()
		if p := st.Pools["p"]; p == nil || len(p.Brokers) != brokers || st.Pools["q"] == nil || len(st.Former) != 0 {
			t.Fatalf("%s: pools %+v, former %v", what, st.Pools, st.Former)
		}
		if u, ok := st.Unreadable[about]; ok != (revision > 0) || u.Revision != revision || ok && u.Reason != "version 2" {
			t.Errorf("%s: unreadable %+v", what, st.Unreadable)
		}
	}
	first := c.State()
	feed(t, c, Batch{Revision: 12, Changes: []Change{bad(11), poolChange("q", 12)}})
	check("a change", 9, 11)
	if first.Pools["p"].Revision != 1 || len(first.Unreadable) != 0 || first.Pools["q"].Revision != 2 {
		t.Error("the state before was touched")
	}
	c.broke(fmt.Errorf("%w", ErrCompacted), false)
	feed(t, c, empty(20, bad(15), poolChange("q", 12)))
	check("a listing", 9, 15)
	feed(t, c, Batch{Revision: 21, Changes: []Change{poolChange("p", 21)}})
	check("a good one", 1, 0)
	feed(t, c, Batch{Revision: 22, Changes: []Change{bad(22)}})
	c.broke(errReset, false)
	feed(t, c, empty(5, bad(4), poolChange("q", 3)))
	if st := c.State(); st.Pools["p"] == nil || st.Pools["p"].Revision != 4 || st.Unreadable[about].Revision != 4 || len(st.Former) != 0 {
		t.Errorf("after a reset: %+v, %+v", st.Pools["p"], st)
	}
	feed(t, c, Batch{Revision: 6, Changes: []Change{{Kind: KindPool, Name: "p", Revision: 6, Deleted: true}}})
	if st := c.State(); st.Pools["p"] != nil || len(st.Unreadable) != 0 {
		t.Errorf("after its deletion: %+v", st)
	}
	c = NewCache(CacheConfig{})
	feed(t, c, empty(5, bad(4)))
	if st := c.State(); len(st.Pools) != 0 || st.Unreadable[about].Revision != 4 {
		t.Errorf("a cache that has seen no other: %+v", st)
	}
}

// What operators and the leader said of brokers and keys stands too, at the revision of what does not read: a guarded write may rest on it.
func TestCacheKeepsWordsThatDoNotRead(t *testing.T) {
	a, b, pin := BrokerRef{"p", "b1"}, BrokerRef{"p", "b2"}, PinRef{"p", "k"}
	admin := func(ref BrokerRef, s AdminState, revision int64) Change {
		return Change{Kind: KindAdmin, PoolName: ref.Pool, Name: ref.Broker, Revision: revision, Admin: Admin{s, revision}}
	}
	bad := func(c Change, revision int64) Change {
		return Change{Kind: c.Kind, PoolName: c.PoolName, Name: c.Name, Revision: revision, Unreadable: "version 2"}
	}
	down := Change{Kind: KindVerdict, PoolName: "p", Name: "b2", Revision: 3, Verdict: Verdict{State: BrokerDown, Reason: "r", Revision: 3}}
	tied := Change{Kind: KindPin, PoolName: "p", Name: "k", Revision: 4, Broker: "b1"}
	spoilt := []Change{bad(admin(a, "", 0), 11), bad(admin(b, "", 0), 12), bad(down, 13), bad(tied, 14)}
	c := fed(t, 10, admin(a, AdminOut, 2), down, tied)
	check := func(what string, out, other Admin, verdict Verdict, pinned string, unreadable int) {
		t.Helper()
		st := c.State()
		if st.Admin[a] != out || st.Admin[b] != other || st.Verdicts[b] != verdict || st.Pins[pin] != pinned || len(st.Unreadable) != unreadable {
			t.Errorf("%s: admin %+v, verdicts %+v, pins %v, unreadable %+v", what, st.Admin, st.Verdicts, st.Pins, st.Unreadable)
		}
	}
	before := c.State()
	feed(t, c, Batch{Revision: 14, Changes: spoilt})
	check("changes", Admin{AdminOut, 11}, Admin{AdminUnknown, 12}, Verdict{State: BrokerDown, Reason: "r", Revision: 13}, "b1", 4)
	if before.Admin[a].Revision != 2 || before.Verdicts[b].Revision != 3 || len(before.Unreadable) != 0 {
		t.Errorf("the state before was touched: %+v", before)
	}
	c.broke(fmt.Errorf("%w", ErrCompacted), false)
	feed(t, c, listing(20, append(spoilt, poolChange("p", 1))...))
	check("a listing", Admin{AdminOut, 11}, Admin{AdminUnknown, 12}, Verdict{State: BrokerDown, Reason: "r", Revision: 13}, "b1", 4)

	// A store restored from a backup in which the pool reads.
	c.broke(errReset, false)
	feed(t, c, empty(8, poolChange("p", 1), bad(admin(a, "", 0), 5), bad(admin(b, "", 0), 6), bad(down, 7), bad(tied, 8)))
	check("a reset", Admin{AdminOut, 5}, Admin{AdminUnknown, 6}, Verdict{Revision: 7}, "b1", 4)
	// One that came back empty, and in which the pool still stands as it was when somebody writes what does not read.
	c.broke(errReset, false)
	feed(t, c, empty(3))
	feed(t, c, Batch{Revision: 5, Changes: []Change{bad(admin(a, "", 0), 4), bad(tied, 5)}})
	if st := c.State(); !st.Former["p"] {
		t.Errorf("pool p: %+v", st)
	}
	check("an empty store", Admin{AdminOut, 4}, Admin{State: AdminUnknown}, Verdict{}, "b1", 2)

	feed(t, c, Batch{Revision: 8, Changes: []Change{
		poolChange("p", 6), admin(a, AdminReady, 7), {Kind: KindPin, PoolName: "p", Name: "k", Revision: 8, Deleted: true},
	}})
	check("ones that read", Admin{AdminReady, 7}, Admin{}, Verdict{}, "", 0)
	feed(t, c, Batch{Revision: 10, Changes: []Change{bad(admin(a, "", 0), 9), {Kind: KindAdmin, PoolName: "p", Name: "b1", Revision: 10, Deleted: true}}})
	check("a deletion", Admin{}, Admin{}, Verdict{}, "", 0)

	c = NewCache(CacheConfig{})
	feed(t, c, empty(20, append(spoilt, poolChange("p", 1))...))
	check("a cache that has seen no other", Admin{AdminUnknown, 11}, Admin{AdminUnknown, 12}, Verdict{Revision: 13}, "", 4)
}

// Who prunes ends the pools of a former store; not those of which this one has a value that does not read, and not by a word out of a backup.
func TestCachePrunes(t *testing.T) {
	c := fed(t, 10, poolChange("q", 2), poolChange("r", 3))
	c.broke(errReset, false)
	feed(t, c, empty(6, Change{Kind: KindPrune, Revision: 6}))
	if st := c.State(); len(st.Former) != 3 {
		t.Fatalf("pruned by a listing of a store that was not known: %+v", st)
	}
	again := func(revision int64, changes ...Change) {
		t.Helper()
		c.broke(fmt.Errorf("%w", ErrCompacted), false)
		feed(t, c, empty(revision, changes...))
	}
	again(7, Change{Kind: KindPrune, Revision: 6})
	if st := c.State(); len(st.Former) != 3 {
		t.Fatalf("pruned by what had been said before: %+v", st)
	}
	told := 0
	c.OnState(func(*State) { told++ })
	feed(t, c, Batch{Revision: 10, Changes: []Change{
		poolChange("p", 8), {Kind: KindPool, Name: "r", Revision: 9, Unreadable: "version 2"}, {Kind: KindPrune, Revision: 10},
	}})
	if st := c.State(); told != 1 || len(st.Former) != 0 || st.Pools["q"] != nil || st.Pools["p"] == nil || st.Pools["r"] == nil || st.Pools["r"].Revision != 9 {
		t.Errorf("told %d times of %+v", told, st)
	}
	// The same by a listing, for who was away when it was said.
	c.broke(errReset, false)
	feed(t, c, empty(4, poolChange("p", 3)))
	if st := c.State(); !st.Former["r"] || len(st.Former) != 1 {
		t.Fatalf("after the next reset: %+v", st)
	}
	again(30, poolChange("p", 3), Change{Kind: KindPrune, Revision: 25})
	if st := c.State(); len(st.Former) != 0 || len(st.Pools) != 1 || c.former != nil {
		t.Errorf("pruned while the watch was broken: %+v", st)
	}
	// Where nothing is kept there is nothing to end.
	feed(t, c, Batch{Revision: 31, Changes: []Change{{Kind: KindPrune, Revision: 31}}})
	if st := c.State(); st.Pools["p"] == nil {
		t.Errorf("a pool that the store has: %+v", st)
	}
}

// The time in the log has a unit.
func TestCacheLogsItsOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := NewMemory()
		store := &failingOnce{Store: m.Client()}
		c := NewCache(CacheConfig{Store: store, Logger: zerolog.New(&log)})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		time.Sleep(10 * time.Second)
		cancel()
		running.Wait()
		store.Close()
		m.Close()
		if !strings.Contains(log.String(), `"after_ms":`) {
			t.Errorf("log:\n%s", &log)
		}
	})
}

// failingOnce is a store whose first watch fails.
type failingOnce struct {
	Store
	failed bool
}

func (f *failingOnce) Watch(ctx context.Context, from int64, fn func(Batch) error) error {
	if !f.failed {
		f.failed = true
		return ErrUnavailable
	}
	return f.Store.Watch(ctx, from, fn)
}
