package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// events makes events of the given revisions.
func events(revisions ...int64) []*clientv3.Event {
	evs := make([]*clientv3.Event, len(revisions))
	for i, r := range revisions {
		evs[i] = &clientv3.Event{Kv: &mvccpb.KeyValue{ModRevision: r}}
	}
	return evs
}

func revisions(evs []*clientv3.Event) []int64 {
	rs := []int64{}
	for _, ev := range evs {
		rs = append(rs, ev.Kv.ModRevision)
	}
	return rs
}

func TestWholeTransactions(t *testing.T) {
	type step struct {
		in   []int64
		more bool
		out  []int64
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"one answer", []step{{[]int64{1, 1, 2}, false, []int64{1, 1, 2}}}},
		{"a transaction in three", []step{{[]int64{5, 5}, true, []int64{}}, {[]int64{5}, true, []int64{}}, {[]int64{5}, false, []int64{5, 5, 5, 5}}}},
		{"cut between two", []step{{[]int64{5, 5}, true, []int64{}}, {[]int64{6}, true, []int64{5, 5}}, {[]int64{7}, false, []int64{6, 7}}}},
		{"cut within the last", []step{{[]int64{3, 4, 5, 5}, true, []int64{3, 4}}, {[]int64{5, 6}, false, []int64{5, 5, 5, 6}}}},
	} {
		var pending []*clientv3.Event
		for i, s := range c.steps {
			if got := revisions(whole(&pending, events(s.in...), s.more)); !reflect.DeepEqual(got, s.out) {
				t.Errorf("%s, answer %d: %v, want %v", c.name, i, got, s.out)
			}
		}
		if len(pending) != 0 {
			t.Errorf("%s: %v are left", c.name, revisions(pending))
		}
	}
}

func TestFollower(t *testing.T) {
	s := &Store{keys: newKeyspace("m")}
	header := func(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{ClusterId: 7, Revision: rev} }
	put := func(key string, rev int64) *clientv3.Event {
		return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(s.keys.affinity("p", key)), Value: wire.AppendAffinity(nil, registry.Affinity{Broker: "b"}, ""), ModRevision: rev}}
	}
	f := follower{reader: &reader{store: s}, at: 10, cluster: 7}
	for i, c := range []struct {
		res     *pb.WatchResponse
		at      int64 // 0: nothing is told
		changes int
	}{
		{&pb.WatchResponse{Header: header(10), Created: true}, 0, 0},
		{&pb.WatchResponse{Header: header(10)}, 10, 0},
		{&pb.WatchResponse{Header: header(9)}, 0, 0},                                                              // a member that lags behind
		{&pb.WatchResponse{Header: header(10), Events: []*clientv3.Event{put("old", 10)}}, 0, 0},                  // known
		{&pb.WatchResponse{Header: header(20), Events: []*clientv3.Event{put("old", 10), put("new", 12)}}, 12, 1}, // no further than the events
		{&pb.WatchResponse{Header: header(20), Events: []*clientv3.Event{put("a", 13), put("a", 14)}, Fragment: true}, 13, 1},
		{&pb.WatchResponse{Header: header(20)}, 0, 0}, // progress does not complete a transaction
		{&pb.WatchResponse{Header: header(20), Events: []*clientv3.Event{put("b", 14)}}, 14, 2},
		{&pb.WatchResponse{Header: header(21)}, 21, 0},
	} {
		b, ok, err := f.take(t.Context(), c.res)
		if err != nil || ok != (c.at > 0) || b.Revision != c.at || len(b.Changes) != c.changes {
			t.Errorf("answer %d: %+v, %v, %v; want revision %d and %d changes", i, b, ok, err, c.at, c.changes)
		}
	}
	for _, c := range []struct {
		res  *pb.WatchResponse
		want error
	}{
		{&pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 8, Revision: 30}}, registry.ErrReset},
		{&pb.WatchResponse{Header: header(30), Canceled: true, CompactRevision: 25}, registry.ErrCompacted},
		{&pb.WatchResponse{Header: header(30), Canceled: true, CancelReason: "permission denied"}, registry.ErrUnavailable},
	} {
		if _, ok, err := f.take(t.Context(), c.res); ok || !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.res, err, c.want)
		}
	}
}

// listing returns all that a watch lists: change by kind, pool and name.
func listing(t *testing.T, s *Store) (all map[string]registry.Change, batches int) {
	t.Helper()
	all = make(map[string]registry.Change)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	err := s.Watch(ctx, 0, func(b registry.Batch) error {
		if b.List {
			batches++
		}
		for _, c := range b.Changes {
			all[fmt.Sprint(c.Kind, c.PoolName, "/", c.Name)] = c
		}
		if b.Done {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return all, batches
}

func TestListingInPagesIsThatOfAStream(t *testing.T) {
	t.Parallel()
	mesh := newMesh()
	s := open(t, shared, mesh)
	for i := range 4 {
		ws := make([]registry.Write, registry.MaxCommit)
		for j := range ws {
			ws[j] = create(fmt.Sprintf("k/%d/%d", i, j), "b1")
		}
		commit(t, s, ws...)
	}
	if err := s.PutPool(t.Context(), &registry.Pool{Name: "p", Brokers: []registry.Broker{{ID: "b1", Address: "h:1"}}}, 0); err != nil {
		t.Fatal(err)
	}
	streamed, _ := listing(t, s)
	paged := open(t, shared, mesh)
	paged.noStream, paged.pageSize = true, 50
	got, batches := listing(t, paged)
	if len(streamed) != 4*registry.MaxCommit+1 || batches != 11 || !reflect.DeepEqual(got, streamed) {
		t.Errorf("%d changes streamed, %d in %d pages", len(streamed), len(got), batches)
	}
}

// What is not a limpet's is ignored and counted, whether it is listed or comes while one follows; and both readers then know
// the same, also where garbage took the place of a value.
func TestForeignKeysAndValues(t *testing.T) {
	t.Parallel()
	mesh, raw := newMesh(), shared.raw(t)
	s := open(t, shared, mesh)
	long := strings.Repeat("long", 50)
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	commit(t, s, create("good", "b1"), create("spoilt", "b1"), create(long, "b1"), create(long+"2", "b1"))
	if err := errors.Join(s.SetAdmin(t.Context(), ref, registry.AdminOut), s.PutPool(t.Context(), &registry.Pool{Name: "p"}, 0)); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	followed := make(chan map[string]bool, 1)
	listed := make(chan struct{})
	go func() {
		err := s.Watch(within(t), 0, func(b registry.Batch) error {
			for _, c := range b.Changes {
				name := fmt.Sprint(c.Kind, c.PoolName, "/", c.Name)
				if c.Deleted {
					delete(known, name)
				} else {
					known[name] = true
				}
				if c.Kind == registry.KindPin {
					return errDone
				}
			}
			if b.Done {
				close(listed)
			}
			return nil
		})
		if !errors.Is(err, errDone) {
			t.Error(err)
		}
		followed <- known
	}()
	<-listed

	k := string(s.keys)
	foreign := []string{
		k + "affinity/p/spoilt", s.keys.affinity("p", long), s.keys.admin(ref), s.keys.pool("p"), s.keys.affinity("p", strings.Repeat("never seen", 50)),
		k + "x", k + "affinity/p", k + "affinity/P/k", k + "affinity/p/%zz", k + "affinity/p/~short", k + "edges/", k + "unknown/x", k + "leader", k + "verdicts/p/b1",
	}
	for _, key := range foreign {
		if _, err := raw.Put(t.Context(), key, "\x01\xff"); err != nil {
			t.Fatal(err)
		}
	}
	// Of others, and no garbage.
	for _, key := range []string{k + "jobs/1", k + "secrets/x/y", k + "dns/e1"} {
		if _, err := raw.Put(t.Context(), key, "theirs"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := raw.Delete(t.Context(), s.keys.affinity("p", long+"2")); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPin(t.Context(), registry.PinRef{Pool: "p", Key: "last"}, "b1"); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{
		fmt.Sprint(registry.KindAffinity, "p/good"): true, fmt.Sprint(registry.KindPin, "p/last"): true,
		// What operators and the leader wrote is told as what it is.
		fmt.Sprint(registry.KindPool, "/p"): true, fmt.Sprint(registry.KindAdmin, "p/b1"): true, fmt.Sprint(registry.KindVerdict, "p/b1"): true,
	}
	if got := <-followed; !maps.Equal(got, want) {
		t.Errorf("who followed knows %v, want %v", got, want)
	}
	if got := s.Ignored(); got != uint64(len(foreign)) {
		t.Errorf("%d ignored while following, want %d", got, len(foreign))
	}
	other := open(t, shared, mesh)
	got := map[string]bool{}
	all, _ := listing(t, other)
	for name := range all {
		got[name] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("who lists knows %v, want %v", got, want)
	}
	if got := other.Ignored(); got != uint64(len(foreign)) {
		t.Errorf("%d ignored while listing, want %d", got, len(foreign))
	}
}

// A pool that does not read is told as such, by changes and by listings, named in the log, and can be replaced.
func TestUnreadablePool(t *testing.T) {
	t.Parallel()
	mesh := newMesh()
	var log bytes.Buffer
	s := open(t, shared, mesh, func(c *Config) { c.Logger = zerolog.New(&log) })
	if err := s.PutPool(t.Context(), &registry.Pool{Name: "p"}, 0); err != nil {
		t.Fatal(err)
	}
	listed, followed := make(chan struct{}), make(chan registry.Change, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := s.Watch(within(t), 0, func(b registry.Batch) error {
			if b.Done {
				close(listed)
			} else if len(b.Changes) > 0 {
				followed <- b.Changes[0]
				return errDone
			}
			return nil
		})
		if !errors.Is(err, errDone) {
			t.Error(err)
		}
	}()
	<-listed
	put, err := shared.raw(t).Put(t.Context(), s.keys.pool("p"), "\x02later")
	if err != nil {
		t.Fatal(err)
	}
	want := registry.Change{
		Kind: registry.KindPool, Name: "p", Revision: put.Header.Revision,
		Unreadable: s.keys.pool("p") + ": wire: unknown version 2, this program reads 1",
	}
	if got := <-followed; !reflect.DeepEqual(got, want) {
		t.Errorf("followed %+v, want %+v", got, want)
	}
	<-ended
	if !strings.Contains(log.String(), s.keys.pool("p")) || !strings.Contains(log.String(), "unknown version 2") {
		t.Errorf("log: %s", &log)
	}
	err = open(t, shared, mesh).Watch(within(t), 0, func(b registry.Batch) error {
		if !b.Done || len(b.Changes) != 1 || !reflect.DeepEqual(b.Changes[0], want) {
			t.Errorf("listed %+v, want %+v", b, want)
		}
		return errDone
	})
	if !errors.Is(err, errDone) {
		t.Error(err)
	}
	if err := s.PutPool(t.Context(), &registry.Pool{Name: "p"}, want.Revision); err != nil {
		t.Errorf("replacing it: %v", err)
	}
}

// What operators and the leader wrote is told as what does not read, each named in the log: by changes, and by listings.
func TestUnreadableWords(t *testing.T) {
	t.Parallel()
	mesh := newMesh()
	var log bytes.Buffer
	s := open(t, shared, mesh, func(c *Config) { c.Logger = zerolog.New(&log) })
	ref := registry.BrokerRef{Pool: "p", Broker: "b1"}
	if err := s.SetAdmin(t.Context(), ref, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	raw, state := shared.raw(t), &registry.State{}
	long := strings.Repeat("long", 50)
	tied := registry.PinRef{Pool: "p", Key: long}
	for pin, broker := range map[registry.PinRef]string{{Pool: "p", Key: "k/1"}: "b1", tied: "b2"} {
		if err := s.SetPin(t.Context(), pin, broker); err != nil {
			t.Fatal(err)
		}
	}
	spoil := func() {
		for key, value := range map[string]string{
			s.keys.admin(ref): "\x02out", s.keys.admin(registry.BrokerRef{Pool: "p", Broker: "b2"}): string(wire.AppendAdmin(nil, "drain")),
			s.keys.verdict(ref): "garbage", s.keys.pin("p", "k/1"): "", s.keys.pin("p", long): "\x02",
		} {
			if _, err := raw.Put(t.Context(), key, value); err != nil {
				t.Error(err)
			}
		}
	}
	err := s.Watch(within(t), 0, func(b registry.Batch) error {
		state = state.Apply(b.Changes, b.Revision)
		if b.Done {
			spoil()
		}
		if _, tied := state.Pins[tied]; len(state.Unreadable) == 4 && !tied {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) {
		t.Fatalf("%v; %+v", err, state)
	}
	if a := state.Admin[ref]; a.State != registry.AdminOut || a.Revision != state.Unreadable[registry.Subject{Kind: registry.KindAdmin, Pool: "p", Name: "b1"}].Revision {
		t.Errorf("admin state %+v", a)
	}
	if a := state.Admin[registry.BrokerRef{Pool: "p", Broker: "b2"}]; a.State != registry.AdminUnknown {
		t.Errorf("admin state %+v", a)
	}
	if b := state.Pins[registry.PinRef{Pool: "p", Key: "k/1"}]; b != "b1" {
		t.Errorf("pin %q", b)
	}
	for about, u := range state.Unreadable {
		if key, _, _ := strings.Cut(u.Reason, ":"); !strings.Contains(log.String(), key) {
			t.Errorf("%+v: %+v; log:\n%s", about, u, &log)
		}
	}
	listed := &registry.State{}
	err = open(t, shared, mesh).Watch(within(t), 0, func(b registry.Batch) error {
		if listed = listed.Apply(b.Changes, b.Revision); b.Done {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) || !maps.Equal(listed.Unreadable, state.Unreadable) {
		t.Errorf("%v; listed %+v, followed %+v", err, listed.Unreadable, state.Unreadable)
	}
	if listed.Admin[ref].State != registry.AdminUnknown || len(listed.Pins) != 0 {
		t.Errorf("listed %+v", listed)
	}
	// A guarded write may rest on what stands.
	w := create("k", "b2")
	w.Facts = []registry.Fact{
		{Kind: registry.KindAdmin, Pool: "p", Name: "b1", Revision: state.Admin[ref].Revision},
		{Kind: registry.KindVerdict, Pool: "p", Name: "b1", Revision: listed.Verdicts[ref].Revision},
	}
	if r := commit(t, s, w)[0]; r.Status != registry.Committed {
		t.Errorf("%+v", r)
	}
}

var errDone = errors.New("done")

// A reader who was away for long gets its history in fragments, and whole transactions all the same; and the names of
// many long keys that end at once.
func TestHistoryInFragments(t *testing.T) {
	t.Parallel()
	s := open(t, shared, newMesh())
	from := commit(t, s, create("first", "b1"))[0].Revision
	long := strings.Repeat("/", 60_000)
	const batches, each = 6, 16
	for i := range batches {
		ws := make([]registry.Write, each)
		for j := range ws {
			ws[j] = create(fmt.Sprint(i, "-", j)+long, "b1")
		}
		commit(t, s, ws...)
	}
	if _, err := shared.raw(t).Delete(t.Context(), string(s.keys)+affinityDir, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	live := map[string]bool{"first": true}
	puts, last := 0, from
	err := s.Watch(within(t), from, func(b registry.Batch) error {
		perRevision := map[int64]int{}
		for _, c := range b.Changes {
			if perRevision[c.Revision]++; c.Revision <= last {
				return fmt.Errorf("revision %d was split or told twice", c.Revision)
			}
			if c.Deleted {
				if !live[c.Name] {
					return fmt.Errorf("%.20q ended and never was", c.Name)
				}
				delete(live, c.Name)
			} else {
				puts++
				live[c.Name] = true
			}
		}
		last = b.Revision
		for rev, n := range perRevision {
			if n != each && n != batches*each+1 {
				return fmt.Errorf("%d changes of revision %d", n, rev)
			}
		}
		if len(live) == 0 {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) || puts != batches*each {
		t.Errorf("%v; %d records were told, %d are left", err, puts, len(live))
	}
}

// FuzzReader feeds a watch what anybody may have written under the mesh's prefix. What it makes of it must be what a limpet
// could have written, and be the same whether it is listed or followed.
func FuzzReader(f *testing.F) {
	k := newKeyspace("m")
	f.Add(k.affinity("p", "k")[len(k):], wire.AppendAffinity(nil, registry.Affinity{Broker: "b"}, ""))
	f.Add(k.pin("p", strings.Repeat("x", 200))[len(k):], wire.AppendPin(nil, "b", strings.Repeat("x", 200)))
	f.Add("pools/p", wire.AppendPool(nil, &registry.Pool{Brokers: []registry.Broker{{ID: "b"}}}))
	f.Add("brokers/p/b", wire.AppendAdmin(nil, registry.AdminOut))
	f.Add("verdicts/p/b", wire.AppendVerdict(nil, registry.Verdict{State: registry.BrokerDown, Since: time.Unix(1, 1)}))
	f.Add("edges/e", wire.AppendEdge(nil, registry.Edge{Version: "v"}))
	f.Add("health/e", wire.AppendHealth(nil, registry.Health{Seq: 1}))
	f.Add("leader", wire.AppendLeader(nil, "e"))
	f.Add("pruned", wire.AppendPrune(nil))
	f.Add("pruned", []byte("no"))
	f.Add("schema", wire.AppendSchema(nil, wire.Schema{MinVersion: 1}))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		r := &reader{store: &Store{keys: k}}
		kv := &mvccpb.KeyValue{Key: []byte(string(k) + key), Value: value, ModRevision: 5}
		listed, err := r.listed([]*mvccpb.KeyValue{kv})
		if err != nil && !errors.Is(err, ErrSchema) || len(listed) > 1 {
			t.Fatalf("%+v, %v", listed, err)
		}
		if p, ok := k.parse(kv.Key, &r.names); len(listed) == 0 && ok && p.hash != "" {
			return // its former name would be asked of etcd
		}
		followed, err2 := r.followed(t.Context(), []*clientv3.Event{{Kv: kv}})
		if (err == nil) != (err2 == nil) {
			t.Fatalf("listed: %v, followed: %v", err, err2)
		}
		if len(listed) == 0 {
			if len(followed) > 1 || len(followed) == 1 && !followed[0].Deleted {
				t.Fatalf("not listed, but followed: %+v", followed)
			}
			return
		}
		if !reflect.DeepEqual(listed, followed) {
			t.Fatalf("listed %+v, followed %+v", listed, followed)
		}
		c := listed[0]
		written := map[registry.Kind]string{
			registry.KindAffinity: k.affinity(c.PoolName, c.Name), registry.KindPin: k.pin(c.PoolName, c.Name), registry.KindPool: k.pool(c.Name),
			registry.KindAdmin:   k.admin(registry.BrokerRef{Pool: c.PoolName, Broker: c.Name}),
			registry.KindVerdict: k.verdict(registry.BrokerRef{Pool: c.PoolName, Broker: c.Name}),
			registry.KindEdge:    k.edge(c.Name), registry.KindHealth: k.health(c.Name), registry.KindLeader: k.leader(),
			registry.KindPrune: k.prune(),
		}[c.Kind]
		if written != string(kv.Key) {
			t.Fatalf("%q was read as %+v, which is written at %q", kv.Key, c, written)
		}
	})
}
