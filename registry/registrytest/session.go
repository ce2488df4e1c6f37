package registrytest

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// join registers an edge that the test's end takes away.
func join(t *testing.T, s registry.Store, id string) registry.Session {
	t.Helper()
	return joinEdge(t, s, registry.Edge{ID: id})
}

func joinEdge(t *testing.T, s registry.Store, e registry.Edge) registry.Session {
	t.Helper()
	ses, err := s.Join(within(t), e)
	if err != nil {
		t.Fatalf("Join(%s): %v", e.ID, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = ses.Close(ctx) // where the test has not closed it, or could not
	})
	return ses
}

// campaign expects to win soon.
func campaign(t *testing.T, ses registry.Session) registry.Leadership {
	t.Helper()
	lead, err := ses.Campaign(within(t))
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	return lead
}

// closed waits for a channel that is closed soon.
func closed(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience + registry.SessionTTL):
		t.Fatalf("not closed after %v: %s", patience+registry.SessionTTL, what)
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func testJoinAndLeave(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	r := record(t, other, 0)
	e := registry.Edge{ID: "e1", Admin: "127.0.0.1:9883", Version: "v1.2.3", Started: time.Now().Truncate(time.Second)}
	ses := joinEdge(t, s, e)
	join(t, other, "e2")
	r.until(t, "both edges", func(v view) bool {
		got := v.Edges["e1"]
		return len(v.Edges) == 2 && got.ID == "e1" && got.Admin == e.Admin && got.Version == e.Version && got.Started.Equal(e.Started) && !got.Leaving
	})
	if err := ses.Report(within(t), registry.Health{Edge: "e1", Seq: 1}); err != nil {
		t.Fatal(err)
	}
	r.until(t, "its report", func(v view) bool { return v.Health["e1"].Seq == 1 })
	if isClosed(ses.Lost()) {
		t.Error("Lost is closed while the session stands")
	}
	if err := ses.Close(within(t)); err != nil {
		t.Fatalf("Close: %v", err)
	}
	closed(t, "Lost after Close", ses.Lost())
	r.until(t, "its end", func(v view) bool { return len(v.Edges) == 1 && len(v.Health) == 0 })
	leaving := false
	r.until(t, "its changes", func(v view) bool {
		for _, c := range v.seen {
			if c.Kind == registry.KindEdge && c.Name == "e1" {
				leaving = leaving || c.Edge.Leaving
				if c.Deleted && !leaving {
					t.Error("an edge that left in order was deleted before it was marked Leaving")
				}
			}
		}
		return true
	})
	if err := ses.Report(within(t), registry.Health{Edge: "e1", Seq: 2}); !errors.Is(err, registry.ErrSessionLost) {
		t.Errorf("Report after Close: %v, want ErrSessionLost", err)
	}
	if _, err := ses.Campaign(within(t)); !errors.Is(err, registry.ErrSessionLost) {
		t.Errorf("Campaign after Close: %v, want ErrSessionLost", err)
	}
	r.until(t, "nothing of it again", func(v view) bool { return len(v.Health) == 0 && v.Leader == "" })
	join(t, s, "e1")
	r.until(t, "the edge back", func(v view) bool { return v.Edges["e1"].ID == "e1" && !v.Edges["e1"].Leaving })
}

// An edge that was restarted joins while its former life's lease still runs: the end of that life is not its own.
func testJoinTwice(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	r := record(t, other, 0)
	started := time.Now().Truncate(time.Second)
	former := joinEdge(t, s, registry.Edge{ID: "e1", Version: "former", Started: started})
	if err := former.Report(within(t), registry.Health{Edge: "e1", Seq: 9}); err != nil {
		t.Fatal(err)
	}
	later := joinEdge(t, other, registry.Edge{ID: "e1", Version: "later", Started: started.Add(time.Minute)})
	if err := later.Report(within(t), registry.Health{Edge: "e1", Seq: 1}); err != nil {
		t.Fatal(err)
	}
	if err := former.Close(within(t)); err != nil {
		t.Errorf("closing a session whose edge joined again: %v", err)
	}
	if err := other.SetAdmin(within(t), registry.BrokerRef{Pool: "p", Broker: "b1"}, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	r.until(t, "what came after the former life's end", func(v view) bool { return len(v.Admin) == 1 })
	r.until(t, "the later registration and its report", func(v view) bool {
		if got := v.Edges["e1"]; got.Version != "later" || got.Leaving || v.Health["e1"].Seq != 1 {
			t.Errorf("after the former session's end: %+v, report %d", got, v.Health["e1"].Seq)
		}
		return true
	})
}

func testReport(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, client(t, fx), 0)
	ses := join(t, s, "e1")
	now := time.Now().Truncate(time.Second)
	h := registry.Health{Edge: "e1", Seq: 3, Brokers: map[registry.BrokerRef]registry.Report{
		{Pool: "p", Broker: "b1"}: {Up: true, Since: now},
		{Pool: "p", Broker: "b2"}: {Since: now.Add(-time.Hour), Reason: "connection refused"},
		{Pool: "q", Broker: "b1"}: {Up: true, Since: now},
	}}
	if err := ses.Report(within(t), h); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the report", func(v view) bool {
		got, ok := v.Health["e1"]
		if !ok {
			return false
		}
		if got = utcHealth(got); !reflect.DeepEqual(got, utcHealth(h)) {
			t.Fatalf("the watch gives\n%+v, want\n%+v", got, utcHealth(h))
		}
		return true
	})
	if err := ses.Report(within(t), registry.Health{Edge: "e1", Seq: 4}); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the next report", func(v view) bool { return v.Health["e1"].Seq == 4 && len(v.Health["e1"].Brokers) == 0 })
}

// utcHealth makes equal times equal values.
func utcHealth(h registry.Health) registry.Health {
	brokers := make(map[registry.BrokerRef]registry.Report, len(h.Brokers))
	for ref, rep := range h.Brokers {
		rep.Since = rep.Since.UTC()
		brokers[ref] = rep
	}
	h.Brokers = brokers
	return h
}

// An edge that dies says nothing: its lease does.
func testVanish(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	r := record(t, other, 0)
	dying, next := join(t, s, "e1"), join(t, other, "e2")
	campaign(t, dying)
	if err := dying.Report(within(t), registry.Health{Edge: "e1", Seq: 1}); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the edge that leads", func(v view) bool { return v.Leader == "e1" && v.Health["e1"].Seq == 1 && len(v.Edges) == 2 })
	s.Close() // its keep-alives end with it, its sessions do not
	ctx, cancel := context.WithTimeout(t.Context(), patience+registry.SessionTTL)
	defer cancel()
	lead, err := next.Campaign(ctx)
	if err != nil {
		t.Fatalf("Campaign of the next: %v", err)
	}
	if err := lead.PutVerdict(within(t), registry.BrokerRef{Pool: "p", Broker: "b1"}, registry.Verdict{State: registry.BrokerDown}); err != nil {
		t.Error(err)
	}
	r.until(t, "the edge gone, and another that leads", func(v view) bool {
		return v.Leader == "e2" && len(v.Edges) == 1 && len(v.Health) == 0 && len(v.Verdicts) == 1
	})
	r.until(t, "its changes", func(v view) bool {
		for _, c := range v.seen {
			if c.Kind == registry.KindEdge && c.Edge.Leaving {
				t.Error("an edge that vanished was marked Leaving")
			}
		}
		return true
	})
}

func testElection(t *testing.T, fx Fixture) {
	a, b := client(t, fx), client(t, fx)
	r := record(t, a, 0)
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	sa, sb := join(t, a, "e1"), join(t, b, "e2")
	first := campaign(t, sa)
	r.until(t, "e1 leads", func(v view) bool { return v.Leader == "e1" })

	type win struct {
		lead registry.Leadership
		err  error
	}
	won := make(chan win, 1)
	ctx := within(t)
	go func() {
		lead, err := sb.Campaign(ctx)
		won <- win{lead, err}
	}()
	down := registry.Verdict{State: registry.BrokerDown, Since: time.Now().Truncate(time.Second), Reason: "2 of 3 edges: connection refused"}
	if err := first.PutVerdict(within(t), ref, down); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the verdict", func(v view) bool {
		got := v.Verdicts[ref]
		return got.State == down.State && got.Since.Equal(down.Since) && got.Reason == down.Reason && got.Revision > 0
	})
	select {
	case w := <-won:
		t.Fatalf("two lead: the second campaign gave %v, %v", w.lead, w.err)
	default:
	}
	if isClosed(first.Lost()) {
		t.Error("Lost is closed while the edge leads")
	}

	if err := first.Resign(within(t)); err != nil {
		t.Fatalf("Resign: %v", err)
	}
	closed(t, "Lost after Resign", first.Lost())
	w := <-won
	if w.err != nil {
		t.Fatalf("Campaign after the leader resigned: %v", w.err)
	}
	r.until(t, "e2 leads", func(v view) bool { return v.Leader == "e2" })
	lost := registry.Verdict{State: registry.BrokerLost}
	if err := first.PutVerdict(within(t), ref, lost); !errors.Is(err, registry.ErrNotLeader) {
		t.Errorf("a verdict of an edge that resigned: %v, want ErrNotLeader", err)
	}
	if err := first.DeleteVerdict(within(t), ref); !errors.Is(err, registry.ErrNotLeader) {
		t.Errorf("a deletion by an edge that resigned: %v, want ErrNotLeader", err)
	}
	if err := w.lead.PutVerdict(within(t), ref, lost); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the new leader's verdict", func(v view) bool { return v.Verdicts[ref].State == registry.BrokerLost })
	if err := w.lead.DeleteVerdict(within(t), ref); err != nil {
		t.Fatal(err)
	}
	r.until(t, "no verdict", func(v view) bool { return len(v.Verdicts) == 0 })
	if err := w.lead.Resign(within(t)); err != nil {
		t.Fatal(err)
	}
	r.until(t, "nobody leads", func(v view) bool { return v.Leader == "" })
	again := campaign(t, sa)
	r.until(t, "e1 leads again", func(v view) bool { return v.Leader == "e1" && len(v.Edges) == 2 })
	if err := again.PutVerdict(within(t), ref, down); err != nil {
		t.Error(err)
	}
	if err := first.PutVerdict(within(t), ref, lost); !errors.Is(err, registry.ErrNotLeader) {
		t.Errorf("a former leadership of the edge that leads again: %v, want ErrNotLeader", err)
	}
}

func testCampaignCancelled(t *testing.T, fx Fixture) {
	a, b := client(t, fx), client(t, fx)
	r := record(t, a, 0)
	sa, sb, sc := join(t, a, "e1"), join(t, b, "e2"), join(t, b, "e3")
	lead := campaign(t, sa)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := sb.Campaign(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a campaign whose context ended: %v", err)
	}
	if err := lead.Resign(within(t)); err != nil {
		t.Fatal(err)
	}
	campaign(t, sc)
	r.until(t, "e3 leads", func(v view) bool { return v.Leader == "e3" })
	r.until(t, "e2 never led", func(v view) bool {
		for _, c := range v.seen {
			if c.Kind == registry.KindLeader && !c.Deleted && c.Name == "e2" {
				t.Error("an edge led that had given its campaign up")
			}
		}
		return true
	})
}

func testLeaderLeaves(t *testing.T, fx Fixture) {
	a, b := client(t, fx), client(t, fx)
	r := record(t, b, 0)
	sa, sb := join(t, a, "e1"), join(t, b, "e2")
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	lead := campaign(t, sa)
	if err := lead.PutVerdict(within(t), ref, registry.Verdict{State: registry.BrokerDown}); err != nil {
		t.Fatal(err)
	}
	if err := sa.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	closed(t, "the leadership's Lost after its session's Close", lead.Lost())
	if err := lead.PutVerdict(within(t), ref, registry.Verdict{State: registry.BrokerLost}); !errors.Is(err, registry.ErrNotLeader) {
		t.Errorf("a verdict of an edge that left: %v, want ErrNotLeader", err)
	}
	campaign(t, sb)
	r.until(t, "e2 leads, and the verdict stands", func(v view) bool {
		return v.Leader == "e2" && v.Verdicts[ref].State == registry.BrokerDown && len(v.Edges) == 1
	})
}
