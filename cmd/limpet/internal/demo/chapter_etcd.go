package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

const (
	// newcomers are clients that the mesh meets while etcd is away.
	newcomers = 6
	// blindAfter: edges whose watch was silent for longer than 3 s count the store as gone, and whoever leads waits a
	// session's time again, once it is back, before it speaks of a broker as down. We are careful.
	blindAfter = 2500 * time.Millisecond
)

// withoutEtcd: the store is stopped and comes back.
func (s *story) withoutEtcd(ctx context.Context) error {
	s.chapter("Without etcd", "etcd keeps who belongs where. It is stopped; the edges know enough to go on.")
	talk := s.claim("etcd away: connected clients exchange messages")
	known := s.claim("etcd away: known clients come home by another edge")
	fresh := s.claim("etcd away: new clients get in, at one broker by all edges")
	written := s.claim("etcd back: the records of the new clients are written")

	stopped := time.Now()
	s.mesh.etcd.stop()
	s.done(stopped, "etcd is stopped (SIGTERM).")

	began := time.Now()
	there := s.connected()
	each(there, func(i int, a *actor) {
		next := there[(i+1)%len(there)]
		err := a.tell(ctx, next, "from "+a.id)
		if err == nil {
			err = next.hear(ctx, "from "+a.id)
		}
		talk.prove(a.id+" to "+next.id, err)
	})
	each(there[:(len(there)+2)/3], func(_ int, a *actor) {
		a.leave()
		known.prove(a.id, a.comeHome(ctx, elsewhere(a.where())))
	})
	added := make([]*actor, newcomers)
	for i := range added {
		added[i] = s.actor(fmt.Sprintf("n%02d", i+1), [...]byte{mqtt311, mqtt5}[i%2], false)
	}
	each(added, func(_ int, a *actor) { fresh.prove(a.id, s.meet(ctx, a)) })
	s.cast = append(s.cast, added...)
	s.done(began, "%d messages from client to client, %d homecomings, %d newcomers.", len(there), known.cases, len(added))

	began = time.Now()
	if err := s.mesh.etcd.run(ctx); err != nil {
		return err
	}
	if err := awaitAll(ctx, s.mesh.edges[:]); err != nil {
		return err
	}
	if time.Since(stopped) > blindAfter {
		s.judge = time.Now().Add(registry.SessionTTL)
	}
	s.done(began, "etcd is back, and every edge with it.")
	if err := s.records(ctx, added, written); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, c := range []*claim{talk, known, fresh, written} {
		s.verdict(c)
	}
	return nil
}

// meet connects a new client twice, by two edges: it must be at the same broker.
func (s *story) meet(ctx context.Context, a *actor) error {
	at := anywhere()
	if _, err := a.come(ctx, at); err != nil {
		return err
	}
	if err := a.settle(ctx); err != nil {
		return err
	}
	a.leave()
	return a.comeHome(ctx, elsewhere(at))
}

// records waits for the clients' records in etcd, and reads them.
func (s *story) records(ctx context.Context, actors []*actor, c *claim) error {
	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{s.mesh.etcdURL()}, Mesh: meshName, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	each(actors, func(_ int, a *actor) { c.prove(a.id, recorded(ctx, store, a)) })
	return store.Close()
}

// recorded waits until etcd says of a client what is true.
func recorded(ctx context.Context, store registry.Store, a *actor) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		record, err := store.Get(ctx, poolName, a.id)
		if err == nil && record.Broker == a.broker() {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("etcd says broker %q, it is on %s", record.Broker, a.broker())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}
