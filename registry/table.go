package registry

import (
	"hash/maphash"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// A table is a compact map of affinities, read by many and written by one goroutine (its owner); beside that, any
// goroutine may lay provisional affinities over it. Reading allocates nothing.
//
// With keys of 20 bytes a record costs 90 to 120 bytes, key and map included, by how full Go's maps happen to be.
type table struct {
	seed  maphash.Seed
	pools atomic.Pointer[map[string]*poolTable] // copied to be changed, under mu
	mu    sync.Mutex

	count   atomic.Int64
	limit   int64       // entries; one more makes another go
	evicted atomic.Bool // an entry had to go: a miss says nothing any more
}

// shards spreads the readers' and writers' locks.
const shards = 64

type poolTable [shards]shard

type shard struct {
	mu      sync.RWMutex
	entries map[string]Record      // one of revision 0 was kept: a former store had it, and this one does not
	overlay map[string]provisional // what notices said
	_       [24]byte               // a cache line each
}

// provisional is an affinity that a notice told, until the watch has reached its revision.
type provisional struct {
	affinity Affinity // no Broker: deleted
	revision int64
	at       int64 // of the cache's clock
}

func newTable(seed maphash.Seed, limit int) *table {
	t := &table{seed: seed, limit: int64(limit)}
	t.pools.Store(&map[string]*poolTable{})
	return t
}

// at returns the shard of a key, nil if nothing was ever stored for its pool.
func (t *table) at(pool, key string) *shard {
	if p := (*t.pools.Load())[pool]; p != nil {
		return &p[maphash.String(t.seed, key)%shards]
	}
	return nil
}

// make is at, but creates the pool's shards.
func (t *table) make(pool, key string) *shard {
	if s := t.at(pool, key); s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pools := *t.pools.Load()
	if pools[pool] == nil {
		pools = maps.Clone(pools)
		pools[strings.Clone(pool)] = new(poolTable)
		t.pools.Store(&pools)
	}
	return t.at(pool, key)
}

// put stores an affinity. Called by the owner alone.
func (t *table) put(pool, key string, a *Affinity) {
	t.putRecord(pool, key, a.Record())
}

// putRecord is put of a packed one.
func (t *table) putRecord(pool, key string, r Record) {
	s := t.make(pool, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.entries[key]; !known {
		if s.entries == nil {
			s.entries = make(map[string]Record)
		}
		if t.count.Load() >= t.limit {
			t.evicted.Store(true)
			if !s.evict() {
				return // the shard is empty and the others are full
			}
			t.count.Add(-1)
		}
		t.count.Add(1)
		key = strings.Clone(key) // it may be a part of something large
	}
	s.entries[key] = r
}

// evict removes any one entry; s.mu is held.
func (s *shard) evict() bool {
	for key := range s.entries {
		delete(s.entries, key)
		return true
	}
	return false
}

// remove deletes an entry. Called by the owner alone.
func (t *table) remove(pool, key string) {
	s := t.at(pool, key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.entries[key]; known {
		delete(s.entries, key)
		t.count.Add(-1)
	}
}

// lookup is for the owner alone.
func (t *table) lookup(pool, key string) (Affinity, bool) {
	s := t.at(pool, key)
	if s == nil {
		return Affinity{}, false
	}
	r, known := s.entries[key]
	return r.Affinity(), known
}

// keep takes over from old, which t is to replace, entries that t does not have and that have not expired: those that old had kept
// already, and after a reset, all. They have revision 0. The owner of both calls it.
func (t *table) keep(old *table, reset bool, now int64) {
	for pool, shards := range *old.pools.Load() {
		for i := range shards {
			o, n := &shards[i], t.peer(pool, i)
			for key, r := range o.entries {
				if r.Revision != 0 && !reset || r.over(now) {
					continue
				}
				if n != nil {
					if _, known := n.entries[key]; known {
						continue
					}
				}
				if t.count.Load() >= t.limit {
					return
				}
				r.Revision = 0
				t.putRecord(pool, key, r)
				n = t.peer(pool, i)
			}
		}
	}
}

// differ calls fn for every key whose entry in t is not that in old (nil: an empty table), and for those that are gone, or only kept,
// with the zero Affinity. The owner of both calls it.
func (t *table) differ(old *table, fn func(pool, key string, a Affinity)) {
	for pool, shards := range *t.pools.Load() {
		for i := range shards {
			s := &shards[i]
			o := old.peer(pool, i)
			for key, r := range s.entries {
				if o != nil {
					if was, known := o.entries[key]; known && was.Revision == r.Revision && was.Broker() == r.Broker() {
						continue
					}
				}
				if r.Revision == 0 {
					r = Record{}
				}
				fn(pool, key, r.Affinity())
			}
		}
	}
	for pool, shards := range *old.pools.Load() {
		for i := range shards {
			n := t.peer(pool, i)
			for key := range shards[i].entries {
				if n != nil {
					if _, known := n.entries[key]; known {
						continue
					}
				}
				fn(pool, key, Affinity{})
			}
		}
	}
}

// peer is the shard of a pool by its number: tables of one cache share the seed, so equal keys are in peers.
func (t *table) peer(pool string, i int) *shard {
	if p := (*t.pools.Load())[pool]; p != nil {
		return &p[i]
	}
	return nil
}
