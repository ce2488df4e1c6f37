package registry_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

func TestMemory(t *testing.T) {
	registrytest.TestStoreInFakeTime(t, func(t *testing.T) registrytest.Fixture {
		mem := registry.NewMemory()
		t.Cleanup(func() { mem.Close() })
		return registrytest.Fixture{
			Open:     func(*testing.T) registry.Store { return mem.Client() },
			MinLease: time.Second,
			Compact: func(t *testing.T) { // its history is bounded by a number of changes
				for i := range 40_000 {
					ref := registry.PinRef{Pool: "compact", Key: "k"}
					if err := mem.SetPin(t.Context(), ref, fmt.Sprintf("b-%d", i)); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}

func TestMemoryBus(t *testing.T) {
	registrytest.TestBusInFakeTime(t, func(t *testing.T) registrytest.BusFixture {
		hub := registry.NewMemoryBus()
		return registrytest.BusFixture{Open: func(_ *testing.T, edge string) registry.Bus { return hub.Bus(edge) }}
	})
}

// Many leases, written again and again: each record ends when its last lease does, not a moment earlier.
func TestMemoryLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := registry.NewMemory()
		defer mem.Close()
		rnd := rand.New(rand.NewPCG(5, 5))
		due := make(map[string]time.Time) // zero: never
		revisions := make(map[string]int64)
		for range 2000 {
			for key, at := range due {
				a, err := mem.Get(t.Context(), "p", key)
				if err != nil {
					t.Fatal(err)
				}
				if ended := !at.IsZero() && !time.Now().Before(at); a.Present() == ended {
					t.Fatalf("%s: there %v at %v, due at %v", key, a.Present(), time.Now(), at)
				} else if ended {
					delete(due, key)
					delete(revisions, key)
				}
			}
			key := fmt.Sprint(rnd.IntN(30))
			w := registry.Write{Pool: "p", Key: key, Guard: revisions[key]}
			delete(due, key)
			delete(revisions, key)
			if rnd.IntN(5) > 0 {
				w.Affinity.Broker = "b1"
				w.Lease = time.Duration(rnd.IntN(60)) * time.Second
				if due[key] = (time.Time{}); w.Lease > 0 {
					due[key] = time.Now().Add(w.Lease)
				}
			}
			rs, err := mem.Commit(t.Context(), []registry.Write{w})
			if err != nil || rs[0].Status != registry.Committed {
				t.Fatalf("%+v: %+v, %v", w, rs, err)
			}
			if w.Affinity.Present() {
				revisions[key] = rs[0].Revision
			}
			time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
			synctest.Wait()
		}
	})
}

// A cache that stands still for longer than history goes back lists anew, and misses nothing: neither what came meanwhile nor what went.
func TestMemoryListsForWhoIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := registry.NewMemory()
		defer mem.Close()
		commit := func(w registry.Write) registry.Result {
			rs, err := mem.Commit(t.Context(), []registry.Write{w})
			if err != nil || rs[0].Status != registry.Committed {
				t.Fatalf("%+v: %+v, %v", w, rs, err)
			}
			return rs[0]
		}
		put := func(key string) registry.Result {
			return commit(registry.Write{Pool: "p", Key: key, Affinity: registry.Affinity{Broker: "b1"}})
		}
		cache := registry.NewCache(registry.CacheConfig{Store: mem})
		still, told := make(chan struct{}), map[string]bool{}
		cache.OnAffinity(func(_, key string, a registry.Affinity) {
			if key == "wait" {
				<-still
			}
			told[key] = a.Present()
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { cache.Run(ctx) })
		synctest.Wait()
		gone := put("gone")
		put("wait")
		synctest.Wait()
		commit(registry.Write{Pool: "p", Key: "gone", Guard: gone.Revision})
		const n = 10_000
		for i := range n {
			put(fmt.Sprint(i))
		}
		close(still)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		cancel()
		running.Wait()
		if st := cache.Status(); st.Listings != 2 || st.Entries != n+1 {
			t.Errorf("%d listings, want 2; %d records, want %d", st.Listings, st.Entries, n+1)
		}
		if len(told) != n+2 || told["gone"] || !told["0"] || !told[fmt.Sprint(n-1)] {
			t.Errorf("%d keys were told of, want %d; gone: %v", len(told), n+2, told["gone"])
		}
	})
}
