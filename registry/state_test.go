package registry

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestStateApply(t *testing.T) {
	pool := &Pool{Name: "p"}
	ref, pin := BrokerRef{"p", "b1"}, PinRef{"p", "k"}
	all := []Change{
		{Kind: KindPool, Name: "p", Pool: pool, Revision: 2},
		{Kind: KindAdmin, PoolName: "p", Name: "b1", Admin: Admin{State: AdminOut, Revision: 3}},
		{Kind: KindVerdict, PoolName: "p", Name: "b1", Verdict: Verdict{State: BrokerDown}},
		{Kind: KindPin, PoolName: "p", Name: "k", Broker: "b1"},
		{Kind: KindEdge, Name: "e1", Edge: Edge{ID: "e1"}},
		{Kind: KindHealth, Name: "e1", Health: Health{Edge: "e1", Seq: 4}},
		{Kind: KindLeader, Name: "e1"},
		{Kind: KindAffinity, PoolName: "p", Name: "k", Affinity: Affinity{Broker: "b1"}},
	}
	want := &State{
		Revision: 9, Leader: "e1",
		Pools:    map[string]*Pool{"p": pool},
		Admin:    map[BrokerRef]Admin{ref: {State: AdminOut, Revision: 3}},
		Verdicts: map[BrokerRef]Verdict{ref: {State: BrokerDown}},
		Pins:     map[PinRef]string{pin: "b1"},
		Edges:    map[string]Edge{"e1": {ID: "e1"}},
		Health:   map[string]Health{"e1": {Edge: "e1", Seq: 4}},
	}
	full := (*State)(nil).Apply(all, 9)
	if !reflect.DeepEqual(full, want) {
		t.Fatalf("got\n%+v, want\n%+v", full, want)
	}
	for i := range all {
		all[i].Deleted = true
	}
	gone := full.Apply(all, 10)
	if len(gone.Pools)+len(gone.Admin)+len(gone.Verdicts)+len(gone.Pins)+len(gone.Edges)+len(gone.Health) != 0 || gone.Leader != "" || gone.Revision != 10 {
		t.Errorf("everything deleted: %+v", gone)
	}
	if !reflect.DeepEqual(full, want) {
		t.Errorf("Apply changed its receiver: %+v", full)
	}
}

func TestStateIsTheSameWithoutChanges(t *testing.T) {
	s := &State{Revision: 3}
	if next := s.Apply(nil, 4); next != s {
		t.Error("another pointer without a change")
	}
	if next := s.Apply([]Change{{Kind: KindAffinity, Name: "k"}, {}, {Kind: 99}}, 4); next != s {
		t.Error("another pointer for what is no business of a State")
	}
	if next := (*State)(nil).Apply(nil, 4); next == nil || next.Revision != 4 {
		t.Errorf("the empty state: %+v", next)
	}
}

func TestStateLeader(t *testing.T) {
	s := &State{Leader: "e2"}
	for _, c := range []struct {
		change Change
		want   string
	}{
		{Change{Kind: KindLeader, Name: "e1"}, "e1"},
		{Change{Kind: KindLeader, Name: "e1", Deleted: true}, "e2"}, // its lead had ended before
		{Change{Kind: KindLeader, Name: "e2", Deleted: true}, ""},
		{Change{Kind: KindLeader, Deleted: true}, ""}, // it is not known whose
	} {
		if got := s.Apply([]Change{c.change}, 2).Leader; got != c.want {
			t.Errorf("%+v: leader %q, want %q", c.change, got, c.want)
		}
	}
}

// Only the maps that change are copied, and no state that was published changes ever.
func TestStateCopiesWhatChanges(t *testing.T) {
	s := (*State)(nil).Apply([]Change{
		{Kind: KindPin, PoolName: "p", Name: "k", Broker: "b1"},
		{Kind: KindEdge, Name: "e1", Edge: Edge{ID: "e1"}},
	}, 1)
	next := s.Apply([]Change{{Kind: KindEdge, Name: "e2", Edge: Edge{ID: "e2"}}, {Kind: KindEdge, Name: "e3", Edge: Edge{ID: "e3"}}}, 2)
	if reflect.ValueOf(s.Pins).Pointer() != reflect.ValueOf(next.Pins).Pointer() {
		t.Error("pins were copied, but no pin has changed")
	}
	if len(s.Edges) != 1 || len(next.Edges) != 3 {
		t.Errorf("edges: %d before, %d after; want 1 and 3", len(s.Edges), len(next.Edges))
	}

	rnd := rand.New(rand.NewPCG(1, 2))
	var states []*State
	var copies []map[PinRef]string
	for range 200 {
		states, copies = append(states, s), append(copies, maps.Clone(s.Pins))
		var changes []Change
		for range rnd.IntN(4) {
			changes = append(changes, Change{Kind: KindPin, PoolName: "p", Name: string(rune('a' + rnd.IntN(10))), Broker: "b", Deleted: rnd.IntN(3) == 0})
		}
		s = s.Apply(changes, s.Revision+1)
	}
	for i := range states {
		if !maps.Equal(states[i].Pins, copies[i]) {
			t.Fatalf("state %d has changed after it was published", i)
		}
	}
}
