package loadtest

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Share is which part of a plan a process runs: clients, messages and pairs whose number is Index modulo Of.
type Share struct {
	Index int `json:"index"`
	Of    int `json:"of"` // 0 = 1
}

// count is how many of n things are this share's.
func (s Share) count(n int) int {
	of := max(s.Of, 1)
	return (n - s.Index + of - 1) / of
}

// number is the number of this share's i-th thing among all.
func (s Share) number(i int) int { return s.Index + i*max(s.Of, 1) }

// schedule is this share's part of the times.
func (s Share) schedule(spec pace.Spec, seed uint64) pace.Schedule {
	return pace.Shard(spec.New(seed), s.Index, max(s.Of, 1))
}

// turns is this share's part of times that n clients take in turn: each client has its own, whoever runs it.
func (s Share) turns(spec pace.Spec, seed uint64, n int) pace.Schedule {
	return pace.Deal(spec.New(seed), n, s.Index, max(s.Of, 1))
}

// Options are what a run needs beside its plan. The zero value runs all of it in this process.
type Options struct {
	Tell func(*result.Result) // every second, what is known so far, to keep; nil: nobody is told

	// Of a process that runs a share of the plan: see Workers.
	share  Share
	id     uint32                           // of the run, in the headers of its messages; 0 = a new one
	begin  func() (stamp int64, err error)  // called when all is in place: when to start; nil: now
	over   func()                           // called when the plan is through, before what is under way is waited for
	part   func(part, proof *result.Result) // called every second: what is new, and what is proven so far
	faults <-chan fault.Event               // what is being done to the servers, by whom has the plan's faults; nil: this process does them
}

// run is a Plan being interpreted.
type run struct {
	plan   *Plan
	share  Share
	seed   uint64
	id     uint32 // in the header of its messages
	start  int64
	end    atomic.Int64 // no second begins after it; 0: not known
	heard  atomic.Int64 // when a message came last, about
	ctx    context.Context
	rec    *result.Recorder
	dialer *wire.Dialer
	engine *client.Engine
	told   client.Traffic // of engine, what is counted: by attend, then by live
	agenda *agenda

	faults   faultLog
	ways     []*way // the plan's endpoints first
	fleets   []*fleet
	verify   *verification
	cutShort bool // somebody ended the run before all that was sent had been waited for
	race     *racing

	pacers sync.WaitGroup // what ends by itself, or with ctx
	work   *tasks         // what must be done before the run is over: finite schedules, and what they have begun
}

// Run interprets plan, and returns what came of it: also with an error, and when ctx ended it early. plan has passed Check. Everything that
// it started has ended when it returns.
func Run(ctx context.Context, plan *Plan, o Options) (*result.Result, error) {
	r := &run{plan: plan, share: o.share, seed: max(plan.Seed, 1), id: o.id, work: newTasks()}
	if r.id == 0 {
		r.id = newRunID()
	}
	if err := plan.checkDescriptors(r.share); err != nil {
		return nil, err
	}
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	defer r.dialer.Close()
	if err := r.place(ctx, o.begin); err != nil {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return nil, errors.Join(err, r.engine.Run(ended)) // an engine that never ran keeps descriptors
	}
	return r.live(ctx, &o)
}

// newRunID tells the messages of two runs apart, also of two that start at the same time.
func newRunID() uint32 {
	h := fnv.New32a()
	_ = binary.Write(h, binary.BigEndian, [2]int64{pace.Now(), int64(os.Getpid())})
	return max(h.Sum32(), 1)
}

// open resolves names and prepares what connects.
func (r *run) open(ctx context.Context) error {
	endpoints, err := r.resolve(ctx, r.plan.Endpoints)
	if err != nil {
		return err
	}
	if r.plan.Choose == "round-robin" {
		r.way(r.plan.Endpoints, wire.RoundRobin(endpoints).Next)
	} else {
		r.way(r.plan.Endpoints, wire.Random(endpoints, r.seed+uint64(r.share.Index)<<32).Next)
	}
	conf := wire.Config{Proxy: r.plan.Proxy, NoResume: r.plan.TLS.NoTickets}
	if conf.TLS, err = r.plan.TLS.config(); err != nil {
		return err
	}
	for _, s := range r.plan.Sources {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return planError("sources", "expected an IP address, found %q", s)
		}
		conf.Sources = append(conf.Sources, a)
	}
	if r.dialer, err = wire.New(conf); err != nil {
		return err
	}
	if r.engine, err = client.New(client.Config{Dialer: r.dialer}); err != nil {
		return errors.Join(err, r.dialer.Close())
	}
	return nil
}

// place puts everybody in their places and learns when to start; nobody has connected yet.
func (r *run) place(ctx context.Context, begin func() (int64, error)) (err error) {
	for i := range r.plan.Fleets {
		r.fleets = append(r.fleets, newFleet(r, &r.plan.Fleets[i], i))
	}
	if r.plan.Verify != nil {
		if r.verify, err = newVerification(ctx, r, r.plan.Verify); err != nil {
			return err
		}
	}
	if r.plan.Race != nil {
		r.race = newRacing(r, r.plan.Race)
	}
	if begin == nil {
		begin = func() (int64, error) { return pace.Now(), nil }
	}
	if r.start, err = begin(); err != nil {
		return err
	}
	r.rec = result.NewRecorder(result.Config{Start: r.start, Wall: pace.Wall(r.start), Warmup: r.plan.Warmup})
	r.agenda = newAgenda(r.rec.Fired)
	return nil
}

func (r *run) resolve(ctx context.Context, all []string) ([]*wire.Endpoint, error) {
	targets, err := wire.ParseAll(all, wire.TCP)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return wire.Resolve(ctx, cmp.Or(r.plan.Network, "ip"), targets...)
}

// live has everybody live until the plan is through.
func (r *run) live(outer context.Context, o *Options) (*result.Result, error) {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	r.ctx = ctx

	// The engine outlives the plan: clients say goodbye in order at the end.
	below, stopBelow := context.WithCancel(context.WithoutCancel(outer))
	defer stopBelow()
	var base sync.WaitGroup
	var engineErr error
	base.Go(func() { engineErr = r.engine.Run(below) })
	base.Go(func() { _ = r.rec.Run(below, r.now) })
	base.Go(func() { r.agenda.run(below) }) // who is away at the end shall come back for what it was sent
	base.Go(func() { r.attend(below, o, cancel) })
	if o.faults != nil {
		base.Go(func() { r.listen(below, o.faults) })
	}
	var faultErr error
	if o.faults == nil && len(r.plan.Faults) > 0 {
		r.faults.own = true
		faults := fault.Plan{Faults: r.plan.Faults, State: r.plan.State, Seed: r.seed}
		r.pacers.Go(func() { faultErr = faults.Run(ctx, r.start, r.fault) })
	}

	r.begin()
	var deadline <-chan time.Time
	if r.plan.Duration > 0 {
		t := time.NewTimer(time.Duration(r.start + int64(r.plan.Duration) - pace.Now()))
		defer t.Stop()
		deadline = t.C
	}
	select {
	case <-r.work.over:
	case <-deadline:
	case <-ctx.Done():
	}
	interrupted := outer.Err() != nil
	hopeless := context.Cause(ctx)
	if interrupted {
		hopeless = nil
	}
	cancel(fault.ErrOver)
	r.pacers.Wait()
	if o.over != nil {
		o.over()
	}
	if hopeless == nil {
		r.settle(outer)
		hopeless = r.hoped(interrupted)
	}
	owed := r.owed()
	stopBelow()
	base.Wait()
	if r.verify != nil {
		r.verify.end()
	}

	r.traffic()
	res := r.rec.Finish(r.now())
	r.prove(res, false)
	r.name(res)
	res.Interrupted = interrupted
	res.Notes = r.notes()
	if owed != "" {
		res.Notes = append(res.Notes, owed)
	}
	if r.verify != nil {
		res.Notes = append(res.Notes, r.verify.notes()...)
	}
	if r.verify != nil && hopeless != nil {
		res.Notes = append(res.Notes, "given up: what was under way then counts as lost")
	}
	if r.cutShort {
		res.Notes = append(res.Notes, fmt.Sprintf("ended early: what had not come %v later counts as lost, though it may have been under way", interruptedVerify))
	}
	return res, errors.Join(hopeless, engineErr, faultErr)
}

// begin has everybody begin. The run is over when all that is finite has come to its end, if anything is.
func (r *run) begin() {
	finite := r.verify != nil || r.race != nil
	for _, f := range r.fleets {
		finite = f.begin() || finite
	}
	if r.verify != nil {
		r.verify.begin()
	}
	if r.race != nil {
		r.race.begin()
	}
	if finite {
		r.work.done()
	}
}

// now is the time; after the end of the plan it stands still, unless more is to be learned then: what still comes is counted, but the time
// that it takes is none in which anything was asked for.
func (r *run) now() int64 {
	if end := r.end.Load(); end != 0 {
		return end
	}
	return pace.Now()
}

// traffic counts what the engine exchanged since it was counted last.
func (r *run) traffic() {
	t, now := r.engine.Traffic(), r.now()
	r.rec.Count(result.BytesIn, now, t.In-r.told.In)
	r.rec.Count(result.BytesOut, now, t.Out-r.told.Out)
	r.rec.Count(result.Resends, now, t.Resent-r.told.Resent)
	r.told = t
}

// attend tells every second what is known, and gives up when nobody gets through.
func (r *run) attend(ctx context.Context, o *Options, giveUp context.CancelCauseFunc) {
	const look = 4 // times a second
	ticker := time.NewTicker(time.Second / look)
	defer ticker.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := r.hope(hopeless, silent); err != nil {
			giveUp(err)
		}
		r.traffic()
		if i%look != 0 || r.now() < r.start {
			continue
		}
		if o.part != nil {
			proof := result.New()
			r.prove(proof, true)
			o.part(r.rec.Take(r.now()), proof)
		}
		if o.Tell != nil {
			res := r.rec.Snapshot(r.now())
			r.prove(res, true)
			r.name(res)
			o.Tell(res)
		}
	}
}

// prove fills in what the books say; so far is quick, and without what is only known at the end.
func (r *run) prove(res *result.Result, soFar bool) {
	switch {
	case r.verify == nil:
	case soFar:
		res.Verify = r.verify.soFar()
	default:
		res.Verify = r.verify.report()
	}
	if r.race != nil {
		res.Race = r.race.report()
	}
}

// name says what was run.
func (r *run) name(res *result.Result) {
	res.Verb, res.Name, res.Targets = r.plan.Verb, r.plan.Name, r.plan.Endpoints
	res.Plan, _ = json.Marshal(r.plan.public()) // it was read from the same
}

// rand is a source of its own for a client.
func (r *run) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, stream)) }
