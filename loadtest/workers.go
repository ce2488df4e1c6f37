package loadtest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// Workers says how to run a plan in several processes.
//
//	parent ── stdin: order, JSON, a line each ──▶ worker: plan and share; start; faults as they happen; settle; end
//	       ◀── stdout: word, JSON, a line each ── worker: ready; every second a part of its result; over; the last part
//
// A worker that ends early is missed, and the result says so; the others go on. Workers end when their stdin does, so none outlives its
// parent. They have process groups of their own: a terminal's Ctrl-C reaches the parent alone, which ends them in order.
type Workers struct {
	N       int
	Command []string             // that calls Work, with its arguments
	Stderr  io.Writer            // of the workers; nil = none
	Tell    func(*result.Result) // every second, what is known so far, to keep; nil: nobody is told
	Started func(pids []int)     // called when all are in place; nil: nobody is told
}

// ErrWorker is in what Workers.Run returns when a worker ended early.
var ErrWorker = errors.New("loadtest: a worker ended early")

const (
	workerReady   = time.Minute      // for a worker to put its clients in place
	workerSettles = 15 * time.Second // beyond the plan's own time to settle, before a worker is killed
	startsIn      = 50 * time.Millisecond
	maxLine       = 64 << 20 // of a worker: a result's bound
	maxOrder      = 16 << 20 // of the parent: a plan's
)

// order is what the parent tells a worker, one thing a line.
type order struct {
	Plan   *Plan        `json:"plan,omitempty"`
	Share  *Share       `json:"share,omitempty"`
	Run    uint32       `json:"run,omitempty"`
	Start  int64        `json:"start,omitempty"` // stamp
	Fault  *fault.Event `json:"fault,omitempty"`
	Settle bool         `json:"settle,omitempty"`
	End    bool         `json:"end,omitempty"`
}

// word is what a worker tells the parent, one thing a line.
type word struct {
	Ready bool            `json:"ready,omitempty"`
	Part  json.RawMessage `json:"part,omitempty"`  // what is new
	Proof json.RawMessage `json:"proof,omitempty"` // what is proven so far: instead of the last such
	Over  bool            `json:"over,omitempty"`  // the plan is through
	Last  json.RawMessage `json:"last,omitempty"`  // the last part, with the proof
	Error string          `json:"error,omitempty"` // with Last, or instead of Ready
}

// crew is workers at work.
type crew struct {
	conf *Workers
	plan *Plan
	all  []*worker

	mu  sync.Mutex
	sum *result.Result
}

// worker is one process as its parent sees it.
type worker struct {
	crew   *crew
	number int // from 1
	cmd    *exec.Cmd

	in    sync.Mutex // of stdin
	stdin io.WriteCloser
	ready chan struct{} // closed when it is ready, or has ended
	over  chan struct{} // closed when its plan is through, or it has ended
	ended chan struct{} // closed when it has ended

	// Guarded by the crew's mu until it has ended.
	isReady, isOver bool
	proof           *result.Result
	last            bool
	err             error
	exit            error
}

// Run runs the plan, and returns the sum of what came of its parts.
func (w *Workers) Run(ctx context.Context, plan *Plan) (*result.Result, error) {
	for i := range w.N {
		if err := plan.checkDescriptors(Share{i, w.N}); err != nil {
			return nil, err
		}
	}
	c := &crew{conf: w, plan: plan, sum: result.New()}
	meter := result.StartMeter()
	for i := range w.N {
		x, err := c.hire(i)
		if err != nil {
			c.dismiss()
			return nil, err
		}
		c.all = append(c.all, x)
	}
	start, err := c.start(ctx)
	if err != nil {
		c.dismiss()
		return nil, err
	}
	err = c.run(ctx, start)
	res := c.result()
	own := result.New()
	own.Generator = meter.Read()
	own.Start, own.Duration = res.Start, res.Duration
	res.Add(own)
	res.Interrupted = ctx.Err() != nil
	return res, err
}

// hire starts a process, and tells it what to do.
func (c *crew) hire(index int) (*worker, error) {
	w := &worker{
		crew: c, number: index + 1, cmd: exec.Command(c.conf.Command[0], c.conf.Command[1:]...),
		ready: make(chan struct{}), over: make(chan struct{}), ended: make(chan struct{}), proof: result.New(),
	}
	w.cmd.Stderr = c.conf.Stderr
	setGroup(w.cmd)
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("loadtest: starting a worker: %w", err)
	}
	go w.read(stdout)
	return w, nil
}

// read hears what a worker says until it ends; crew.run, or crew.dismiss, waits for that.
func (w *worker) read(stdout io.Reader) {
	c := w.crew
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxLine)
	var err error
	for err == nil && lines.Scan() {
		err = w.hear(lines.Bytes())
	}
	if err == nil {
		err = lines.Err()
	}
	if err != nil {
		_ = w.cmd.Process.Kill() // it is none of ours
	}
	exit := w.cmd.Wait()
	w.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !w.last && w.err == nil {
		if err == nil {
			err = exit
		}
		w.exit = err
		if w.exit == nil {
			w.exit = errors.New("it said nothing more")
		}
	}
	if !w.isReady {
		close(w.ready)
	}
	if !w.isOver {
		close(w.over)
	}
	close(w.ended)
}

// hear takes one line of a worker.
func (w *worker) hear(line []byte) error {
	var said word
	if err := json.Unmarshal(line, &said); err != nil {
		return fmt.Errorf("it said %.60q", line)
	}
	parts := make([]*result.Result, 3)
	for i, text := range []json.RawMessage{said.Part, said.Last, said.Proof} {
		if text == nil {
			continue
		}
		var err error
		if parts[i], err = result.Unmarshal(text); err != nil {
			return err
		}
	}
	c := w.crew
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, part := range parts[:2] {
		if part != nil {
			c.sum.Add(part)
		}
	}
	if parts[2] != nil {
		w.proof = parts[2]
	}
	if said.Last != nil {
		w.last, w.proof = true, result.New() // the last part has it
	}
	if said.Error != "" {
		w.err = errors.New(said.Error)
	}
	if said.Ready && !w.isReady {
		w.isReady = true
		close(w.ready)
	}
	if said.Over && !w.isOver {
		w.isOver = true
		close(w.over)
	}
	if said.Last != nil || said.Error != "" {
		w.close()
	}
	return nil
}

// tell writes an order. That a worker does not take it shows when it ends.
func (w *worker) tell(o order) {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // orders are of types that can be written
	}
	w.in.Lock()
	defer w.in.Unlock()
	_, _ = w.stdin.Write(append(text, '\n'))
}

// close tells a worker to leave.
func (w *worker) close() { _ = w.stdin.Close() }

// dismiss ends all workers at once.
func (c *crew) dismiss() {
	for _, w := range c.all {
		_ = w.cmd.Process.Kill()
	}
	for _, w := range c.all {
		<-w.ended
	}
}

// start has all put their clients in place, and says when they start.
func (c *crew) start(ctx context.Context) (stamp int64, err error) {
	plan := *c.plan
	plan.Faults, plan.State, plan.Assert = nil, "", nil // for the parent
	id := newRunID()
	late := time.NewTimer(workerReady)
	defer late.Stop()
	var telling sync.WaitGroup // a worker that does not read shall not stop the others
	defer telling.Wait()
	for i, w := range c.all {
		telling.Go(func() { w.tell(order{Plan: &plan, Share: &Share{i, len(c.all)}, Run: id}) })
	}
	fail := func(err error) (int64, error) {
		for _, w := range c.all {
			_ = w.cmd.Process.Kill() // and what is told to it
		}
		return 0, err
	}
	for _, w := range c.all {
		select {
		case <-w.ready:
		case <-late.C:
			return fail(fmt.Errorf("%w: worker %d was not ready after %v", ErrWorker, w.number, workerReady))
		case <-ctx.Done():
			return fail(ctx.Err())
		}
		c.mu.Lock()
		ready := w.isReady
		c.mu.Unlock()
		if !ready {
			<-w.ended
			return fail(w.failure())
		}
	}
	if c.conf.Started != nil {
		var pids []int
		for _, w := range c.all {
			pids = append(pids, w.cmd.Process.Pid)
		}
		c.conf.Started(pids)
	}
	stamp = pace.Now() + int64(startsIn)
	c.tell(order{Start: stamp})
	return stamp, nil
}

// failure is why a worker that has ended did not do all of its share; nil if it did.
func (w *worker) failure() error {
	if w.exit != nil {
		return fmt.Errorf("%w: worker %d of %d: %w", ErrWorker, w.number, w.crew.conf.N, w.exit)
	}
	return w.err
}

// run does the faults, and waits until all workers have ended.
func (c *crew) run(ctx context.Context, start int64) error {
	telling, stopTelling := context.WithCancel(context.Background())
	defer stopTelling()
	var base sync.WaitGroup
	if c.conf.Tell != nil {
		base.Go(func() { c.report(telling) })
	}
	lasting, stopFaults := context.WithCancelCause(ctx)
	defer stopFaults(nil)
	var faultErr error
	var faults sync.WaitGroup
	if len(c.plan.Faults) > 0 {
		plan := fault.Plan{Faults: c.plan.Faults, State: c.plan.State, Seed: max(c.plan.Seed, 1)}
		faults.Go(func() { faultErr = plan.Run(lasting, start, func(e fault.Event) { c.fault(e, start) }) })
	}

	// When the plan is through for all, what was broken is mended, and then they wait for what is under way.
	var watch sync.WaitGroup
	defer watch.Wait()
	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	ending := ctx.Done()
	for _, w := range c.all {
		for waiting := true; waiting; {
			select {
			case <-w.over:
				waiting = false
			case <-ending:
				ending = nil // once
				c.tell(order{End: true})
				watch.Go(func() { c.lose(watching) })
			}
		}
	}
	stopFaults(fault.ErrOver)
	faults.Wait()
	c.tell(order{Settle: true})
	watch.Go(func() { c.lose(watching) })
	var errs []error
	said := map[string]bool{} // all find the same when nobody answers
	for _, w := range c.all {
		<-w.ended
		if err := w.failure(); err != nil && !said[err.Error()] {
			said[err.Error()] = true
			errs = append(errs, err)
		}
	}
	stopTelling()
	base.Wait()
	return errors.Join(append(errs, faultErr)...)
}

// lose kills who does not end in time.
func (c *crew) lose(ctx context.Context) {
	settle := DefaultSettle
	if c.plan.Verify != nil {
		settle = verifySettle
	}
	t := time.NewTimer(cmp.Or(c.plan.Settle, settle) + workerSettles)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		for _, w := range c.all {
			_ = w.cmd.Process.Kill()
		}
	}
}

// tell tells all the same.
func (c *crew) tell(o order) {
	for _, w := range c.all {
		w.tell(o)
	}
}

// fault tells all workers what is being done.
func (c *crew) fault(e fault.Event, start int64) {
	c.mu.Lock()
	one := result.New()
	one.Faults = []result.Fault{faultOf(e, start)}
	c.sum.Add(one)
	c.mu.Unlock()
	c.tell(order{Fault: &e})
}

// report tells every second what is known.
func (c *crew) report(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		c.mu.Lock()
		res := c.sum.Clone()
		for _, w := range c.all {
			res.Add(w.proof)
		}
		c.mu.Unlock()
		c.name(res)
		c.conf.Tell(res)
	}
}

// result is the sum, after all have ended.
func (c *crew) result() *result.Result {
	res := c.sum
	c.name(res)
	for _, w := range c.all {
		if w.exit != nil {
			res.Notes = append(res.Notes, fmt.Sprintf("worker %d of %d ended early (%v): its last second, and what its clients had proven, is missing",
				w.number, len(c.all), w.exit))
		}
	}
	slices.Sort(res.Notes)
	return res
}

func (c *crew) name(res *result.Result) {
	r := run{plan: c.plan}
	r.name(res)
}

// Work is what a worker process does: it takes orders from in until that ends, and tells what came of them to out. It returns an error only
// if nobody can be told.
func Work(ctx context.Context, in io.Reader, out io.Writer) error {
	orders := make(chan order)
	var reading sync.WaitGroup
	left := make(chan struct{})
	reading.Go(func() {
		defer close(orders)
		lines := bufio.NewScanner(in)
		lines.Buffer(nil, maxOrder)
		for lines.Scan() {
			var o order
			if json.Unmarshal(lines.Bytes(), &o) != nil {
				return
			}
			select {
			case orders <- o:
			case <-left: // read on: in ends when the parent says so
			}
		}
	})
	defer reading.Wait()
	defer close(left)
	var mu sync.Mutex
	lines := json.NewEncoder(out)
	say := func(w word) error {
		mu.Lock()
		defer mu.Unlock()
		return lines.Encode(w)
	}
	last, err := work(ctx, orders, func(w word) { _ = say(w) }) // whom nobody hears learns it by the end of in
	w := word{}
	if last != nil {
		w.Last = mustJSON(last)
	}
	if err != nil {
		w.Error = err.Error()
	} else if last == nil {
		return nil
	}
	return say(w)
}

// work runs a share of a plan.
func work(ctx context.Context, orders <-chan order, say func(word)) (*result.Result, error) {
	first, ok := <-orders
	if !ok || first.Plan == nil || first.Share == nil {
		return nil, fmt.Errorf("%w: expected a plan on stdin: only `limpet loadtest --workers` calls this", ErrWorker)
	}
	if err := first.Plan.Check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := make(chan int64, 1)
	settle := make(chan struct{})
	faults := make(chan fault.Event)
	var listening sync.WaitGroup
	defer listening.Wait()
	done, leave := context.WithCancel(context.Background())
	defer leave()
	listening.Go(func() {
		settled := false
		for {
			select {
			case <-done.Done():
				return
			case o, ok := <-orders:
				switch {
				case !ok || o.End:
					cancel()
				case o.Start != 0:
					select {
					case start <- o.Start:
					default: // twice
					}
				case o.Fault != nil:
					select {
					case faults <- *o.Fault:
					case <-done.Done():
					}
				case o.Settle && !settled:
					settled = true
					close(settle)
				}
				if !ok {
					if !settled {
						close(settle)
					}
					return
				}
			}
		}
	})
	return Run(ctx, first.Plan, Options{
		share: *first.Share, id: first.Run, faults: faults,
		begin: func() (int64, error) {
			say(word{Ready: true})
			select {
			case stamp := <-start:
				return stamp, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		},
		over: func() {
			say(word{Over: true})
			<-settle
		},
		part: func(part, proof *result.Result) { say(word{Part: mustJSON(part), Proof: mustJSON(proof)}) },
	})
}

// mustJSON writes a result, which can be written.
func mustJSON(r *result.Result) json.RawMessage {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return text
}
