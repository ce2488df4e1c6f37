package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// An edge's registration hangs on its session's lease, and the lease is what tells one life of an edge from another.
//
// A process that joins for the first time takes its id over from whatever life had it: that is what a restarted edge
// needs, whose former lease may have seconds to run. It moves the registration to its own lease first, so that the edge is
// never seen to go, and then revokes the other lease, and with it the other's reports and leadership.
//
// Two edges with one id by mistake would so take turns for ever. Therefore one whose lease was taken away looks before it
// joins again: a lease that is being kept alive is another edge's, and Join says ErrEdgeInUse; one that only runs down is
// a dead one's.
const (
	// stale is what a lease that is kept alive (every third of its time) never has so little left of.
	stale = registry.SessionTTL / 2
	// lookEvery is how often Join looks whether a lease is kept alive, while that is not clear.
	lookEvery = 500 * time.Millisecond
)

// session is an edge's presence. It implements registry.Session.
type session struct {
	store *Store
	cli   *clientv3.Client
	edge  registry.Edge
	lease clientv3.LeaseID

	keeper clientv3.Lease     // keeps this lease alive and no other
	stop   context.CancelFunc // ends the keep-alive
	kept   chan struct{}      // closed when keep has returned

	ctx context.Context         // ends when the lease is gone
	end context.CancelCauseFunc // with registry.ErrSessionLost

	mu   sync.Mutex
	left bool        // by Close; guarded by mu, as is lead
	lead *leadership // the last one that was won
}

// Join registers an edge; see above for an id that is taken. The session keeps itself alive until it, or the store, is closed.
func (s *Store) Join(ctx context.Context, e registry.Edge) (registry.Session, error) {
	if err := registry.CheckName("an edge", e.ID); err != nil {
		return nil, err
	}
	c, err := s.writer(ctx)
	if err != nil {
		return nil, err
	}
	grant, err := c.Grant(ctx, int64(registry.SessionTTL/time.Second))
	if err != nil {
		return nil, s.reach.failure("join", err)
	}
	if err := s.register(ctx, c, e, grant.ID); err != nil {
		if ctx.Err() == nil {
			_, _ = c.Revoke(ctx, grant.ID) // it would run out by itself
		}
		return nil, err
	}
	ses := &session{
		store: s, cli: c, edge: e, lease: grant.ID, kept: make(chan struct{}),
		keeper: clientv3.NewLeaseFromLeaseClient(clientv3.RetryLeaseClient(c), c, registry.SessionTTL),
	}
	ses.ctx, ses.end = context.WithCancelCause(context.Background())
	keeping, stop := context.WithCancel(s.ctx)
	ses.stop = stop
	alive, err := ses.keeper.KeepAlive(keeping, ses.lease)
	if err != nil {
		stop()
		return nil, errors.Join(s.reach.failure("join", err), ses.keeper.Close())
	}
	if !s.start(func() { ses.keep(alive) }) {
		stop()
		return nil, errors.Join(unavailable("join", errors.New("closed")), ses.keeper.Close())
	}
	return ses, nil
}

// register puts the edge's key on a lease.
func (s *Store) register(ctx context.Context, c *clientv3.Client, e registry.Edge, lease clientv3.LeaseID) error {
	key := s.keys.edge(e.ID)
	put := clientv3.OpPut(key, string(wire.AppendEdge(nil, e)), clientv3.WithLease(lease))
	guard := int64(0)
	for {
		res, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", guard)).Then(put).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return s.reach.failure("join", err)
		}
		if res.Succeeded {
			break
		}
		guard = 0
		kvs := res.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			continue // it went this moment
		}
		former := clientv3.LeaseID(kvs[0].Lease)
		if err := s.mayTake(ctx, c, e.ID, former); err != nil {
			return err
		}
		res, err = c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision)).Then(put).Commit()
		if err != nil {
			return s.reach.failure("join", err)
		}
		if !res.Succeeded {
			continue // somebody was quicker, perhaps the former edge, leaving
		}
		if _, err := c.Revoke(ctx, former); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return s.reach.failure("join", err)
		}
		break
	}
	s.mu.Lock()
	delete(s.lives, e.ID)
	s.mu.Unlock()
	return nil
}

// mayTake decides whether an edge may take its id over from the life that hangs on a lease.
func (s *Store) mayTake(ctx context.Context, c *clientv3.Client, id string, former clientv3.LeaseID) error {
	s.mu.Lock()
	lives := s.lives[id]
	s.mu.Unlock()
	if len(lives) == 0 || slices.Contains(lives, former) {
		return nil // we just started; or it is what is left of our own life
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for before := int64(-1); ; {
		res, err := c.TimeToLive(ctx, former)
		if err != nil {
			return s.reach.failure("join", err)
		}
		switch {
		case time.Duration(res.TTL)*time.Second < stale:
			return nil
		case before >= 0 && res.TTL > before:
			return fmt.Errorf("%w: %s", ErrEdgeInUse, id)
		}
		before = res.TTL
		select {
		case <-look.C:
		case <-ctx.Done():
			return unavailable("join", ctx.Err())
		}
	}
}

// keep consumes the answers to the keep-alives until the lease is gone, or the session is left.
func (s *session) keep(alive <-chan *clientv3.LeaseKeepAliveResponse) {
	defer close(s.kept)
	for range alive {
	}
	s.stop()
	_ = s.keeper.Close() // that it was cancelled, which it was
	s.end(registry.ErrSessionLost)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left || s.store.ctx.Err() != nil {
		return
	}
	s.store.mu.Lock()
	s.store.lives[s.edge.ID] = append(s.store.lives[s.edge.ID], s.lease)
	s.store.mu.Unlock()
	s.store.log.Warn().Str("edge", s.edge.ID).Msg("the edge's lease is gone: etcd was out of reach for too long, or another edge has the same id")
}

func (s *session) Lost() <-chan struct{} { return s.ctx.Done() }

// Report stores this edge's view of the brokers.
func (s *session) Report(ctx context.Context, h registry.Health) error {
	if s.ctx.Err() != nil {
		return registry.ErrSessionLost
	}
	_, err := s.cli.Put(ctx, s.store.keys.health(s.edge.ID), string(wire.AppendHealth(nil, h)), clientv3.WithLease(s.lease))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.end(registry.ErrSessionLost)
		return registry.ErrSessionLost
	}
	return s.store.reach.failure("report", err)
}

// Close leaves in order. A session that is lost has nothing to leave.
func (s *session) Close(ctx context.Context) error {
	s.mu.Lock()
	done := s.left || s.ctx.Err() != nil
	s.left = true
	s.mu.Unlock()
	if done {
		return nil
	}
	err := s.leave(ctx)
	s.stop()
	<-s.kept
	return err
}

func (s *session) leave(ctx context.Context) error {
	e := s.edge
	e.Leaving = true
	key := s.store.keys.edge(e.ID)
	// Where another life of the edge has taken over, the key is no longer ours.
	_, err := s.cli.Txn(ctx).
		If(clientv3.Compare(clientv3.LeaseValue(key), "=", s.lease)).
		Then(clientv3.OpPut(key, string(wire.AppendEdge(nil, e)), clientv3.WithLease(s.lease))).
		Commit()
	if err == nil {
		_, err = s.cli.Revoke(ctx, s.lease)
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return s.store.reach.failure("leave", err)
}
