package registry

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// The numbers of a Cache.
const (
	// CurrentWithin is how old the watch's last progress may be, so that a miss still means "new". Progress comes every 500 ms.
	CurrentWithin = time.Second
	// AskTimeout bounds the wait of a connect whose record is not known.
	AskTimeout = 50 * time.Millisecond
	// AskPause is how long nobody asks a store that has not answered in time.
	AskPause = time.Second

	watchBackoffMin = 100 * time.Millisecond // the first reconnect waits up to this, each further one up to twice the last
	watchBackoffMax = 5 * time.Second
	relistWithin    = 2 * time.Second // all edges lose their place in history at the same moment: spread their listings

	defaultMaxEntries = 10_000_000
)

// CacheConfig is what a Cache needs.
type CacheConfig struct {
	Store  Store
	Bus    Bus // hurries what the store decides; nil: nothing does
	Logger zerolog.Logger
	// MaxEntries bounds the affinities that are kept; 0 = 10 million. Beyond it any one goes for each that comes, and
	// the cache is not Current any more: every miss is asked of the store.
	MaxEntries int
}

// Cache is an edge's copy of a store: the State, and all affinities. The store's watch is its truth. Notices of the bus are
// quicker, and stand until the watch has reached their revision; then the watch's word stands, whatever it is.
//
//	           listing                  changes, progress
//	Store ──▶ a table beside ──▶ swap ──▶ the live table ──▶ Lookup, Resolve
//	Bus   ──▶ notices ──────────────────▶ laid over it ────▶
//
// The live table is never emptied: a new listing is built aside and swapped in whole.
// What it answers may be late by as much as the watch is; Current says whether that is too much.
type Cache struct {
	conf CacheConfig
	base time.Time // of the cache's clock
	seed maphash.Seed

	// Read by everybody.
	table    atomic.Pointer[table]
	state    atomic.Pointer[State]
	revision atomic.Int64 // the watch's
	fresh    atomic.Int64 // clock of the last progress; 0 = none since the watch began or broke
	heard    atomic.Int64 // clock of the last batch of any kind; 0 = none ever
	wall     atomic.Int64 // Unix seconds of the last batch: a clock that costs nothing
	listed   atomic.Bool
	away     atomic.Bool  // the watch broke, and nothing has been heard since
	resting  atomic.Int64 // clock until which nobody asks

	counts  cacheCounts
	notices notices

	// Owned by the watch: Run's goroutine.
	building *table   // of the listing under way, else nil
	aside    []Change // of the listing under way, except affinities
	relist   bool     // the next watch begins with a listing
	reset    bool     // the store is another one: revisions that were known are about the old one
	lost     int64    // with reset: Unix seconds of the old one's last word
	stored   *State   // what the store says, without what a former one said; State without former
	former   *State   // of pools that a former store had and this one has said nothing about, else nil

	mu         sync.Mutex
	reached    int64 // revision whose subscribers have been called
	waiters    []waiter
	onState    []func(*State)
	onAffinity []func(pool, key string, a Affinity)
	err        error // why the watch is broken
}

type cacheCounts struct {
	watches, listings, asked, timeouts atomic.Uint64
}

type waiter struct {
	revision int64
	reached  chan struct{}
}

// NewCache returns an empty cache. It does nothing before Run.
func NewCache(conf CacheConfig) *Cache {
	if conf.MaxEntries <= 0 {
		conf.MaxEntries = defaultMaxEntries
	}
	c := &Cache{conf: conf, base: time.Now(), seed: maphash.MakeSeed(), relist: true, stored: &State{}}
	c.table.Store(newTable(c.seed, conf.MaxEntries))
	c.state.Store(&State{})
	return c
}

// clock is nanoseconds since the cache was made, on the monotonic clock; never 0.
func (c *Cache) clock() int64 { return int64(time.Since(c.base)) + 1 }

// State is the newest picture, never nil; without Pools before the first listing. It is another pointer exactly when
// something other than an affinity has changed, or was listed anew.
func (c *Cache) State() *State { return c.state.Load() }

// OnState has fn called with each new State, in order, on the cache's goroutine: fn must not block.
func (c *Cache) OnState(fn func(*State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onState = append(slices.Clip(c.onState), fn)
}

// OnAffinity has fn called for each affinity that the watch shows to have changed, on the cache's goroutine: fn must not
// block, nor keep the key (a copy is fine): it lies amid others. A deleted one has no Broker. After a listing the differences from what was known before are told;
// the first listing differs from nothing, so it tells all. Notices are not told: they move nobody (ARCHITECTURE, promise 2).
func (c *Cache) OnAffinity(fn func(pool, key string, a Affinity)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onAffinity = append(slices.Clip(c.onAffinity), fn)
}

func (c *Cache) subscribers() ([]func(*State), []func(pool, key string, a Affinity)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.onState, c.onAffinity
}

// Current reports whether the listing is complete and nothing was evicted, and the watch is at most CurrentWithin late:
// whether a key that is missing is new.
func (c *Cache) Current() bool {
	fresh := c.fresh.Load()
	return fresh != 0 && c.clock()-fresh <= int64(CurrentWithin) && !c.table.Load().evicted.Load()
}

// Run follows the store until ctx ends, whatever happens to the store; then it returns nil. It is called once.
func (c *Cache) Run(ctx context.Context) error {
	if c.conf.Bus != nil {
		cancel, err := c.conf.Bus.Subscribe(c.hear)
		if err != nil {
			return fmt.Errorf("registry: cache: %w", err)
		}
		defer cancel()
	}
	broken := time.Time{} // since when, for the log
	for backoff := watchBackoffMin; ; {
		from := c.revision.Load()
		if c.relist {
			from = 0
		}
		before := c.heard.Load()
		c.counts.watches.Add(1)
		err := c.conf.Store.Watch(ctx, from, func(b Batch) error {
			if !broken.IsZero() {
				c.conf.Logger.Info().Int64("revision", b.Revision).Dur("after_ms", time.Since(broken)).Msg("store watch restored")
				broken = time.Time{}
			}
			return c.take(b)
		})
		wait := c.broke(err, ctx.Err() != nil)
		if ctx.Err() != nil {
			return nil
		}
		if broken.IsZero() {
			broken = time.Now()
			c.conf.Logger.Warn().Err(err).Int64("revision", c.revision.Load()).Bool("relist", c.relist).Msg("store watch broken")
		}
		if c.heard.Load() != before {
			backoff = watchBackoffMin
		}
		if wait == 0 {
			wait = backoff
			backoff = min(2*backoff, watchBackoffMax)
		}
		timer := time.NewTimer(1 + rand.N(wait)) // full jitter: edges that lost the store together come back apart
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// broke notes that the watch has ended, and returns the bound on the wait before a listing; 0: no listing is needed.
func (c *Cache) broke(err error, over bool) (wait time.Duration) {
	c.fresh.Store(0)
	c.building, c.aside = nil, nil
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	if over {
		c.away.Store(true)
		return 0
	}
	if errors.Is(err, ErrReset) && !c.reset {
		c.reset, c.lost = true, c.wall.Load()
	}
	if lost := errors.Is(err, ErrCompacted) || errors.Is(err, ErrReset); lost {
		c.relist = true
		return relistWithin
	}
	c.away.Store(true) // nobody knows more until the next batch
	return 0
}

// take is the watch's word.
func (c *Cache) take(b Batch) error {
	now := c.clock()
	var err error
	switch {
	case b.List:
		c.takeListing(b)
	case b.Revision < c.revision.Load() || c.relist:
		err = fmt.Errorf("%w: at revision %d after %d", ErrReset, b.Revision, c.revision.Load())
	default:
		c.takeChanges(b)
		if len(b.Changes) == 0 {
			if now-c.fresh.Load() > int64(CurrentWithin) {
				c.notices.current(now)
			}
			c.fresh.Store(now)
		}
		c.notices.expire(c, now)
	}
	c.heard.Store(now)
	c.wall.Store(time.Now().Unix())
	if c.away.Load() {
		c.mu.Lock()
		c.err = nil
		c.mu.Unlock()
		c.away.Store(false)
	}
	return err
}

func (c *Cache) takeChanges(b Batch) {
	t := c.table.Load()
	for i := range b.Changes {
		if ch := &b.Changes[i]; ch.Kind == KindAffinity {
			if ch.Deleted {
				t.remove(ch.PoolName, ch.Name)
			} else {
				t.put(ch.PoolName, ch.Name, &ch.Affinity)
			}
		}
	}
	// Only now, so that no reader meets a moment with neither the notice's word nor the watch's.
	c.notices.settle(c, b.Revision)
	if len(b.Changes) > 0 {
		onState, onAffinity := c.subscribers()
		if next := c.stored.Apply(b.Changes, b.Revision); next != c.stored {
			c.stored, c.former = next, c.former.without(b.Changes, next)
			state := next.over(c.former)
			c.state.Store(state)
			for _, fn := range onState {
				fn(state)
			}
		}
		for i := range b.Changes {
			if ch := &b.Changes[i]; ch.Kind == KindAffinity {
				for _, fn := range onAffinity {
					fn(ch.PoolName, ch.Name, ch.Affinity)
				}
			}
		}
	}
	c.release(b.Revision)
}

func (c *Cache) takeListing(b Batch) {
	if c.building == nil {
		c.building = newTable(c.seed, c.conf.MaxEntries)
		c.fresh.Store(0)
	}
	for i := range b.Changes {
		if ch := &b.Changes[i]; ch.Kind == KindAffinity {
			c.building.put(ch.PoolName, ch.Name, &ch.Affinity)
		} else {
			c.aside = append(c.aside, *ch)
		}
	}
	if !b.Done {
		return
	}
	old, next, reset := c.table.Load(), c.building, c.reset
	state := c.listState(b.Revision)
	next.keep(old, reset, time.Now().Unix())
	c.building, c.aside = nil, nil
	c.notices.swap(c, next, b.Revision, reset)
	c.relist, c.reset = false, false
	c.state.Store(state)
	c.listed.Store(true)
	c.counts.listings.Add(1)
	c.conf.Logger.Info().Int64("revision", b.Revision).Int64("affinities", next.count.Load()).Int("pools", len(state.Pools)).Msg("store listed")
	if reset && len(state.Former) > 0 {
		c.conf.Logger.Warn().Strs("pools", slices.Sorted(maps.Keys(state.Former))).
			Msg("the store was reset and does not have these pools: they stand as they were, until `limpet apply` writes them, or ends them with --prune")
	}

	onState, onAffinity := c.subscribers()
	for _, fn := range onState {
		fn(state)
	}
	if len(onAffinity) > 0 {
		tell := func(pool, key string, a Affinity) {
			for _, fn := range onAffinity {
				fn(pool, key, a)
			}
		}
		if reset {
			tell = afterReset(old, c.lost, tell)
		}
		next.differ(old, tell)
	}
	c.release(b.Revision)
}

// listState makes the State that a listing gives, of what it holds aside.
func (c *Cache) listState(revision int64) *State {
	before, said := c.stored, c.aside
	c.stored = (&State{Revision: revision}).Apply(said, revision)
	if c.reset {
		c.former = c.state.Load().former()
		before = &State{Admin: c.former.Admin, Pins: c.former.Pins}
	}
	for about := range c.stored.Unreadable {
		c.stored.keep(about, before, false)
	}
	// Only who was here when it was said took it as being about the pools that it still knows: a backup may hold an older one.
	known := c.revision.Load()
	said = slices.DeleteFunc(said, func(ch Change) bool { return ch.Kind == KindPrune && (c.reset || ch.Revision <= known) })
	c.former = c.former.without(said, c.stored)
	return c.stored.over(c.former)
}

// afterReset makes of the differences between the listing of a store that took another one's place and the old table what is told of them.
// Revisions cannot be compared any more, so whoever has a client is told first that its record is gone: it offers it again, and
// meets what stands. A record of another broker is told only if it was written after the old store's last word: an older one comes
// from a backup, and is no reason to close a client that lives.
func afterReset(old *table, lost int64, tell func(pool, key string, a Affinity)) func(pool, key string, a Affinity) {
	return func(pool, key string, a Affinity) {
		was, known := old.lookup(pool, key)
		if a.Present() && a.Written.Unix() <= lost && was.Broker != a.Broker {
			return
		}
		if known {
			tell(pool, key, Affinity{})
		}
		if a.Present() {
			tell(pool, key, a)
		}
	}
}

// release lets those go on who waited for a revision.
func (c *Cache) release(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached = revision
	if len(c.waiters) == 0 {
		return
	}
	c.waiters = slices.DeleteFunc(c.waiters, func(w waiter) bool {
		if w.revision > revision {
			return false
		}
		close(w.reached)
		return true
	})
}

// Wait returns once the watch has reached a revision and its subscribers have been told, or with ctx's error.
// After a write was found Stale: wait for Result.Revision, then route again.
func (c *Cache) Wait(ctx context.Context, revision int64) error {
	c.mu.Lock()
	if c.reached >= revision {
		c.mu.Unlock()
		return nil
	}
	w := waiter{revision, make(chan struct{})}
	c.waiters = append(c.waiters, w)
	c.mu.Unlock()
	select {
	case <-w.reached:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters = slices.DeleteFunc(c.waiters, func(o waiter) bool { return o.reached == w.reached })
	return ctx.Err()
}

// CacheStatus is what an operator may ask of a cache.
type CacheStatus struct {
	Revision int64         // the watch's
	Listed   bool          // a listing was complete, once
	Current  bool          // Cache.Current
	Away     bool          // the watch is broken
	Age      time.Duration // of the watch's last word; -1 before the first
	Error    string        // why the watch is broken
	Source   string        // what answers: "watch", "stale" (the watch is late or broken), "loading" (nothing was listed yet)

	Entries     int  // affinities kept
	Evicted     bool // some were not kept: MaxEntries
	Provisional int  // notices that the watch has not reached

	Watches, Listings  uint64 // begun, complete
	Asked, AskTimeouts uint64 // questions to the store on a connect, and those without an answer in time
	Notices            NoticeCounts
}

// Status is the cache's state now.
func (c *Cache) Status() CacheStatus {
	t := c.table.Load()
	st := CacheStatus{
		Revision: c.revision.Load(), Listed: c.listed.Load(), Current: c.Current(), Away: c.away.Load(), Age: -1, Source: "loading",
		Entries: int(t.count.Load()), Evicted: t.evicted.Load(),
		Watches: c.counts.watches.Load(), Listings: c.counts.listings.Load(),
		Asked: c.counts.asked.Load(), AskTimeouts: c.counts.timeouts.Load(),
	}
	st.Provisional, st.Notices = c.notices.status()
	if heard := c.heard.Load(); heard != 0 {
		st.Age = time.Duration(c.clock() - heard)
	}
	switch {
	case st.Current:
		st.Source = "watch"
	case st.Listed:
		st.Source = "stale"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		st.Error = c.err.Error()
	}
	return st
}
