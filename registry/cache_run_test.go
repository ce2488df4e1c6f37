package registry_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

// A rig is an edge's cache that runs over a store and a bus that may fail, beside a store that does not.
type rig struct {
	mem   *registry.Memory
	store *registrytest.Faulty
	hub   *registry.MemoryBus
	cache *registry.Cache
	start func() // of Run
}

// inRig runs a test in fake time, in a store that knows the pool p and the key "known".
func inRig(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{mem: registry.NewMemory(), hub: registry.NewMemoryBus()}
		r.store = registrytest.NewFaulty(r.mem.Client)
		bus := r.hub.Bus("e1")
		r.cache = registry.NewCache(registry.CacheConfig{Store: r.store, Bus: bus})
		if err := r.mem.PutPool(t.Context(), &registry.Pool{Name: "p", Brokers: []registry.Broker{{ID: "b1"}, {ID: "b2"}}}, 0); err != nil {
			t.Fatal(err)
		}
		r.put(t, "known", "b1")
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		r.start = func() {
			running.Go(func() {
				if err := r.cache.Run(ctx); err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		}
		defer func() {
			r.store.Freeze(false)
			cancel()
			running.Wait()
			bus.Close()
			r.store.Close()
			r.mem.Close()
		}()
		test(t, r)
	})
}

// put records a key in the store, past all faults.
func (r *rig) put(t *testing.T, key, broker string) int64 {
	t.Helper()
	old, err := r.mem.Get(t.Context(), "p", key)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := r.mem.Commit(t.Context(), []registry.Write{{Pool: "p", Key: key, Affinity: registry.Affinity{Broker: broker}, Guard: old.Revision}})
	if err != nil || rs[0].Status != registry.Committed {
		t.Fatalf("%v, %v", rs, err)
	}
	return rs[0].Revision
}

// resolve asks, and checks how long the answer took.
func (r *rig) resolve(t *testing.T, key, broker string, from registry.Source, took time.Duration) {
	t.Helper()
	asked := time.Now()
	a, source := r.cache.Resolve(t.Context(), "p", key)
	if a.Broker != broker || source != from || time.Since(asked) != took {
		t.Errorf("%s: %q from %v in %v, want %q from %v in %v", key, a.Broker, source, time.Since(asked), broker, from, took)
	}
}

func TestRunFollowsTheStore(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		r.resolve(t, "known", "b1", registry.SourceCache, 0)
		r.resolve(t, "new", "", registry.SourceNew, 0)
		revision := r.put(t, "new", "b2")
		if err := r.cache.Wait(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		r.resolve(t, "new", "b2", registry.SourceCache, 0)
		time.Sleep(time.Hour)
		r.resolve(t, "never", "", registry.SourceNew, 0)
		if n := r.store.Calls("Watch"); n != 1 {
			t.Errorf("%d watches in a quiet hour", n)
		}
	})
}

// With a current cache the store is never asked on the connect path, however slow it is.
func TestResolveNeverAsksWhenCurrent(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		r.store.Delay(5 * time.Second)
		for i := range 1000 {
			r.resolve(t, fmt.Sprint(i), "", registry.SourceNew, 0)
			time.Sleep(7 * time.Millisecond)
		}
		if n := r.store.Calls("Get"); n != 0 {
			t.Errorf("the store was asked %d times", n)
		}
	})
}

func TestResolveAsksWhileLoading(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.store.DelayWatch(time.Minute) // the listing is under way
		r.start()
		time.Sleep(time.Second)
		r.resolve(t, "known", "b1", registry.SourceStore, 0)
		r.resolve(t, "new", "", registry.SourceStore, 0)
		r.store.Delay(registry.AskTimeout - time.Millisecond)
		r.resolve(t, "known", "b1", registry.SourceStore, registry.AskTimeout-time.Millisecond)
		r.store.Delay(5 * time.Second)
		r.resolve(t, "known", "", registry.SourceTimeout, registry.AskTimeout)
		asked := r.store.Calls("Get")
		for range 99 { // one wait in vain, and nobody waits for a second
			r.resolve(t, "known", "", registry.SourceTimeout, 0)
			time.Sleep(10 * time.Millisecond)
		}
		if n := r.store.Calls("Get"); n != asked {
			t.Errorf("asked %d times within a second of a question without an answer", n-asked)
		}
		time.Sleep(11 * time.Millisecond)
		r.resolve(t, "known", "", registry.SourceTimeout, registry.AskTimeout)
		r.store.Delay(0)
		time.Sleep(registry.AskPause)
		r.resolve(t, "known", "b1", registry.SourceStore, 0)
		if st := r.cache.Status(); st.AskTimeouts != 2 || st.Listed || st.Source != "loading" {
			t.Errorf("status %+v", st)
		}
	})
}

// A store that says nothing more, without breaking the connection.
func TestResolveWithAFrozenStore(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		r.store.Freeze(true)
		time.Sleep(2 * time.Second)
		r.resolve(t, "known", "b1", registry.SourceCache, 0)
		r.resolve(t, "new", "", registry.SourceTimeout, registry.AskTimeout)
		r.resolve(t, "new", "", registry.SourceTimeout, 0)
	})
}

// A caller who gives up says nothing about the store.
func TestResolveGivenUp(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.store.DelayWatch(time.Minute)
		r.start()
		r.store.Delay(40 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if a, from := r.cache.Resolve(ctx, "p", "known"); a.Present() || from != registry.SourceTimeout {
			t.Errorf("%+v from %v", a, from)
		}
		r.resolve(t, "known", "b1", registry.SourceStore, 40*time.Millisecond)
	})
}

// Promise 3: with the store away for ten minutes known keys are found, nobody waits, and few reconnects are tried;
// then the watch goes on where it was.
func TestRunThroughAnOutage(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		watches := r.store.Calls("Watch")
		r.store.Down(true)
		synctest.Wait()
		for range 600 {
			r.resolve(t, "known", "b1", registry.SourceCache, 0)
			r.resolve(t, "new", "", registry.SourceAway, 0)
			time.Sleep(time.Second)
		}
		if n := r.store.Calls("Get"); n != 0 {
			t.Errorf("a store that is known to be away was asked %d times", n)
		}
		if n := r.store.Calls("Watch") - watches; n < 120 || n > 1000 {
			t.Errorf("%d reconnects in 10 minutes, want about one every 2.5 s", n)
		}
		if st := r.cache.Status(); st.Current || !st.Away || st.Error == "" || st.Source != "stale" || st.Age < 9*time.Minute {
			t.Errorf("status %+v", st)
		}
		r.put(t, "written meanwhile", "b2")
		r.put(t, "known", "b2")
		var told []string
		r.cache.OnAffinity(func(_, key string, a registry.Affinity) { told = append(told, key+"="+a.Broker) })
		r.store.Down(false)
		time.Sleep(6 * time.Second)
		r.resolve(t, "written meanwhile", "b2", registry.SourceCache, 0)
		r.resolve(t, "known", "b2", registry.SourceCache, 0)
		r.resolve(t, "new", "", registry.SourceNew, 0)
		if fmt.Sprint(told) != "[written meanwhile=b2 known=b2]" {
			t.Errorf("told %v", told)
		}
		if st := r.cache.Status(); st.Listings != 1 || st.Error != "" || st.Away || !st.Current {
			t.Errorf("status %+v", st)
		}
	})
}

func TestRunWithoutAStoreAtFirst(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.store.Down(true)
		r.start()
		time.Sleep(time.Minute)
		r.resolve(t, "known", "", registry.SourceAway, 0)
		if st := r.cache.Status(); st.Listed || st.Age != -1 || st.Source != "loading" {
			t.Errorf("status %+v", st)
		}
		r.store.Down(false)
		time.Sleep(6 * time.Second)
		r.resolve(t, "known", "b1", registry.SourceCache, 0)
		if r.cache.State().Pools["p"] == nil {
			t.Error("no pool")
		}
	})
}

// The store forgot where the watch was: everything is listed anew, and meanwhile nothing is missing.
func TestRunAfterCompaction(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		r.put(t, "dropped", "b1")
		time.Sleep(time.Second)
		r.store.Down(true)
		synctest.Wait()
		dropped, _ := r.mem.Get(t.Context(), "p", "dropped")
		if _, err := r.mem.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "dropped", Guard: dropped.Revision}}); err != nil {
			t.Fatal(err)
		}
		for i := range 40_000 {
			r.put(t, "known", fmt.Sprintf("b%d", 1+i%2))
		}
		var mu sync.Mutex
		told := make(map[string]string)
		r.cache.OnAffinity(func(_, key string, a registry.Affinity) {
			mu.Lock()
			defer mu.Unlock()
			told[key] = a.Broker
		})
		r.store.Down(false)
		for range 80 {
			if a, from := r.cache.Resolve(t.Context(), "p", "known"); !a.Present() || from != registry.SourceCache {
				t.Fatalf("in between: %+v from %v", a, from)
			}
			time.Sleep(100 * time.Millisecond)
		}
		r.resolve(t, "known", "b2", registry.SourceCache, 0)
		r.resolve(t, "dropped", "", registry.SourceNew, 0)
		mu.Lock()
		defer mu.Unlock()
		if st := r.cache.Status(); st.Listings != 2 || fmt.Sprint(told) != "map[dropped: known:b2]" {
			t.Errorf("told %v, status %+v", told, st)
		}
	})
}

// A store is replaced by one that is behind it: a backup was restored.
func TestRunAfterARestoredBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mems := []*registry.Memory{registry.NewMemory(), registry.NewMemory()}
		for i, m := range mems {
			for j := range 10 - 5*i {
				ws := []registry.Write{{Pool: "p", Key: fmt.Sprint(j), Affinity: registry.Affinity{Broker: fmt.Sprintf("b%d", i)}}}
				if _, err := m.Commit(t.Context(), ws); err != nil {
					t.Fatal(err)
				}
			}
		}
		store := &swapped{Store: mems[0].Client()}
		cache := registry.NewCache(registry.CacheConfig{Store: store})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = cache.Run(ctx) })
		defer running.Wait()
		defer cancel()
		synctest.Wait()
		if a, _ := cache.Lookup("p", "9"); a.Broker != "b0" {
			t.Fatalf("before: %+v", a)
		}
		store.swap(mems[1].Client())
		time.Sleep(10 * time.Second)
		a, _ := cache.Lookup("p", "4")
		kept, _ := cache.Lookup("p", "9")
		if a.Broker != "b1" || a.Revision == 0 || kept.Broker != "b0" || kept.Revision != 0 || !cache.Current() {
			t.Errorf("after: 4 is %+v, 9 is %+v, %+v", a, kept, cache.Status())
		}
	})
}

// swapped is a store that becomes another one.
type swapped struct {
	mu sync.Mutex
	registry.Store
}

func (s *swapped) swap(next registry.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Store.Close()
	s.Store = next
}

func (s *swapped) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	s.mu.Lock()
	store := s.Store
	s.mu.Unlock()
	return store.Watch(ctx, from, fn)
}

// A notice routes before the watch does, and the watch's word stands in the end.
func TestRunHearsNotices(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		other := r.hub.Bus("e2")
		defer other.Close()
		r.start()
		synctest.Wait()
		r.store.DelayWatch(300 * time.Millisecond)
		revision := r.put(t, "known", "b2")
		tell := func(n registry.Notice) {
			t.Helper()
			if err := other.Publish(registry.Message{Notice: &n}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		tell(registry.Notice{Pool: "p", Key: "known", Affinity: registry.Affinity{Broker: "b2"}, Revision: revision})
		tell(registry.Notice{Pool: "p", Key: "forged", Affinity: registry.Affinity{Broker: "b2"}, Revision: revision + 1})
		r.resolve(t, "known", "b2", registry.SourceNotice, 0)
		r.resolve(t, "forged", "b2", registry.SourceNotice, 0)
		time.Sleep(2 * time.Second)
		r.resolve(t, "known", "b2", registry.SourceCache, 0)
		r.put(t, "another", "b1")
		time.Sleep(2 * time.Second)
		r.resolve(t, "forged", "", registry.SourceNew, 0)
	})
}
