package registry

import (
	"hash/maphash"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A table is a compact map of affinities, read by many and written by one goroutine (its owner); beside that, any
// goroutine may lay provisional affinities over it. Reading allocates nothing.
//
// The names in a record (brokers, edges, reasons) are few, so an entry holds their numbers; times are seconds. With keys
// of 20 bytes an entry costs 100 to 140 bytes, key and map included, by how full Go's maps happen to be.
type table struct {
	seed  maphash.Seed
	names names
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
	entries map[string]entry
	extras  map[string][]byte      // of the entries that have any
	overlay map[string]provisional // what notices said
	_       [16]byte               // a cache line each
}

// entry is an Affinity in 32 bytes. Names are numbers of the table's names, times Unix seconds, 0 = none. One of revision 0 was kept:
// a former store had it, and this one does not.
type entry struct {
	revision                     int64
	broker, home, writer, reason uint32
	written, expires             uint32
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
	t.names.init()
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

// seconds packs a time; one before 1970 or after 2106 is none.
func seconds(at time.Time) uint32 {
	if s := at.Unix(); s > 0 && s <= 1<<32-1 {
		return uint32(s)
	}
	return 0
}

func moment(s uint32) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}

// put stores an affinity. Called by the owner alone.
func (t *table) put(pool, key string, a *Affinity) {
	e := entry{
		revision: a.Revision,
		broker:   t.names.number(a.Broker), home: t.names.number(a.Home),
		writer: t.names.number(a.Writer), reason: t.names.number(a.Reason),
		written: seconds(a.Written), expires: seconds(a.Expires),
	}
	s := t.make(pool, key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.entries[key]; !known {
		if s.entries == nil {
			s.entries = make(map[string]entry)
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
	s.entries[key] = e
	if len(a.Extra) > 0 {
		if s.extras == nil {
			s.extras = make(map[string][]byte)
		}
		s.extras[key] = a.Extra
	} else if s.extras != nil {
		delete(s.extras, key)
	}
}

// evict removes any one entry; s.mu is held.
func (s *shard) evict() bool {
	for key := range s.entries {
		delete(s.entries, key)
		delete(s.extras, key)
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
		delete(s.extras, key)
		t.count.Add(-1)
	}
}

// affinity unpacks an entry of the shard; the shard's lock is held, or the caller is the owner.
func (t *table) affinity(s *shard, key string, e entry) Affinity {
	names := t.names.all()
	a := Affinity{
		Broker: names[e.broker], Home: names[e.home], Writer: names[e.writer], Reason: names[e.reason],
		Written: moment(e.written), Expires: moment(e.expires), Revision: e.revision,
	}
	if s.extras != nil {
		a.Extra = s.extras[key]
	}
	return a
}

// lookup is for the owner alone.
func (t *table) lookup(pool, key string) (Affinity, bool) {
	s := t.at(pool, key)
	if s == nil {
		return Affinity{}, false
	}
	e, known := s.entries[key]
	if !known {
		return Affinity{}, false
	}
	return t.affinity(s, key, e), true
}

// keep takes over from old, which t is to replace, entries that t does not have and that have not expired: those that old had kept
// already, and after a reset, all. They have revision 0. The owner of both calls it.
func (t *table) keep(old *table, reset bool, now int64) {
	for pool, shards := range *old.pools.Load() {
		for i := range shards {
			o, n := &shards[i], t.peer(pool, i)
			for key, e := range o.entries {
				if e.revision != 0 && !reset || e.expires != 0 && int64(e.expires)+int64(ExpiryGrace/time.Second) < now {
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
				a := old.affinity(o, key, e)
				a.Revision = 0
				t.put(pool, key, &a)
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
			for key, e := range s.entries {
				a := t.affinity(s, key, e)
				if o != nil {
					if was, known := o.entries[key]; known && was.revision == e.revision && old.names.all()[was.broker] == a.Broker {
						continue
					}
				}
				if e.revision == 0 {
					a = Affinity{}
				}
				fn(pool, key, a)
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

// names numbers strings of which there are few. Numbers are never given back: a table lives until the next listing.
type names struct {
	numbers map[string]uint32
	strings atomic.Pointer[[]string]
}

func (n *names) init() {
	n.numbers = map[string]uint32{"": 0}
	n.strings.Store(&[]string{""})
}

func (n *names) all() []string { return *n.strings.Load() }

// number is called by the table's owner alone.
func (n *names) number(s string) uint32 {
	i, known := n.numbers[s]
	if !known {
		s = strings.Clone(s)
		all := n.all()
		i = uint32(len(all))
		n.numbers[s] = i
		// Readers of the shorter slice do not see the place behind its end.
		all = append(all, s)
		n.strings.Store(&all)
	}
	return i
}
