package edge

import (
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Table holds the live clients of an edge that have, or are getting, a broker, and finds those of a key.
type Table struct {
	shards [tableShards]tableShard
}

const tableShards = 64 // a power of two

type tableShard struct {
	mu    sync.Mutex
	byKey map[tableKey]*client // the newest of a list by client.older and client.newer: clients may share a key
	count int
}

type tableKey struct{ pool, key string }

func newTable() *Table {
	t := new(Table)
	for i := range t.shards {
		t.shards[i].byKey = map[tableKey]*client{}
	}
	return t
}

func (t *Table) shard(key string) *tableShard {
	return &t.shards[xxhash.Sum64String(key)%tableShards]
}

// add enters a client under its key.
func (t *Table) add(c *client, k tableKey) {
	s := t.shard(k.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.older = s.byKey[k]; c.older != nil {
		c.older.newer = c
	}
	s.byKey[k] = c
	s.count++
}

// remove takes a client out that was entered under k.
func (t *Table) remove(c *client, k tableKey) {
	s := t.shard(k.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.older != nil {
		c.older.newer = c.newer
	}
	switch {
	case c.newer != nil:
		c.newer.older = c.older
	case c.older != nil:
		s.byKey[k] = c.older
	default:
		delete(s.byKey, k)
	}
	c.older, c.newer = nil, nil
	s.count--
}

// find calls fn for every client of a key, without holding a lock.
func (t *Table) find(pool, key string, fn func(*client)) {
	s := t.shard(key)
	s.mu.Lock()
	var some [4]*client
	found := some[:0]
	for c := s.byKey[tableKey{pool, key}]; c != nil; c = c.older {
		found = append(found, c)
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
		for _, c := range s.byKey {
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
