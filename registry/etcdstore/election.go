package etcdstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// One key is the election: it belongs to whoever creates it, and ends with his lease. Its create revision is the
// leadership's number: all that a leader writes is guarded by it. Those who wait watch for its end.

// lookAgain is how long a candidate waits for the end of the leader's key to be told, before it looks by itself:
// a watch may wait in vain where etcd was restored meanwhile. Up to twice as long, so that candidates do not look at once.
const lookAgain = 5 * time.Second

// leadership is a won election. It implements registry.Leadership.
type leadership struct {
	session  *session
	revision int64           // create revision of the election key
	ctx      context.Context // ends when the leadership does, with the session's at the latest
	end      context.CancelFunc
}

// Campaign blocks until this edge leads. It goes on while etcd is out of reach.
func (s *session) Campaign(ctx context.Context) (registry.Leadership, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(registry.ErrSessionLost) })()
	unsure := false // whether we lead without having been told
	for ctx.Err() == nil {
		l, held, err := s.stand(ctx)
		if l != nil {
			return l, nil
		}
		if unsure = err != nil; !unsure {
			s.await(ctx, held)
			continue
		}
		if !errors.Is(err, registry.ErrUnavailable) {
			return nil, err
		}
		pause(ctx, time.Second+rand.N(time.Second))
	}
	if unsure {
		s.withdraw()
	}
	return nil, context.Cause(ctx)
}

// stand tries to create the election key. It returns a leadership, or the revision at which somebody else has the key.
func (s *session) stand(ctx context.Context) (*leadership, int64, error) {
	key := s.store.keys.leader()
	res, err := s.cli.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, string(wire.AppendLeader(nil, s.edge.ID)), clientv3.WithLease(s.lease))).
		Else(clientv3.OpGet(key)).
		Commit()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.end(registry.ErrSessionLost)
		return nil, 0, registry.ErrSessionLost
	}
	if err != nil {
		return nil, 0, s.store.reach.failure("campaign", err)
	}
	revision := res.Header.Revision
	if !res.Succeeded {
		kvs := res.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].Lease != int64(s.lease) {
			return nil, revision, nil
		}
		revision = kvs[0].CreateRevision
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead != nil && s.lead.revision == revision && s.lead.ctx.Err() == nil {
		return nil, res.Header.Revision, nil // another campaign of this session won
	}
	// We won, now or in an earlier campaign whose answer never came.
	l := &leadership{session: s, revision: revision}
	l.ctx, l.end = context.WithCancel(s.ctx)
	s.lead = l
	return l, 0, nil
}

// await returns when the election key, which somebody had at a revision, may have ended.
func (s *session) await(ctx context.Context, held int64) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), lookAgain+rand.N(lookAgain))
	defer cancel()
	for res := range s.cli.Watch(ctx, s.store.keys.leader(), clientv3.WithRev(held+1), clientv3.WithFilterPut()) {
		if len(res.Events) > 0 {
			return
		}
	}
	pause(ctx, time.Second) // where the watch broke by itself: not so fast again
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// withdraw takes back a candidacy that may have won, unnoticed.
func (s *session) withdraw() {
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock() // no campaign of this session wins meanwhile
	if s.lead != nil && s.lead.ctx.Err() == nil {
		return
	}
	key := s.store.keys.leader()
	// Where this fails the key ends with the session, or this session's next campaign finds it.
	_, _ = s.cli.Txn(ctx).If(clientv3.Compare(clientv3.LeaseValue(key), "=", s.lease)).Then(clientv3.OpDelete(key)).Commit()
}

func (l *leadership) Lost() <-chan struct{} { return l.ctx.Done() }

// PutVerdict writes a broker's verdict.
func (l *leadership) PutVerdict(ctx context.Context, ref registry.BrokerRef, v registry.Verdict) error {
	if err := registry.CheckRef(ref); err != nil {
		return err
	}
	return l.write(ctx, "put verdict", clientv3.OpPut(l.session.store.keys.verdict(ref), string(wire.AppendVerdict(nil, v))))
}

// DeleteVerdict removes a broker's verdict.
func (l *leadership) DeleteVerdict(ctx context.Context, ref registry.BrokerRef) error {
	if err := registry.CheckRef(ref); err != nil {
		return err
	}
	return l.write(ctx, "delete verdict", clientv3.OpDelete(l.session.store.keys.verdict(ref)))
}

// Resign gives the leadership up. Where etcd cannot be told, the key stays until its lease ends, or this session leads again.
func (l *leadership) Resign(ctx context.Context) error {
	err := l.write(ctx, "resign", clientv3.OpDelete(l.session.store.keys.leader()))
	l.end()
	if errors.Is(err, registry.ErrNotLeader) {
		return nil
	}
	return err
}

// write does op if this leadership stands.
func (l *leadership) write(ctx context.Context, doing string, op clientv3.Op) error {
	if l.ctx.Err() != nil {
		return registry.ErrNotLeader
	}
	key := l.session.store.keys.leader()
	res, err := l.session.cli.Txn(ctx).If(
		clientv3.Compare(clientv3.CreateRevision(key), "=", l.revision),
		clientv3.Compare(clientv3.LeaseValue(key), "=", l.session.lease),
	).Then(op).Commit()
	if err != nil {
		return l.session.store.reach.failure(doing, err)
	}
	if !res.Succeeded {
		l.end()
		return registry.ErrNotLeader
	}
	return nil
}
