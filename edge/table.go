package edge

import (
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Table holds the live clients of an edge, and finds those of a key.
type Table struct {
	shards [tableShards]tableShard
}

const tableShards = 64 // a power of two

type tableShard struct {
	mu    sync.Mutex
	all   map[*client]struct{}
	byKey map[tableKey]*client // the first of a chain by client.next: clients may share a key
	keyed int
}

type tableKey struct{ pool, key string }

func newTable() *Table {
	t := new(Table)
	for i := range t.shards {
		t.shards[i].all = map[*client]struct{}{}
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
	s.all[c] = struct{}{}
	c.next = s.byKey[k]
	s.byKey[k] = c
	s.keyed++
}

// remove takes a client out that was entered under k.
func (t *Table) remove(c *client, k tableKey) {
	s := t.shard(k.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[c]; !ok {
		return
	}
	delete(s.all, c)
	s.keyed--
	if first := s.byKey[k]; first == c {
		if c.next == nil {
			delete(s.byKey, k)
		} else {
			s.byKey[k] = c.next
		}
	} else {
		for p := first; p != nil; p = p.next {
			if p.next == c {
				p.next = c.next
				break
			}
		}
	}
	c.next = nil
}

// find calls fn for every client of a key, without holding a lock.
func (t *Table) find(pool, key string, fn func(*client)) {
	s := t.shard(key)
	s.mu.Lock()
	var some [4]*client
	found := some[:0]
	for c := s.byKey[tableKey{pool, key}]; c != nil; c = c.next {
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
		for c := range s.all {
			some = append(some, c)
		}
		s.mu.Unlock()
		for _, c := range some {
			fn(c)
		}
	}
}

// placed counts the clients that were routed to a broker.
func (t *Table) placed() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += s.keyed
		s.mu.Unlock()
	}
	return n
}
