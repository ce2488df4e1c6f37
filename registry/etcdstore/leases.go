package etcdstore

import (
	"context"
	"sync"
	"time"
)

// leases grants the bucket leases of this client, when they are needed and one at a time.
type leases struct {
	grant    func(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error)
	granting chan struct{} // holds one token while a lease is granted

	mu      sync.Mutex
	buckets buckets // guarded by mu
}

// acquire returns the lease for a record that must last so long; 0 (none) if for ever.
func (l *leases) acquire(ctx context.Context, want time.Duration) (int64, error) {
	if want == 0 {
		return 0, nil
	}
	want = min(want, maxWant)
	if id, ok := l.take(want); ok {
		return id, nil
	}
	select {
	case l.granting <- struct{}{}:
		defer func() { <-l.granting }()
	case <-ctx.Done():
		return 0, unavailable("lease", ctx.Err())
	}
	if id, ok := l.take(want); ok { // the one before us was granted one that serves
		return id, nil
	}
	asked := time.Now() // etcd counts from later on
	id, granted, err := l.grant(ctx, lifetime(want))
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.buckets.add(id, asked.Add(granted))
	l.mu.Unlock()
	if id, ok := l.take(want); ok {
		return id, nil
	}
	return id, nil // the grant took so long, or etcd's shortest lease is so long, that it serves this one only
}

func (l *leases) take(want time.Duration) (int64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buckets.take(time.Now(), want)
}

// lost forgets leases that etcd does not know.
func (l *leases) lost(ids []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buckets.drop(ids)
}

// grant asks etcd for a lease.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error) {
	c, err := s.client(ctx)
	if err != nil {
		return 0, 0, err
	}
	res, err := c.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, 0, s.reach.failure("grant a lease", err)
	}
	return int64(res.ID), time.Duration(res.TTL) * time.Second, nil
}
