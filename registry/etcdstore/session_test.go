package etcdstore

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// holder returns the lease that an edge's registration hangs on.
func holder(t *testing.T, s *Store, raw *clientv3.Client, id string) clientv3.LeaseID {
	t.Helper()
	res, err := raw.Get(within(t), s.keys.edge(id))
	if err != nil || len(res.Kvs) != 1 {
		t.Fatalf("the registration of %s: %+v, %v", id, res, err)
	}
	return clientv3.LeaseID(res.Kvs[0].Lease)
}

func closed(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("not closed after %v: %s", patience, what)
	}
}

// Two edges with one id: the later takes over, the former is told and stays out as long as the later lives.
func TestOneIDOfTwoEdges(t *testing.T) {
	t.Parallel()
	mesh, raw := newMesh(), shared.raw(t)
	var log bytes.Buffer
	former := open(t, shared, mesh, func(c *Config) { c.Logger = zerolog.New(&log) })
	later := open(t, shared, mesh)
	first, err := former.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	lead, err := first.Campaign(within(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := later.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	held := holder(t, former, raw, "e1")
	if _, err := second.Campaign(within(t)); err != nil { // what the former life held is free at once
		t.Fatal(err)
	}
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	if err := lead.PutVerdict(within(t), ref, registry.Verdict{State: registry.BrokerDown}); !errors.Is(err, registry.ErrNotLeader) {
		t.Errorf("a verdict of the former leader: %v, want ErrNotLeader", err)
	}
	if err := first.Report(within(t), registry.Health{Seq: 1}); !errors.Is(err, registry.ErrSessionLost) {
		t.Errorf("a report of the former life: %v, want ErrSessionLost", err)
	}
	closed(t, "Lost of the former life", first.Lost())
	closed(t, "Lost of its leadership", lead.Lost())
	<-first.(*session).kept
	if !strings.Contains(log.String(), "another edge has the same id") || !strings.Contains(log.String(), `"edge":"e1"`) {
		t.Errorf("the log says %q", log.String())
	}
	if _, err := former.Join(within(t), registry.Edge{ID: "e1"}); !errors.Is(err, ErrEdgeInUse) || errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("joining again: %v, want ErrEdgeInUse", err)
	}
	if got := holder(t, former, raw, "e1"); got != held {
		t.Errorf("the registration moved from lease %x to %x", held, got)
	}
	if _, err := former.Join(within(t), registry.Edge{ID: "e2"}); err != nil {
		t.Errorf("joining with an id of its own: %v", err)
	}
	if err := second.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := former.Join(within(t), registry.Edge{ID: "e1"}); err != nil {
		t.Errorf("joining after the other left: %v", err)
	}
}

// An edge that lost its lease joins again at once where its own remains are in the way, or a dead life's.
func TestJoinAgain(t *testing.T) {
	t.Parallel()
	s, raw := open(t, shared, newMesh()), shared.raw(t)
	put := func(ttl int64) clientv3.LeaseID {
		lease, err := raw.Grant(within(t), ttl)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Put(within(t), s.keys.edge("e1"), string(wire.AppendEdge(nil, registry.Edge{})), clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		return lease.ID
	}
	s.lives["e1"] = []clientv3.LeaseID{put(1000)}
	own, err := s.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatalf("over its own remains: %v", err)
	}
	if err := own.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	dead := put(4)
	s.lives["e1"] = []clientv3.LeaseID{dead + 1}
	again, err := s.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatalf("over a dead life's: %v", err)
	}
	if ttl, err := raw.TimeToLive(within(t), dead); err != nil || ttl.TTL != -1 {
		t.Errorf("the dead life's lease: %+v, %v; want it revoked", ttl, err)
	}
	if len(s.lives) != 0 {
		t.Errorf("former lives are remembered after a join: %v", s.lives)
	}
	if err := again.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if res, err := raw.Get(within(t), s.keys.edge("e1")); err != nil || len(res.Kvs) != 0 {
		t.Errorf("after the end: %+v, %v", res, err)
	}
}

// A candidate that may have won without being told takes that back, or finds it in its next campaign.
func TestUnnoticedWin(t *testing.T) {
	t.Parallel()
	s, raw := open(t, shared, newMesh()), shared.raw(t)
	joined, err := s.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	ses := joined.(*session)
	win := func() {
		if _, err := raw.Put(within(t), s.keys.leader(), string(wire.AppendLeader(nil, "e1")), clientv3.WithLease(ses.lease)); err != nil {
			t.Fatal(err)
		}
	}
	leads := func() bool {
		res, err := raw.Get(within(t), s.keys.leader())
		if err != nil {
			t.Fatal(err)
		}
		return len(res.Kvs) == 1
	}
	win()
	ses.withdraw()
	if leads() {
		t.Error("a win that was taken back stands")
	}
	win()
	lead, err := ses.Campaign(within(t))
	if err != nil {
		t.Fatal(err)
	}
	ses.withdraw() // of another campaign: this one was told
	if err := lead.PutVerdict(within(t), registry.BrokerRef{Pool: "p", Broker: "b"}, registry.Verdict{State: registry.BrokerUp}); err != nil {
		t.Errorf("the leader that found its win: %v", err)
	}
}
