package loadtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
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

// Options are what a run needs beside its plan.
type Options struct {
	Share Share
	Start int64                // stamp at which it starts; 0 = now
	Tell  func(*result.Result) // every second, what is known so far; nil: nobody
	Fault <-chan fault.Event   // what is being done to the servers, from who does it; nil: nothing
}

// run is a Plan being interpreted.
type run struct {
	plan   *Plan
	share  Share
	seed   uint64
	id     uint32 // in the header of its messages
	start  int64
	ctx    context.Context
	rec    *result.Recorder
	dialer *wire.Dialer
	engine *client.Engine
	agenda *agenda
	choose *wire.Chooser

	faults faultLog
	verify *verification
	race   *racing

	pacers sync.WaitGroup // what ends by itself, or with ctx
	work   sync.WaitGroup // what must be done before the run is over: finite schedules, and what they have begun
}

// Run interprets plan, and returns what came of it: also with an error, and when ctx ended it early. plan has passed Check. Everything that
// it started has ended when it returns.
func Run(ctx context.Context, plan *Plan, o Options) (*result.Result, error) {
	r := &run{plan: plan, share: o.Share, seed: max(plan.Seed, 1), start: o.Start}
	if r.start == 0 {
		r.start = pace.Now()
	}
	h := fnv.New32a()
	_ = binary.Write(h, binary.BigEndian, [2]uint64{r.seed, uint64(r.start)})
	r.id = h.Sum32()
	r.rec = result.NewRecorder(result.Config{Start: r.start, Wall: pace.Wall(r.start), Warmup: plan.Warmup})
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	defer r.dialer.Close()
	return r.live(ctx, o)
}

// open resolves names and prepares what connects.
func (r *run) open(ctx context.Context) error {
	endpoints, err := r.resolve(ctx, r.plan.Endpoints)
	if err != nil {
		return err
	}
	if r.plan.Choose == "round-robin" {
		r.choose = wire.RoundRobin(endpoints)
	} else {
		r.choose = wire.Random(endpoints, r.seed)
	}
	conf := wire.Config{Proxy: r.plan.Proxy, NoResume: r.plan.TLS.NoTickets}
	if conf.TLS, err = r.plan.TLS.config(); err != nil {
		return err
	}
	for _, s := range r.plan.Sources {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return planError("source %q is no IP address", s)
		}
		conf.Sources = append(conf.Sources, a)
	}
	if r.dialer, err = wire.New(conf); err != nil {
		return err
	}
	if r.engine, err = client.New(client.Config{Dialer: r.dialer}); err != nil {
		return errors.Join(err, r.dialer.Close())
	}
	r.agenda = newAgenda(r.rec.Fired)
	if r.plan.Verify != nil {
		if r.verify, err = newVerification(ctx, r, r.plan.Verify); err != nil {
			return errors.Join(err, r.dialer.Close())
		}
	}
	if r.plan.Race != nil {
		r.race = newRacing(r, r.plan.Race)
	}
	return nil
}

func (r *run) resolve(ctx context.Context, all []string) ([]*wire.Endpoint, error) {
	targets, err := wire.ParseAll(all, wire.TCP)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	network := r.plan.Network
	if network == "" {
		network = "ip"
	}
	return wire.Resolve(ctx, network, targets...)
}

// live has everybody live until the plan is through.
func (r *run) live(outer context.Context, o Options) (*result.Result, error) {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	r.ctx = ctx

	// The engine outlives the plan: clients say goodbye in order at the end.
	below, stopBelow := context.WithCancel(context.WithoutCancel(outer))
	defer stopBelow()
	var base sync.WaitGroup
	var engineErr error
	base.Go(func() { engineErr = r.engine.Run(below) })
	base.Go(func() { _ = r.rec.Run(below, pace.Now) })
	if o.Tell != nil {
		base.Go(func() { r.tell(below, o.Tell) })
	}
	base.Go(func() { r.agenda.run(below) }) // who is away at the end shall come back for what it was sent
	var faultErr error
	switch {
	case o.Fault != nil:
		r.pacers.Go(func() { r.listen(ctx, o.Fault) })
	case len(r.plan.Faults) > 0:
		faults := fault.Plan{Faults: r.plan.Faults, State: r.plan.State, Seed: r.seed}
		r.pacers.Go(func() { faultErr = faults.Run(ctx, r.start, r.fault) })
	}

	finite := r.verify != nil || r.race != nil
	for i := range r.plan.Fleets {
		f := newFleet(r, &r.plan.Fleets[i], i)
		finite = f.begin() || finite
	}
	if r.verify != nil {
		r.verify.begin()
	}
	if r.race != nil {
		r.race.begin()
	}

	over := make(chan struct{})
	if finite {
		go func() { r.work.Wait(); close(over) }() // ends at the latest with ctx, which every worker heeds
	}
	var deadline <-chan time.Time
	if r.plan.Duration > 0 {
		t := time.NewTimer(time.Duration(r.start + int64(r.plan.Duration) - pace.Now()))
		defer t.Stop()
		deadline = t.C
	}
	select {
	case <-over:
	case <-deadline:
	case <-outer.Done():
	}
	cancel()
	r.pacers.Wait()
	r.settle(outer)
	interrupted := outer.Err() != nil
	stopBelow()
	base.Wait()

	res := r.rec.Finish(pace.Now())
	if r.verify != nil {
		res.Verify = r.verify.report()
	}
	if r.race != nil {
		res.Race = r.race.report()
	}
	res.Verb, res.Name, res.Targets, res.Interrupted = r.plan.Verb, r.plan.Name, r.plan.Endpoints, interrupted
	return res, errors.Join(engineErr, faultErr)
}

// settle waits for what is under way.
func (r *run) settle(ctx context.Context) {
	d := r.plan.Settle
	if r.verify != nil {
		r.verify.settle(ctx, cmp.Or(d, verifySettle))
		return
	}
	if d == 0 {
		d = DefaultSettle
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (r *run) tell(ctx context.Context, tell func(*result.Result)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			tell(r.rec.Snapshot(pace.Now()))
		}
	}
}

// rand is a source of its own for a client.
func (r *run) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, stream)) }

// config reads the files.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.Insecure}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("loadtest: CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("loadtest: CA: %s: expected certificates in PEM", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("loadtest: client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// faultLog knows which fault clients suffer from.
type faultLog struct {
	mu  sync.Mutex
	all []fault.Event // the last state of each, by number
}

// listen hears of faults that another process does.
func (r *run) listen(ctx context.Context, events <-chan fault.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			r.fault(e)
		}
	}
}

// fault notes that a fault begins, or is over.
func (r *run) fault(e fault.Event) {
	r.faults.note(e)
	f := result.Fault{Number: e.Number, Spec: e.Fault.String(), Begin: max(e.Begin-r.start, 0), Outcome: e.Outcome}
	if e.End != 0 {
		f.End = e.End - r.start
	}
	if e.Failed {
		f.Error, f.Outcome = e.Outcome, ""
	}
	r.rec.Fault(f)
	if r.verify != nil {
		r.verify.fault(e)
	}
}

func (l *faultLog) note(e fault.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.all) < e.Number {
		l.all = append(l.all, fault.Event{})
	}
	l.all[e.Number-1] = e
}

// blame returns the last fault that had begun at a stamp, and not longer than a minute before.
func (l *faultLog) blame(at int64) (fault.Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last fault.Event
	for _, e := range l.all {
		if e.Begin != 0 && e.Begin <= at && e.Begin >= last.Begin {
			last = e
		}
	}
	return last, last.Begin != 0 && at-last.Begin < int64(time.Minute)
}
