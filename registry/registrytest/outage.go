package registrytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// calls is every call that asks the server once.
var calls = []struct {
	name string
	do   func(ctx context.Context, s registry.Store) error
}{
	{"Get", func(ctx context.Context, s registry.Store) error {
		_, err := s.Get(ctx, "p", "k")
		return err
	}},
	{"Commit", func(ctx context.Context, s registry.Store) error {
		_, err := s.Commit(ctx, []registry.Write{create("k", "b1")})
		return err
	}},
	{"Join", func(ctx context.Context, s registry.Store) error {
		_, err := s.Join(ctx, registry.Edge{ID: "e9"})
		return err
	}},
	{"PutPool", func(ctx context.Context, s registry.Store) error {
		return s.PutPool(ctx, &registry.Pool{Name: "p"}, 0)
	}},
	{"DeletePool", func(ctx context.Context, s registry.Store) error {
		return s.DeletePool(ctx, "p", 1)
	}},
	{"SetAdmin", func(ctx context.Context, s registry.Store) error {
		return s.SetAdmin(ctx, registry.BrokerRef{Pool: "p", Broker: "b1"}, registry.AdminOut)
	}},
	{"Prune", func(ctx context.Context, s registry.Store) error { return s.Prune(ctx) }},
	{"SetPin", func(ctx context.Context, s registry.Store) error {
		return s.SetPin(ctx, registry.PinRef{Pool: "p", Key: "k"}, "b1")
	}},
}

func testClosed(t *testing.T, fx Fixture) {
	s := fx.Open(t)
	r := record(t, s, 0)
	r.isListed(t)
	s.Close()
	closed(t, "the end of a watch whose store was closed", r.ended)
	if err := r.stop(); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("a watch whose store was closed: %v, want ErrUnavailable", err)
	}
	for _, c := range calls {
		if err := c.do(within(t), s); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s of a closed store: %v, want ErrUnavailable", c.name, err)
		}
	}
	if err := s.Watch(within(t), 0, func(registry.Batch) error { return nil }); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Watch of a closed store: %v, want ErrUnavailable", err)
	}
	s.Close()
}

// stop stops the server, and has it started again by the test's end at the latest, or by start.
func stop(t *testing.T, fx Fixture) (start func()) {
	t.Helper()
	fx.Stop(t)
	stopped := true
	start = func() {
		if stopped {
			stopped = false
			fx.Start(t)
		}
	}
	t.Cleanup(start)
	return start
}

// Without its server a store says so, no later than it is asked to; and it finds the server again.
func testUnavailable(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	r.isListed(t)
	commitOne(t, s, create("before", "b1"), registry.Committed)
	start := stop(t, fx)
	const deadline = 300 * time.Millisecond
	for _, c := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		asked := time.Now()
		err := c.do(ctx, s)
		cancel()
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s without a server: %v, want ErrUnavailable", c.name, err)
		}
		if took := time.Since(asked); took > deadline+patience/4 {
			t.Errorf("%s without a server took %v, with a deadline of %v", c.name, took, deadline)
		}
	}
	closed(t, "the end of a watch without a server", r.ended)
	if err := r.stop(); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("a watch without a server: %v, want ErrUnavailable", err)
	}
	start()
	eventually(t, "the record that was there before", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a, err := s.Get(ctx, "p", "before")
		return err == nil && a.Broker == "b1"
	})
}

// A server that comes back in time finds its sessions, its leader and its watchers' place in history. A machine that is busy may not bring it
// back in time: then it is tried again.
func testRestart(t *testing.T, fx Fixture) {
	for i := range 4 {
		if restartedInTime(t, fx, fmt.Sprintf("e%d", i), fmt.Sprintf("kept %d", i)) {
			return
		}
		t.Logf("the server was away for too long for a session of %v", registry.SessionTTL)
	}
	t.Error("the server never came back in time")
}

// restartedInTime reports false, and nothing else, where the outage took so long that the session may be lost.
func restartedInTime(t *testing.T, fx Fixture, edge, key string) bool {
	s := client(t, fx)
	r := record(t, s, 0)
	from := r.isListed(t)
	ses := join(t, s, edge)
	lead := campaign(t, ses)
	kept := commitOne(t, s, create(key, "b1"), registry.Committed)
	r.reaches(t, kept.Revision)
	began := time.Now()
	start := stop(t, fx)
	closed(t, "the end of a watch without a server", r.ended)
	start()

	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	lost := false
	eventually(t, "a verdict of the same leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := lead.PutVerdict(ctx, ref, registry.Verdict{State: registry.BrokerDown})
		if lost = errors.Is(err, registry.ErrNotLeader) && time.Since(began) > registry.SessionTTL/2; lost {
			return true
		}
		if err != nil && !errors.Is(err, registry.ErrUnavailable) {
			t.Fatalf("a verdict %v after the server was stopped: %v", time.Since(began), err)
		}
		return err == nil
	})
	if lost {
		_ = ses.Close(t.Context())
		return false
	}
	if isClosed(ses.Lost()) || isClosed(lead.Lost()) {
		t.Error("the session or its leadership did not outlive a short restart")
	}
	resumed := record(t, s, from)
	resumed.until(t, "everything since the listing, from before and after the restart", func(v view) bool {
		return v.record(key).Revision == kept.Revision && v.Edges[edge].ID == edge && v.Verdicts[ref].State == registry.BrokerDown
	})
	commitOne(t, s, replace(key, "b2", kept.Revision), registry.Committed)
	resumed.until(t, "what is new", func(v view) bool { return v.record(key).Broker == "b2" })
	return true
}
