package registry

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
)

// full returns a current cache with n records, keys of 20 bytes.
func full(b *testing.B, n int) (*Cache, []string) {
	b.Helper()
	c := NewCache(CacheConfig{})
	keys := make([]string, n)
	records := make([]Change, 0, 1000)
	first := listing(10)
	first.Done = false
	feed(b, c, first)
	for i := range keys {
		keys[i] = fmt.Sprintf("device-%013d", i)
		records = append(records, rec(keys[i], fmt.Sprintf("b%d", 1+i%9), 5))
		if len(records) == cap(records) || i == n-1 {
			feed(b, c, Batch{Revision: 10, List: true, Done: i == n-1, Changes: records})
			records = records[:0]
		}
	}
	progress(b, c, 10)
	return c, keys
}

// during runs updates beside a benchmark, as many as a goroutine can make.
func during(b *testing.B, c *Cache, keys []string) (stop func()) {
	done := make(chan struct{})
	var updating sync.WaitGroup
	updates := 0
	updating.Go(func() {
		batch := make([]Change, 100)
		for revision := int64(11); ; revision++ {
			select {
			case <-done:
				return
			default:
			}
			for i := range batch {
				batch[i] = rec(keys[rand.IntN(len(keys))], "b1", revision)
			}
			if err := c.take(Batch{Revision: revision, Changes: batch}); err != nil {
				b.Error(err)
				return
			}
			progress(b, c, revision)
			updates += len(batch)
		}
	})
	return func() {
		close(done)
		updating.Wait()
		b.ReportMetric(float64(updates)/b.Elapsed().Seconds(), "updates/s")
	}
}

func BenchmarkCacheLookup(b *testing.B) {
	const n = 100_000
	for _, bench := range []struct {
		name    string
		hit     bool
		updated bool
	}{{"hit", true, false}, {"miss", false, false}, {"hit/updated", true, true}, {"miss/updated", false, true}} {
		b.Run(bench.name, func(b *testing.B) {
			c, keys := full(b, n)
			ask := keys
			if !bench.hit {
				ask = make([]string, n)
				for i := range ask {
					ask[i] = "x" + keys[i]
				}
			}
			if bench.updated {
				defer during(b, c, keys)()
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := c.Lookup("p", ask[i%n]); ok != bench.hit {
					b.Fatal("a hit is a miss, or the other way round")
				}
			}
		})
	}
}

func BenchmarkCacheLookupParallel(b *testing.B) {
	c, keys := full(b, 100_000)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := rand.IntN(len(keys)); pb.Next(); i++ {
			if _, ok := c.Lookup("p", keys[i%len(keys)]); !ok {
				b.Error("a known key is missing")
				return
			}
		}
	})
}

func BenchmarkCacheTryResolve(b *testing.B) {
	for _, name := range []string{"hit", "new"} {
		b.Run(name, func(b *testing.B) {
			c, keys := full(b, 100_000)
			want := SourceCache
			if name == "new" {
				want = SourceNew
				for i := range keys {
					keys[i] = "x" + keys[i]
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%1000 == 0 {
					progress(b, c, 10) // or it is current no longer
				}
				if _, from, _ := c.TryResolve("p", keys[i%len(keys)]); from != want {
					b.Fatalf("from %v", from)
				}
			}
		})
	}
}

func BenchmarkCacheUpdate(b *testing.B) {
	c, keys := full(b, 100_000)
	b.ReportAllocs()
	revision := int64(11)
	batch := make([]Change, 1)
	for i := 0; b.Loop(); i++ {
		batch[0] = rec(keys[i%len(keys)], "b1", revision)
		feed(b, c, Batch{Revision: revision, Changes: batch})
		revision++
	}
}

// BenchmarkCacheMemory reports what a record costs beside the bytes of its key, which another may hold.
func BenchmarkCacheMemory(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			if n > 1_000_000 && os.Getenv("LIMPET_DRILLS") == "" {
				b.Skip("2 GB: LIMPET_DRILLS=1")
			}
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				c, keys := full(b, n)
				keyBytes := uint64(len(keys[0]) * n)
				keys = nil
				runtime.GC()
				runtime.ReadMemStats(&after)
				total := after.HeapAlloc - before.HeapAlloc
				b.ReportMetric(float64(total)/float64(n), "B/entry")
				b.ReportMetric(float64(total-keyBytes)/float64(n), "B/entry-beside-key")
				runtime.KeepAlive(c)
			}
		})
	}
}
