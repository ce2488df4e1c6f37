package registry

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// memoryHistory is how many changes a Memory keeps at least for watches that resume: at 10,000 changes a second,
	// a reader may be a second and a half late.
	memoryHistory = 16384
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

	mu       sync.Mutex
	revision int64
	records  map[PinRef]*memoryRecord
	expiries memoryExpiries
	expiry   *time.Timer // fires when the first of expiries is due; nil while none is, or no client is open
	clients  int         // open ones

	pools    map[string]*Pool
	pruned   int64 // revision of the last Prune; 0: none
	admin    map[BrokerRef]Admin
	verdicts map[BrokerRef]Verdict
	pins     map[PinRef]memoryPin
	edges    map[string]memoryEdge
	health   map[string]memoryHealth
	election []*memoryLeadership // in order of their campaigns; the first leads

	history   []Batch       // by revision, one for each
	held      int           // changes in history
	forgotten int64         // revision of the last change that is not in history any more
	moved     chan struct{} // closed by the next change
}

type memoryRecord struct {
	ref   PinRef
	value Affinity
	due   time.Time // zero: never
	index int       // in expiries, when due
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
		records:  make(map[PinRef]*memoryRecord),
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
	if m.clients--; m.clients == 0 && m.expiry != nil {
		m.expiry.Stop() // nobody is left to whom it matters
		m.expiry = nil
	}
	return nil
}

// publish makes changes the store's next revision, in which they were made. m.mu is held.
func (m *Memory) publish(changes ...Change) {
	m.revision++
	for i := range changes {
		c := &changes[i]
		c.Revision = m.revision
		if c.Deleted {
			continue
		}
		switch c.Kind {
		case KindAffinity:
			c.Affinity.Revision = m.revision
		case KindPool:
			c.Pool.Revision = m.revision
		case KindAdmin:
			c.Admin.Revision = m.revision
		case KindVerdict:
			c.Verdict.Revision = m.revision
		}
	}
	m.history = append(m.history, Batch{Revision: m.revision, Changes: changes})
	if m.held += len(changes); m.held > 2*memoryHistory {
		cut := 0
		for m.held > memoryHistory {
			m.held -= len(m.history[cut].Changes)
			m.forgotten = m.history[cut].Revision
			cut++
		}
		m.history = slices.Clone(m.history[cut:]) // lets go of the old ones
	}
	close(m.moved)
	m.moved = make(chan struct{})
}

func (c *memoryClient) Watch(ctx context.Context, from int64, fn func(Batch) error) error {
	var listing []Batch
	if err := c.enterWatch(ctx); err != nil {
		return err
	}
	if from == 0 {
		listing = c.mem.list()
		from = c.mem.revision
	}
	c.mem.mu.Unlock()
	for _, b := range listing {
		if err := fn(b); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}

	timer := time.NewTimer(progressEvery)
	defer timer.Stop()
	for told := (time.Time{}); ; { // when progress was last told
		if err := c.enterWatch(ctx); err != nil {
			return err
		}
		batches, err := c.mem.since(from)
		moved := c.mem.moved
		c.mem.mu.Unlock()
		if err != nil {
			return err
		}
		for _, b := range batches {
			if err := fn(b); err != nil {
				return err
			}
			from = b.Revision
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

// since returns the batches after a revision. m.mu is held.
func (m *Memory) since(from int64) ([]Batch, error) {
	switch {
	case from > m.revision:
		return nil, fmt.Errorf("%w: at revision %d, watched from %d", ErrReset, m.revision, from)
	case from < m.forgotten:
		return nil, fmt.Errorf("%w: %d, the oldest is %d", ErrCompacted, from, m.forgotten)
	}
	// One batch for each revision, so the first one wanted is found by counting back.
	return slices.Clone(m.history[len(m.history)-int(m.revision-from):]), nil
}

// list returns all there is. m.mu is held.
func (m *Memory) list() []Batch {
	all := make([]Change, 0, len(m.records)+len(m.pools)+len(m.pins))
	for name, p := range m.pools {
		all = append(all, Change{Kind: KindPool, Name: name, Pool: p, Revision: p.Revision})
	}
	if m.pruned != 0 {
		all = append(all, Change{Kind: KindPrune, Revision: m.pruned})
	}
	for ref, a := range m.admin {
		all = append(all, Change{Kind: KindAdmin, PoolName: ref.Pool, Name: ref.Broker, Admin: a, Revision: a.Revision})
	}
	for ref, v := range m.verdicts {
		all = append(all, Change{Kind: KindVerdict, PoolName: ref.Pool, Name: ref.Broker, Verdict: v, Revision: v.Revision})
	}
	for ref, p := range m.pins {
		all = append(all, Change{Kind: KindPin, PoolName: ref.Pool, Name: ref.Key, Broker: p.broker, Revision: p.revision})
	}
	for id, e := range m.edges {
		all = append(all, Change{Kind: KindEdge, Name: id, Edge: e.value, Revision: e.revision})
	}
	for id, h := range m.health {
		all = append(all, Change{Kind: KindHealth, Name: id, Health: h.value, Revision: h.revision})
	}
	if len(m.election) > 0 {
		all = append(all, Change{Kind: KindLeader, Name: m.election[0].session.edge.ID, Revision: m.election[0].revision})
	}
	for ref, r := range m.records {
		all = append(all, Change{Kind: KindAffinity, PoolName: ref.Pool, Name: ref.Key, Affinity: r.value, Revision: r.value.Revision})
	}
	batches := []Batch{}
	for chunk := range slices.Chunk(all, listChunk) {
		batches = append(batches, Batch{Revision: m.revision, List: true, Changes: chunk})
	}
	if len(batches) == 0 {
		batches = []Batch{{Revision: m.revision, List: true}}
	}
	batches[len(batches)-1].Done = true
	return batches
}
