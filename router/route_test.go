package router

import (
	"slices"
	"testing"

	"github.com/limpet-mesh/limpet/registry"
)

// mesh builds a State of one pool "p" at revision 7, with one broker per ID.
func mesh(ids ...string) *registry.State {
	p := &registry.Pool{Name: "p", Revision: 7}
	for _, id := range ids {
		p.Brokers = append(p.Brokers, registry.Broker{ID: id, Address: id + ":1883"})
	}
	return &registry.State{
		Revision: 9,
		Pools:    map[string]*registry.Pool{"p": p},
		Admin:    map[registry.BrokerRef]registry.Admin{},
		Verdicts: map[registry.BrokerRef]registry.Verdict{},
		Pins:     map[registry.PinRef]string{},
	}
}

func ref(id string) registry.BrokerRef { return registry.BrokerRef{Pool: "p", Broker: id} }

func admin(s *registry.State, id string, a registry.AdminState) {
	s.Admin[ref(id)] = registry.Admin{State: a, Revision: 20}
}

func verdict(s *registry.State, id string, b registry.BrokerState) {
	s.Verdicts[ref(id)] = registry.Verdict{State: b, Revision: 30}
}

// choices is the rendezvous order of a key's brokers, first choice first.
func choices(t *testing.T, s *registry.State, key string) []string {
	t.Helper()
	var order []string
	for v := NewView(s); ; {
		d := v.Route(Query{Pool: "p", Key: key, Avoid: order})
		if d.Broker == nil {
			return order
		}
		order = append(order, d.Broker.ID)
	}
}

func TestRouteOrder(t *testing.T) {
	const key = "thermostat-17"
	order := choices(t, mesh("a", "b", "c"), key)
	if len(order) != 3 {
		t.Fatalf("choices of 3 brokers: %v", order)
	}
	first, second, third := order[0], order[1], order[2]

	type want struct {
		broker  string
		why     Why
		refusal Refusal
		replace bool
		facts   int
	}
	tests := []struct {
		name   string
		change func(*registry.State)
		record string
		avoid  []string
		want   want
	}{
		{name: "new key", want: want{broker: first, why: WhyPlacement}},
		{name: "new key, first choice failed", avoid: []string{first}, want: want{broker: second, why: WhyNext}},
		{name: "new key, a later choice failed", avoid: []string{second}, want: want{broker: first, why: WhyPlacement}},
		{name: "new key, two failed", avoid: []string{second, first}, want: want{broker: third, why: WhyNext}},
		{name: "new key, all failed", avoid: order, want: want{refusal: RefusalNoBroker}},
		{
			name: "new key, first choice down", change: func(s *registry.State) { verdict(s, first, registry.BrokerDown) },
			want: want{broker: second, why: WhyPlacement},
		},
		{
			name: "new key, first choice lost", change: func(s *registry.State) { verdict(s, first, registry.BrokerLost) },
			want: want{broker: second, why: WhyPlacement},
		},
		{
			name: "new key, verdict up", change: func(s *registry.State) { verdict(s, first, registry.BrokerUp) },
			want: want{broker: first, why: WhyPlacement},
		},
		{
			name: "new key, first choice draining", change: func(s *registry.State) { admin(s, first, registry.AdminDraining) },
			want: want{broker: second, why: WhyPlacement},
		},
		{
			name: "new key, first choice unknown", change: func(s *registry.State) { admin(s, first, registry.AdminUnknown) },
			want: want{broker: second, why: WhyPlacement},
		},
		{
			name: "recorded, unknown", record: third, change: func(s *registry.State) { admin(s, third, registry.AdminUnknown) },
			want: want{broker: third, why: WhyAffinity},
		},
		{
			name: "new key, first choice out", change: func(s *registry.State) { admin(s, first, registry.AdminOut) },
			want: want{broker: second, why: WhyPlacement},
		},
		{
			name: "new key, first choice ready", change: func(s *registry.State) { admin(s, first, registry.AdminReady) },
			want: want{broker: first, why: WhyPlacement},
		},
		{
			name: "new key, all down", change: func(s *registry.State) {
				for _, id := range order {
					verdict(s, id, registry.BrokerDown)
				}
			},
			want: want{refusal: RefusalNoBroker},
		},
		{
			name: "new key, all draining", change: func(s *registry.State) {
				for _, id := range order {
					admin(s, id, registry.AdminDraining)
				}
			},
			want: want{refusal: RefusalNoBroker},
		},

		{name: "recorded", record: third, want: want{broker: third, why: WhyAffinity}},
		{name: "recorded, another failed", record: third, avoid: []string{first}, want: want{broker: third, why: WhyAffinity}},
		{name: "recorded, its broker failed", record: third, avoid: []string{third}, want: want{refusal: RefusalAwaitHome}},
		{
			name: "recorded, draining", record: third, change: func(s *registry.State) { admin(s, third, registry.AdminDraining) },
			want: want{broker: third, why: WhyAffinity},
		},
		{
			name: "recorded, draining and failed", record: third, avoid: []string{third},
			change: func(s *registry.State) { admin(s, third, registry.AdminDraining) },
			want:   want{refusal: RefusalAwaitHome},
		},
		{
			name: "recorded, down", record: third, change: func(s *registry.State) { verdict(s, third, registry.BrokerDown) },
			want: want{refusal: RefusalAwaitHome},
		},
		{
			name: "recorded, draining and down", record: third,
			change: func(s *registry.State) {
				admin(s, third, registry.AdminDraining)
				verdict(s, third, registry.BrokerDown)
			},
			want: want{refusal: RefusalAwaitHome},
		},
		{
			name: "recorded, lost", record: third, change: func(s *registry.State) { verdict(s, third, registry.BrokerLost) },
			want: want{broker: first, why: WhyRehomed, replace: true, facts: 3},
		},
		{
			name: "recorded, lost, first choice failed", record: third, avoid: []string{first},
			change: func(s *registry.State) { verdict(s, third, registry.BrokerLost) },
			want:   want{broker: second, why: WhyRehomed, replace: true, facts: 3},
		},
		{
			name: "recorded, lost, all others failed", record: third, avoid: []string{first, second},
			change: func(s *registry.State) { verdict(s, third, registry.BrokerLost) },
			want:   want{refusal: RefusalNoBroker},
		},
		{
			name: "recorded, out", record: first, change: func(s *registry.State) { admin(s, first, registry.AdminOut) },
			want: want{broker: second, why: WhyRehomed, replace: true, facts: 3},
		},
		{
			name: "recorded, out and down", record: first,
			change: func(s *registry.State) {
				admin(s, first, registry.AdminOut)
				verdict(s, first, registry.BrokerDown)
			},
			want: want{broker: second, why: WhyRehomed, replace: true, facts: 3},
		},
		{name: "recorded, not configured", record: "gone", want: want{broker: first, why: WhyRehomed, replace: true, facts: 1}},

		{
			name: "pinned", change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "p", Key: key}] = third },
			want: want{broker: third, why: WhyPin},
		},
		{
			name: "pinned in another pool", change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "q", Key: key}] = third },
			want: want{broker: first, why: WhyPlacement},
		},
		{
			name: "pinned where recorded", record: third, change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "p", Key: key}] = third },
			want: want{broker: third, why: WhyPin},
		},
		{
			name: "pinned, recorded elsewhere", record: second, change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "p", Key: key}] = third },
			want: want{broker: third, why: WhyPin, replace: true, facts: 3},
		},
		{
			name: "pinned, draining", change: func(s *registry.State) {
				s.Pins[registry.PinRef{Pool: "p", Key: key}] = third
				admin(s, third, registry.AdminDraining)
			},
			want: want{broker: third, why: WhyPin},
		},
		{
			name: "pinned, down", record: second, change: func(s *registry.State) {
				s.Pins[registry.PinRef{Pool: "p", Key: key}] = third
				verdict(s, third, registry.BrokerDown)
			},
			want: want{refusal: RefusalAwaitHome},
		},
		{
			name: "pinned, failed", avoid: []string{third}, change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "p", Key: key}] = third },
			want: want{refusal: RefusalAwaitHome},
		},
		{
			name: "pinned, lost, recorded elsewhere", record: second, change: func(s *registry.State) {
				s.Pins[registry.PinRef{Pool: "p", Key: key}] = third
				verdict(s, third, registry.BrokerLost)
			},
			want: want{broker: second, why: WhyAffinity},
		},
		{
			name: "pinned, out", change: func(s *registry.State) {
				s.Pins[registry.PinRef{Pool: "p", Key: key}] = third
				admin(s, third, registry.AdminOut)
			},
			want: want{broker: first, why: WhyPlacement},
		},
		{
			name: "pinned to a stranger", change: func(s *registry.State) { s.Pins[registry.PinRef{Pool: "p", Key: key}] = "gone" },
			want: want{broker: first, why: WhyPlacement},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mesh("a", "b", "c")
			if tt.change != nil {
				tt.change(s)
			}
			q := Query{Pool: "p", Key: key, Avoid: tt.avoid}
			if tt.record != "" {
				q.Record = registry.Affinity{Broker: tt.record, Revision: 4}
			}
			d := NewView(s).Route(q)
			got := want{why: d.Why, refusal: d.Refusal, replace: d.Replace, facts: len(d.Facts)}
			if d.Broker != nil {
				got.broker = d.Broker.ID
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if d.Pool != s.Pools["p"] {
				t.Errorf("Pool = %v", d.Pool)
			}
			if (d.Broker == nil) != (d.Refusal != RefusalNone) || (d.Broker == nil) != (d.Why == WhyNone) {
				t.Errorf("a decision is a broker with a why, or a refusal: %+v", d)
			}
		})
	}
}

func TestRouteUnknownPool(t *testing.T) {
	for _, s := range []*registry.State{nil, {}, mesh("a")} {
		if d := NewView(s).Route(Query{Pool: "q", Key: "k"}); d.Refusal != RefusalNoPool || d.Broker != nil || d.Pool != nil {
			t.Errorf("got %+v", d)
		}
	}
	s := mesh()
	if d := NewView(s).Route(Query{Pool: "p", Key: "k"}); d.Refusal != RefusalNoBroker || d.Pool != s.Pools["p"] {
		t.Errorf("a pool without brokers: got %+v", d)
	}
}

func TestFactsAreThoseOfTheBrokerLeft(t *testing.T) {
	s := mesh("a", "b")
	verdict(s, "a", registry.BrokerLost)
	d := NewView(s).Route(Query{Pool: "p", Key: "k", Record: registry.Affinity{Broker: "a", Revision: 3}})
	want := []registry.Fact{
		{Kind: registry.KindPool, Pool: "p", Name: "p", Revision: 7},
		{Kind: registry.KindAdmin, Pool: "p", Name: "a", Revision: 0},
		{Kind: registry.KindVerdict, Pool: "p", Name: "a", Revision: 30},
	}
	if !slices.Equal(d.Facts, want) {
		t.Errorf("lost: got %+v, want %+v", d.Facts, want)
	}
	d = NewView(s).Route(Query{Pool: "p", Key: "k", Record: registry.Affinity{Broker: "z", Revision: 3}})
	if !slices.Equal(d.Facts, want[:1]) {
		t.Errorf("not configured: got %+v, want %+v", d.Facts, want[:1])
	}
}

func TestServes(t *testing.T) {
	s := mesh("ready", "draining", "out", "up", "down", "lost")
	admin(s, "draining", registry.AdminDraining)
	admin(s, "out", registry.AdminOut)
	verdict(s, "up", registry.BrokerUp)
	verdict(s, "down", registry.BrokerDown)
	verdict(s, "lost", registry.BrokerLost)
	v := NewView(s)
	for id, want := range map[string]bool{"ready": true, "draining": true, "up": true, "out": false, "down": false, "lost": false, "stranger": false} {
		if got := v.Serves(ref(id)); got != want {
			t.Errorf("Serves(%s) = %v", id, got)
		}
	}
	if v.Serves(registry.BrokerRef{Pool: "q", Broker: "ready"}) {
		t.Error("a broker of an unknown pool serves")
	}
	if v.Revision() != 9 || v.Pool("p") != s.Pools["p"] || v.Pool("q") != nil {
		t.Errorf("Revision %d, Pool %v, %v", v.Revision(), v.Pool("p"), v.Pool("q"))
	}
}

func TestNames(t *testing.T) {
	for w := WhyNone; w <= WhyNext; w++ {
		if (w.String() == "none") != (w == WhyNone) {
			t.Errorf("Why(%d) = %s", w, w)
		}
	}
	for r := RefusalNone; r <= RefusalAwaitHome; r++ {
		if (r.String() == "none") != (r == RefusalNone) {
			t.Errorf("Refusal(%d) = %s", r, r)
		}
	}
}
