package etcdstore

import (
	"context"
	"fmt"
	"math/rand/v2"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// schemaVersion is the version of keys and values that this program writes. A store says in its schema key what edges must
// understand; an operator raises min_version once no older edge is left.
const schemaVersion = 1

// writer returns the client for a write, having seen once that this program may write there.
func (s *Store) writer(ctx context.Context) (*clientv3.Client, error) {
	c, err := s.client(ctx)
	if err != nil || s.written.Load() {
		return c, err
	}
	key := s.keys.schema()
	first := string(wire.AppendSchema(nil, wire.Schema{Version: schemaVersion, MinVersion: schemaVersion, Store: rand.Uint64()}))
	res, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, first)).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return nil, s.reach.failure("schema", err)
	}
	if !res.Succeeded {
		for _, kv := range res.Responses[0].GetResponseRange().Kvs {
			if _, err := checkSchema(kv.Value); err != nil {
				return nil, err
			}
		}
	}
	s.written.Store(true)
	return c, nil
}

// checkSchema reads the schema of a store that this program may use.
func checkSchema(value []byte) (wire.Schema, error) {
	var d wire.Decoder
	schema, err := d.Schema(value)
	if err != nil {
		return schema, fmt.Errorf("%w (its schema key does not read: %w)", ErrSchema, err)
	}
	if schema.MinVersion > schemaVersion {
		return schema, fmt.Errorf("%w (its min_version is %d, this program's version %d)", ErrSchema, schema.MinVersion, schemaVersion)
	}
	return schema, nil
}

// An identity is what tells a store from one that took its place: another cluster, the same one wiped and started
// again, or restored from a backup. All of these may have the same address, and soon the same revisions.
type identity struct {
	cluster uint64 // etcd's cluster ID: a hash of the configuration it was first started with
	store   uint64 // the number in our schema key; 0: not written yet
	term    uint64 // the number of elections: it never goes back, but starts anew in a backup that was restored
}

// replaces reports whether a store is not the one that it was before, and why.
func (now identity) replaces(before identity) (why string, yes bool) {
	switch {
	case before == identity{}:
		return "", false
	case now.cluster != before.cluster:
		return fmt.Sprintf("cluster %x, before it was %x", now.cluster, before.cluster), true
	case before.store != 0 && now.store != before.store:
		return fmt.Sprintf("store %x, before it was %x", now.store, before.store), true
	case now.term < before.term:
		return fmt.Sprintf("in term %d, before it was in term %d", now.term, before.term), true
	}
	return "", false
}
