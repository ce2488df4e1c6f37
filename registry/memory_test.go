package registry_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

func TestMemory(t *testing.T) {
	registrytest.TestStoreInFakeTime(t, func(t *testing.T) registrytest.Fixture {
		mem := registry.NewMemory()
		t.Cleanup(func() { mem.Close() })
		return registrytest.Fixture{
			Open:     func(*testing.T) registry.Store { return mem.Client() },
			MinLease: time.Second,
			Compact: func(t *testing.T) { // its history is bounded by a number of changes
				for i := range 40_000 {
					ref := registry.PinRef{Pool: "compact", Key: "k"}
					if err := mem.SetPin(t.Context(), ref, fmt.Sprintf("b-%d", i)); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}

func TestMemoryBus(t *testing.T) {
	registrytest.TestBusInFakeTime(t, func(t *testing.T) registrytest.BusFixture {
		hub := registry.NewMemoryBus()
		return registrytest.BusFixture{Open: func(_ *testing.T, edge string) registry.Bus { return hub.Bus(edge) }}
	})
}
