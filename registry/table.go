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
// A record costs 38 to 50 bytes beside its key (BenchmarkCacheMemory), and the garbage collector none of its time.
type table struct {
	seed  maphash.Seed
	words words
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
	entries records                // one of revision 0 was kept: a former store had it, and this one does not
	overlay map[string]provisional // what notices said
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

// at returns the shard of a key, nil if nothing was ever stored for its pool, and the key's hash.
func (t *table) at(pool, key string) (*shard, uint64) {
	if p := (*t.pools.Load())[pool]; p != nil {
		hash := maphash.String(t.seed, key)
		return &p[hash%shards], hash
	}
	return nil, 0
}

// make is at, but creates the pool's shards.
func (t *table) make(pool, key string) (*shard, uint64) {
	if s, hash := t.at(pool, key); s != nil {
		return s, hash
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pools := *t.pools.Load()
	if pools[pool] == nil {
		p := new(poolTable)
		for i := range p {
			p[i].entries.seed = t.seed
		}
		pools = maps.Clone(pools)
		pools[strings.Clone(pool)] = p
		t.pools.Store(&pools)
	}
	return t.at(pool, key)
}

// put stores an affinity, which must name a broker. Called by the owner alone.
func (t *table) put(pool, key string, a *Affinity) {
	t.store(pool, key, a.text(), a.Revision, seconds(a.Written), seconds(a.Expires))
}

func (t *table) store(pool, key string, text recordText, revision int64, written, expires uint32) {
	s, hash := t.make(pool, key)
	number := t.words.take(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.entries.get(hash, key)
	if p != nil {
		t.words.leave(p.text())
	} else {
		if t.count.Load() >= t.limit {
			t.evicted.Store(true)
			if s.entries.used == 0 { // and the others are full
				t.words.leave(number)
				return
			}
			t.drop(s, s.entries.any())
		}
		t.count.Add(1)
		p = s.entries.add(hash, key)
	}
	p.set(revision, number, written, expires)
}

// drop deletes the record of a slot; s.mu is held.
func (t *table) drop(s *shard, slot int) {
	number := s.entries.at(s.entries.slots[slot]).text()
	s.entries.remove(slot)
	t.words.leave(number)
	t.count.Add(-1)
}

// remove deletes an entry. Called by the owner alone.
func (t *table) remove(pool, key string) {
	s, hash := t.at(pool, key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot, p := s.entries.find(hash, key); p != nil {
		t.drop(s, slot)
	}
}

// lookup is for the owner alone.
func (t *table) lookup(pool, key string) (Affinity, bool) {
	s, hash := t.at(pool, key)
	if s == nil {
		return Affinity{}, false
	}
	p := s.entries.get(hash, key)
	return t.affinity(p), p != nil
}

// affinity unpacks p; nil is none. It allocates nothing, unless there is an Extra.
func (t *table) affinity(p packed) Affinity {
	if p == nil {
		return Affinity{}
	}
	return t.words.text(p.text()).affinity(p.revision(), p.written(), p.expires())
}

// keep takes over from old, which t is to replace, entries that t does not have and that have not expired: those that old had kept
// already, and after a reset, all. They have revision 0. The owner of both calls it.
func (t *table) keep(old *table, reset bool, now int64) {
	for pool, shards := range *old.pools.Load() {
		for i := range shards {
			for p := range shards[i].entries.all() {
				if p.revision() != 0 && !reset || over(p.expires(), now) {
					continue
				}
				if n := t.peer(pool, i); n != nil && n.entries.get(maphash.String(t.seed, p.key()), p.key()) != nil {
					continue
				}
				if t.count.Load() >= t.limit {
					return
				}
				t.store(pool, p.key(), *old.words.text(p.text()), 0, p.written(), p.expires())
			}
		}
	}
}

// differ calls fn for every key whose entry in t is not that in old (nil: an empty table), and for those that are gone, or only kept,
// with the zero Affinity. The owner of both calls it. Keys are not to be kept: they would keep many others in memory.
func (t *table) differ(old *table, fn func(pool, key string, a Affinity)) {
	for pool, shards := range *t.pools.Load() {
		for i := range shards {
			o := old.peer(pool, i)
			for p := range shards[i].entries.all() {
				if o != nil {
					was := o.entries.get(maphash.String(t.seed, p.key()), p.key())
					if was != nil && was.revision() == p.revision() && old.words.text(was.text()).broker == t.words.text(p.text()).broker {
						continue
					}
				}
				var a Affinity
				if p.revision() != 0 {
					a = t.affinity(p)
				}
				fn(pool, p.key(), a)
			}
		}
	}
	for pool, shards := range *old.pools.Load() {
		for i := range shards {
			n := t.peer(pool, i)
			for p := range shards[i].entries.all() {
				if n == nil || n.entries.get(maphash.String(t.seed, p.key()), p.key()) == nil {
					fn(pool, p.key(), Affinity{})
				}
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
