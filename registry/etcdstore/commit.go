package etcdstore

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// A batch is one transaction, whose operations are one small transaction for each write:
//
//	if   the record's mod revision is the guard, and each fact's is what the writer saw
//	then put or delete the record
//	else read the record
//
// so each write succeeds or fails by itself, and a refused one is told what stands instead. etcd counts the operations
// of a transaction together with the largest number of comparisons of one nested in it, so facts make a batch shorter:
// one that does not fit is cut into several.
const (
	maxTxnOps = registry.MaxCommit + 1 // etcd's default --max-txn-ops
	maxFacts  = maxTxnOps - 2          // of one write: itself, and the comparison of its record
	maxBytes  = 1 << 20                // etcd's default --max-request-bytes is half as much again
)

// Get reads one affinity, past every cache and every member of the cluster that lags behind.
// A record that does not read is counted, and is as good as absent, but for its Revision: that is the Guard to replace it with.
func (s *Store) Get(ctx context.Context, pool, key string) (registry.Affinity, error) {
	if err := registry.CheckName("a pool", pool); err != nil {
		return registry.Affinity{}, err
	}
	c, err := s.client(ctx)
	if err != nil {
		return registry.Affinity{}, err
	}
	res, err := c.Get(ctx, s.keys.affinity(pool, key))
	if err != nil {
		return registry.Affinity{}, s.reach.failure("get", err)
	}
	return s.found((*clientv3.GetResponse)(res), key), nil
}

// found reads the one record of an answer.
func (s *Store) found(res *clientv3.GetResponse, key string) registry.Affinity {
	if len(res.Kvs) == 0 {
		return registry.Affinity{}
	}
	var d wire.Decoder
	a, raw, err := d.Affinity(res.Kvs[0].Value)
	if err == nil && raw != hidden(key) {
		err = errName
	}
	if err != nil {
		s.ignore(res.Kvs[0], err, false)
		a = registry.Affinity{}
	}
	a.Revision = res.Kvs[0].ModRevision
	return a
}

// Commit writes affinities, each guarded by its revision and its facts. A batch whose facts are many, or whose keys are
// long, is written in several transactions. A write has at most 126 facts.
func (s *Store) Commit(ctx context.Context, ws []registry.Write) ([]registry.Result, error) {
	if err := registry.CheckWrites(ws); err != nil {
		return nil, err
	}
	for i := range ws {
		if n := len(ws[i].Facts); n > maxFacts {
			return nil, fmt.Errorf("etcdstore: %d facts for key %.80q, at most %d fit a transaction", n, ws[i].Key, maxFacts)
		}
	}
	c, err := s.writer(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]registry.Result, 0, len(ws))
	for len(ws) > 0 {
		n := fit(ws)
		rs, err := s.transact(ctx, c, ws[:n])
		if err != nil {
			if len(results) > 0 { // what came before is written
				err = fmt.Errorf("%w: %w", registry.ErrUnavailable, err)
			}
			return nil, err
		}
		results = append(results, rs...)
		ws = ws[n:]
	}
	return results, nil
}

// fit returns how many of the writes, one at least, fit one transaction.
func fit(ws []registry.Write) int {
	compares, bytes := 0, 0
	for n := range ws {
		w := &ws[n]
		compares = max(compares, 1+len(w.Facts))
		bytes += size(w)
		if n > 0 && (n+1+compares > maxTxnOps || bytes > maxBytes) {
			return n
		}
	}
	return len(ws)
}

// size is about how many bytes a write takes in a request. Its key is there three times, and perhaps in the value.
func size(w *registry.Write) int {
	const frame, perFact = 256, 160
	a := &w.Affinity
	return frame + min(4*len(w.Key), 4*maxEscapedLen+len(w.Key)) + perFact*len(w.Facts) + len(a.Broker) + len(a.Home) + len(a.Writer) + len(a.Reason) + len(a.Extra)
}

// transact writes what fits one transaction. Where a lease has vanished (etcd was restored, or was away for long) it is
// granted anew, once.
func (s *Store) transact(ctx context.Context, c *clientv3.Client, ws []registry.Write) ([]registry.Result, error) {
	for again := false; ; again = true {
		ids := make([]int64, len(ws))
		for i := range ws {
			if !ws[i].Affinity.Present() {
				continue
			}
			var err error
			if ids[i], err = s.leases.acquire(ctx, ws[i].Lease); err != nil {
				return nil, err
			}
		}
		ops := make([]clientv3.Op, len(ws))
		for i := range ws {
			ops[i] = s.op(&ws[i], clientv3.LeaseID(ids[i]))
		}
		res, err := c.Txn(ctx).Then(ops...).Commit()
		if errors.Is(err, rpctypes.ErrLeaseNotFound) && !again {
			s.leases.lost(ids)
			continue
		}
		if err != nil {
			return nil, s.reach.failure("commit", err)
		}
		return s.results(ws, res), nil
	}
}

// op is one write as a nested transaction.
func (s *Store) op(w *registry.Write, lease clientv3.LeaseID) clientv3.Op {
	key := s.keys.affinity(w.Pool, w.Key)
	cmps := make([]clientv3.Cmp, 0, 1+len(w.Facts))
	cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", w.Guard))
	for _, f := range w.Facts {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(s.keys.fact(f)), "=", f.Revision))
	}
	then := clientv3.OpDelete(key)
	if w.Affinity.Present() {
		value := wire.AppendAffinity(make([]byte, 0, 64+len(w.Affinity.Extra)), w.Affinity, hidden(w.Key))
		then = clientv3.OpPut(key, string(value), clientv3.WithLease(lease))
	}
	return clientv3.OpTxn(cmps, []clientv3.Op{then}, []clientv3.Op{clientv3.OpGet(key)})
}

func (s *Store) results(ws []registry.Write, res *clientv3.TxnResponse) []registry.Result {
	results := make([]registry.Result, len(ws))
	for i, r := range res.Responses {
		txn := r.GetResponseTxn()
		results[i].Revision = res.Header.Revision
		if txn.Succeeded {
			results[i].Status = registry.Committed
			continue
		}
		found := s.found((*clientv3.GetResponse)(txn.Responses[0].GetResponseRange()), ws[i].Key)
		if found.Revision == ws[i].Guard {
			results[i].Status = registry.Stale // the record is as it should be, so it was a fact
		} else {
			results[i].Status, results[i].Found = registry.Conflict, found
		}
	}
	return results
}
