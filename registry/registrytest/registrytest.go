// Package registrytest holds the contract that every registry.Store and registry.Bus passes, whoever
// implements it, and stores and buses that fail on request, for the tests of everything that uses one.
//
//	func TestStore(t *testing.T) {
//		server := startServer(t)
//		registrytest.TestStore(t, func(t *testing.T) registrytest.Fixture {
//			mesh := server.NewMesh(t) // an empty store
//			return registrytest.Fixture{Open: mesh.Client, MinLease: 2 * time.Second, Stop: server.Stop, Start: server.Start}
//		})
//	}
//
// The suite is written against real servers: it asks for outcomes, and waits for them with deadlines far above what is
// expected; no test passes or fails by a stopwatch, except that a lease must never end early. In memory the same
// tests run in the fake time of testing/synctest ([TestStoreInFakeTime]).
//
// Each test gets a store of its own. Subtests whose fixtures can stop their server run one after the other, the rest in
// parallel, so a fixture may be one fresh mesh on a server that all of them share.
package registrytest

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A Fixture is one empty store, and what a test may do to it.
type Fixture struct {
	// Open returns a client of its own of the fixture's store, as another edge would have it. The test closes it.
	Open func(t *testing.T) registry.Store
	// MinLease is the shortest Write.Lease that the store can tell from a longer one.
	MinLease time.Duration
	// Stop makes the store's server unreachable, Start brings it back with what it knew. nil: cannot be done.
	Stop, Start func(t *testing.T)
	// Compact makes the store forget its history up to now. nil: cannot be done.
	Compact func(t *testing.T)
}

// patience is how long a test waits for what should take well under a second.
const patience = 20 * time.Second

type storeTest struct {
	name   string
	alone  bool // stops the server, or makes it forget: no other test may run beside it
	needs  func(Fixture) bool
	verify func(t *testing.T, fx Fixture)
}

var storeTests = []storeTest{
	{name: "CreateRace", verify: testCreateRace},
	{name: "ReplaceGuarded", verify: testReplaceGuarded},
	{name: "DeleteGuarded", verify: testDeleteGuarded},
	{name: "Facts", verify: testFacts},
	{name: "VerdictFact", verify: testVerdictFact},
	{name: "EachWriteByItself", verify: testEachWriteByItself},
	{name: "BatchBounds", verify: testBatchBounds},
	{name: "GetSeesCommit", verify: testGetSeesCommit},
	{name: "AffinityFields", verify: testAffinityFields},
	{name: "HostileKeys", verify: testHostileKeys},
	{name: "HostilePins", verify: testHostilePins},
	{name: "InvalidNames", verify: testInvalidNames},
	{name: "LeaseEnds", verify: testLeaseEnds},
	{name: "LeaseRenewed", verify: testLeaseRenewed},

	{name: "WatchListsThenFollows", verify: testWatchListsThenFollows},
	{name: "WatchEmptyStore", verify: testWatchEmptyStore},
	{name: "WatchLargeListing", verify: testWatchLargeListing},
	{name: "WatchResumes", verify: testWatchResumes},
	{name: "WatchProgress", verify: testWatchProgress},
	{name: "WatchEnds", verify: testWatchEnds},
	{name: "WatchUnreachedRevision", verify: testWatchUnreachedRevision},
	{name: "WatchCompacted", alone: true, needs: func(fx Fixture) bool { return fx.Compact != nil }, verify: testWatchCompacted},

	{name: "Pools", verify: testPools},
	{name: "Prune", verify: testPrune},
	{name: "Admin", verify: testAdmin},
	{name: "Pins", verify: testPins},

	{name: "JoinAndLeave", verify: testJoinAndLeave},
	{name: "JoinTwice", verify: testJoinTwice},
	{name: "Report", verify: testReport},
	{name: "Vanish", verify: testVanish},
	{name: "Election", verify: testElection},
	{name: "CampaignCancelled", verify: testCampaignCancelled},
	{name: "LeaderLeaves", verify: testLeaderLeaves},

	{name: "Closed", verify: testClosed},
	{name: "Unavailable", alone: true, needs: func(fx Fixture) bool { return fx.Stop != nil }, verify: testUnavailable},
	{name: "Restart", alone: true, needs: func(fx Fixture) bool { return fx.Stop != nil }, verify: testRestart},
}

// TestStore runs the contract of registry.Store. open is called once in each subtest, possibly from several at a time.
func TestStore(t *testing.T, open func(t *testing.T) Fixture) {
	runStoreTests(t, open, func(t *testing.T, test func(t *testing.T), alone bool) {
		if !alone {
			t.Parallel()
		}
		test(t)
	})
}

// TestStoreInFakeTime is TestStore with each subtest in a bubble of testing/synctest:
// for stores that live in this process and leave no goroutine behind.
func TestStoreInFakeTime(t *testing.T, open func(t *testing.T) Fixture) {
	runStoreTests(t, open, func(t *testing.T, test func(t *testing.T), _ bool) { synctest.Test(t, test) })
}

func runStoreTests(t *testing.T, open func(t *testing.T) Fixture, in func(t *testing.T, test func(*testing.T), alone bool)) {
	// The group ends when its parallel tests have: what the caller cleans up afterwards is in nobody's use.
	t.Run("Store", func(t *testing.T) {
		for _, st := range storeTests {
			t.Run(st.name, func(t *testing.T) {
				in(t, func(t *testing.T) {
					fx := open(t)
					if st.needs != nil && !st.needs(fx) {
						t.Log("nothing to verify: the fixture cannot do that")
						return
					}
					st.verify(t, fx)
				}, st.alone)
			})
		}
	})
}

// client opens a client that the test's end closes.
func client(t *testing.T, fx Fixture) registry.Store {
	t.Helper()
	s := fx.Open(t)
	t.Cleanup(func() { s.Close() })
	return s
}

// within is a context for one call that should take milliseconds.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// commit expects no error.
func commit(t *testing.T, s registry.Store, ws ...registry.Write) []registry.Result {
	t.Helper()
	rs, err := s.Commit(within(t), ws)
	if err != nil {
		t.Fatalf("Commit of %d writes: %v", len(ws), err)
	}
	if len(rs) != len(ws) {
		t.Fatalf("Commit of %d writes gave %d results", len(ws), len(rs))
	}
	return rs
}

// commitOne expects the status, and returns the result.
func commitOne(t *testing.T, s registry.Store, w registry.Write, want registry.Status) registry.Result {
	t.Helper()
	r := commit(t, s, w)[0]
	if r.Status != want {
		t.Fatalf("write of %q (guard %d): %v (found %+v), want %v", short(w.Key), w.Guard, r.Status, r.Found, want)
	}
	if r.Revision == 0 && r.Status != registry.Conflict {
		t.Fatalf("write of %q: %v without a revision", short(w.Key), r.Status)
	}
	return r
}

// get expects no error.
func get(t *testing.T, s registry.Store, pool, key string) registry.Affinity {
	t.Helper()
	a, err := s.Get(within(t), pool, key)
	if err != nil {
		t.Fatalf("Get(%s, %q): %v", pool, short(key), err)
	}
	return a
}

// create is a write of a new record, without an end.
func create(key, broker string) registry.Write {
	return registry.Write{Pool: "p", Key: key, Affinity: registry.Affinity{Broker: broker, Home: broker, Writer: "e1", Reason: "placement"}}
}

// replace is a write over the record of that revision.
func replace(key, broker string, guard int64) registry.Write {
	w := create(key, broker)
	w.Guard = guard
	return w
}

// erase is a delete of the record of that revision.
func erase(key string, guard int64) registry.Write {
	return registry.Write{Pool: "p", Key: key, Guard: guard}
}

// short keeps a long key out of the output.
func short(key string) string {
	if len(key) > 80 {
		return key[:60] + "…" + key[len(key)-16:]
	}
	return key
}

// eventually polls cond until it holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// parallel runs n functions at the same moment and waits for all.
func parallel(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}
