package registrytest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// Promise 1 rests on this: of all edges that create a record, one does, and the others learn which.
func testCreateRace(t *testing.T, fx Fixture) {
	const writers = 16
	var clients []registry.Store
	for range 4 {
		clients = append(clients, client(t, fx))
	}
	for round := range 5 {
		key := fmt.Sprintf("race-%d", round)
		results := make([]registry.Result, writers)
		var mu sync.Mutex
		var failed error
		parallel(writers, func(i int) {
			rs, err := clients[i%len(clients)].Commit(t.Context(), []registry.Write{create(key, fmt.Sprintf("b-%d", i))})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			results[i] = rs[0]
		})
		if failed != nil {
			t.Fatal(failed)
		}
		won := -1
		for i, r := range results {
			if r.Status == registry.Committed {
				if won >= 0 {
					t.Fatalf("%s: both writer %d and writer %d created it", key, won, i)
				}
				won = i
			}
		}
		if won < 0 {
			t.Fatalf("%s: nobody created it: %+v", key, results)
		}
		for i, r := range results {
			if i == won {
				continue
			}
			if r.Status != registry.Conflict || r.Found.Broker != fmt.Sprintf("b-%d", won) || r.Found.Revision != results[won].Revision {
				t.Errorf("%s: writer %d got %v, found %+v; the winner was %d at revision %d", key, i, r.Status, r.Found, won, results[won].Revision)
			}
		}
		if got := get(t, clients[0], "p", key); got.Broker != fmt.Sprintf("b-%d", won) || got.Revision != results[won].Revision {
			t.Errorf("%s: stored %+v; the winner was %d at revision %d", key, got, won, results[won].Revision)
		}
	}
}

func testReplaceGuarded(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	first := commitOne(t, s, create("k", "b1"), registry.Committed)
	second := commitOne(t, s, replace("k", "b2", first.Revision), registry.Committed)
	if second.Revision <= first.Revision {
		t.Errorf("a replacement at revision %d of a record of revision %d", second.Revision, first.Revision)
	}
	for _, guard := range []int64{first.Revision, second.Revision + 1000, 0} {
		r := commitOne(t, other, replace("k", "b3", guard), registry.Conflict)
		if r.Found.Broker != "b2" || r.Found.Revision != second.Revision {
			t.Errorf("guard %d: found %+v, want b2 at %d", guard, r.Found, second.Revision)
		}
	}
	if r := commitOne(t, s, replace("absent", "b1", second.Revision), registry.Conflict); r.Found.Present() {
		t.Errorf("replacing an absent record found %+v", r.Found)
	}
	if got := get(t, s, "p", "absent"); got.Present() {
		t.Errorf("a replacement created a record: %+v", got)
	}
	commitOne(t, other, replace("k", "b4", second.Revision), registry.Committed)
	if got := get(t, s, "p", "k"); got.Broker != "b4" {
		t.Errorf("stored %+v, want b4", got)
	}
}

func testDeleteGuarded(t *testing.T, fx Fixture) {
	s := client(t, fx)
	first := commitOne(t, s, create("k", "b1"), registry.Committed)
	second := commitOne(t, s, replace("k", "b2", first.Revision), registry.Committed)
	for _, guard := range []int64{first.Revision, 0} {
		if r := commitOne(t, s, erase("k", guard), registry.Conflict); r.Found.Broker != "b2" || r.Found.Revision != second.Revision {
			t.Errorf("delete with guard %d found %+v, want b2 at %d", guard, r.Found, second.Revision)
		}
	}
	if got := get(t, s, "p", "k"); got.Broker != "b2" {
		t.Fatalf("after refused deletes: %+v", got)
	}
	commitOne(t, s, erase("k", second.Revision), registry.Committed)
	if got := get(t, s, "p", "k"); got.Present() {
		t.Errorf("after a delete: %+v", got)
	}
	if r := commitOne(t, s, erase("k", second.Revision), registry.Conflict); r.Found.Present() {
		t.Errorf("a second delete found %+v", r.Found)
	}
	commitOne(t, s, erase("k", 0), registry.Committed)
	again := commitOne(t, s, create("k", "b3"), registry.Committed)
	if again.Revision <= second.Revision {
		t.Errorf("created again at revision %d, after %d", again.Revision, second.Revision)
	}
}

func testFacts(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	r.isListed(t)
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	pool := registry.Fact{Kind: registry.KindPool, Pool: "p"}
	admin := registry.Fact{Kind: registry.KindAdmin, Pool: "p", Name: "b1"}
	verdict := registry.Fact{Kind: registry.KindVerdict, Pool: "p", Name: "b1"}
	with := func(w registry.Write, facts ...registry.Fact) registry.Write {
		w.Facts = facts
		return w
	}

	commitOne(t, s, with(create("all-absent", "b1"), pool, admin, verdict), registry.Committed)

	if err := s.PutPool(within(t), &registry.Pool{Name: "p", Brokers: []registry.Broker{{ID: "b1", Address: "h:1"}}}, 0); err != nil {
		t.Fatal(err)
	}
	stale := commitOne(t, s, with(create("k", "b1"), pool, admin, verdict), registry.Stale)
	if got := get(t, s, "p", "k"); got.Present() {
		t.Errorf("a stale write was written: %+v", got)
	}
	// What the refusal rests on is to be seen once the watch has come that far.
	r.reaches(t, stale.Revision)
	r.until(t, "the pool", func(v view) bool {
		if v.Pools["p"] == nil {
			t.Fatalf("the watch is at %d, the write was found stale at %d, and there is no pool", v.revision, stale.Revision)
		}
		pool.Revision = v.Pools["p"].Revision
		return true
	})
	k := commitOne(t, s, with(create("k", "b1"), pool, admin, verdict), registry.Committed)

	if err := s.SetAdmin(within(t), ref, registry.AdminDraining); err != nil {
		t.Fatal(err)
	}
	commitOne(t, s, with(replace("k", "b2", k.Revision), pool, admin), registry.Stale)
	commitOne(t, s, with(erase("k", k.Revision), admin), registry.Stale)
	if got := get(t, s, "p", "k"); got.Broker != "b1" || got.Revision != k.Revision {
		t.Errorf("after stale writes: %+v, want b1 at %d", got, k.Revision)
	}
	if c := commitOne(t, s, with(create("k", "b2"), admin), registry.Conflict); c.Found.Broker != "b1" {
		t.Errorf("a conflict beside a stale fact found %+v", c.Found)
	}
	r.until(t, "the admin state", func(v view) bool {
		admin.Revision = v.Admin[ref].Revision
		return v.Admin[ref].State == registry.AdminDraining
	})
	k = commitOne(t, s, with(replace("k", "b2", k.Revision), pool, admin, verdict), registry.Committed)

	if err := s.PutPool(within(t), &registry.Pool{Name: "p"}, pool.Revision); err != nil {
		t.Fatal(err)
	}
	commitOne(t, s, with(replace("k", "b3", k.Revision), pool), registry.Stale)
	commitOne(t, s, with(replace("k", "b3", k.Revision), admin), registry.Committed)
}

func testVerdictFact(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	lead := campaign(t, join(t, s, "e1"))
	if err := lead.PutVerdict(within(t), ref, registry.Verdict{State: registry.BrokerDown}); err != nil {
		t.Fatal(err)
	}
	fact := registry.Fact{Kind: registry.KindVerdict, Pool: "p", Name: "b1"}
	w := create("k", "b2")
	w.Facts = []registry.Fact{fact}
	commitOne(t, s, w, registry.Stale)
	r.until(t, "the verdict", func(v view) bool {
		fact.Revision = v.Verdicts[ref].Revision
		return fact.Revision != 0
	})
	w.Facts = []registry.Fact{fact}
	k := commitOne(t, s, w, registry.Committed)
	if err := lead.DeleteVerdict(within(t), ref); err != nil {
		t.Fatal(err)
	}
	w.Guard = k.Revision
	commitOne(t, s, w, registry.Stale)
	w.Facts = []registry.Fact{{Kind: registry.KindVerdict, Pool: "p", Name: "b1"}}
	commitOne(t, s, w, registry.Committed)
}

func testEachWriteByItself(t *testing.T, fx Fixture) {
	s := client(t, fx)
	old := commitOne(t, s, create("held", "b1"), registry.Committed)
	gone := commitOne(t, s, create("gone", "b1"), registry.Committed)
	stale := create("stale", "b1")
	stale.Facts = []registry.Fact{{Kind: registry.KindPool, Pool: "p", Revision: old.Revision}}
	rs := commit(t, s,
		create("new", "b1"),
		create("held", "b2"),
		stale,
		erase("gone", gone.Revision),
		erase("never", gone.Revision),
		registry.Write{Pool: "q", Key: "held", Affinity: registry.Affinity{Broker: "b9"}},
	)
	want := []registry.Status{registry.Committed, registry.Conflict, registry.Stale, registry.Committed, registry.Conflict, registry.Committed}
	for i, r := range rs {
		if r.Status != want[i] {
			t.Errorf("write %d: %v, want %v", i, r.Status, want[i])
		}
	}
	if rs[1].Found.Broker != "b1" || rs[4].Found.Present() {
		t.Errorf("found %+v and %+v, want b1 and nothing", rs[1].Found, rs[4].Found)
	}
	for key, broker := range map[string]string{"new": "b1", "held": "b1", "stale": "", "gone": "", "never": ""} {
		if got := get(t, s, "p", key); got.Broker != broker {
			t.Errorf("%s belongs to %q, want %q", key, got.Broker, broker)
		}
	}
}

func testBatchBounds(t *testing.T, fx Fixture) {
	s := client(t, fx)
	full := make([]registry.Write, registry.MaxCommit)
	for i := range full {
		full[i] = create(fmt.Sprintf("k-%d", i), "b1")
	}
	for i, r := range commit(t, s, full...) {
		if r.Status != registry.Committed {
			t.Fatalf("write %d of a full batch: %v", i, r.Status)
		}
	}
	if rs := commit(t, s); len(rs) != 0 {
		t.Errorf("an empty batch gave %v", rs)
	}
	refused := func(what string, ws []registry.Write) {
		t.Helper()
		if rs, err := s.Commit(within(t), ws); err == nil || errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: %d results, error %v; want it refused", what, len(rs), err)
		}
		for _, w := range ws {
			if got := get(t, s, w.Pool, w.Key); got.Present() {
				t.Fatalf("%s: %q was written", what, w.Key)
			}
		}
	}
	over := make([]registry.Write, registry.MaxCommit+1)
	for i := range over {
		over[i] = create(fmt.Sprintf("over-%d", i), "b1")
	}
	refused("a batch above the bound", over)
	refused("a key twice in a batch", []registry.Write{create("x", "b1"), create("y", "b1"), create("x", "b2")})
	two := create("x", "b2")
	two.Pool = "q"
	for i, r := range commit(t, s, create("x", "b1"), two) {
		if r.Status != registry.Committed {
			t.Errorf("write %d of one key in two pools: %v", i, r.Status)
		}
	}
}

// A reader who asks after a writer was answered sees the write, at whatever edge.
func testGetSeesCommit(t *testing.T, fx Fixture) {
	a, b := client(t, fx), client(t, fx)
	guard := int64(0)
	for i := range 20 {
		broker := fmt.Sprintf("b-%d", i)
		guard = commitOne(t, a, replace("k", broker, guard), registry.Committed).Revision
		if got := get(t, b, "p", "k"); got.Broker != broker || got.Revision != guard {
			t.Fatalf("round %d: %s at %d was committed, Get says %s at %d", i, broker, guard, got.Broker, got.Revision)
		}
	}
	if got := get(t, b, "other", "k"); got.Present() {
		t.Errorf("the record of another pool: %+v", got)
	}
}

func sameAffinity(a, b registry.Affinity) bool {
	return a.Broker == b.Broker && a.Home == b.Home && a.Writer == b.Writer && a.Reason == b.Reason &&
		a.Written.Equal(b.Written) && a.Expires.Equal(b.Expires) && a.Revision == b.Revision && bytes.Equal(a.Extra, b.Extra)
}

func testAffinityFields(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	now := time.Now().Truncate(time.Second)
	for i, a := range []registry.Affinity{
		{Broker: "b1"},
		{
			Broker: "b2", Home: "b1", Writer: "edge-17", Written: now, Expires: now.Add(61 * time.Minute), Reason: "rehomed",
			// A newer version's field in protobuf's wire format: number 100, varint 5.
			Extra: []byte{0xa0, 0x06, 0x05},
		},
		{Broker: "b3", Home: "b3", Reason: "a reason of a later version"},
	} {
		key := fmt.Sprintf("k-%d", i)
		w := registry.Write{Pool: "p", Key: key, Affinity: a, Lease: time.Hour}
		a.Revision = commitOne(t, s, w, registry.Committed).Revision
		if got := get(t, s, "p", key); !sameAffinity(got, a) {
			t.Errorf("Get gives %+v, want %+v", got, a)
		}
		if got := commitOne(t, s, w, registry.Conflict).Found; !sameAffinity(got, a) {
			t.Errorf("Found is %+v, want %+v", got, a)
		}
		r.until(t, fmt.Sprintf("the record as %+v", a), func(v view) bool { return sameAffinity(v.record(key), a) })
	}
}

// The bound on the wait for a lease's end: a quarter later than asked, rounded to seconds, and a server's own slowness.
func leaseEnd(lease time.Duration) time.Duration { return lease*5/4 + patience }

func testLeaseEnds(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	lease := fx.MinLease
	w := create("mortal", "b1")
	w.Lease = lease
	asked := time.Now()
	rs := commit(t, s, w, create("immortal", "b1"))
	for i, res := range rs {
		if res.Status != registry.Committed {
			t.Fatalf("write %d: %v", i, res.Status)
		}
	}
	r.reaches(t, rs[0].Revision)
	for get(t, s, "p", "mortal").Present() {
		if time.Since(asked) > leaseEnd(lease) {
			t.Fatalf("a record with a lease of %v is there after %v", lease, time.Since(asked))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if lived := time.Since(asked); lived < lease {
		t.Errorf("a record with a lease of %v was gone after %v", lease, lived)
	}
	r.until(t, "the deletion", func(v view) bool { return !v.record("mortal").Present() })
	if !get(t, s, "p", "immortal").Present() {
		t.Error("a record without a lease ended")
	}
	commitOne(t, s, create("mortal", "b2"), registry.Committed)
}

func testLeaseRenewed(t *testing.T, fx Fixture) {
	s := client(t, fx)
	brief, long := fx.MinLease, fx.MinLease*2
	w := create("k", "b1")
	w.Lease = brief
	first := commitOne(t, s, w, registry.Committed)
	w.Guard, w.Lease = first.Revision, long
	renewed := time.Now()
	second := commitOne(t, s, w, registry.Committed)
	for {
		got := get(t, s, "p", "k")
		age := time.Since(renewed)
		if !got.Present() {
			if age < long {
				t.Errorf("gone %v after it was written for %v more", age, long)
			}
			return
		}
		if got.Revision != second.Revision || age > leaseEnd(long) {
			t.Fatalf("%v after it was written for %v more, at revision %d: %+v", age, long, second.Revision, got)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
