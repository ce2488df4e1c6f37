package loadtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/ledger"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Defaults of a Verify.
const (
	defaultLives     = 10
	defaultUp        = 3 * time.Second
	defaultDown      = time.Second
	defaultLate      = 5 * time.Second
	defaultIdentity  = "$SYS/broker/name"
	citizensOfFeeder = 100
	controlShare     = 10 // one client of so many is in the control group, if there is one
	verifySettle     = 30 * time.Second
	verifyLull       = 5 * time.Second // without a message to anybody, who are all connected: what is missing then is lost
	strandedAfter    = time.Minute     // of trying to connect in vain: nobody waits for that client any more
)

// verification is a Verify of which this process runs its share: groups of citizens, each with the feeders that publish to them.
type verification struct {
	run      *run
	spec     Verify // with its defaults
	retry    pace.Profile
	byTopic  bool
	byEdge   bool
	oracle   *oracle // by edge; from begin to end
	payloads *payloads
	groups   []*group
	all      []*citizen // of all groups, by number
}

// group is citizens that are judged together: those of the mesh, and those that go straight to the brokers, which show what brokers do by
// themselves.
type group struct {
	name     string
	v        *verification
	direct   bool // straight at the brokers
	books    *ledger.Ledger
	homes    *ledger.Homes
	citizens []*citizen
	feeders  []*feeder
	streams  []*stream
}

// stream is what one feeder sends to one citizen.
type stream struct {
	*ledger.Stream
	feeder *feeder
	topic  []byte
	qos    byte

	sequence uint64 // of the last message; guarded by the feeder's lock
}

// withDefaults fills in what was left out.
func (v Verify) withDefaults() Verify {
	v.Lives = cmp.Or(v.Lives, defaultLives)
	v.Up, v.Down = cmp.Or(v.Up, defaultUp), cmp.Or(v.Down, defaultDown)
	v.Late = cmp.Or(v.Late, defaultLate)
	v.Feeders = cmp.Or(v.Feeders, max(v.Clients/citizensOfFeeder, 1))
	v.Size = cmp.Or(v.Size, DefaultSize)
	v.Retry = cmp.Or(v.Retry, "paho")
	v.Topic = cmp.Or(v.Topic, defaultIdentity)
	if len(v.Drop) == 0 {
		v.Drop = drops
	}
	if len(v.QoS) == 0 {
		v.QoS = []int{1, 2}
	}
	if len(v.Versions) == 0 {
		v.Versions = []string{"3.1.1", "5"}
	}
	if len(v.Identity) == 0 {
		v.Identity = identities[:1]
	}
	if v.Connect.String() == "" {
		v.Connect = mustSchedule("500/s")
	}
	if v.Rate.String() == "" {
		v.Rate = mustSchedule(fmt.Sprintf("%g/s", max(float64(v.Clients)/2, 1)))
	}
	return v
}

// newVerification puts everybody in place; nobody has connected yet.
func newVerification(ctx context.Context, r *run, spec *Verify) (*verification, error) {
	v := &verification{run: r, spec: spec.withDefaults()}
	v.retry, _ = pace.ParseRetry(v.spec.Retry) // checked
	v.byTopic, v.byEdge = slices.Contains(v.spec.Identity, "topic"), slices.Contains(v.spec.Identity, "admin")
	v.payloads = newPayloads(v.spec.Size)
	mesh := v.group("mesh")
	var control *group
	var direct []*way // a broker each
	if len(v.spec.Control) > 0 {
		brokers, err := r.resolve(ctx, v.spec.Control)
		if err != nil {
			return nil, err
		}
		for _, e := range brokers {
			direct = append(direct, r.way([]string{e.Name}, func() *wire.Endpoint { return e }))
		}
		control = v.group("control")
		control.direct = true
	}
	for i := range r.share.count(v.spec.Clients) {
		number := r.share.number(i)
		if control != nil && number%controlShare == controlShare-1 {
			// Who publishes to it is at the same broker: brokers need not know each other.
			w := direct[(number/controlShare)%len(direct)]
			control.add(number, w, w.targets[0])
			continue
		}
		mesh.add(number, r.ways[0], strconv.Itoa(i%max(v.spec.Feeders/max(r.share.Of, 1), 1)))
	}
	return v, nil
}

func (v *verification) group(name string) *group {
	g := &group{
		name: name, v: v, books: ledger.New(ledger.Config{Late: v.spec.Late}),
		homes: ledger.NewHomes(ledger.HomesConfig{Grace: int64(time.Second)}),
	}
	v.groups = append(v.groups, g)
	return g
}

// add puts a citizen into the group, with a stream from the feeder of the given name.
func (g *group) add(number int, w *way, feeds string) {
	v := g.v
	i := slices.IndexFunc(g.feeders, func(f *feeder) bool { return f.name == feeds })
	if i < 0 {
		i = len(g.feeders)
		g.feeders = append(g.feeders, newFeeder(g, i, feeds, w))
	}
	qos := byte(v.spec.QoS[number%len(v.spec.QoS)])
	topic := fmt.Sprintf("limpet/verify/%08x/%d", v.run.id, number)
	s := &stream{
		Stream: g.books.Stream(g.feeders[i].id, topic, qos), feeder: g.feeders[i], topic: []byte(topic), qos: qos,
	}
	g.feeders[i].streams = append(g.feeders[i].streams, s)
	g.streams = append(g.streams, s)
	c := newCitizen(g, number, w, s)
	g.citizens = append(g.citizens, c)
	v.all = append(v.all, c)
}

// begin has everybody connect, and publish once all should be there.
func (v *verification) begin() {
	r := v.run
	if v.byEdge {
		v.oracle = newOracle(context.WithoutCancel(r.ctx), v.spec.Admin, v.spec.Pool)
	}
	first := r.start
	for _, g := range v.groups {
		for _, f := range g.feeders {
			r.agenda.at(first, f)
		}
	}
	r.work.add(len(v.all))
	begin := first + int64(200*time.Millisecond)
	r.pacers.Go(func() {
		var p pace.Pacer
		on := r.pace()
		_ = p.Run(r.ctx, begin, pace.Limit(r.share.schedule(v.spec.Connect, r.seed), len(v.all)), func(i int, intended int64) {
			on.fired(intended, pace.Now())
			v.all[i].connect(intended)
		})
	})
	from := begin + int64(span(v.spec.Connect, r.seed, v.spec.Clients)) + int64(500*time.Millisecond)
	r.pacers.Go(func() {
		var p pace.Pacer
		on := r.pace()
		_ = p.Run(r.ctx, from, r.share.turns(v.spec.Rate, r.seed+1, v.spec.Clients), func(i int, intended int64) {
			on.fired(intended, pace.Now())
			s := v.all[i%len(v.all)].stream
			s.feeder.publish(s, intended)
		})
	})
}

// end ends what begin has started. The engine has ended.
func (v *verification) end() {
	if v.oracle != nil {
		v.oracle.close()
	}
}

// fault tells who was home to whom that a broker goes, or is back.
func (v *verification) fault(e fault.Event) {
	name, ok := strings.CutPrefix(e.Target, string(fault.Broker)+" ")
	if !ok || e.Failed {
		return
	}
	for _, g := range v.groups {
		if e.End == 0 {
			g.homes.Away(name, e.Fault.String())
			if e.Fault.Verb != fault.Freeze {
				g.homes.Died(name)
			}
		} else if e.Fault.Verb != fault.Kill && e.Fault.Verb != fault.Term || e.Fault.For > 0 {
			g.homes.Back(name, e.End)
		}
	}
}

// settle waits until nothing is missing any more, for so long at most, and not as long when ctx is done; also until what is missing is not to
// be expected any more. It returns false if it did not wait long enough to tell.
func (v *verification) settle(ctx context.Context, most time.Duration) (settled bool) {
	end := pace.Now() + int64(most)
	interrupted := ctx.Done()
	lull := pace.Now() // since when nothing has come, though everybody was there
	fetched := false
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !v.complete() {
		if pace.Now() >= end {
			return interrupted != nil
		}
		lull = max(lull, v.run.heard.Load())
		if !v.present() {
			lull = pace.Now()
		} else if pace.Now()-lull > int64(verifyLull) {
			if fetched {
				return true
			}
			fetched, lull = true, pace.Now()
			v.fetch()
		}
		select {
		case <-tick.C:
		case <-interrupted:
			interrupted, end = nil, min(end, pace.Now()+int64(interruptedVerify))
		}
	}
	return true
}

// fetch has those come back by another connection who miss something: one may be dead without its client knowing yet, as QUIC's is for half a
// minute when an edge was killed, and its messages wait at the broker.
func (v *verification) fetch() {
	for _, g := range v.groups {
		missing := map[*ledger.Stream]bool{}
		g.books.Settle(pace.Now(), func(s *ledger.Stream, c ledger.Counts) {
			if c.Lost > 0 {
				missing[s] = true
			}
		})
		for _, c := range g.citizens {
			if missing[c.stream.Stream] {
				c.renew()
			}
		}
	}
}

// present reports whether everybody is connected, and has nothing to say.
func (v *verification) present() bool {
	for _, c := range v.all {
		c.Lock()
		missed := c.up == 0 && !c.stranded
		c.Unlock()
		if missed {
			return false
		}
	}
	for _, g := range v.groups {
		if slices.ContainsFunc(g.feeders, func(f *feeder) bool { return !f.idle() }) {
			return false
		}
	}
	return true
}

// notes tells of those who could not live all their lives.
func (v *verification) notes() []string {
	n, first := 0, ""
	for _, c := range v.all {
		c.Lock()
		if c.stranded && c.lives < v.spec.Lives {
			if n++; n == 1 {
				first = fmt.Sprintf("%s, at %s", c.id, few(c.way.targets))
			}
		}
		c.Unlock()
	}
	switch n {
	case 0:
		return nil
	case 1:
		return []string{"1 client did not live all its lives: it could not connect any more (" + first + ")"}
	}
	return []string{fmt.Sprintf("%d clients did not live all their lives: they could not connect any more (the first: %s)", n, first)}
}

// complete reports whether every message that was published is acknowledged, and every one that was acknowledged has come.
func (v *verification) complete() bool {
	for _, g := range v.groups {
		for _, f := range g.feeders {
			if !f.idle() {
				return false
			}
		}
		if m := g.books.Settle(pace.Now(), nil).Messages(); m.Lost > 0 {
			return false
		}
	}
	return true
}

// lock is held by whom the engine, the agenda and the pacers call.
type lock = sync.Mutex

var (
	_ client.Handler = (*citizen)(nil)
	_ client.Handler = (*feeder)(nil)
)
