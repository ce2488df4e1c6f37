package registrytest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A recorder watches a store, keeps what the watch told, and checks on every batch what holds for all watches.
type recorder struct {
	from   int64
	cancel context.CancelFunc
	ended  chan struct{} // closed when Watch has returned
	moved  chan struct{} // holds one token after a batch

	mu        sync.Mutex
	err       error // what Watch returned
	revision  int64
	listed    bool // Done was seen
	lists     int  // batches with List
	empties   int  // batches without a change, after the listing
	seen      []registry.Change
	state     *registry.State
	records   map[registry.PinRef]registry.Affinity
	violation string // of the contract, the first one
}

// record starts a watch that the test's end stops.
func record(t *testing.T, s registry.Store, from int64) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &recorder{
		from: from, cancel: cancel, ended: make(chan struct{}), moved: make(chan struct{}, 1),
		revision: from, state: &registry.State{}, records: make(map[registry.PinRef]registry.Affinity),
	}
	go func() {
		defer close(r.ended)
		err := s.Watch(ctx, from, func(b registry.Batch) error {
			r.take(b)
			return nil
		})
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
	}()
	t.Cleanup(func() {
		r.stop()
		if r.violation != "" {
			t.Errorf("watch: %s", r.violation)
		}
	})
	return r
}

// stop ends the watch and returns what it said.
func (r *recorder) stop() error {
	r.cancel()
	<-r.ended
	return r.err
}

func (r *recorder) violated(format string, args ...any) {
	if r.violation == "" {
		r.violation = fmt.Sprintf(format, args...)
	}
}

func (r *recorder) take(b registry.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listing := r.from == 0 && !r.listed
	if b.List != listing {
		r.violated("List = %v, but listing = %v (watched from %d)", b.List, listing, r.from)
	}
	if b.Done && !b.List {
		r.violated("Done without List")
	}
	if listing && r.lists > 0 && b.Revision != r.revision {
		r.violated("listing began at revision %d and goes on at %d", r.revision, b.Revision)
	}
	if b.Revision < r.revision {
		r.violated("revision went back from %d to %d", r.revision, b.Revision)
	}
	last := r.revision
	for i := range b.Changes {
		r.check(&b.Changes[i], b, listing, last)
		if !listing {
			last = max(last, b.Changes[i].Revision)
		}
	}
	r.state = r.state.Apply(b.Changes, b.Revision)
	r.seen = append(r.seen, b.Changes...)
	r.revision = b.Revision
	if listing {
		r.lists++
		r.listed = b.Done
	} else if len(b.Changes) == 0 {
		r.empties++
	}
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

func (r *recorder) check(c *registry.Change, b registry.Batch, listing bool, last int64) {
	switch {
	case c.Revision <= 0 || c.Revision > b.Revision:
		r.violated("change of %q at revision %d in a batch that goes to %d", short(c.Name), c.Revision, b.Revision)
	case listing && c.Deleted:
		r.violated("a listing tells a deletion: %q", short(c.Name))
	case !listing && c.Revision <= r.revision:
		r.violated("change of %q at revision %d, after a batch that went to %d: doubled, or a transaction was split", short(c.Name), c.Revision, r.revision)
	case !listing && c.Revision < last:
		r.violated("change of %q at revision %d after one at %d", short(c.Name), c.Revision, last)
	}
	inner := c.Revision
	switch c.Kind {
	case registry.KindAffinity:
		inner = c.Affinity.Revision
		ref := registry.PinRef{Pool: c.PoolName, Key: c.Name}
		if _, ok := r.records[ref]; listing && ok {
			r.violated("listed twice: %q", short(c.Name))
		}
		if c.Deleted {
			delete(r.records, ref)
		} else {
			r.records[ref] = c.Affinity
		}
	case registry.KindPool:
		if !c.Deleted {
			inner = c.Pool.Revision
		}
	case registry.KindAdmin:
		inner = c.Admin.Revision
	case registry.KindVerdict:
		inner = c.Verdict.Revision
	}
	if !c.Deleted && inner != c.Revision {
		r.violated("change of %q at revision %d holds a value of revision %d", short(c.Name), c.Revision, inner)
	}
}

// view is what a recorder knows at one moment.
type view struct {
	*registry.State
	revision int64
	listed   bool
	lists    int
	empties  int
	seen     []registry.Change
	records  map[registry.PinRef]registry.Affinity
}

// until waits for a moment at which cond holds. cond must not keep what it is given.
func (r *recorder) until(t *testing.T, what string, cond func(v view) bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		ok, told := r.ask(cond)
		if ok {
			return
		}
		select {
		case <-r.moved:
		case <-r.ended:
			t.Fatalf("the watch ended (%v) before: %s; it told %s", r.err, what, told)
		case <-timeout.C:
			t.Fatalf("not after %v: %s; the watch told %s", patience, what, told)
		}
	}
}

// ask is cond's answer now, and what to say if it stays no.
func (r *recorder) ask(cond func(v view) bool) (ok bool, told string) {
	r.mu.Lock()
	defer r.mu.Unlock() // cond may end the test
	v := view{r.state, r.revision, r.listed, r.lists, r.empties, r.seen, r.records}
	return cond(v), fmt.Sprintf("revision %d, listed %v, %d records, leader %q, %d changes %s",
		v.revision, v.listed, len(v.records), v.Leader, len(v.seen), tail(v.seen))
}

// reaches waits for the watch to be at a revision.
func (r *recorder) reaches(t *testing.T, revision int64) {
	t.Helper()
	r.until(t, fmt.Sprintf("revision %d", revision), func(v view) bool { return (v.listed || r.from != 0) && v.revision >= revision })
}

// isListed waits for the listing to be complete, and returns its revision.
func (r *recorder) isListed(t *testing.T) (revision int64) {
	t.Helper()
	r.until(t, "a complete listing", func(v view) bool { revision = v.revision; return v.listed })
	return revision
}

// record returns a record as the watch told it.
func (v view) record(key string) registry.Affinity {
	return v.records[registry.PinRef{Pool: "p", Key: key}]
}

// tail shows the last few changes.
func tail(cs []registry.Change) string {
	s := ""
	for _, c := range cs[max(0, len(cs)-6):] {
		s += fmt.Sprintf(" {kind %d %s %q deleted %v @%d}", c.Kind, c.PoolName, short(c.Name), c.Deleted, c.Revision)
	}
	return s
}
