package registrytest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// faultySession is a session over a way that may break.
type faultySession struct {
	f     *Faulty
	store registry.Store // the session's own client
	inner registry.Session

	mu    sync.Mutex
	timer *time.Timer // runs while the way is broken
	once  sync.Once
	lost  chan struct{}
}

func (f *Faulty) Join(ctx context.Context, e registry.Edge) (registry.Session, error) {
	s := &faultySession{f: f, lost: make(chan struct{})}
	err := f.do(ctx, "Join", func() (err error) {
		s.store = f.open()
		if s.inner, err = s.store.Join(ctx, e); err != nil {
			s.store.Close()
		}
		return err
	})
	if err != nil {
		if s.inner != nil {
			s.store.Close() // joined, but nobody knows
		}
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if isClosed(f.done) {
		s.store.Close()
		return nil, fmt.Errorf("%w: closed", registry.ErrUnavailable)
	}
	f.sessions = append(f.sessions, s)
	s.cut(f.faults.down || f.faults.frozen)
	return s, nil
}

// cut tells the session whether its keep-alives pass.
func (s *faultySession) cut(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case broken && s.timer == nil:
		s.timer = time.AfterFunc(registry.SessionTTL, s.lose)
	case !broken && s.timer != nil:
		s.timer.Stop()
		s.timer = nil
	}
}

// lose ends the session as an edge sees it that reaches its store no longer, and leaves the rest to the store.
func (s *faultySession) lose() {
	s.once.Do(func() {
		close(s.lost)
		s.store.Close()
	})
}

func (s *faultySession) Lost() <-chan struct{} { return s.lost }

func (s *faultySession) do(ctx context.Context, method string, call func() error) error {
	if isClosed(s.lost) {
		return registry.ErrSessionLost
	}
	return s.f.do(ctx, method, call)
}

func (s *faultySession) Report(ctx context.Context, h registry.Health) error {
	return s.do(ctx, "Report", func() error { return s.inner.Report(ctx, h) })
}

func (s *faultySession) Close(ctx context.Context) error {
	if isClosed(s.lost) {
		return nil
	}
	err := s.f.do(ctx, "Session.Close", func() error { return s.inner.Close(ctx) })
	s.lose()
	return err
}

// Campaign ends with ErrUnavailable when the way breaks meanwhile.
func (s *faultySession) Campaign(ctx context.Context) (registry.Leadership, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			x, changed := s.f.now()
			if x.down {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-s.lost:
				cancel()
				return
			case <-inner.Done():
				return
			}
		}
	})
	var lead registry.Leadership
	err := s.do(ctx, "Campaign", func() (err error) { lead, err = s.inner.Campaign(inner); return })
	cancel()
	watching.Wait()
	switch {
	case err == nil:
		return newFaultyLeadership(s, lead), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case isClosed(s.lost):
		return nil, registry.ErrSessionLost
	case inner.Err() != nil && err != registry.ErrSessionLost:
		return nil, unavailable(ctx)
	}
	return nil, err
}

// faultyLeadership is lost when the lead is, or the session.
type faultyLeadership struct {
	s     *faultySession
	inner registry.Leadership
	lost  chan struct{}
}

func newFaultyLeadership(s *faultySession, inner registry.Leadership) *faultyLeadership {
	l := &faultyLeadership{s: s, inner: inner, lost: make(chan struct{})}
	s.f.leads.Go(func() {
		defer close(l.lost)
		select {
		case <-inner.Lost():
		case <-s.lost:
		case <-s.f.done:
		}
	})
	return l
}

func (l *faultyLeadership) Lost() <-chan struct{} { return l.lost }

func (l *faultyLeadership) do(ctx context.Context, method string, call func() error) error {
	if isClosed(l.s.lost) {
		return registry.ErrNotLeader
	}
	return l.s.f.do(ctx, method, call)
}

func (l *faultyLeadership) PutVerdict(ctx context.Context, ref registry.BrokerRef, v registry.Verdict) error {
	return l.do(ctx, "PutVerdict", func() error { return l.inner.PutVerdict(ctx, ref, v) })
}

func (l *faultyLeadership) DeleteVerdict(ctx context.Context, ref registry.BrokerRef) error {
	return l.do(ctx, "DeleteVerdict", func() error { return l.inner.DeleteVerdict(ctx, ref) })
}

func (l *faultyLeadership) Resign(ctx context.Context) error {
	return l.do(ctx, "Resign", func() error { return l.inner.Resign(ctx) })
}
