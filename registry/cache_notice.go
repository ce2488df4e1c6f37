package registry

import (
	"container/heap"
	"sync"
)

// Bounds on what strangers on the bus, or a flood of honest notices, can make a cache keep and believe.
const (
	maxProvisional      = 32768
	maxProvisionalBytes = 16 << 20
	noticeLife          = int64(10e9) // ns that a notice stands although the watch is current and has not confirmed it
	noticeAhead         = 1 << 20     // revisions that a notice may be ahead of a watch that has just spoken
	noticeAheadPerSec   = 50_000      // and so many more for each second of the watch's silence
)

// NoticeCounts counts what became of notices. The first five are of those that were refused on arrival.
type NoticeCounts struct {
	Early       uint64 // before the first listing, when nothing can be judged
	Late        uint64 // the watch, or a newer notice, was there first
	Implausible uint64 // of a revision that no store can have reached
	Unknown     uint64 // of a pool or a broker that is not configured
	Full        uint64 // too many, or too large, until the watch has confirmed some

	Taken     uint64
	Confirmed uint64 // by the watch
	Refuted   uint64 // the watch has passed the revision without it
	Expired   uint64 // the watch was current for long enough and said nothing
}

// notices are the provisional affinities of a cache, by revision.
type notices struct {
	mu      sync.Mutex // also orders notices against the watch's revision: none is taken that the watch has passed
	pending noticeHeap
	bytes   int
	since   int64 // clock at which the watch became current
	swept   int64 // clock of the last expire
	counts  NoticeCounts
}

type pendingNotice struct {
	pool, key string
	revision  int64
	at        int64 // of the cache's clock
	size      int
}

// hear takes a message of the bus.
func (c *Cache) hear(m Message) {
	if m.Notice != nil {
		c.Note(*m.Notice)
	}
}

// Note tells the cache of an affinity that the store has committed (or deleted), ahead of the watch. It routes at once and
// provisionally: when the watch reaches its revision, the watch's word stands. What cannot be is ignored and counted.
func (c *Cache) Note(n Notice) {
	now := c.clock()
	ns := &c.notices
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if refused := c.refuse(n, now); refused != nil {
		*refused++
		return
	}
	s, _ := c.table.Load().make(n.Pool, n.Key)
	s.mu.Lock()
	if was, ok := s.overlay[n.Key]; ok && was.revision >= n.Revision {
		s.mu.Unlock()
		ns.counts.Late++
		return
	}
	if s.overlay == nil {
		s.overlay = make(map[string]provisional)
	}
	n.Affinity.Revision = n.Revision
	s.overlay[n.Key] = provisional{affinity: n.Affinity, revision: n.Revision, at: now}
	s.mu.Unlock()
	size := noticeSize(n)
	ns.bytes += size
	heap.Push(&ns.pending, pendingNotice{pool: n.Pool, key: n.Key, revision: n.Revision, at: now, size: size})
	ns.counts.Taken++
}

func noticeSize(n Notice) int {
	a := &n.Affinity
	return 256 + len(n.Key) + len(a.Broker) + len(a.Home) + len(a.Writer) + len(a.Reason) + len(a.Extra)
}

// refuse returns the counter of the reason to ignore a notice, nil to take it.
func (c *Cache) refuse(n Notice, now int64) *uint64 {
	counts, revision := &c.notices.counts, c.revision.Load()
	silent := (now - c.heard.Load()) / 1e9
	switch {
	case !c.listed.Load():
		return &counts.Early
	case n.Revision <= revision:
		return &counts.Late
	case n.Revision-revision > noticeAhead+silent*noticeAheadPerSec:
		return &counts.Implausible
	}
	pool := c.state.Load().Pools[n.Pool]
	if pool == nil || n.Affinity.Present() && pool.Broker(n.Affinity.Broker) == nil {
		return &counts.Unknown
	}
	if len(c.notices.pending) >= maxProvisional || c.notices.bytes+noticeSize(n) > maxProvisionalBytes {
		return &counts.Full
	}
	return nil
}

// settle brings the watch to a revision, and drops the notices that it has reached: the live table says what stands.
func (ns *notices) settle(c *Cache, revision int64) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	c.revision.Store(revision)
	t := c.table.Load()
	for len(ns.pending) > 0 && ns.pending[0].revision <= revision {
		p := heap.Pop(&ns.pending).(pendingNotice)
		ns.bytes -= p.size
		if ns.drop(t, p) {
			ns.counts.Confirmed++
		} else {
			ns.counts.Refuted++
		}
	}
}

// drop takes a notice off the table, unless a newer one has taken its place, and reports whether the table knows
// as much as the notice did.
func (ns *notices) drop(t *table, p pendingNotice) (confirmed bool) {
	s, hash := t.at(p.pool, p.key)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	over, ok := s.overlay[p.key]
	r := s.entries.get(hash, p.key)
	confirmed = r != nil && r.revision() >= p.revision || ok && !over.affinity.Present() && r == nil
	if ok && over.revision == p.revision {
		delete(s.overlay, p.key)
	}
	return confirmed
}

// current notes that the watch is current from now on: what it leaves unconfirmed for long is not so.
func (ns *notices) current(now int64) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.since = now
}

// expire drops notices that a current watch has not confirmed for noticeLife, once a second.
func (ns *notices) expire(c *Cache, now int64) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if len(ns.pending) == 0 || now-ns.swept < 1e9 || c.fresh.Load() == 0 {
		return
	}
	ns.swept = now
	kept := ns.pending[:0]
	for _, p := range ns.pending {
		if now-max(p.at, ns.since) < noticeLife {
			kept = append(kept, p)
			continue
		}
		ns.drop(c.table.Load(), p)
		ns.bytes -= p.size
		ns.counts.Expired++
	}
	clear(ns.pending[len(kept):])
	ns.pending = kept
	heap.Init(&ns.pending)
}

// swap makes next the live table, as of a revision. Notices ahead of it are laid over it too, unless they
// were about another store.
func (ns *notices) swap(c *Cache, next *table, revision int64, another bool) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	old := c.table.Load()
	kept := noticeHeap{}
	bytes := 0
	for _, p := range ns.pending {
		s, _ := old.at(p.pool, p.key)
		s.mu.RLock()
		over, ok := s.overlay[p.key]
		s.mu.RUnlock()
		if another || p.revision <= revision {
			ns.counts.Refuted++ // or confirmed: the listing does not say which
			continue
		}
		if !ok || over.revision != p.revision {
			continue // a newer one has taken its place
		}
		n, _ := next.make(p.pool, p.key)
		n.mu.Lock()
		if n.overlay == nil {
			n.overlay = make(map[string]provisional)
		}
		n.overlay[p.key] = over
		n.mu.Unlock()
		kept = append(kept, p)
		bytes += p.size
	}
	heap.Init(&kept)
	ns.pending, ns.bytes = kept, bytes
	c.revision.Store(revision)
	c.table.Store(next)
}

func (ns *notices) status() (provisional int, counts NoticeCounts) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return len(ns.pending), ns.counts
}

// noticeHeap has the lowest revision first.
type noticeHeap []pendingNotice

func (h noticeHeap) Len() int           { return len(h) }
func (h noticeHeap) Less(i, j int) bool { return h[i].revision < h[j].revision }
func (h noticeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *noticeHeap) Push(x any)        { *h = append(*h, x.(pendingNotice)) }

func (h *noticeHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = pendingNotice{}
	*h = old[:len(old)-1]
	return p
}
