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

// Three edges write and read the same few keys for a minute, over stores and buses that lose, delay, double, hang and lie
// about outcomes. Whatever happens: every write has one fate; what is said to be committed was, at that revision; nothing
// was written whose fate says it was not; and once the faults are over every cache holds what the store does.
func TestSimulation(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

type simEdge struct {
	store *registrytest.Faulty
	bus   *registrytest.FaultyBus
	cache *registry.Cache
	com   *registry.Committer
}

type simWrite struct {
	write registry.Write
	fates []registry.Result
}

func simulate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 42))
	mem, hub := registry.NewMemory(), registry.NewMemoryBus()
	pool := &registry.Pool{Name: "p", Brokers: []registry.Broker{{ID: "b1"}, {ID: "b2"}, {ID: "b3"}}}
	if err := mem.PutPool(t.Context(), pool, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup

	var mu sync.Mutex // guards what follows: fates are told on other goroutines
	writes := make(map[string]*simWrite)
	history := make(map[string]registry.Change) // of puts, by their tag
	there := make(map[string]bool)
	running.Go(func() {
		_ = mem.Client().Watch(ctx, 1, func(b registry.Batch) error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range b.Changes {
				if c.Kind != registry.KindAffinity {
					continue
				}
				// A creation whose outcome was not known may be made again where another edge has deleted the record:
				// absent is absent. Over a record nothing is written twice.
				if _, twice := history[c.Affinity.Reason]; twice && there[c.Name] {
					t.Errorf("%s was written twice", c.Affinity.Reason)
				}
				if there[c.Name] = !c.Deleted; !c.Deleted {
					history[c.Affinity.Reason] = c
				}
			}
			return nil
		})
	})

	edges := make([]*simEdge, 3)
	for i := range edges {
		e := &simEdge{store: registrytest.NewFaulty(mem.Client), bus: registrytest.NewFaultyBus(hub.Bus(fmt.Sprint("e", i)), seed+uint64(i))}
		e.cache = registry.NewCache(registry.CacheConfig{Store: e.store, Bus: e.bus})
		e.com = registry.NewCommitter(registry.CommitterConfig{Store: e.store, Bus: e.bus, Cache: e.cache})
		running.Go(func() { _ = e.cache.Run(ctx) })
		running.Go(func() { _ = e.com.Run(ctx) })
		edges[i] = e
	}

	for step := range 1200 {
		time.Sleep(time.Duration(rnd.Int64N(int64(100 * time.Millisecond))))
		e := edges[rnd.IntN(len(edges))]
		if rnd.IntN(20) == 0 {
			disturb(rnd, e)
		}
		key := fmt.Sprint("key", rnd.IntN(6))
		known, _ := e.cache.Lookup("p", key)
		w := registry.Write{Pool: "p", Key: key, Guard: known.Revision}
		tag := fmt.Sprint("write-", step)
		if !known.Present() || rnd.IntN(4) > 0 {
			w.Affinity = registry.Affinity{Broker: fmt.Sprint("b", 1+rnd.IntN(3)), Writer: "e", Written: time.Now(), Reason: tag}
		}
		if rnd.IntN(10) == 0 {
			w.Facts = []registry.Fact{{Kind: registry.KindAdmin, Pool: "p", Name: "b1", Revision: int64(rnd.IntN(2)) * 99}}
		}
		sw := &simWrite{write: w}
		mu.Lock()
		writes[tag] = sw
		mu.Unlock()
		e.com.Submit(w, func(r registry.Result) {
			mu.Lock()
			defer mu.Unlock()
			sw.fates = append(sw.fates, r)
		})
	}
	for _, e := range edges {
		calm(e)
	}
	for i, e := range edges {
		patient, enough := context.WithTimeout(t.Context(), 10*time.Minute)
		if err := e.com.Idle(patient); err != nil {
			t.Errorf("edge %d: %+v", i, e.com.Stats())
		}
		enough()
	}
	time.Sleep(15 * time.Second) // a notice's life

	mu.Lock()
	defer mu.Unlock()
	for tag, w := range writes {
		if len(w.fates) != 1 {
			t.Errorf("%s has %d fates: %v", tag, len(w.fates), w.fates)
			continue
		}
		fate := w.fates[0]
		stored, was := history[tag]
		switch {
		case fate.Status == registry.Committed && w.write.Affinity.Present():
			if !was || stored.Revision != fate.Revision || stored.Name != w.write.Key || stored.Affinity.Broker != w.write.Affinity.Broker {
				t.Errorf("%s: committed at %d, the store had %+v", tag, fate.Revision, stored)
			}
		case fate.Status == registry.Stale && len(w.write.Facts) == 0, fate.Status > registry.Superseded:
			t.Errorf("%s: %v", tag, fate.Status)
		case was && (fate.Status != registry.Superseded && fate.Status != registry.Conflict):
			t.Errorf("%s was written at %d, its fate is %v", tag, stored.Revision, fate.Status)
		}
	}
	for i, e := range edges {
		if st := e.cache.Status(); !st.Current || st.Provisional != 0 {
			t.Errorf("edge %d: %+v", i, st)
		}
		for k := range 6 {
			key := fmt.Sprint("key", k)
			want, _ := mem.Get(t.Context(), "p", key)
			if got, _ := e.cache.Lookup("p", key); got.Broker != want.Broker || got.Revision != want.Revision {
				t.Errorf("edge %d: %s is %+v, the store says %+v", i, key, got, want)
			}
		}
	}
	cancel()
	running.Wait()
	for _, e := range edges {
		e.bus.Close()
		e.store.Close()
	}
	mem.Close()
	if t.Failed() {
		t.Logf("run it again with: go test -run 'TestSimulation/seed%d$' ./registry", seed)
	}
}

// disturb changes one of an edge's faults.
func disturb(rnd *rand.Rand, e *simEdge) {
	on := rnd.IntN(2) == 0
	switch rnd.IntN(8) {
	case 0:
		e.store.Down(on)
	case 1:
		e.store.Freeze(on)
	case 2:
		e.store.LoseAnswers(on)
	case 3:
		e.store.Delay(time.Duration(rnd.Int64N(int64(12 * time.Second))))
	case 4:
		e.store.DelayWatch(time.Duration(rnd.Int64N(int64(time.Second))))
	case 5:
		e.bus.Down(on)
	case 6:
		e.bus.Lose(rnd.Float64())
		e.bus.Double(rnd.Float64())
	case 7:
		e.bus.Delay(0, time.Duration(1+rnd.Int64N(int64(3*time.Second))))
	}
	if rnd.IntN(3) == 0 {
		calm(e)
	}
}

func calm(e *simEdge) {
	e.store.Down(false)
	e.store.Freeze(false)
	e.store.LoseAnswers(false)
	e.store.Delay(0)
	e.store.DelayWatch(0)
	e.bus.Down(false)
	e.bus.Lose(0)
	e.bus.Double(0)
	e.bus.Delay(0, 0)
}
