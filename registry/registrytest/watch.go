package registrytest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

func testWatchListsThenFollows(t *testing.T, fx Fixture) {
	s, other := client(t, fx), client(t, fx)
	a := commitOne(t, s, create("a", "b1"), registry.Committed)
	commitOne(t, s, create("b", "b1"), registry.Committed)
	commitOne(t, s, replace("a", "b2", a.Revision), registry.Committed)
	if err := s.PutPool(within(t), &registry.Pool{Name: "p"}, 0); err != nil {
		t.Fatal(err)
	}
	r := record(t, other, 0)
	r.until(t, "the listing", func(v view) bool {
		return v.listed && len(v.seen) == 3 && v.record("a").Broker == "b2" && v.record("b").Broker == "b1" && v.Pools["p"] != nil
	})

	b := commitOne(t, s, create("c", "b3"), registry.Committed)
	b = commitOne(t, s, replace("c", "b4", b.Revision), registry.Committed)
	commitOne(t, s, erase("c", b.Revision), registry.Committed)
	if err := s.SetPin(within(t), registry.PinRef{Pool: "p", Key: "c"}, "b1"); err != nil {
		t.Fatal(err)
	}
	r.until(t, "four changes in their order", func(v view) bool {
		if len(v.seen) < 7 {
			return false
		}
		c := v.seen[3:]
		if c[0].Affinity.Broker != "b3" || c[1].Affinity.Broker != "b4" || !c[2].Deleted || c[2].Name != "c" || c[2].PoolName != "p" ||
			c[3].Kind != registry.KindPin || c[3].Broker != "b1" {
			t.Fatalf("changes: %+v", c)
		}
		return true
	})
}

func testWatchEmptyStore(t *testing.T, fx Fixture) {
	r := record(t, client(t, fx), 0)
	if rev := r.isListed(t); rev <= 0 {
		t.Errorf("an empty store is listed at revision %d", rev)
	}
	r.until(t, "no changes", func(v view) bool { return len(v.seen) == 0 })
}

func testWatchLargeListing(t *testing.T, fx Fixture) {
	const n = 24 * registry.MaxCommit
	s := client(t, fx)
	for i := 0; i < n; i += registry.MaxCommit {
		ws := make([]registry.Write, registry.MaxCommit)
		for j := range ws {
			ws[j] = create(fmt.Sprintf("client-%d", i+j), fmt.Sprintf("b-%d", (i+j)%5))
		}
		commit(t, s, ws...)
	}
	r := record(t, s, 0)
	r.until(t, "all records", func(v view) bool { return v.listed })
	r.until(t, "each once", func(v view) bool {
		return len(v.seen) == n && len(v.records) == n && v.record("client-17").Broker == "b-2"
	})
}

func testWatchResumes(t *testing.T, fx Fixture) {
	s := client(t, fx)
	commitOne(t, s, create("before", "b1"), registry.Committed)
	first := record(t, s, 0)
	from := first.isListed(t)
	if err := first.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled watch ended with %v", err)
	}
	missed := commitOne(t, s, create("k", "b1"), registry.Committed)
	commitOne(t, s, replace("k", "b2", missed.Revision), registry.Committed)
	commitOne(t, s, create("k2", "b3"), registry.Committed)
	r := record(t, client(t, fx), from)
	r.until(t, "what was missed, in order", func(v view) bool {
		if len(v.seen) < 3 {
			return false
		}
		if v.seen[0].Affinity.Broker != "b1" || v.seen[0].Name != "k" || v.seen[1].Affinity.Broker != "b2" || v.seen[2].Affinity.Broker != "b3" {
			t.Fatalf("changes: %s", tail(v.seen))
		}
		return true
	})
	now := commitOne(t, s, create("k3", "b4"), registry.Committed)
	r.until(t, "what came after", func(v view) bool { return v.record("k3").Present() && len(v.seen) == 4 })

	// From the present: nothing is missed and nothing comes twice.
	present := record(t, s, now.Revision)
	commitOne(t, s, create("k4", "b5"), registry.Committed)
	present.until(t, "the next change alone", func(v view) bool { return len(v.seen) == 1 && v.record("k4").Present() })
}

func testWatchProgress(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	r.until(t, "three empty batches in a silent store", func(v view) bool { return v.empties >= 3 })
	resumed := record(t, s, r.isListed(t))
	resumed.until(t, "progress of a resumed watch", func(v view) bool { return v.empties >= 1 })

	// In a store that changes all the time too: else nobody knows how late the changes are.
	var before int
	r.until(t, "", func(v view) bool { before = v.empties; return true })
	progressed := func(v view) bool { return v.empties >= before+3 }
	end := time.Now().Add(patience)
	for guard := int64(0); ; {
		guard = commitOne(t, s, replace("k", "b1", guard), registry.Committed).Revision
		if ok, told := r.ask(progressed); ok {
			break
		} else if time.Now().After(end) {
			t.Fatalf("no progress while the store changes: %s", told)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func testWatchEnds(t *testing.T, fx Fixture) {
	s := client(t, fx)
	commitOne(t, s, create("k", "b1"), registry.Committed)
	broken := errors.New("broken")
	calls := 0
	err := s.Watch(within(t), 0, func(registry.Batch) error { calls++; return broken })
	if !errors.Is(err, broken) || calls != 1 {
		t.Errorf("fn's error in the listing: Watch returned %v after %d calls", err, calls)
	}
	calls = 0
	err = s.Watch(within(t), 0, func(b registry.Batch) error {
		calls++
		if b.List {
			return nil
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("fn's error after the listing: Watch returned %v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = s.Watch(ctx, 0, func(b registry.Batch) error {
		if b.Done {
			cancel()
		}
		return nil
	})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled watch returned %v", err)
	}
}

// A restored backup, or the wrong store: the reader knows more than there is.
func testWatchUnreachedRevision(t *testing.T, fx Fixture) {
	s := client(t, fx)
	commitOne(t, s, create("k", "b1"), registry.Committed)
	err := s.Watch(within(t), 1<<40, func(b registry.Batch) error {
		t.Errorf("a batch at revision %d", b.Revision)
		return nil
	})
	if !errors.Is(err, registry.ErrReset) {
		t.Errorf("Watch from a revision that was never reached: %v, want ErrReset", err)
	}
}

func testWatchCompacted(t *testing.T, fx Fixture) {
	s := client(t, fx)
	long := strings.Repeat("long", 100) // its name in a store may not be spelled by its key there
	kept := commitOne(t, s, create(long, "b1"), registry.Committed)
	old := commitOne(t, s, create("k", "b1"), registry.Committed)
	last := commitOne(t, s, replace("k", "b2", old.Revision), registry.Committed)
	last = commitOne(t, s, replace("k", "b3", last.Revision), registry.Committed)
	fx.Compact(t)
	err := s.Watch(within(t), old.Revision, func(registry.Batch) error { return nil })
	if !errors.Is(err, registry.ErrCompacted) {
		t.Errorf("Watch from a compacted revision: %v, want ErrCompacted", err)
	}
	r := record(t, s, 0)
	r.until(t, "the records in a new listing", func(v view) bool {
		return v.listed && v.record(long).Broker == "b1" && v.record("k").Broker == "b3" && v.record("k").Revision == last.Revision
	})
	// What was there before the compaction can still be replaced and deleted.
	last = commitOne(t, s, replace("k", "b4", last.Revision), registry.Committed)
	commitOne(t, s, erase("k", last.Revision), registry.Committed)
	commitOne(t, s, erase(long, kept.Revision), registry.Committed)
	r.until(t, "their end", func(v view) bool { return len(v.records) == 0 })
}
