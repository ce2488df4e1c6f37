package edge

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/registry"
)

// desk is a server without sockets: the test plays the relay, and the committer too unless there is a real one.
type desk struct {
	*Server
	t      *testing.T
	store  *registry.Memory
	cache  *registry.Cache
	log    *lines
	writes []write // that were submitted and have no fate
	doubts []error
}

type write struct {
	registry.Write
	done func(registry.Result)
}

// Submit implements Committer.
func (d *desk) Submit(w registry.Write, done func(registry.Result)) {
	d.writes = append(d.writes, write{w, done})
}

// newDesk has a pool of two brokers, b1 and b2. It runs its cache until the test ends.
func newDesk(t *testing.T, committer func(*desk) Committer) *desk {
	t.Helper()
	d := &desk{t: t, store: registry.NewMemory(), log: &lines{}}
	pool := &registry.Pool{Name: "default", TTL: time.Hour, MaxTTL: 12 * time.Hour, Brokers: []registry.Broker{{ID: "b1", Address: "192.0.2.1:1883"}, {ID: "b2", Address: "192.0.2.2:1883"}}}
	if err := d.store.PutPool(t.Context(), pool, 0); err != nil {
		t.Fatal(err)
	}
	d.cache = registry.NewCache(registry.CacheConfig{Store: d.store, Logger: zerolog.Nop()})
	conf := Config{
		ID: "e1", Cache: d.cache, Committer: d, Resolver: upstream.NewResolver(upstream.ResolverConfig{Log: zerolog.Nop()}),
		Log: zerolog.New(d.log), Metrics: NewMetrics(prometheus.NewRegistry()),
		Doubt: func(_ registry.BrokerRef, err error) { d.doubts = append(d.doubts, err) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if committer != nil {
		conf.Committer = committer(d)
		if r, ok := conf.Committer.(*registry.Committer); ok {
			wg.Go(func() { r.Run(ctx) })
		}
	}
	var err error
	if d.Server, err = New(conf); err != nil {
		t.Fatal(err)
	}
	d.cache.OnState(d.SetState)
	d.cache.OnAffinity(d.AffinityChanged)
	wg.Go(func() { d.cache.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		d.stop()
		wg.Wait()
		d.tasks.Wait()
		d.store.Close()
		if d.loops != nil {
			for _, l := range d.loops.working {
				l.Run(ctx) // frees what it holds
			}
		}
	})
	for !d.cache.Current() {
		time.Sleep(time.Millisecond)
	}
	return d
}

// tie pins a key to a broker, so that the test knows where its clients go.
func (d *desk) tie(key, broker string) {
	d.t.Helper()
	if err := d.store.SetPin(d.t.Context(), registry.PinRef{Pool: "default", Key: key}, broker); err != nil {
		d.t.Fatal(err)
	}
	d.settled()
}

// commit writes to the store, and waits until the cache has it.
func (d *desk) commit(w registry.Write) registry.Result {
	d.t.Helper()
	rs, err := d.store.Commit(d.t.Context(), []registry.Write{w})
	if err != nil || rs[0].Status != registry.Committed {
		d.t.Fatal(rs, err)
	}
	d.settled()
	return rs[0]
}

// record is a write that sets a key's record.
func record(key, broker string, guard int64) registry.Write {
	return registry.Write{
		Pool: "default", Key: key, Guard: guard, Lease: 100 * time.Hour,
		Affinity: registry.Affinity{Broker: broker, Home: broker, Writer: "other", Reason: "placement", Expires: time.Now().Add(100 * time.Hour).Truncate(time.Second)},
	}
}

// settled waits until the watch has told all that the store knows.
func (d *desk) settled() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	head := int64(0)
	d.store.Watch(ctx, 0, func(b registry.Batch) error {
		head = b.Revision
		if b.Done {
			return context.Canceled
		}
		return nil
	})
	if err := d.cache.Wait(ctx, head); err != nil {
		d.t.Fatal(err)
	}
}

// fakeConn is a session's handle that remembers.
type fakeConn struct {
	mu      sync.Mutex
	stops   []relay.Reason
	answers []relay.Answer
	onStop  func()
}

func (f *fakeConn) Stop(r relay.Reason) {
	f.mu.Lock()
	f.stops = append(f.stops, r)
	f.mu.Unlock()
	if f.onStop != nil {
		f.onStop()
	}
}

func (f *fakeConn) Answer(a relay.Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = append(f.answers, a)
}

// come is a client that has connected and been routed.
func (d *desk) come(k *mqtt.Connect) (*client, *fakeConn) {
	d.t.Helper()
	ln := &listener{srv: d.Server, name: "mqtt", pool: "default"}
	ln.accepts, ln.sessions = d.Server.conf.Metrics.open(ln.name)
	c := d.admit(ln, relay.Origin{Listener: "mqtt", Client: netip.MustParseAddrPort("198.51.100.1:1"), Peer: netip.MustParseAddrPort("198.51.100.1:1")})
	if c == nil {
		d.t.Fatal("not admitted")
	}
	f := &fakeConn{}
	if a, ok := c.Route(f, relay.Query{Connect: k}); !ok || a.Target == nil {
		d.t.Fatalf("routed to %+v, %v", a, ok)
	}
	return c, f
}

// one is the write that waits.
func (d *desk) one() write {
	d.t.Helper()
	if len(d.writes) != 1 {
		d.t.Fatalf("%d writes submitted, want 1", len(d.writes))
	}
	w := d.writes[0]
	d.writes = nil
	return w
}

func (d *desk) none(why string) {
	d.t.Helper()
	if len(d.writes) > 0 {
		d.t.Errorf("%s: submitted %+v", why, d.writes[0].Write)
		d.writes = nil
	}
}

// within fails if fn does not return: a deadlock.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// committerAtOnce has ended: it tells every fate from Submit itself.
type committerAtOnce struct{ n int }

func (c *committerAtOnce) Submit(_ registry.Write, done func(registry.Result)) {
	c.n++
	done(registry.Result{Status: registry.Dropped})
}

func TestCommitterThatHasEnded(t *testing.T) {
	at := &committerAtOnce{}
	d := newDesk(t, func(*desk) Committer { return at })
	c, f := d.come(persistent("x"))
	within(t, "Accepted", func() { c.Accepted(f, mqtt.Connack{}, 0) })
	if at.n != 1 {
		t.Errorf("%d writes", at.n)
	}
	within(t, "refresh", func() { c.refresh(time.Now().Add(time.Second)) })
	if at.n != 2 {
		t.Errorf("%d writes: the one that was dropped is not tried again", at.n)
	}
}

// Nobody is called with a client's lock held.
func TestStopMayAskTheClient(t *testing.T) {
	d := newDesk(t, nil)
	c, f := d.come(persistent("x"))
	f.onStop = func() { c.broker() }
	c.Accepted(f, mqtt.Connack{}, 0)
	w := d.one()
	within(t, "committed", func() {
		other := map[string]string{"b1": "b2", "b2": "b1"}[w.Affinity.Broker]
		w.done(registry.Result{Status: registry.Conflict, Found: registry.Affinity{Broker: other, Revision: 9}})
	})
	within(t, "end", func() { c.end(relay.ReasonShutdown) })
	if len(f.stops) != 1 || f.stops[0] != relay.ReasonMoved {
		t.Errorf("stopped for %v, want moved, once", f.stops)
	}
}

// A client that is gone before its write has a fate leaves a session behind, and that a record.
func TestAWriteOutlivesItsClient(t *testing.T) {
	d := newDesk(t, nil)
	d.tie("x", "b1")
	d.commit(record("x", "b2", 0))
	c, f := d.come(persistent("x"))
	c.Accepted(f, mqtt.Connack{}, 0)
	w := d.one()
	c.Closed(relay.Summary{Reason: relay.ReasonClientClosed})
	w.done(registry.Result{Status: registry.Conflict}) // deleted meanwhile
	if w = d.one(); w.Guard != 0 || w.Affinity.Broker != "b1" {
		t.Errorf("written: %+v", w.Write)
	}
	w.done(registry.Result{Status: registry.Committed, Revision: 9})
	d.none("committed")
}

// A session that its broker has ended, or we have, while its client has not heard of it yet, brings no record back that somebody has deleted since.
func TestAnEndedSessionWritesNothing(t *testing.T) {
	for name, end := range map[string]func(c *client, f *fakeConn){
		"by the broker": func(c *client, f *fakeConn) { c.BrokerEnded(f) },
		"by us":         func(c *client, _ *fakeConn) { c.end(relay.ReasonBrokerDown) },
	} {
		d := newDesk(t, nil)
		c, f := d.come(persistent("x"))
		c.Accepted(f, mqtt.Connack{}, 0)
		w := d.one()
		r := d.commit(w.Write)
		w.done(r)
		end(c, f)
		d.commit(registry.Write{Pool: "default", Key: "x", Guard: r.Revision})
		c.refresh(time.Now().Add(24 * time.Hour))
		d.none("the session has ended " + name)
		if n := d.table.count(); name == "by the broker" && n != 0 {
			t.Errorf("%d live sessions", n)
		}
	}
}

func TestADisconnectDuringTheWrite(t *testing.T) {
	for _, c := range []struct {
		name   string
		expiry uint32
		lease  time.Duration // 0 = deleted
	}{{"longer", 7200, registry.Lifetime{TTL: 2 * time.Hour}.Lease()}, {"no longer", 0, 0}} {
		d := newDesk(t, nil)
		cl, f := d.come(v5("x", 60))
		cl.Accepted(f, mqtt.Connack{}, 0)
		w := d.one()
		cl.Goodbye(f, mqtt.Disconnect{HasSessionExpiry: true, SessionExpiry: c.expiry})
		d.none("while one is under way")
		cl.Closed(relay.Summary{Reason: relay.ReasonClientDisconnect})
		w.done(registry.Result{Status: registry.Committed, Revision: 7})
		if w = d.one(); w.Guard != 7 || w.Lease != c.lease || w.Affinity.Present() != (c.lease != 0) {
			t.Errorf("%s: %+v", c.name, w.Write)
		}
	}
}

// The watch may tell of the record's next owner before the committer has told of ours.
func TestTheWatchIsQuickerThanTheCommitter(t *testing.T) {
	d := newDesk(t, nil)
	d.tie("x", "b1")
	c, f := d.come(persistent("x"))
	c.Accepted(f, mqtt.Connack{}, 0)
	w := d.one()
	r := d.commit(w.Write)
	d.commit(record("x", "b2", r.Revision))
	w.done(r)
	if len(f.stops) != 1 || f.stops[0] != relay.ReasonMoved {
		t.Errorf("stopped for %v: the client stays where the record is not", f.stops)
	}
	d.none("moved")

	// Or of its end.
	c, f = d.come(persistent("y"))
	c.Accepted(f, mqtt.Connack{}, 0)
	w = d.one()
	r = d.commit(w.Write)
	d.commit(registry.Write{Pool: "default", Key: "y", Guard: r.Revision})
	w.done(r)
	if w = d.one(); !w.Affinity.Present() || w.Guard != 0 {
		t.Errorf("a record that was deleted is written as %+v", w.Write)
	}
	// Or of our own.
	c, f = d.come(persistent("z"))
	c.Accepted(f, mqtt.Connack{}, 0)
	w = d.one()
	r = d.commit(w.Write)
	w.done(r)
	if d.none("our own write"); len(f.stops) > 0 {
		t.Errorf("stopped for %v", f.stops)
	}
}

// A clean session deletes what its CONNECT found, and nothing that was written for another session since.
func TestACleanSessionDeletesNobodyElsesRecord(t *testing.T) {
	d := newDesk(t, nil)
	d.tie("x", "b1")
	c, f := d.come(clean("x"))
	c.Accepted(f, mqtt.Connack{}, 0)
	d.none("nothing is recorded")
	d.commit(record("x", "b1", 0))
	d.none("another session of the client, at its broker")
	c.Closed(relay.Summary{})

	c, f = d.come(clean("x"))
	c.Accepted(f, mqtt.Connack{}, 0)
	w := d.one()
	if w.Affinity.Present() || w.Guard == 0 {
		t.Fatalf("%+v", w.Write)
	}
	w.done(registry.Result{Status: registry.Conflict, Found: registry.Affinity{Broker: "b1", Revision: 99}})
	if d.none("somebody was quicker"); len(f.stops) > 0 {
		t.Errorf("stopped for %v", f.stops)
	}
	// Elsewhere it is another matter: the client follows.
	d.AffinityChanged("default", "x", registry.Affinity{Broker: "b2", Revision: 100})
	if len(f.stops) != 1 {
		t.Errorf("stopped for %v", f.stops)
	}
}

// A session that the broker made anew writes its record although there is one, so that nobody deletes it for the old session's sake.
func TestANewSessionWritesItsRecord(t *testing.T) {
	d := newDesk(t, nil)
	d.tie("x", "b1")
	r := d.commit(record("x", "b1", 0))
	for _, present := range []bool{true, false} {
		c, f := d.come(persistent("x"))
		c.Accepted(f, mqtt.Connack{SessionPresent: present}, 0)
		if present {
			d.none("a session that was there, and a record that lasts")
		} else if w := d.one(); w.Guard != r.Revision || !w.Affinity.Present() {
			t.Errorf("%+v", w.Write)
		} else {
			w.done(registry.Result{Status: registry.Committed, Revision: r.Revision + 1})
			d.none("once is enough")
		}
		c.Closed(relay.Summary{})
	}
}

// What this host lacks is no broker's fault.
func TestOutOfDescriptorsAtTheDial(t *testing.T) {
	d := newDesk(t, nil)
	c, f := d.come(persistent("x"))
	a, ok := c.Route(f, relay.Query{Attempt: 1, Cause: relay.CauseDial, Err: syscall.EMFILE})
	if !ok || a.Target != nil || a.Reason != relay.ReasonOverload || a.Code != mqtt.ServerBusy {
		t.Errorf("answer %+v, %v", a, ok)
	}
	if len(d.doubts) > 0 {
		t.Errorf("doubts: %v", d.doubts)
	}
	if n := d.table.count(); n != 0 {
		t.Errorf("%d in the table", n)
	}
}

// A broker that was given up is not where the client is: what happens to it concerns others.
func TestBetweenTwoBrokers(t *testing.T) {
	d := newDesk(t, nil)
	c, f := d.come(persistent("x"))
	first, _ := c.broker()
	if a, ok := c.Route(f, relay.Query{Attempt: 1, Cause: relay.CauseDial, Err: syscall.ECONNREFUSED}); !ok || a.Target == nil {
		t.Fatalf("answer %+v, %v", a, ok)
	}
	second, _ := c.broker()
	if first == second || d.table.count() != 1 {
		t.Errorf("at %v, then %v; %d in the table", first, second, d.table.count())
	}
	if err := d.store.SetAdmin(t.Context(), first, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	d.settled()
	if len(f.stops) > 0 {
		t.Errorf("stopped for %v", f.stops)
	}
	if a, ok := c.Route(f, relay.Query{Attempt: 2, Cause: relay.CauseDial, Err: syscall.ECONNREFUSED}); !ok || a.Target != nil || a.Reason != relay.ReasonDialFailed {
		t.Errorf("answer %+v, %v", a, ok)
	}
	if n := d.table.count(); n != 0 {
		t.Errorf("%d in the table", n)
	}
}

func TestNobodyIsBegunWhileLeaving(t *testing.T) {
	d := newDesk(t, nil)
	ln := &listener{srv: d.Server, name: "mqtt", pool: "default"}
	ln.accepts, ln.sessions = d.Server.conf.Metrics.open(ln.name)
	c := d.admit(ln, relay.Origin{Listener: "mqtt"})
	d.leaving.Store(true)
	if a, ok := c.Route(&fakeConn{}, relay.Query{Connect: persistent("x")}); !ok || a.Target != nil || a.Reason != relay.ReasonShutdown {
		t.Errorf("answer %+v, %v", a, ok)
	}
	if d.admit(ln, relay.Origin{Listener: "mqtt"}) != nil {
		t.Error("admitted")
	}
	c.Closed(relay.Summary{Reason: relay.ReasonShutdown})
	if d.table.count() != 0 || d.Live() != 0 {
		t.Errorf("%d in the table, %d live", d.table.count(), d.Live())
	}
}

// A client without an ID is logged without one, until the broker has told it.
func TestLogOfTheNameless(t *testing.T) {
	for _, c := range []struct {
		ack  *mqtt.Connack
		want string
	}{
		{nil, `"key":""`},
		{&mqtt.Connack{}, `"key":""`},
		{&mqtt.Connack{AssignedClientID: []byte("made")}, `"key":"made"`},
	} {
		d := newDesk(t, nil)
		cl, f := d.come(v5("", 60))
		if c.ack != nil {
			cl.Accepted(f, *c.ack, 0)
		}
		cl.Closed(relay.Summary{Reason: relay.ReasonClientClosed})
		if line := d.log.String(); !strings.Contains(line, c.want) || !strings.Contains(line, `"assigned":true`) {
			t.Errorf("%+v: %s", c.ack, line)
		}
	}
}

// What a session needs for moments it does not keep for hours: there are thousands of them.
func TestASettledSessionIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(client{}); size > 160 {
		t.Errorf("a client is %d bytes, and the next class of the allocator's begins at 161", size)
	}
	d := newDesk(t, nil)
	settled := func(c *client, want bool, when string) {
		t.Helper()
		if c.mu.Lock(); (c.approach == nil) != want {
			t.Errorf("%s: approach %+v", when, c.approach)
		}
		c.mu.Unlock()
	}
	c, f := d.come(clean("x"))
	settled(c, false, "on its way")
	c.Accepted(f, mqtt.Connack{}, 0)
	settled(c, true, "a session that leaves nothing behind")

	c, f = d.come(v5("y", 60))
	c.Accepted(f, mqtt.Connack{}, 0)
	settled(c, false, "its record is being written")
	w := d.one()
	w.done(registry.Result{Status: registry.Stale})
	d.tasks.Wait() // routed again
	settled(c, false, "another try is being written")
	w = d.one()
	w.done(registry.Result{Status: registry.Dropped})
	settled(c, false, "it could not be written")
	now := time.Now()
	c.refresh(now)
	w = d.one()
	w.done(registry.Result{Status: registry.Committed, Revision: 7})
	settled(c, true, "written")
	c.refresh(now)
	d.none("it is not due")
	c.refresh(now.Add(32 * time.Minute)) // half of twice a minute and half an hour
	settled(c, false, "it is due")
	if w = d.one(); w.Guard != 7 || w.Affinity.Home != w.Affinity.Broker || w.Affinity.Reason != "placement" {
		t.Errorf("written again: %+v", w.Write)
	}
	w.done(registry.Result{Status: registry.Committed, Revision: 8})
	settled(c, true, "written again")
	c.Goodbye(f, mqtt.Disconnect{HasSessionExpiry: true})
	if w = d.one(); w.Affinity.Present() || w.Guard != 8 {
		t.Errorf("deleted: %+v", w.Write)
	}
	w.done(registry.Result{Status: registry.Conflict, Found: registry.Affinity{Broker: w.Affinity.Broker, Revision: 9}})
	settled(c, true, "deleted by others")
}

// Records of clients that stay connected are written again in time, for as long as they stay. In fake time: two days.
func TestRecordsAreKeptAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(d *desk) Committer {
			return registry.NewCommitter(registry.CommitterConfig{Store: d.store, Cache: d.cache, Logger: zerolog.Nop()})
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { d.refresh(ctx) })
		lives := map[string]registry.Lifetime{}
		for id, k := range map[string]*mqtt.Connect{
			"mqtt3": persistent("mqtt3"), "minute": v5("minute", 60), "day": v5("day", 86400), "ever": v5("ever", 0xffffffff),
		} {
			c, f := d.come(k)
			c.Accepted(f, mqtt.Connack{}, 0)
			lives[id] = d.State().Pools["default"].Lifetime(c.expiry)
		}
		seen := map[string]map[int64]bool{}
		for range 2 * 24 * 2 {
			time.Sleep(30*time.Minute + time.Second)
			synctest.Wait()
			for id, life := range lives {
				a, err := d.store.Get(ctx, "default", id)
				if err != nil || !a.Present() {
					t.Fatalf("%s: %+v, %v", id, a, err)
				}
				// A look-over every 30 s, and whole seconds.
				if left := time.Until(a.Expires); left < life.TTL+registry.LeaseSlack-refreshEvery-time.Second {
					t.Fatalf("%s: %v are left, and its session lasts %v", id, left, life.TTL)
				}
				if seen[id] == nil {
					seen[id] = map[int64]bool{}
				}
				seen[id][a.Revision] = true
			}
		}
		for id, life := range lives {
			if n, most := len(seen[id]), int(2*24*time.Hour/(life.TTL+registry.LeaseSlack))+2; n > most || n < 2 {
				t.Errorf("%s was written %d times, want 2 to %d", id, n, most)
			}
		}
		cancel()
		wg.Wait()
	})
}
