package registry

import (
	"context"
	"fmt"
	"slices"
)

func (c *memoryClient) Get(ctx context.Context, pool, key string) (Affinity, error) {
	if err := c.enter(ctx); err != nil {
		return Affinity{}, err
	}
	defer c.mem.mu.Unlock()
	if err := CheckName("a pool", pool); err != nil {
		return Affinity{}, err
	}
	if r := c.mem.record(pool, key); r != nil {
		return r.value.Affinity(), nil
	}
	return Affinity{}, nil
}

func (c *memoryClient) Commit(ctx context.Context, ws []Write) ([]Result, error) {
	if err := CheckWrites(ws); err != nil {
		return nil, err
	}
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	m := c.mem
	defer m.mu.Unlock()
	results := make([]Result, len(ws))
	var events []memoryEvent
	for i := range ws {
		w := &ws[i]
		var found Record
		r := m.record(w.Pool, w.Key)
		if r != nil {
			found = r.value
		}
		switch {
		case found.Revision != w.Guard:
			results[i] = Result{Status: Conflict, Revision: m.revision, Found: found.Affinity()}
		case !m.stand(w.Facts):
			results[i] = Result{Status: Stale, Revision: m.revision}
		case w.Affinity.Present():
			results[i] = Result{Status: Committed, Revision: m.revision + 1}
			events = append(events, memoryEvent{record: m.putRecord(w.Pool, w.Key, w.Affinity, w.Lease)})
		case r != nil:
			results[i] = Result{Status: Committed, Revision: m.revision + 1}
			events = append(events, m.deleteRecord(r))
		default: // nothing to delete, as the writer thought
			results[i] = Result{Status: Committed, Revision: m.revision}
		}
	}
	if len(events) > 0 {
		m.advance(events...)
		m.armExpiry()
	}
	return results, nil
}

// stand reports whether all facts are as they are said to be. m.mu is held.
func (m *Memory) stand(facts []Fact) bool {
	for _, f := range facts {
		var revision int64
		switch f.Kind {
		case KindPool:
			if p := m.pools[f.Pool]; p != nil {
				revision = p.Revision
			}
		case KindAdmin:
			revision = m.admin[BrokerRef{f.Pool, f.Name}].Revision
		case KindVerdict:
			revision = m.verdicts[BrokerRef{f.Pool, f.Name}].Revision
		}
		if revision != f.Revision {
			return false
		}
	}
	return true
}

func (c *memoryClient) PutPool(ctx context.Context, p *Pool, guard int64) error {
	if err := CheckName("a pool", p.Name); err != nil {
		return err
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	m := c.mem
	defer m.mu.Unlock()
	if err := m.poolGuard(p.Name, guard); err != nil {
		return err
	}
	stored := *p
	stored.Brokers = slices.Clone(p.Brokers)
	m.pools[p.Name] = &stored
	m.publish(Change{Kind: KindPool, Name: p.Name, Pool: &stored})
	return nil
}

func (c *memoryClient) DeletePool(ctx context.Context, name string, guard int64) error {
	if err := CheckName("a pool", name); err != nil {
		return err
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	m := c.mem
	defer m.mu.Unlock()
	if err := m.poolGuard(name, guard); err != nil {
		return err
	}
	if m.pools[name] != nil {
		delete(m.pools, name)
		m.publish(Change{Kind: KindPool, Name: name, Deleted: true})
	}
	return nil
}

func (c *memoryClient) Prune(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.mem.mu.Unlock()
	c.mem.publish(Change{Kind: KindPrune})
	c.mem.pruned = c.mem.revision
	return nil
}

func (m *Memory) poolGuard(name string, guard int64) error {
	var revision int64
	if p := m.pools[name]; p != nil {
		revision = p.Revision
	}
	if revision != guard {
		return fmt.Errorf("%w: pool %s is at revision %d, not %d", ErrConflict, name, revision, guard)
	}
	return nil
}

func (c *memoryClient) SetAdmin(ctx context.Context, ref BrokerRef, s AdminState) error {
	if err := CheckRef(ref); err != nil {
		return err
	}
	if err := CheckAdmin(s); err != nil {
		return err
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	m := c.mem
	defer m.mu.Unlock()
	change := Change{Kind: KindAdmin, PoolName: ref.Pool, Name: ref.Broker, Admin: Admin{State: s}}
	if s != "" {
		m.admin[ref] = Admin{State: s, Revision: m.revision + 1}
	} else {
		if _, ok := m.admin[ref]; !ok {
			return nil
		}
		delete(m.admin, ref)
		change.Deleted = true
	}
	m.publish(change)
	return nil
}

func (c *memoryClient) SetPin(ctx context.Context, ref PinRef, broker string) error {
	if err := CheckName("a pool", ref.Pool); err != nil {
		return err
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	m := c.mem
	defer m.mu.Unlock()
	change := Change{Kind: KindPin, PoolName: ref.Pool, Name: ref.Key, Broker: broker}
	if broker != "" {
		m.pins[ref] = memoryPin{broker, m.revision + 1}
	} else {
		if _, ok := m.pins[ref]; !ok {
			return nil
		}
		delete(m.pins, ref)
		change.Deleted = true
	}
	m.publish(change)
	return nil
}
