package etcdstore

import (
	"context"
	"fmt"

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
	first := string(wire.AppendSchema(nil, wire.Schema{Version: schemaVersion, MinVersion: schemaVersion}))
	res, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, first)).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return nil, failure("schema", err)
	}
	if !res.Succeeded {
		for _, kv := range res.Responses[0].GetResponseRange().Kvs {
			if err := checkSchema(kv.Value); err != nil {
				return nil, err
			}
		}
	}
	s.written.Store(true)
	return c, nil
}

// checkSchema reports whether this program may use a store with that schema.
func checkSchema(value []byte) error {
	var d wire.Decoder
	schema, err := d.Schema(value)
	if err != nil {
		return fmt.Errorf("%w (its schema key does not read: %w)", ErrSchema, err)
	}
	if schema.MinVersion > schemaVersion {
		return fmt.Errorf("%w (its min_version is %d, this program's version %d)", ErrSchema, schema.MinVersion, schemaVersion)
	}
	return nil
}
