package etcdstore

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

func create(key, broker string) registry.Write {
	return registry.Write{Pool: "p", Key: key, Affinity: registry.Affinity{Broker: broker, Home: broker, Writer: "e1"}}
}

// commit expects every write to be done.
func commit(t testing.TB, s *Store, ws ...registry.Write) []registry.Result {
	t.Helper()
	rs, err := s.Commit(t.Context(), ws)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rs {
		if r.Status != registry.Committed {
			t.Fatalf("write %d of %d, %.40q: %v, found %+v", i, len(ws), ws[i].Key, r.Status, r.Found)
		}
	}
	return rs
}

func facts(n int) []registry.Fact {
	fs := make([]registry.Fact, n)
	for i := range fs {
		fs[i] = registry.Fact{Kind: registry.KindVerdict, Pool: "p", Name: fmt.Sprint("b", i)}
	}
	return fs
}

func TestFit(t *testing.T) {
	many := func(n, facts int) []registry.Write {
		ws := make([]registry.Write, n)
		for i := range ws {
			ws[i].Facts = make([]registry.Fact, facts)
		}
		return ws
	}
	long := many(30, 0)
	for i := range long {
		long[i].Key = strings.Repeat("x", 65535)
	}
	for _, c := range []struct {
		name string
		ws   []registry.Write
		want int
	}{
		{"a full batch", many(127, 0), 127},
		{"with one fact each", many(127, 1), 126},
		{"with three", many(127, 3), 124},
		{"all facts that fit", many(2, maxFacts), 1},
		{"one fact at the end", append(many(126, 0), many(1, 1)...), 126},
		{"keys of 64 KiB", long, 15},
		{"one alone", long[:1], 1},
	} {
		if got := fit(c.ws); got != c.want {
			t.Errorf("%s: %d fit, want %d", c.name, got, c.want)
		}
	}
}

// etcd agrees with what fit thinks it takes.
func TestBatchesWithManyFacts(t *testing.T) {
	t.Parallel()
	s := open(t, shared, newMesh())
	for _, c := range []struct{ writes, facts int }{{127, 0}, {127, 1}, {127, 3}, {127, 62}, {3, maxFacts}} {
		ws := make([]registry.Write, c.writes)
		for i := range ws {
			ws[i] = create(fmt.Sprintf("%d-%d-%d", c.writes, c.facts, i), "b1")
			ws[i].Facts = facts(c.facts)
		}
		commit(t, s, ws...)
		if a, err := s.Get(t.Context(), "p", ws[c.writes-1].Key); err != nil || a.Broker != "b1" {
			t.Errorf("%d writes with %d facts each: the last is %+v, %v", c.writes, c.facts, a, err)
		}
	}
	w := create("too many", "b1")
	w.Facts = facts(maxFacts + 1)
	if _, err := s.Commit(t.Context(), []registry.Write{w}); err == nil || errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("%d facts: %v, want it refused", len(w.Facts), err)
	}
	long := make([]registry.Write, registry.MaxCommit)
	for i := range long {
		long[i] = create(fmt.Sprint(i)+strings.Repeat("/", 65000), "b1")
	}
	commit(t, s, long...)
}

// recordLease returns the lease of a record, and what it was granted.
func recordLease(t *testing.T, s *Store, raw *clientv3.Client, key string) (id clientv3.LeaseID, granted, left int64) {
	t.Helper()
	res, err := raw.Get(t.Context(), s.keys.affinity("p", key))
	if err != nil || len(res.Kvs) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	id = clientv3.LeaseID(res.Kvs[0].Lease)
	ttl, err := raw.TimeToLive(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return id, ttl.GrantedTTL, ttl.TTL
}

func TestRecordsShareLeases(t *testing.T) {
	t.Parallel()
	s, raw := open(t, shared, newMesh()), shared.raw(t)
	ids := map[clientv3.LeaseID]bool{}
	for i := range 20 {
		ws := make([]registry.Write, 10)
		for j := range ws {
			ws[j] = create(fmt.Sprintf("k-%d-%d", i, j), "b1")
			ws[j].Lease = time.Hour
		}
		commit(t, s, ws...)
		id, granted, left := recordLease(t, s, raw, ws[9].Key)
		if ids[id] = true; granted != 4500 || left < 3600 {
			t.Errorf("a record for an hour: %d s granted, %d left", granted, left)
		}
	}
	if len(ids) != 1 {
		t.Errorf("200 records of one moment and one length are on %d leases", len(ids))
	}
	w := create("longer", "b1")
	w.Lease = 3 * time.Hour
	commit(t, s, w)
	if id, granted, _ := recordLease(t, s, raw, "longer"); ids[id] || granted != 13500 {
		t.Errorf("a record for three hours is on lease %x of %d s", id, granted)
	}
	commit(t, s, create("for ever", "b1"))
	if res, err := raw.Get(t.Context(), s.keys.affinity("p", "for ever")); err != nil || res.Kvs[0].Lease != 0 {
		t.Errorf("a record without end: %+v, %v", res, err)
	}
}

// etcd may forget a lease that we use: it was restored, or was away for longer than the lease.
func TestVanishedLease(t *testing.T) {
	t.Parallel()
	s, raw := open(t, shared, newMesh()), shared.raw(t)
	w := create("before", "b1")
	w.Lease = time.Hour
	commit(t, s, w)
	id, _, _ := recordLease(t, s, raw, "before")
	if _, err := raw.Revoke(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.Key = "after"
	commit(t, s, w, create("beside", "b2"))
	if again, granted, _ := recordLease(t, s, raw, "after"); again == id || granted != 4500 {
		t.Errorf("on lease %x of %d s, after %x was revoked", again, granted, id)
	}
}

// What does not read is as good as absent, and can be replaced by whoever knows its revision.
func TestForeignRecord(t *testing.T) {
	t.Parallel()
	s, raw := open(t, shared, newMesh()), shared.raw(t)
	later := wire.AppendAffinity(nil, registry.Affinity{Broker: "b9"}, "")
	later[0] = wire.Version + 1
	for i, value := range []string{"", "junk", string(later), string(wire.AppendAffinity(nil, registry.Affinity{Broker: "b9"}, "another key"))} {
		key := fmt.Sprint("k", i)
		put, err := raw.Put(t.Context(), s.keys.affinity("p", key), value)
		if err != nil {
			t.Fatal(err)
		}
		before := s.Ignored()
		a, err := s.Get(t.Context(), "p", key)
		if err != nil || a.Present() || a.Revision != put.Header.Revision {
			t.Errorf("%q: Get gives %+v, %v", value, a, err)
		}
		rs, err := s.Commit(t.Context(), []registry.Write{create(key, "b1")})
		if err != nil || rs[0].Status != registry.Conflict || rs[0].Found.Present() || rs[0].Found.Revision != put.Header.Revision {
			t.Errorf("%q: creating over it gives %+v, %v", value, rs, err)
		}
		if got := s.Ignored() - before; got != 2 {
			t.Errorf("%q: counted %d times, want 2", value, got)
		}
		w := create(key, "b1")
		w.Guard = rs[0].Found.Revision
		commit(t, s, w)
		if a, err := s.Get(t.Context(), "p", key); err != nil || a.Broker != "b1" {
			t.Errorf("%q: replaced it reads %+v, %v", value, a, err)
		}
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	mesh, raw := newMesh(), shared.raw(t)
	s := open(t, shared, mesh)
	commit(t, s, create("k", "b1"))
	var d wire.Decoder
	res, err := raw.Get(t.Context(), s.keys.schema())
	if err != nil || len(res.Kvs) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if got, err := d.Schema(res.Kvs[0].Value); err != nil || got.Version != 1 || got.MinVersion != 1 || got.Store == 0 {
		t.Errorf("the first writer wrote schema %+v, %v", got, err)
	}

	listed := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(within(t), 0, func(b registry.Batch) error {
			if b.Done {
				close(listed)
			}
			return nil
		})
	}()
	<-listed
	for _, value := range []string{string(wire.AppendSchema(nil, wire.Schema{Version: 3, MinVersion: 2})), "\x02unknown"} {
		if _, err := raw.Put(t.Context(), s.keys.schema(), value); err != nil {
			t.Fatal(err)
		}
		other := open(t, shared, mesh)
		if _, err := other.Commit(t.Context(), []registry.Write{create("k2", "b1")}); !errors.Is(err, ErrSchema) || errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%q: a commit: %v, want ErrSchema", value, err)
		}
		if _, err := other.Join(t.Context(), registry.Edge{ID: "e1"}); !errors.Is(err, ErrSchema) {
			t.Errorf("%q: a join: %v, want ErrSchema", value, err)
		}
		if err := other.Watch(within(t), 0, func(registry.Batch) error { return nil }); !errors.Is(err, ErrSchema) {
			t.Errorf("%q: a watch: %v, want ErrSchema", value, err)
		}
	}
	if err := <-ended; !errors.Is(err, ErrSchema) {
		t.Errorf("a watch during which min_version rose: %v, want ErrSchema", err)
	}
	// A newer store that still takes us.
	if _, err := raw.Put(t.Context(), s.keys.schema(), string(wire.AppendSchema(nil, wire.Schema{Version: 2, MinVersion: 1}))); err != nil {
		t.Fatal(err)
	}
	commit(t, open(t, shared, mesh), create("k3", "b1"))
}

func TestIdentity(t *testing.T) {
	before := identity{cluster: 1, store: 2, term: 3}
	for _, c := range []struct {
		name        string
		before, now identity
		replaced    bool
	}{
		{"never seen", identity{}, identity{7, 8, 9}, false},
		{"the same", before, before, false},
		{"after an election", before, identity{1, 2, 4}, false},
		{"since its first writer", identity{1, 0, 3}, before, false},
		{"another cluster", before, identity{9, 2, 3}, true},
		{"wiped", before, identity{1, 0, 3}, true},
		{"wiped and written", before, identity{1, 9, 3}, true},
		{"restored", before, identity{1, 2, 2}, true},
	} {
		if why, got := c.now.replaces(c.before); got != c.replaced || got != (why != "") {
			t.Errorf("%s: %v %q, want %v", c.name, got, why, c.replaced)
		}
	}
}

func TestPoolThatNoEdgeCouldRead(t *testing.T) {
	t.Parallel()
	s := open(t, shared, newMesh())
	for _, brokers := range [][]registry.Broker{{{ID: "a"}, {ID: "a"}}, {{ID: "A"}}, {{ID: ""}}, {{ID: "a", Weight: -1}}} {
		if err := s.PutPool(t.Context(), &registry.Pool{Name: "p", Brokers: brokers}, 0); err == nil {
			t.Errorf("brokers %+v were taken", brokers)
		}
	}
}

func benchmarkCommit(b *testing.B, n, writers int) {
	s := open(b, shared, newMesh())
	commit(b, s, create("first", "b1"))
	b.SetParallelism(writers)
	b.ReportAllocs()
	next := make(chan int, 1)
	next <- 0
	b.RunParallel(func(pb *testing.PB) {
		ws := make([]registry.Write, n)
		for pb.Next() {
			id := <-next
			next <- id + 1
			for i := range ws {
				ws[i] = create(fmt.Sprintf("client-%d-%d", id, i), "b1")
				ws[i].Lease = time.Hour
			}
			rs, err := s.Commit(b.Context(), ws)
			if err != nil || rs[n-1].Status != registry.Committed {
				b.Errorf("%+v, %v", rs, err)
				return
			}
		}
	})
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkCommit1(b *testing.B)   { benchmarkCommit(b, 1, 2) }
func BenchmarkCommit127(b *testing.B) { benchmarkCommit(b, 127, 2) }
