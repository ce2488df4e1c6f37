package registry_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/registrytest"
)

// A desk is a committer that runs over a store that may fail.
type desk struct {
	mem       *registry.Memory
	store     *registrytest.Faulty
	spy       *spy
	committer *registry.Committer
	stop      func() // ends Run and waits for it

	mu    sync.Mutex
	fates map[string][]registry.Result // of a key, in the order in which they were told
}

// inDesk runs a test in fake time; conf is completed.
func inDesk(t *testing.T, conf registry.CommitterConfig, test func(t *testing.T, d *desk)) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{mem: registry.NewMemory(), fates: make(map[string][]registry.Result)}
		d.store = registrytest.NewFaulty(d.mem.Client)
		d.spy = &spy{Store: d.store, flying: make(map[string]bool)}
		conf.Store = d.spy
		d.committer = registry.NewCommitter(conf)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := d.committer.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		d.stop = func() {
			cancel()
			running.Wait()
		}
		defer func() {
			d.stop()
			d.store.Close()
			d.mem.Close()
			for _, v := range d.spy.violations {
				t.Error(v)
			}
		}()
		test(t, d)
	})
}

// spy checks what a committer asks of its store.
type spy struct {
	registry.Store
	mu         sync.Mutex
	flying     map[string]bool
	commits    int
	groups     []int // sizes
	most       int   // commits under way at a time
	violations []string
}

func (s *spy) Commit(ctx context.Context, ws []registry.Write) ([]registry.Result, error) {
	s.mu.Lock()
	size := 0
	for _, w := range ws {
		if s.flying[w.Key] {
			s.violations = append(s.violations, fmt.Sprintf("%.40q is in two transactions", w.Key))
		}
		s.flying[w.Key] = true
		size += len(w.Key)
	}
	if len(ws) > registry.MaxCommit || len(ws) == 0 || size > 1<<20 {
		s.violations = append(s.violations, fmt.Sprintf("a transaction of %d writes and %d bytes", len(ws), size))
	}
	s.commits++
	s.groups = append(s.groups, len(ws))
	if s.most = max(s.most, s.commits); s.most > 4 {
		s.violations = append(s.violations, fmt.Sprintf("%d transactions at a time", s.most))
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.commits--
		for _, w := range ws {
			delete(s.flying, w.Key)
		}
	}()
	return s.Store.Commit(ctx, ws)
}

func aff(broker string) registry.Affinity {
	return registry.Affinity{Broker: broker, Home: broker, Writer: "e1", Written: time.Now().Truncate(time.Second), Reason: "placement"}
}

// submit is what an edge does, and must take no time.
func (d *desk) submit(t *testing.T, w registry.Write) {
	t.Helper()
	if w.Pool == "" {
		w.Pool = "p"
	}
	before := time.Now()
	d.committer.Submit(w, func(r registry.Result) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.fates[w.Key] = append(d.fates[w.Key], r)
	})
	if took := time.Since(before); took != 0 {
		t.Errorf("Submit took %v", took)
	}
}

// settled waits until every fate is told.
func (d *desk) settled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := d.committer.Idle(ctx); err != nil {
		t.Fatalf("not idle after an hour: %+v", d.committer.Stats())
	}
	if st := d.committer.Stats(); st.Queued != 0 || st.QueuedBytes != 0 || st.InFlight != 0 {
		t.Errorf("idle, but %+v", st)
	}
}

// want checks the fates of a key, and what is stored.
func (d *desk) want(t *testing.T, key, broker string, fates ...registry.Status) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []registry.Status
	for _, r := range d.fates[key] {
		got = append(got, r.Status)
	}
	if fmt.Sprint(got) != fmt.Sprint(fates) {
		t.Errorf("%.40q: fates %v, want %v", key, got, fates)
	}
	a, err := d.mem.Get(context.Background(), "p", key)
	if err != nil || a.Broker != broker {
		t.Errorf("%.40q belongs to %q (%v), want %q", key, a.Broker, err, broker)
	}
	if n := len(d.fates[key]); n > 0 && d.fates[key][n-1].Status == registry.Committed && broker != "" && d.fates[key][n-1].Revision != a.Revision {
		t.Errorf("%.40q: committed at %d, stored at %d", key, d.fates[key][n-1].Revision, a.Revision)
	}
}

func TestCommitsInGroups(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		const n = 3000
		d.store.Delay(100 * time.Millisecond)
		began := time.Now()
		for i := range n {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
		}
		d.settled(t)
		for i := range n {
			d.want(t, fmt.Sprint(i), "b1", registry.Committed)
		}
		if took := time.Since(began); took > 900*time.Millisecond {
			t.Errorf("took %v: %d transactions of %v writes", took, len(d.spy.groups), d.spy.groups)
		}
		if len(d.spy.groups) > 36 || d.spy.most != 4 {
			t.Errorf("%d transactions, %d at a time: %v writes", len(d.spy.groups), d.spy.most, d.spy.groups)
		}
	})
}

func TestCommitsAloneAtOnce(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.submit(t, registry.Write{Key: "k", Affinity: aff("b1")})
		synctest.Wait() // no time passes
		d.want(t, "k", "b1", registry.Committed)
	})
}

func TestCommitsOfLongKeys(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.Delay(time.Second)
		for i := range 200 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i) + strings.Repeat("x", 65000), Affinity: aff("b1")})
		}
		d.settled(t)
		if st := d.committer.Stats(); st.Committed != 200 {
			t.Errorf("%+v", st)
		}
	})
}

func TestNewestWriteOfAKeyWins(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.Delay(time.Second)
		d.submit(t, registry.Write{Key: "k", Affinity: aff("b1")})
		synctest.Wait() // under way
		for _, broker := range []string{"b2", "b3", "b4"} {
			d.submit(t, registry.Write{Key: "k", Affinity: aff(broker)})
		}
		d.settled(t)
		// The last was submitted while the first was under way, knowing as little: it goes on from there.
		d.want(t, "k", "b4", registry.Superseded, registry.Superseded, registry.Committed, registry.Committed)
		guard := d.fates["k"][3].Revision
		d.submit(t, registry.Write{Key: "k", Guard: guard})
		synctest.Wait()
		d.submit(t, registry.Write{Key: "k", Guard: guard, Affinity: aff("b5")})
		d.settled(t)
		d.want(t, "k", "b5", registry.Superseded, registry.Superseded, registry.Committed, registry.Committed, registry.Committed, registry.Committed)
	})
}

func TestConflictAndStaleAreTold(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		rs, err := d.mem.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "taken", Affinity: registry.Affinity{Broker: "b9", Writer: "e2"}}})
		if err != nil {
			t.Fatal(err)
		}
		d.submit(t, registry.Write{Key: "taken", Affinity: aff("b1")})
		d.submit(t, registry.Write{Key: "stale", Affinity: aff("b1"), Facts: []registry.Fact{{Kind: registry.KindPool, Pool: "p", Revision: 77}}})
		d.settled(t)
		d.want(t, "taken", "b9", registry.Conflict)
		d.want(t, "stale", "", registry.Stale)
		if r := d.fates["taken"][0]; r.Found.Broker != "b9" || r.Found.Revision != rs[0].Revision {
			t.Errorf("found %+v", r.Found)
		}
		if st := d.committer.Stats(); st.Conflicts != 1 || st.Stale != 1 || st.Committed != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What is committed, or found, is known at this edge before its watch tells, and at the others by notice.
func TestCommitsHurry(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		r.start()
		hears := registry.NewCache(registry.CacheConfig{Store: r.mem.Client(), Bus: r.hub.Bus("e2")})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		bus := r.hub.Bus("e3")
		com := registry.NewCommitter(registry.CommitterConfig{Store: r.mem.Client(), Cache: r.cache, Bus: bus})
		running.Go(func() { _ = com.Run(ctx) })
		running.Go(func() { _ = hears.Run(ctx) })
		synctest.Wait()
		r.store.DelayWatch(10 * time.Second)
		known, _ := r.cache.Lookup("p", "known")
		com.Submit(registry.Write{Pool: "p", Key: "k", Affinity: aff("b2")}, func(res registry.Result) {
			if a, ok := r.cache.Lookup("p", "k"); !ok || a.Broker != "b2" || a.Revision != res.Revision {
				t.Errorf("told of the fate before the cache knew: %+v", a)
			}
		})
		com.Submit(registry.Write{Pool: "p", Key: "known", Guard: known.Revision}, nil)
		if err := com.Idle(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.resolve(t, "k", "b2", registry.SourceNotice, 0)
		r.resolve(t, "known", "", registry.SourceNotice, 0)
		if a, ok := hears.Lookup("p", "k"); !ok || a.Broker != "b2" {
			t.Errorf("the other edge: %+v", a)
		}
		if n := hears.Status().Notices; n.Taken+n.Late != 2 {
			t.Errorf("the other edge heard %+v", n)
		}
		// What a conflict found is known too.
		r.put(t, "raced", "b1")
		com.Submit(registry.Write{Pool: "p", Key: "raced", Affinity: aff("b2")}, func(res registry.Result) {
			if a, ok := r.cache.Lookup("p", "raced"); !ok || a.Broker != "b1" || res.Status != registry.Conflict {
				t.Errorf("%v, and the cache knows %+v", res.Status, a)
			}
		})
		if err := com.Idle(t.Context()); err != nil {
			t.Fatal(err)
		}
		bus.Close()
	})
}

// A fresh client pays no round trip: the store answers after 5 s, and nobody but the committer waits.
func TestCommitsToASlowStore(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.Delay(5 * time.Second)
		for i := range 500 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
		}
		d.settled(t)
		for i := range 500 {
			d.want(t, fmt.Sprint(i), "b1", registry.Committed)
		}
		if st := d.committer.Stats(); st.Failures != 0 {
			t.Errorf("a slow store is taken for an absent one: %+v", st)
		}
	})
}

func TestCommitsThroughAnOutage(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		old := d.mem
		rs, err := old.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "mine", Affinity: aff("b1")}, {Pool: "p", Key: "lost", Affinity: aff("b1")}})
		if err != nil {
			t.Fatal(err)
		}
		d.store.Down(true)
		for i := range 1000 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
			time.Sleep(5 * time.Millisecond) // 5 s in all
		}
		d.submit(t, registry.Write{Key: "mine", Affinity: aff("b2"), Guard: rs[0].Revision})
		d.submit(t, registry.Write{Key: "lost", Affinity: aff("b2"), Guard: rs[1].Revision})
		if st := d.committer.Stats(); st.Queued != 1002 || st.Error == "" || st.Failures == 0 || st.Failures > 100 {
			t.Errorf("during the outage: %+v", st)
		}
		// Others write meanwhile: the guards hold.
		if _, err := old.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "lost", Affinity: registry.Affinity{Broker: "b7"}, Guard: rs[1].Revision}}); err != nil {
			t.Fatal(err)
		}
		d.store.Down(false)
		d.settled(t)
		for i := range 1000 {
			d.want(t, fmt.Sprint(i), "b1", registry.Committed)
		}
		d.want(t, "mine", "b2", registry.Committed)
		d.want(t, "lost", "b7", registry.Conflict)
		if st := d.committer.Stats(); st.Error != "" || st.Dropped != 0 {
			t.Errorf("after the outage: %+v", st)
		}
	})
}

// A try whose answer was lost may have been done: the next one must not take its own record for another's.
func TestCommitsRecogniseTheirOwn(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		rs, err := d.mem.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "end", Affinity: aff("b1")}, {Pool: "p", Key: "end, and again", Affinity: aff("b1")}})
		if err != nil {
			t.Fatal(err)
		}
		d.store.LoseAnswers(true)
		d.submit(t, registry.Write{Key: "new", Affinity: aff("b1")})
		d.submit(t, registry.Write{Key: "new, and moved", Affinity: aff("b1")})
		d.submit(t, registry.Write{Key: "end", Guard: rs[0].Revision})
		d.submit(t, registry.Write{Key: "end, and again", Guard: rs[1].Revision})
		d.submit(t, registry.Write{Key: "new, and taken", Affinity: aff("b1")})
		time.Sleep(time.Second)
		d.submit(t, registry.Write{Key: "new, and moved", Affinity: aff("b2")})
		d.submit(t, registry.Write{Key: "end, and again", Affinity: aff("b2"), Guard: rs[1].Revision})
		time.Sleep(time.Second)
		taken, _ := d.mem.Get(t.Context(), "p", "new, and taken")
		if _, err := d.mem.Commit(t.Context(), []registry.Write{{Pool: "p", Key: "new, and taken", Affinity: registry.Affinity{Broker: "b9", Writer: "e2"}, Guard: taken.Revision}}); err != nil {
			t.Fatal(err)
		}
		d.store.LoseAnswers(false)
		d.settled(t)
		d.want(t, "new", "b1", registry.Committed)
		d.want(t, "new, and moved", "b2", registry.Superseded, registry.Committed)
		d.want(t, "end", "", registry.Committed)
		d.want(t, "end, and again", "b2", registry.Superseded, registry.Committed)
		d.want(t, "new, and taken", "b9", registry.Conflict)
	})
}

// The same with a newer write of the key that came while the try was under way.
func TestCommitsRecogniseTheirPredecessor(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.LoseAnswers(true)
		d.store.Delay(2 * time.Second)
		d.submit(t, registry.Write{Key: "k", Affinity: aff("b1")})
		synctest.Wait()
		d.want(t, "k", "b1") // written, but nobody knows
		d.submit(t, registry.Write{Key: "k", Affinity: aff("b2")})
		time.Sleep(time.Second)
		d.store.LoseAnswers(false) // too late for the first try
		d.settled(t)
		d.want(t, "k", "b2", registry.Superseded, registry.Committed)
	})
}

func TestFullQueueDrops(t *testing.T) {
	inDesk(t, registry.CommitterConfig{MaxQueue: 100}, func(t *testing.T, d *desk) {
		d.store.Down(true)
		for i := range 150 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
		}
		synctest.Wait()                                            // no try of "0" is under way: it waits again
		d.submit(t, registry.Write{Key: "0", Affinity: aff("b2")}) // takes no room
		synctest.Wait()
		if st := d.committer.Stats(); st.Queued != 100 || st.Dropped != 50 || st.Superseded != 1 {
			t.Errorf("%+v", st)
		}
		d.want(t, "149", "", registry.Dropped)
		d.store.Down(false)
		d.settled(t)
		d.want(t, "0", "b2", registry.Superseded, registry.Committed)
		d.submit(t, registry.Write{Key: "149", Affinity: aff("b1")}) // at its refresh
		d.settled(t)
		d.want(t, "149", "b1", registry.Dropped, registry.Committed)
	})
	inDesk(t, registry.CommitterConfig{MaxQueueBytes: 1 << 20}, func(t *testing.T, d *desk) {
		d.store.Down(true)
		for i := range 100 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i) + strings.Repeat("x", 60_000), Affinity: aff("b1")})
		}
		synctest.Wait()
		if st := d.committer.Stats(); st.QueuedBytes > 1<<20 || st.Dropped < 80 || st.Dropped > 90 {
			t.Errorf("%+v", st)
		}
		d.store.Down(false)
	})
}

// One write that the store never takes harms no other.
func TestRefusedWriteStandsAlone(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.Down(true)
		for i := range 300 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
			if i%100 == 50 {
				d.submit(t, registry.Write{Key: fmt.Sprint("bad", i), Pool: "No Such Name", Affinity: aff("b1")})
			}
		}
		d.store.Down(false)
		d.settled(t)
		for i := range 300 {
			d.want(t, fmt.Sprint(i), "b1", registry.Committed)
		}
		d.want(t, "bad50", "", registry.Refused)
		if st := d.committer.Stats(); st.Refused != 3 || st.Committed != 300 || st.Commits > 200 {
			t.Errorf("%+v", st)
		}
	})
}

func TestRunFlushes(t *testing.T) {
	inDesk(t, registry.CommitterConfig{}, func(t *testing.T, d *desk) {
		d.store.Delay(time.Second)
		for i := range 1000 {
			d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
		}
		synctest.Wait()
		d.stop()
		for i := range 1000 {
			d.want(t, fmt.Sprint(i), "b1", registry.Committed)
		}
		d.submit(t, registry.Write{Key: "late", Affinity: aff("b1")})
		d.want(t, "late", "", registry.Dropped) // told by Submit itself
		d.settled(t)
	})
}

func TestRunGivesUp(t *testing.T) {
	for _, fault := range []string{"down", "frozen"} {
		inDesk(t, registry.CommitterConfig{FlushTimeout: 3 * time.Second}, func(t *testing.T, d *desk) {
			d.store.Down(fault == "down")
			d.store.Freeze(fault == "frozen")
			for i := range 1000 {
				d.submit(t, registry.Write{Key: fmt.Sprint(i), Affinity: aff("b1")})
			}
			time.Sleep(time.Minute)
			began := time.Now()
			d.stop()
			if took := time.Since(began); took != 3*time.Second {
				t.Errorf("%s: gave up after %v", fault, took)
			}
			d.settled(t)
			d.want(t, "17", "", registry.Dropped)
			if st := d.committer.Stats(); st.Dropped != 1000 {
				t.Errorf("%s: %+v", fault, st)
			}
		})
	}
}

func BenchmarkCommitter(b *testing.B) {
	mem := registry.NewMemory()
	com := registry.NewCommitter(registry.CommitterConfig{Store: mem})
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = com.Run(ctx) })
	defer running.Wait()
	defer cancel()
	var told atomic.Int64
	done := func(registry.Result) { told.Add(1) }
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		com.Submit(registry.Write{Pool: "p", Key: fmt.Sprint(n), Affinity: registry.Affinity{Broker: "b1"}, Lease: time.Hour}, done)
		if n++; n%10_000 == 0 {
			if err := com.Idle(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := com.Idle(b.Context()); err != nil || told.Load() != int64(n) {
		b.Fatalf("%d of %d told, %v", told.Load(), n, err)
	}
	b.ReportMetric(float64(n)/float64(com.Stats().Commits), "writes/commit")
}
