package registrytest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

func testPools(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	r := record(t, other, 0)
	full := &registry.Pool{
		Name: "p",
		Brokers: []registry.Broker{
			{ID: "b1", Address: "broker-1.example:1883"},
			{
				ID: "b2", Address: "[2001:db8::2]:8884", Weight: 7, Transport: registry.TransportWSS, Proxy: registry.ProxyV2, Path: "/ws",
				TLS: registry.BrokerTLS{CA: "/etc/ca.pem", Cert: "/etc/c.pem", Key: "/etc/k.pem", ServerName: "mqtt.example"},
			},
		},
		Policy: registry.PolicyHash, Sessions: registry.SessionsReplicated, RehomeAfter: 1500 * time.Millisecond,
		TTL: 2 * time.Hour, MaxTTL: 48 * time.Hour, Failback: registry.FailbackStay,
		ConnectTimeout: 7 * time.Second, DialTimeout: 900 * time.Millisecond,
		Probe: registry.Probe{Kind: registry.ProbeTCP, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 3, Fall: 4},
	}
	if err := s.PutPool(within(t), full, 0); err != nil {
		t.Fatal(err)
	}
	var revision int64
	r.until(t, "the pool", func(v view) bool {
		got := v.Pools["p"]
		if got == nil {
			return false
		}
		revision = got.Revision
		want := *full
		want.Revision = revision
		if !reflect.DeepEqual(got, &want) {
			t.Fatalf("the watch gives\n%+v, want\n%+v", got, &want)
		}
		return true
	})
	if full.Revision != 0 {
		t.Errorf("PutPool wrote to its argument: revision %d", full.Revision)
	}

	brief := &registry.Pool{Name: "p"}
	for _, guard := range []int64{0, revision + 1000} {
		if err := other.PutPool(within(t), brief, guard); !errors.Is(err, registry.ErrConflict) {
			t.Errorf("PutPool with guard %d: %v, want ErrConflict", guard, err)
		}
		if err := other.DeletePool(within(t), "p", guard); guard != 0 && !errors.Is(err, registry.ErrConflict) {
			t.Errorf("DeletePool with guard %d: %v, want ErrConflict", guard, err)
		}
	}
	if err := other.PutPool(within(t), &registry.Pool{Name: "q"}, revision); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("replacing an absent pool: %v, want ErrConflict", err)
	}
	if err := other.PutPool(within(t), brief, revision); err != nil {
		t.Fatal(err)
	}
	old := revision
	r.until(t, "the replaced pool", func(v view) bool {
		revision = v.Pools["p"].Revision
		return revision > old && len(v.Pools["p"].Brokers) == 0
	})
	if err := s.DeletePool(within(t), "p", old); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("DeletePool with an old guard: %v, want ErrConflict", err)
	}
	if err := s.DeletePool(within(t), "p", revision); err != nil {
		t.Fatal(err)
	}
	r.until(t, "no pool", func(v view) bool { return len(v.Pools) == 0 })
	if err := s.DeletePool(within(t), "p", revision); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("DeletePool of an absent pool: %v, want ErrConflict", err)
	}
	if err := s.PutPool(within(t), brief, 0); err != nil {
		t.Errorf("creating a deleted pool again: %v", err)
	}
}

// Who follows is told that somebody pruned, each time; who lists, of the last time.
func testPrune(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	if err := s.PutPool(within(t), &registry.Pool{Name: "p"}, 0); err != nil {
		t.Fatal(err)
	}
	r := record(t, other, 0)
	r.isListed(t)
	told := func(v view) (revisions []int64) {
		for _, c := range v.seen {
			if c.Kind == registry.KindPrune && !c.Deleted {
				revisions = append(revisions, c.Revision)
			}
		}
		return revisions
	}
	var last int64
	for n := range 2 {
		if err := s.Prune(within(t)); err != nil {
			t.Fatal(err)
		}
		r.until(t, "a prune", func(v view) bool {
			all := told(v)
			if len(all) == n+1 {
				last = all[n]
			}
			return len(all) == n+1 && len(v.Pools) == 1
		})
	}
	late := record(t, s, 0)
	late.isListed(t)
	late.until(t, "the last prune, listed", func(v view) bool { all := told(v); return len(all) == 1 && all[0] == last })
}

func testAdmin(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	ref, beside := registry.BrokerRef{Pool: "p", Broker: "b1"}, registry.BrokerRef{Pool: "q", Broker: "b1"}
	for _, state := range []registry.AdminState{registry.AdminDraining, registry.AdminOut, registry.AdminReady, registry.AdminDraining} {
		if err := s.SetAdmin(within(t), ref, state); err != nil {
			t.Fatal(err)
		}
		r.until(t, "admin state "+string(state), func(v view) bool { return v.Admin[ref].State == state })
	}
	if err := s.SetAdmin(within(t), beside, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	if err := s.SetAdmin(within(t), ref, ""); err != nil {
		t.Fatal(err)
	}
	r.until(t, "one state forgotten, the other pool's kept", func(v view) bool {
		return len(v.Admin) == 1 && v.Admin[beside].State == registry.AdminOut
	})
	if err := s.SetAdmin(within(t), ref, ""); err != nil {
		t.Errorf("forgetting what is not known: %v", err)
	}
	for _, state := range []registry.AdminState{"drain", "Out", registry.AdminUnknown} {
		if err := s.SetAdmin(within(t), ref, state); err == nil || errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("a state that no edge would know, %q: %v", state, err)
		}
	}
}

func testPins(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	ref, beside := registry.PinRef{Pool: "p", Key: "k"}, registry.PinRef{Pool: "q", Key: "k"}
	for _, broker := range []string{"b1", "b2"} {
		if err := s.SetPin(within(t), ref, broker); err != nil {
			t.Fatal(err)
		}
		r.until(t, "the pin to "+broker, func(v view) bool { return v.Pins[ref] == broker })
	}
	if err := s.SetPin(within(t), beside, "b3"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPin(within(t), ref, ""); err != nil {
		t.Fatal(err)
	}
	r.until(t, "one pin gone, the other pool's kept", func(v view) bool { return len(v.Pins) == 1 && v.Pins[beside] == "b3" })
	if err := s.SetPin(within(t), ref, ""); err != nil {
		t.Errorf("untying what is not tied: %v", err)
	}
	if get(t, s, "p", "k").Present() {
		t.Error("a pin made a record")
	}
}
