package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// A reader turns keys and values into changes. It belongs to one watch.
type reader struct {
	store *Store
	cli   *clientv3.Client
	names wire.Decoder
}

// listed turns a part of a listing into changes. What does not read is counted and left out.
func (r *reader) listed(kvs []*mvccpb.KeyValue) ([]registry.Change, error) {
	changes := make([]registry.Change, 0, len(kvs))
	for _, kv := range kvs {
		p, ok := r.store.keys.parse(kv.Key, &r.names)
		if p.schema {
			if _, err := checkSchema(kv.Value); err != nil {
				return nil, err
			}
		}
		if ok && p.kind == 0 {
			continue
		}
		if !ok {
			r.store.ignore(kv, errForeign, false)
			continue
		}
		c := p.change(kv.ModRevision)
		if err := r.value(&c, p, kv.Value); err != nil {
			if c, ok = r.spoilt(p, kv, err); !ok {
				continue
			}
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// followed turns whole transactions into changes. What an operator or the leader wrote and does not read is told as that: no
// misreading undoes a word of theirs. Any other value that does not read ends what was there before: so a reader who saw that, and
// one who lists only now, know the same.
func (r *reader) followed(ctx context.Context, events []*clientv3.Event) ([]registry.Change, error) {
	changes := make([]registry.Change, 0, len(events))
	var nameless []ended
	for _, ev := range events {
		p, ok := r.store.keys.parse(ev.Kv.Key, &r.names)
		put := ev.Type == clientv3.EventTypePut
		if p.schema && put {
			if _, err := checkSchema(ev.Kv.Value); err != nil {
				return nil, err
			}
		}
		if ok && p.kind == 0 {
			continue
		}
		if !ok {
			if put {
				r.store.ignore(ev.Kv, errForeign, false)
			}
			continue
		}
		c := p.change(ev.Kv.ModRevision)
		c.Deleted = !put
		if put {
			if err := r.value(&c, p, ev.Kv.Value); err != nil {
				if c, ok = r.spoilt(p, ev.Kv, err); !ok {
					c.Deleted = true
				}
			}
		}
		if c.Deleted && p.kind == registry.KindPrune {
			continue // what was said was heard
		}
		if c.Deleted && p.hash != "" {
			nameless = append(nameless, ended{key: string(ev.Kv.Key), place: p, index: len(changes)})
		}
		changes = append(changes, c)
	}
	return r.named(ctx, changes, nameless)
}

// ended is a deletion whose key shows only a hash.
type ended struct {
	key   string
	place place
	index int // among the changes
}

// namesAtOnce is how many former values are asked for in one transaction. Each may hold a key of 64 KiB.
const namesAtOnce = 64

// named gives the deletions of hashed keys their names: the values before told them. History that is gone is ErrCompacted.
func (r *reader) named(ctx context.Context, changes []registry.Change, nameless []ended) ([]registry.Change, error) {
	if len(nameless) == 0 {
		return changes, nil
	}
	unnamed := make(map[int]bool)
	for len(nameless) > 0 {
		part := nameless[:min(namesAtOnce, len(nameless))]
		nameless = nameless[len(part):]
		ops := make([]clientv3.Op, len(part))
		for i, e := range part {
			ops[i] = clientv3.OpGet(e.key, clientv3.WithRev(changes[e.index].Revision-1))
		}
		ask, cancel := context.WithTimeout(ctx, answerTimeout)
		res, err := r.cli.Txn(ask).Then(ops...).Commit()
		cancel()
		if err != nil {
			return nil, r.store.watchFailure("read a former value", err)
		}
		for i, e := range part {
			c := &changes[e.index]
			former := e.place.change(0)
			kvs := res.Responses[i].GetResponseRange().Kvs
			if len(kvs) == 0 || r.value(&former, e.place, kvs[0].Value) != nil {
				unnamed[e.index] = true // there was nothing that anybody knows of
				continue
			}
			c.Name = former.Name
		}
	}
	kept := changes[:0]
	for i := range changes {
		if !unnamed[i] {
			kept = append(kept, changes[i])
		}
	}
	return kept, nil
}

// change is what a key alone says.
func (p place) change(revision int64) registry.Change {
	return registry.Change{Kind: p.kind, PoolName: p.pool, Name: p.name, Revision: revision}
}

// spoilt counts a value that does not read, and reports whether that is told (else nothing is): of what an operator or the leader
// wrote. Not of a pin whose key only the value would have named.
func (r *reader) spoilt(p place, kv *mvccpb.KeyValue, err error) (c registry.Change, told bool) {
	c = p.change(kv.ModRevision)
	switch p.kind {
	case registry.KindPool, registry.KindAdmin, registry.KindVerdict, registry.KindPin:
		if told = p.hash == ""; told {
			c.Unreadable = fmt.Sprintf("%s: %s", kv.Key, err)
		}
	}
	r.store.ignore(kv, err, told)
	return c, told
}

var (
	errForeign = errors.New("no limpet of this version writes such a key")
	errName    = errors.New("the value is about another key")
)

// value reads a value into its change.
func (r *reader) value(c *registry.Change, p place, v []byte) error {
	d := &r.names
	var raw string
	var err error
	switch p.kind {
	case registry.KindAffinity:
		c.Affinity, raw, err = d.Affinity(v)
		c.Affinity.Revision = c.Revision
	case registry.KindPin:
		c.Broker, raw, err = d.Pin(v)
	case registry.KindPool:
		if c.Pool, err = d.Pool(v); err == nil {
			c.Pool.Name, c.Pool.Revision = p.name, c.Revision
		}
	case registry.KindAdmin:
		c.Admin.State, err = d.Admin(v)
		c.Admin.Revision = c.Revision
	case registry.KindVerdict:
		c.Verdict, err = d.Verdict(v)
		c.Verdict.Revision = c.Revision
	case registry.KindEdge:
		c.Edge, err = d.Edge(v)
		c.Edge.ID = p.name
	case registry.KindHealth:
		c.Health, err = d.Health(v)
		c.Health.Edge = p.name
	case registry.KindLeader:
		c.Name, err = d.Leader(v)
	case registry.KindPrune:
		err = d.Prune(v)
	default:
		err = fmt.Errorf("etcdstore: kind %d", p.kind)
	}
	switch {
	case err != nil:
		return err
	case p.hash != "":
		if c.Name = raw; escape(raw) != p.hash {
			return errName
		}
	case raw != "":
		return errName
	}
	return nil
}

// ignore counts what does not read, and tells of it: always if what was known before stands, else now and then.
func (s *Store) ignore(kv *mvccpb.KeyValue, err error, stands bool) {
	n, now := s.ignored.Add(1), time.Now().Unix()
	if told := s.told.Load(); !stands && (now-told < ignoredEvery || !s.told.CompareAndSwap(told, now)) {
		return
	}
	msg := "a key of the store does not read and is ignored: a later limpet wrote it, or no limpet"
	if stands {
		msg = "a key of the store does not read: what was known of it stands (where nothing was, no pool, no pin, no verdict, and a broker that drains); " +
			"a later limpet wrote it, or no limpet"
	}
	s.log.Warn().Err(err).Str("key", fmt.Sprintf("%.200q", kv.Key)).Int64("revision", kv.ModRevision).Uint64("so_far", n).Msg(msg)
}

// ignoredEvery is how often, in seconds, the log tells of keys that are ignored: strangers may have written many.
const ignoredEvery = 60
