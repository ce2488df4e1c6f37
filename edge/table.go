package edge

import (
	"hash/maphash"
	"sync"
)

// Table holds the live clients of an edge that have, or are getting, a broker, and finds those of a key.
type Table struct {
	seed   maphash.Seed
	shards [tableShards]tableShard
}

const tableShards = 64 // a power of two

type tableShard struct {
	mu     sync.Mutex
	byHash map[uint64]*client // of keys; the newest of a list by client.older and client.newer: clients may share a key, and keys a hash
	count  int
}

func newTable() *Table {
	t := &Table{seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].byHash = map[uint64]*client{}
	}
	return t
}

func (t *Table) shard(key string) (s *tableShard, hash uint64) {
	hash = maphash.String(t.seed, key)
	return &t.shards[hash%tableShards], hash
}

// add enters a client. Its key must stay as it is until it is removed.
func (t *Table) add(c *client) {
	s, hash := t.shard(c.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.older = s.byHash[hash]; c.older != nil {
		c.older.newer = c
	}
	s.byHash[hash] = c
	s.count++
}

// remove takes a client out that was entered.
func (t *Table) remove(c *client) {
	s, hash := t.shard(c.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.older != nil {
		c.older.newer = c.newer
	}
	switch {
	case c.newer != nil:
		c.newer.older = c.older
	case c.older != nil:
		s.byHash[hash] = c.older
	default:
		delete(s.byHash, hash)
	}
	c.older, c.newer = nil, nil
	s.count--
}

// find calls fn for every client of a key, without holding a lock.
func (t *Table) find(pool, key string, fn func(*client)) {
	s, hash := t.shard(key)
	s.mu.Lock()
	var some [4]*client
	found := some[:0]
	for c := s.byHash[hash]; c != nil; c = c.older {
		if c.key == key && c.ln.pool == pool {
			found = append(found, c)
		}
	}
	s.mu.Unlock()
	for _, c := range found {
		fn(c)
	}
}

// each calls fn for every client, without holding a lock. A client that comes or goes meanwhile may be missed or told.
func (t *Table) each(fn func(*client)) {
	var some []*client
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		some = some[:0]
		for _, c := range s.byHash {
			for ; c != nil; c = c.older {
				some = append(some, c)
			}
		}
		s.mu.Unlock()
		for _, c := range some {
			fn(c)
		}
	}
}

// count is the number of clients.
func (t *Table) count() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += s.count
		s.mu.Unlock()
	}
	return n
}
