package registry

import "context"

// Source is where an answer to "whose is this key?" came from.
type Source uint8

const (
	SourceCache   Source = iota + 1 // a record that the watch told
	SourceNotice                    // a record, or its end, that a notice told and the watch has not reached
	SourceNew                       // none, and the cache is current: the key is new
	SourceStore                     // the store was asked, and answered: a record, or that there is none
	SourceTimeout                   // not known: the store did not answer in time, or has not for the last second
	SourceAway                      // not known: the store is away
)

// Sources are all of them, for counters that exist before the first answer.
var Sources = [...]Source{SourceCache, SourceNotice, SourceNew, SourceStore, SourceTimeout, SourceAway}

// String returns a fixed lower-case name, fit for a metric label.
func (s Source) String() string {
	switch s {
	case SourceCache:
		return "cache"
	case SourceNotice:
		return "notice"
	case SourceNew:
		return "new"
	case SourceStore:
		return "store"
	case SourceTimeout:
		return "timeout"
	case SourceAway:
		return "away"
	}
	return "unknown"
}

// Lookup returns the affinity of a key as far as the cache knows, at once.
// A record whose Expires a current watch has passed by ExpiryGrace is none; without a current watch nobody could have renewed it.
func (c *Cache) Lookup(pool, key string) (Affinity, bool) {
	a, _ := c.find(pool, key)
	return a, a.Present()
}

// find returns an affinity and SourceCache or SourceNotice, or 0 if nothing is known of the key.
func (c *Cache) find(pool, key string) (Affinity, Source) {
	t := c.table.Load()
	s, hash := t.at(pool, key)
	if s == nil {
		return Affinity{}, 0
	}
	s.mu.RLock()
	if len(s.overlay) > 0 {
		if p, ok := s.overlay[key]; ok {
			s.mu.RUnlock()
			return p.affinity, SourceNotice
		}
	}
	var a Affinity
	var expires uint32
	if p := s.entries.get(hash, key); p != nil {
		a, expires = t.affinity(p), p.expires()
	}
	s.mu.RUnlock()
	if !a.Present() || over(expires, c.wall.Load()) && c.Current() {
		return Affinity{}, 0
	}
	if a.Revision == 0 {
		a.Expires = moment(1) // long due: the store that is there now does not have it
	}
	return a, SourceCache
}

// TryResolve is Resolve where it need not wait; !ok: the store must be asked, which only Resolve does.
func (c *Cache) TryResolve(pool, key string) (a Affinity, from Source, ok bool) {
	if a, from = c.find(pool, key); from != 0 {
		return a, from, true
	}
	switch {
	case c.Current():
		return Affinity{}, SourceNew, true
	case c.away.Load():
		return Affinity{}, SourceAway, true
	case c.clock() < c.resting.Load():
		return Affinity{}, SourceTimeout, true
	}
	return Affinity{}, 0, false
}

// Resolve answers the question of every connect: which broker is recorded for this key? It waits only where a miss could
// be due to the cache (it is loading, late, or had to evict) and the store is not known to be away, for AskTimeout at most,
// and after one wait in vain nobody waits again for AskPause. Without an answer the key is treated as new: placed by
// hash, which all edges do alike, and corrected at the commit.
func (c *Cache) Resolve(ctx context.Context, pool, key string) (Affinity, Source) {
	if a, from, ok := c.TryResolve(pool, key); ok {
		return a, from
	}
	c.counts.asked.Add(1)
	asked, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	a, err := c.conf.Store.Get(asked, pool, key)
	if err == nil {
		if a.Present() {
			c.Note(Notice{Pool: pool, Key: key, Affinity: a, Revision: a.Revision})
		}
		return a, SourceStore
	}
	if ctx.Err() == nil { // it was not the caller who gave up
		c.counts.timeouts.Add(1)
		c.resting.Store(c.clock() + int64(AskPause))
	}
	return Affinity{}, SourceTimeout
}
