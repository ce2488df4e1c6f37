package registrytest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

// A store without faults is a store, and so is one that loses its server and finds it again.
func TestFaultyStore(t *testing.T) {
	registrytest.TestStoreInFakeTime(t, func(t *testing.T) registrytest.Fixture {
		mem := registry.NewMemory()
		t.Cleanup(func() { mem.Close() })
		var stores []*registrytest.Faulty
		down := func(v bool) func(*testing.T) {
			return func(*testing.T) {
				for _, s := range stores {
					s.Down(v)
				}
			}
		}
		return registrytest.Fixture{
			Open: func(*testing.T) registry.Store {
				stores = append(stores, registrytest.NewFaulty(mem.Client))
				return stores[len(stores)-1]
			},
			MinLease: time.Second, Stop: down(true), Start: down(false),
		}
	})
}

func TestFaultyBus(t *testing.T) {
	registrytest.TestBusInFakeTime(t, func(t *testing.T) registrytest.BusFixture {
		hub := registry.NewMemoryBus()
		var buses []*registrytest.FaultyBus
		stopped := false
		down := func(v bool) func(*testing.T) {
			return func(*testing.T) {
				stopped = v
				for _, b := range buses {
					b.Down(v)
				}
			}
		}
		return registrytest.BusFixture{
			Open: func(_ *testing.T, edge string) registry.Bus {
				b := registrytest.NewFaultyBus(hub.Bus(edge), 1)
				b.Down(stopped)
				b.Delay(time.Millisecond, 20*time.Millisecond)
				b.Double(0.1)
				b.Lose(0.1)
				buses = append(buses, b)
				return b
			},
			Stop: down(true), Start: down(false),
		}
	})
}

func write(key string) []registry.Write {
	return []registry.Write{{Pool: "p", Key: key, Affinity: registry.Affinity{Broker: "b1"}}}
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := registry.NewMemory()
		s := registrytest.NewFaulty(mem.Client)
		defer s.Close()
		asked := time.Now()
		s.Delay(5 * time.Second)
		if _, err := s.Commit(t.Context(), write("slow")); err != nil || time.Since(asked) != 5*time.Second {
			t.Errorf("a delayed commit: %v after %v", err, time.Since(asked))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		asked = time.Now()
		if _, err := s.Commit(ctx, write("unknown")); !errors.Is(err, registry.ErrUnavailable) || time.Since(asked) != 50*time.Millisecond {
			t.Errorf("an impatient commit: %v after %v", err, time.Since(asked))
		}
		s.Delay(0)
		s.LoseAnswers(true)
		if _, err := s.Commit(t.Context(), write("deaf")); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("a commit whose answer was lost: %v", err)
		}
		s.LoseAnswers(false)
		for _, key := range []string{"slow", "unknown", "deaf"} {
			if a, err := s.Get(t.Context(), "p", key); err != nil || !a.Present() {
				t.Errorf("%s: %+v, %v; it was written all the same", key, a, err)
			}
		}
		s.Down(true)
		if _, err := s.Commit(t.Context(), write("never")); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("a commit without a server: %v", err)
		}
		if a, _ := mem.Get(t.Context(), "p", "never"); a.Present() {
			t.Error("a commit without a server was written")
		}
		if got := s.Calls("Commit"); got != 4 {
			t.Errorf("%d commits counted, want 4", got)
		}
	})
}

func TestFaultsOfWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := registry.NewMemory()
		s := registrytest.NewFaulty(mem.Client)
		defer s.Close()
		var mu sync.Mutex
		var last time.Time
		done := make(chan error, 1)
		go func() {
			done <- s.Watch(t.Context(), 0, func(registry.Batch) error {
				mu.Lock()
				defer mu.Unlock()
				last = time.Now()
				return nil
			})
		}()
		age := func() time.Duration {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return time.Since(last)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		if a := age(); a > 500*time.Millisecond {
			t.Errorf("the last batch is %v old", a)
		}
		s.Freeze(true)
		time.Sleep(10 * time.Second)
		if a := age(); a < 9*time.Second {
			t.Errorf("a frozen watch told something %v ago", a)
		}
		s.Freeze(false)
		if a := age(); a != 0 {
			t.Errorf("a watch that goes on told something %v ago", a)
		}
		s.Down(true)
		if err := <-done; !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("a broken watch: %v", err)
		}
	})
}

// An edge that is cut off loses its session, and with it the lead, as others see it later.
func TestFaultsOfSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := registry.NewMemory()
		s := registrytest.NewFaulty(mem.Client)
		defer s.Close()
		ses, err := s.Join(t.Context(), registry.Edge{ID: "e1"})
		if err != nil {
			t.Fatal(err)
		}
		lead, err := ses.Campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Down(true)
		time.Sleep(registry.SessionTTL - time.Second)
		s.Down(false)
		time.Sleep(3 * registry.SessionTTL)
		if err := lead.PutVerdict(t.Context(), registry.BrokerRef{Pool: "p", Broker: "b"}, registry.Verdict{State: registry.BrokerDown}); err != nil {
			t.Errorf("after a short outage: %v", err)
		}
		s.Down(true)
		<-lead.Lost()
		<-ses.Lost()
		other, err := mem.Client().Join(t.Context(), registry.Edge{ID: "e2"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Campaign(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Down(false)
		if err := ses.Report(t.Context(), registry.Health{}); !errors.Is(err, registry.ErrSessionLost) {
			t.Errorf("a report of a session that was lost: %v", err)
		}
		if err := lead.DeleteVerdict(t.Context(), registry.BrokerRef{Pool: "p", Broker: "b"}); !errors.Is(err, registry.ErrNotLeader) {
			t.Errorf("a verdict of a lead that was lost: %v", err)
		}
	})
}

func TestFaultyBusIsSeeded(t *testing.T) {
	fate := func(seed uint64) (heard string) {
		synctest.Test(t, func(t *testing.T) {
			hub := registry.NewMemoryBus()
			a, b := hub.Bus("e1"), registrytest.NewFaultyBus(hub.Bus("e2"), seed)
			defer a.Close()
			defer b.Close()
			b.Lose(0.3)
			b.Double(0.3)
			b.Delay(0, time.Second)
			_, err := b.Subscribe(func(m registry.Message) { heard += m.Doubt.Broker + " " })
			if err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				_ = a.Publish(registry.Message{Doubt: &registry.BrokerRef{Broker: fmt.Sprint(i)}})
			}
			time.Sleep(2 * time.Second)
		})
		return heard
	}
	first := fate(1)
	if again := fate(1); again != first {
		t.Errorf("one seed, two fates: %q and %q", first, again)
	}
	if other := fate(2); other == first {
		t.Errorf("two seeds, one fate: %q", other)
	}
}
