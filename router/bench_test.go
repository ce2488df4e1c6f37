package router

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/limpet-mesh/limpet/registry"
)

func largeMesh(brokers int) *registry.State {
	s := mesh()
	for i := range brokers {
		s.Pools["p"].Brokers = append(s.Pools["p"].Brokers, registry.Broker{ID: fmt.Sprintf("broker-%03d", i), Weight: 1 + i%4})
	}
	return s
}

func TestRouteAllocatesNothing(t *testing.T) {
	s := largeMesh(10)
	verdict(s, "broker-003", registry.BrokerLost)
	s.Pins[registry.PinRef{Pool: "p", Key: "pinned"}] = "broker-001"
	v := NewView(s)
	avoid := []string{"broker-004"}
	queries := []Query{
		{Pool: "p", Key: "new"},
		{Pool: "p", Key: "next", Avoid: avoid},
		{Pool: "p", Key: "known", Record: registry.Affinity{Broker: "broker-002", Revision: 1}},
		{Pool: "p", Key: "rehomed", Record: registry.Affinity{Broker: "broker-003", Revision: 1}},
		{Pool: "p", Key: "pinned", Record: registry.Affinity{Broker: "broker-003", Revision: 1}},
		{Pool: "none", Key: "new"},
	}
	for _, q := range queries {
		if n := testing.AllocsPerRun(100, func() { sink = v.Route(q) }); n != 0 {
			t.Errorf("%s: %v allocations", q.Key, n)
		}
	}
}

var sink Decision

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{3, 10, 100} {
		v := NewView(largeMesh(n))
		b.Run("placement/"+strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			q := Query{Pool: "p", Key: "building-7/floor-3/thermostat-17"}
			for b.Loop() {
				sink = v.Route(q)
			}
		})
		b.Run("affinity/"+strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			q := Query{Pool: "p", Key: "building-7/floor-3/thermostat-17", Record: registry.Affinity{Broker: "broker-002", Revision: 1}}
			for b.Loop() {
				sink = v.Route(q)
			}
		})
	}
}

func BenchmarkNewView(b *testing.B) {
	s := largeMesh(100)
	b.ReportAllocs()
	for b.Loop() {
		NewView(s)
	}
}
