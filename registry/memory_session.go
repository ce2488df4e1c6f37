package registry

import (
	"context"
	"maps"
	"slices"
	"time"
)

// memorySession is an edge's presence in a Memory. It needs no keep-alive: it stands while its client is open,
// and for SessionTTL after that.
type memorySession struct {
	client *memoryClient
	edge   Edge
	lost   chan struct{} // closed under mem.mu
}

func (c *memoryClient) Join(ctx context.Context, e Edge) (Session, error) {
	if err := CheckName("an edge", e.ID); err != nil {
		return nil, err
	}
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.mem.mu.Unlock()
	s := &memorySession{client: c, edge: e, lost: make(chan struct{})}
	c.sessions = append(c.sessions, s)
	c.mem.putEdge(s, e)
	return s, nil
}

// putEdge registers an edge under a session. m.mu is held.
func (m *Memory) putEdge(s *memorySession, e Edge) {
	m.edges[e.ID] = memoryEdge{value: e, session: s, revision: m.revision + 1}
	m.publish(Change{Kind: KindEdge, Name: e.ID, Edge: e})
}

// enter locks the store for a call of a session that stands.
func (s *memorySession) enter(ctx context.Context) error {
	if err := s.client.enter(ctx); err != nil {
		return err
	}
	if isDone(s.lost) {
		s.client.mem.mu.Unlock()
		return ErrSessionLost
	}
	return nil
}

// abandon leaves the session to its TTL: nobody keeps it alive any more. mem.mu is held.
func (s *memorySession) abandon() {
	time.AfterFunc(SessionTTL, func() {
		s.client.mem.mu.Lock()
		defer s.client.mem.mu.Unlock()
		s.end()
	})
}

// end takes away all that stands on the session's lease, in one transaction. mem.mu is held.
func (s *memorySession) end() {
	if isDone(s.lost) {
		return
	}
	close(s.lost)
	m := s.client.mem
	s.client.sessions = slices.DeleteFunc(s.client.sessions, func(o *memorySession) bool { return o == s })
	var changes []Change
	// A later life of the edge may have taken its keys over; those are on the later lease.
	if m.edges[s.edge.ID].session == s {
		delete(m.edges, s.edge.ID)
		changes = append(changes, Change{Kind: KindEdge, Name: s.edge.ID, Deleted: true})
	}
	if m.health[s.edge.ID].session == s {
		delete(m.health, s.edge.ID)
		changes = append(changes, Change{Kind: KindHealth, Name: s.edge.ID, Deleted: true})
	}
	var ended []*memoryLeadership
	for _, l := range m.election {
		if l.session == s {
			ended = append(ended, l)
		}
	}
	if changes = append(changes, m.withdraw(ended...)...); len(changes) > 0 {
		m.publish(changes...)
	}
}

func (s *memorySession) Lost() <-chan struct{} { return s.lost }

func (s *memorySession) Report(ctx context.Context, h Health) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	m := s.client.mem
	defer m.mu.Unlock()
	h = cloneHealth(h)
	h.Edge = s.edge.ID // nobody reports for another
	m.health[h.Edge] = memoryHealth{value: h, session: s, revision: m.revision + 1}
	m.publish(Change{Kind: KindHealth, Name: h.Edge, Health: h})
	return nil
}

func (s *memorySession) Close(ctx context.Context) error {
	if err := s.client.enter(ctx); err != nil {
		return err
	}
	m := s.client.mem
	defer m.mu.Unlock()
	if isDone(s.lost) {
		return nil
	}
	if m.edges[s.edge.ID].session == s {
		e := s.edge
		e.Leaving = true
		m.putEdge(s, e)
	}
	s.end()
	return nil
}

// memoryLeadership is a place in the election: a campaign, and once it is the first, a lead.
type memoryLeadership struct {
	session  *memorySession
	revision int64         // at which it won
	won      chan struct{} // closed under mem.mu, likewise lost
	lost     chan struct{}
}

func (s *memorySession) Campaign(ctx context.Context) (Leadership, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	m := s.client.mem
	l := &memoryLeadership{session: s, won: make(chan struct{}), lost: make(chan struct{})}
	m.election = append(m.election, l)
	if len(m.election) == 1 {
		m.publish(m.crown())
	}
	m.mu.Unlock()

	err := errMemoryClosed
	select {
	case <-l.won:
		return l, nil
	case <-s.lost:
		return nil, ErrSessionLost
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.client.closed:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if changes := m.withdraw(l); len(changes) > 0 { // it may have won in this very moment
		m.publish(changes...)
	}
	return nil, err
}

// crown makes the first of the election the leader, in the revision that is about to be published. m.mu is held.
func (m *Memory) crown() Change {
	l := m.election[0]
	l.revision = m.revision + 1
	close(l.won)
	return Change{Kind: KindLeader, Name: l.session.edge.ID}
}

// withdraw takes places out of the election and returns what that changes. m.mu is held.
func (m *Memory) withdraw(ended ...*memoryLeadership) []Change {
	if len(m.election) == 0 {
		return nil
	}
	leader := m.election[0]
	m.election = slices.DeleteFunc(m.election, func(l *memoryLeadership) bool {
		if !slices.Contains(ended, l) {
			return false
		}
		close(l.lost)
		return true
	})
	switch {
	case len(m.election) == 0:
		return []Change{{Kind: KindLeader, Name: leader.session.edge.ID, Deleted: true}}
	case m.election[0] != leader:
		return []Change{m.crown()}
	}
	return nil
}

func (l *memoryLeadership) Lost() <-chan struct{} { return l.lost }

// enter locks the store for a write of an edge that leads.
func (l *memoryLeadership) enter(ctx context.Context) error {
	if err := l.session.client.enter(ctx); err != nil {
		return err
	}
	if m := l.session.client.mem; len(m.election) == 0 || m.election[0] != l {
		m.mu.Unlock()
		return ErrNotLeader
	}
	return nil
}

func (l *memoryLeadership) PutVerdict(ctx context.Context, ref BrokerRef, v Verdict) error {
	if err := CheckRef(ref); err != nil {
		return err
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	m := l.session.client.mem
	defer m.mu.Unlock()
	v.Revision = m.revision + 1
	m.verdicts[ref] = v
	m.publish(Change{Kind: KindVerdict, PoolName: ref.Pool, Name: ref.Broker, Verdict: v})
	return nil
}

func (l *memoryLeadership) DeleteVerdict(ctx context.Context, ref BrokerRef) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	m := l.session.client.mem
	defer m.mu.Unlock()
	if _, ok := m.verdicts[ref]; !ok {
		return nil
	}
	delete(m.verdicts, ref)
	m.publish(Change{Kind: KindVerdict, PoolName: ref.Pool, Name: ref.Broker, Deleted: true})
	return nil
}

func (l *memoryLeadership) Resign(ctx context.Context) error {
	if err := l.session.client.enter(ctx); err != nil {
		return err
	}
	m := l.session.client.mem
	defer m.mu.Unlock()
	if changes := m.withdraw(l); len(changes) > 0 {
		m.publish(changes...)
	}
	return nil
}

func cloneHealth(h Health) Health {
	h.Brokers = maps.Clone(h.Brokers)
	return h
}
