package registry

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// memoryHistory is how many changes a Memory keeps at least for watches that are behind: at 10,000 changes a second,
	// a reader in this process may be 0.4 s late. Who is later lists anew.
	memoryHistory = 4096
	// listChunk is how many changes one batch of a listing holds.
	listChunk = 1000
	// progressEvery is the longest silence of a watch whose store is in reach (Store.Watch).
	progressEvery = 500 * time.Millisecond
)

// Memory is a Store in this process: for a mesh of one edge (store: none), for simulations and for tests. It keeps all
// promises of a Store but that of outliving the process. A Memory is itself a client; Client opens more, each with its own
// watches and sessions, as edges in processes of their own would have them. The clients, not the Memory, are closed.
//
// It runs no goroutine of its own: changes are made under one lock, watches run on their callers' goroutines,
// and what ends by itself (records, sessions) ends by timers.
type Memory struct {
	memoryClient

	began time.Time // of its clock

	mu       sync.Mutex
	revision int64
	records  map[string]*memoryRecords // by pool
	expiries memoryExpiries
	expiry   *time.Timer // fires at armed, when the first of expiries is due
	armed    int64       // 0: while none is, or no client is open
	clients  int         // open ones

	pools    map[string]*Pool
	pruned   int64 // revision of the last Prune; 0: none
	admin    map[BrokerRef]Admin
	verdicts map[BrokerRef]Verdict
	pins     map[PinRef]memoryPin
	edges    map[string]memoryEdge
	health   map[string]memoryHealth
	election []*memoryLeadership // in order of their campaigns; the first leads

	history   []memoryEvent // in order of revision
	forgotten int64         // revision of the last change that is not in history any more
	moved     chan struct{} // closed by the next change
}

// memoryRecords are those of a pool.
type memoryRecords struct {
	pool  string
	byKey map[string]*memoryRecord
}

// memoryRecord is a record as it was written: another write makes another one.
type memoryRecord struct {
	in    *memoryRecords
	key   string
	value Record
	due   int64 // of the store's clock; 0: never
	index int   // in expiries, when due
}

// memoryEvent is a Change as history keeps it, which is small for the many that are about records.
type memoryEvent struct {
	revision int64
	record   *memoryRecord // as it was written; one without a broker: it was deleted
	other    *Change       // of another kind
}

func (e memoryEvent) change() Change {
	if e.other != nil {
		return *e.other
	}
	r := e.record
	return Change{
		Kind: KindAffinity, PoolName: r.in.pool, Name: r.key, Deleted: !r.value.Present(), Revision: e.revision, Affinity: r.value.Affinity(),
	}
}

func memoryChanges(events []memoryEvent) []Change {
	changes := make([]Change, len(events))
	for i, e := range events {
		changes[i] = e.change()
	}
	return changes
}

type memoryPin struct {
	broker   string
	revision int64
}

type memoryEdge struct {
	value    Edge
	session  *memorySession
	revision int64
}

type memoryHealth struct {
	value    Health
	session  *memorySession
	revision int64
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	m := &Memory{
		revision: 1, // as in etcd: no reader of an existing store knows nothing
		began:    time.Now(),
		records:  make(map[string]*memoryRecords),
		pools:    make(map[string]*Pool),
		admin:    make(map[BrokerRef]Admin),
		verdicts: make(map[BrokerRef]Verdict),
		pins:     make(map[PinRef]memoryPin),
		edges:    make(map[string]memoryEdge),
		health:   make(map[string]memoryHealth),
		moved:    make(chan struct{}),
	}
	m.forgotten = m.revision
	m.memoryClient = memoryClient{mem: m, closed: make(chan struct{})}
	m.clients = 1
	return m
}

// Client opens another client of the same store.
func (m *Memory) Client() Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients++
	m.armExpiry()
	return &memoryClient{mem: m, closed: make(chan struct{})}
}

// memoryClient is one user of a Memory.
type memoryClient struct {
	mem      *Memory
	closed   chan struct{} // closed under mem.mu
	sessions []*memorySession
}

// enter locks the store for a call, unless the client is closed or the caller has given up.
func (c *memoryClient) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c.mem.mu.Lock()
	if isDone(c.closed) {
		c.mem.mu.Unlock()
		return errMemoryClosed
	}
	return nil
}

var errMemoryClosed = fmt.Errorf("%w: closed", ErrUnavailable)

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Close ends the client's watches. Its sessions end by their TTL.
func (c *memoryClient) Close() error {
	m := c.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	if isDone(c.closed) {
		return nil
	}
	close(c.closed)
	for _, s := range c.sessions {
		s.abandon()
	}
	m.clients--
	m.armExpiry() // or not any more, if nobody is left to whom it matters
	return nil
}

// publish makes changes of other kinds than KindAffinity the store's next revision, in which they were made. m.mu is held.
func (m *Memory) publish(changes ...Change) {
	events := make([]memoryEvent, len(changes))
	for i := range changes {
		c := &changes[i]
		c.Revision = m.revision + 1
		events[i].other = c
		if c.Deleted {
			continue
		}
		switch c.Kind {
		case KindPool:
			c.Pool.Revision = c.Revision
		case KindAdmin:
			c.Admin.Revision = c.Revision
		case KindVerdict:
			c.Verdict.Revision = c.Revision
		}
	}
	m.advance(events...)
}

// advance makes events the store's next revision. m.mu is held.
func (m *Memory) advance(events ...memoryEvent) {
	m.revision++
	for i := range events {
		events[i].revision = m.revision
	}
	m.history = append(m.history, events...)
	if len(m.history) > 2*memoryHistory {
		cut := len(m.history) - memoryHistory
		m.forgotten = m.history[cut-1].revision
		m.history = slices.Clone(m.after(m.forgotten)) // lets go of the old ones
	}
	close(m.moved)
	m.moved = make(chan struct{})
}

// after is what history has of the time after a revision. m.mu is held.
func (m *Memory) after(revision int64) []memoryEvent {
	n, _ := slices.BinarySearchFunc(m.history, revision+1, func(e memoryEvent, r int64) int { return cmp.Compare(e.revision, r) })
	return m.history[n:]
}

func (c *memoryClient) Watch(ctx context.Context, from int64, fn func(Batch) error) error {
	if err := c.enterWatch(ctx); err != nil {
		return err
	}
	var listing []memoryEvent
	list := from == 0
	if list {
		listing = c.mem.list()
		from = c.mem.revision
	}
	c.mem.mu.Unlock()
	for list {
		n := min(len(listing), listChunk)
		b := Batch{Revision: from, List: true, Done: n == len(listing), Changes: memoryChanges(listing[:n])}
		if err := fn(b); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		listing, list = listing[n:], !b.Done
	}

	timer := time.NewTimer(progressEvery)
	defer timer.Stop()
	for told := (time.Time{}); ; { // when progress was last told
		if err := c.enterWatch(ctx); err != nil {
			return err
		}
		events, err := c.mem.since(from)
		moved := c.mem.moved
		c.mem.mu.Unlock()
		if err != nil {
			return err
		}
		for len(events) > 0 {
			from = events[0].revision
			n := 1 // never half a transaction
			for n < len(events) && events[n].revision == from {
				n++
			}
			if err := fn(Batch{Revision: from, Changes: memoryChanges(events[:n])}); err != nil {
				return err
			}
			events = events[n:]
		}
		// By the clock and not by a ticker's channel: a store that changes all the time tells its progress too, and one whose
		// reader is slow does not tell it twice.
		due := time.Until(told.Add(progressEvery))
		if due <= 0 {
			if err := fn(Batch{Revision: from}); err != nil {
				return err
			}
			told, due = time.Now(), progressEvery
		}
		timer.Reset(due)
		select {
		case <-timer.C:
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.closed:
			return errMemoryClosed
		}
	}
}

// enterWatch is enter with a watch's own error for a context that has ended.
func (c *memoryClient) enterWatch(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.enter(ctx)
}

// since returns what happened after a revision. m.mu is held.
func (m *Memory) since(from int64) ([]memoryEvent, error) {
	switch {
	case from > m.revision:
		return nil, fmt.Errorf("%w: at revision %d, watched from %d", ErrReset, m.revision, from)
	case from < m.forgotten:
		return nil, fmt.Errorf("%w: %d, the oldest is %d", ErrCompacted, from, m.forgotten)
	}
	return slices.Clone(m.after(from)), nil
}

// list returns all there is, as if each had just been written. m.mu is held.
func (m *Memory) list() (all []memoryEvent) {
	add := func(c Change) { all = append(all, memoryEvent{other: &c}) }
	for name, p := range m.pools {
		add(Change{Kind: KindPool, Name: name, Pool: p, Revision: p.Revision})
	}
	if m.pruned != 0 {
		add(Change{Kind: KindPrune, Revision: m.pruned})
	}
	for ref, a := range m.admin {
		add(Change{Kind: KindAdmin, PoolName: ref.Pool, Name: ref.Broker, Admin: a, Revision: a.Revision})
	}
	for ref, v := range m.verdicts {
		add(Change{Kind: KindVerdict, PoolName: ref.Pool, Name: ref.Broker, Verdict: v, Revision: v.Revision})
	}
	for ref, p := range m.pins {
		add(Change{Kind: KindPin, PoolName: ref.Pool, Name: ref.Key, Broker: p.broker, Revision: p.revision})
	}
	for id, e := range m.edges {
		add(Change{Kind: KindEdge, Name: id, Edge: e.value, Revision: e.revision})
	}
	for id, h := range m.health {
		add(Change{Kind: KindHealth, Name: id, Health: h.value, Revision: h.revision})
	}
	if len(m.election) > 0 {
		add(Change{Kind: KindLeader, Name: m.election[0].session.edge.ID, Revision: m.election[0].revision})
	}
	for _, in := range m.records {
		for _, r := range in.byKey {
			all = append(all, memoryEvent{revision: r.value.Revision, record: r})
		}
	}
	return all
}
