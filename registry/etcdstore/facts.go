package etcdstore

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// PutPool creates or replaces a pool's configuration.
func (s *Store) PutPool(ctx context.Context, p *registry.Pool, guard int64) error {
	if err := registry.CheckName("a pool", p.Name); err != nil {
		return err
	}
	for i := range p.Brokers {
		if err := registry.CheckName("a broker", p.Brokers[i].ID); err != nil {
			return err
		}
	}
	value := wire.AppendPool(nil, p)
	var d wire.Decoder
	if _, err := d.Pool(value); err != nil { // what no edge could read is not written
		return fmt.Errorf("etcdstore: pool %s: a broker's ID is there twice, or its weight is negative", p.Name)
	}
	key := s.keys.pool(p.Name)
	return s.guarded(ctx, "put pool "+p.Name, key, guard, clientv3.OpPut(key, string(value)))
}

// DeletePool removes a pool's configuration. Its records stay until they run out.
func (s *Store) DeletePool(ctx context.Context, name string, guard int64) error {
	if err := registry.CheckName("a pool", name); err != nil {
		return err
	}
	key := s.keys.pool(name)
	return s.guarded(ctx, "delete pool "+name, key, guard, clientv3.OpDelete(key))
}

// Prune says that there are no other pools than those that are stored: its key is written anew, whatever it held.
func (s *Store) Prune(ctx context.Context) error {
	return s.do(ctx, "prune", clientv3.OpPut(s.keys.prune(), string(wire.AppendPrune(nil))))
}

// guarded does op if the key is at revision guard.
func (s *Store) guarded(ctx context.Context, doing, key string, guard int64, op clientv3.Op) error {
	c, err := s.writer(ctx)
	if err != nil {
		return err
	}
	res, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", guard)).Then(op).Commit()
	if err != nil {
		return s.reach.failure(doing, err)
	}
	if !res.Succeeded {
		return fmt.Errorf("%w: %s: it is not at revision %d", registry.ErrConflict, doing, guard)
	}
	return nil
}

// SetAdmin records what the operator wants of a broker.
func (s *Store) SetAdmin(ctx context.Context, ref registry.BrokerRef, state registry.AdminState) error {
	if err := registry.CheckRef(ref); err != nil {
		return err
	}
	if err := registry.CheckAdmin(state); err != nil {
		return err
	}
	op := clientv3.OpDelete(s.keys.admin(ref))
	if state != "" {
		op = clientv3.OpPut(s.keys.admin(ref), string(wire.AppendAdmin(nil, state)))
	}
	return s.do(ctx, "set admin state", op)
}

// SetPin ties a key to a broker.
func (s *Store) SetPin(ctx context.Context, ref registry.PinRef, broker string) error {
	if err := registry.CheckName("a pool", ref.Pool); err != nil {
		return err
	}
	key := s.keys.pin(ref.Pool, ref.Key)
	op := clientv3.OpDelete(key)
	if broker != "" {
		op = clientv3.OpPut(key, string(wire.AppendPin(nil, broker, hidden(ref.Key))))
	}
	return s.do(ctx, "set pin", op)
}

func (s *Store) do(ctx context.Context, doing string, op clientv3.Op) error {
	c, err := s.writer(ctx)
	if err != nil {
		return err
	}
	_, err = c.Do(ctx, op)
	return s.reach.failure(doing, err)
}
