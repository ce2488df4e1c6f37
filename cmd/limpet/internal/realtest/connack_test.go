package realtest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestConnackWithoutStores compares, in one run, how long new clients with persistent sessions wait for their CONNACK while the
// stores are up, in the seconds after both stand still, and when they are known to be away. With LIMPET_DRILLS=1 it is long enough
// for its figures to mean something.
//
// It is open-loop: every connect has its time, and the wait is counted from then, whatever became of the one before.
func TestConnackWithoutStores(t *testing.T) {
	connects, rate := 300, 200
	if drilling() {
		connects, rate = 5000, 500
	}
	m := newMesh(t, "drill")
	brokers, seen := countingBrokers(t, 3)
	m.stores.apply(t, m.dir, m.name, poolText{"default", "", entries(brokers, "")})
	m.startEdges(t, "default")
	phase := func(name, prefix string, n int) latencies {
		l := measure(t, m, prefix, n, rate)
		t.Logf("%-28s %v", name, l)
		return l
	}
	phase("warm-up", "warm", 2*rate)
	up := phase("stores up", "up", connects)
	// They stand still, which is worse than being gone: whoever asks them waits.
	both := fault{etcd: true, nats: true, frozen: true}
	both.begin(m.stores)
	falling := phase("first 3 s without them", "falling", 3*rate)
	for _, e := range m.edges {
		e.awaitCheck(t, patience, "store ", "degraded")
	}
	away := phase("stores away", "away", connects)
	t.Logf("ratio of p99, stores up to stores away: %.2f", float64(up.p99)/float64(away.p99))
	if _, split := seen.judge(""); len(split) > 0 {
		t.Errorf("split: %.300s", fmt.Sprint(split))
	}
	// An edge that does not know yet that the stores are gone asks them, for that long.
	const asks = 50 * time.Millisecond
	claim(t, "CONNACK for half of the clients that come as the stores go", falling.p50, asks)
	if drilling() {
		claim(t, "CONNACK for all of them", falling.max-falling.late, asks+up.max)
	}
}

// latencies are a measurement's figures.
type latencies struct {
	n                   int
	p50, p99, p999, max time.Duration
	late                time.Duration // the generator itself, at most: the machine's fault, not the mesh's
}

func (l latencies) String() string {
	r := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("%d connects: p50 %v, p99 %v, p99.9 %v, max %v (sent at most %v late)", l.n, r(l.p50), r(l.p99), r(l.p999), r(l.max), r(l.late))
}

// measure connects n new clients at a rate, at all edges in turn.
func measure(t *testing.T, m *mesh, prefix string, n, rate int) latencies {
	t.Helper()
	waits, errs := make([]time.Duration, n), make([]error, n)
	var all sync.WaitGroup
	var late time.Duration
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		late = max(late, time.Since(due))
		all.Go(func() {
			c, _, err := rawConnect(m.edges[i%3].at["tcp"], fmt.Sprintf("%s-%d", prefix, i), false, patience)
			waits[i], errs[i] = time.Since(due), err
			hangUp(c)
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(waits)
	at := func(q float64) time.Duration { return waits[min(n-1, int(q*float64(n)))] }
	return latencies{n, at(.5), at(.99), at(.999), waits[n-1], late}
}
