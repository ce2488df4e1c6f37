package realtest

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestAgreement lets new clients meet two edges at the same time: what etcd records, and what the brokers saw, is one home each.
func TestAgreement(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "agreement")
	brokers, seen := countingBrokers(t, 3)
	equal := poolText{"default", "", entries(brokers, "")}
	m.stores.apply(t, m.dir, m.name, equal)
	slow, slowURL := newLink(t, m.stores.etcdURL)
	for i := range 3 {
		url := m.stores.etcdURL
		if i == 1 {
			url = slowURL // e2's view of the mesh can be held back
		}
		m.edges = append(m.edges, m.newEdge(t, fmt.Sprintf("e%d", i+1), url, "default"))
	}
	for _, e := range m.edges {
		e.accepting(t)
	}
	m.awaitReady(t, patience)

	t.Run("two edges at once", func(t *testing.T) { atOnce(t, m, seen, 10_000) })
	t.Run("views that differ", func(t *testing.T) {
		heavy := poolText{"default", "", []string{brokers[0].entry(""), brokers[1].entry(""), brokers[2].entry("weight: 1000")}}
		viewsDiffer(t, m, seen, slow, heavy)
	})
}

// atOnce connects n new client IDs, each at two edges at the same time, and some of them at the third one later.
func atOnce(t *testing.T, m *mesh, seen *ledger, n int) {
	const together = 200
	began := time.Now()
	var mu sync.Mutex
	var failed []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, err)
	}
	ids := make(chan int)
	var workers sync.WaitGroup
	for range together {
		workers.Go(func() {
			for i := range ids {
				id := fmt.Sprintf("new-%d", i)
				var pair [2]net.Conn
				var both sync.WaitGroup
				for k := range pair {
					both.Go(func() {
						var err error
						if pair[k], _, err = rawConnect(m.edges[(i+k)%3].at["tcp"], id, false, 2*patience); err != nil {
							fail(err)
						}
					})
				}
				both.Wait()
				hangUp(pair[0])
				hangUp(pair[1])
			}
		})
	}
	for i := range n {
		ids <- i
	}
	close(ids)
	workers.Wait()
	if len(failed) > 0 {
		t.Fatalf("%d connections failed, the first: %v", len(failed), failed[0])
	}
	home, split := seen.judge("new-")
	if len(home) != n || len(split) > 0 {
		t.Fatalf("%d client IDs at the brokers, want %d; %d at more than one: %.300s", len(home), n, len(split), fmt.Sprint(split))
	}
	count := map[string]int{}
	for _, b := range home {
		count[b]++
	}
	t.Logf("%d client IDs at two edges each in %v: %v", n, time.Since(began).Round(time.Millisecond), count)
	awaitRecords(t, m.store, "default", home)

	for i := range n / 10 { // the edge that had not met them
		id := fmt.Sprintf("new-%d", i*10)
		c, present, err := rawConnect(m.edges[(i*10+2)%3].at["tcp"], id, false, patience)
		if err != nil {
			t.Fatal(err)
		}
		if at := seen.homes(id); !present || len(at) != 1 {
			t.Fatalf("%s came back to its session: %v; it was seen at %v", id, present, at)
		}
		hangUp(c)
	}
}

// viewsDiffer changes the pool behind the back of e2: what e2 places by the old view and e1 by the new one is at two brokers, until
// e2 hears. Then the client that lost is moved.
func viewsDiffer(t *testing.T, m *mesh, seen *ledger, slow *link, pool poolText) {
	early, late := m.edges[0], m.edges[1]
	early.awaitReady(t, patience)
	slow.stall()
	pools := m.stores.apply(t, m.dir, m.name, pool)
	place := placementOf(pools, "default")
	// e1 routes by the new view once a new client lands where that says.
	probe := 0
	until(t, patience, "e1 has the new weights", func() (bool, any) {
		landed := 0
		for range 10 {
			probe++
			id := place.keyAt("c3", fmt.Sprintf("probe-%d", probe))
			c, _, err := rawConnect(early.at["tcp"], id, true, patience)
			if err != nil {
				t.Fatal(err)
			}
			hangUp(c)
			if slices.Equal(seen.homes(id), []string{"c3"}) {
				landed++
			}
		}
		return landed == 10, landed
	})

	type pair struct{ late, first net.Conn }
	pairs := map[string]pair{}
	for i := range 60 {
		id := fmt.Sprintf("differ-%d", i)
		// e2 first: a notice of e1's record would reach it over NATS and bring its client to the same broker.
		b, _, err := rawConnect(late.at["tcp"], id, false, patience)
		if err != nil {
			t.Fatal(err)
		}
		a, _, err := rawConnect(early.at["tcp"], id, false, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hangUp(a); hangUp(b) })
		pairs[id] = pair{late: b, first: a}
	}
	_, split := seen.judge("differ-")
	if len(split) < 20 {
		t.Fatalf("only %d of 60 clients are split: %v", len(split), split)
	}

	slow.release()
	released := time.Now()
	until(t, patience, "no client is at two brokers", func() (bool, any) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		var still []string
		for id := range pairs {
			if at := seen.live[id]; len(at) > 1 {
				still = append(still, fmt.Sprint(id, " at ", at))
			}
		}
		return len(still) == 0, still
	})
	claim(t, fmt.Sprintf("%d clients that were split have one broker", len(split)), time.Since(released), 2*time.Second)

	// The record says which one, and the loser finds it at any edge.
	want := map[string]string{}
	seen.mu.Lock()
	for id := range pairs {
		if at := seen.live[id]; len(at) == 1 {
			want[id] = at[0]
		}
	}
	seen.mu.Unlock()
	if len(want) != len(pairs) {
		t.Errorf("%d of %d clients are left", len(want), len(pairs))
	}
	awaitRecords(t, m.store, "default", want)
	for id, broker := range want {
		c, present, err := rawConnect(late.at["tcp"], id, false, patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hangUp(c) })
		seen.mu.Lock()
		last := seen.accepted[id][len(seen.accepted[id])-1]
		seen.mu.Unlock()
		if !present || last != broker {
			t.Errorf("%s belongs to %s, came back to %s with Session Present %v", id, broker, last, present)
		}
	}
}
