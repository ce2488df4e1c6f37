package fault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// The numbers of a plan.
const (
	DefaultPatience = 10 * time.Second // more than the graces of brokers and edges, less than a supervisor's usual 30 s

	killPatience  = 30 * time.Second      // nothing refuses SIGKILL, but the kernel may be at work for the process, or the machine be busy
	startPatience = 30 * time.Second      // from a restart command to a process that is there; an idle machine takes less than one
	settled       = time.Second           // what a command has lived by then it was not refused at once; only for a state file that stands still
	lookEvery     = 10 * time.Millisecond // whether a process has come or gone
)

// ErrOver is the cause of the context's end ([context.Cause]) when the run is through: a fault that has not begun by then will not be done,
// which is a failure. With any other cause, such as somebody's Ctrl-C, it is only told.
var ErrOver = errors.New("fault: the run is over")

// Plan is the faults of a run. It is not changed by its methods, and good for several runs, one after the other.
type Plan struct {
	Faults   []Fault
	State    string        // path of the state file; needed for targets that it names
	Seed     uint64        // of the choices for random targets
	Output   string        // file that commands' output is appended to; "" = discarded
	Patience time.Duration // from SIGTERM to SIGKILL; 0 = DefaultPatience
}

// Check says what Run would fail for, as far as can be known beforehand: a target that the state file does not name, or does not
// say how to start, a pid that is not there. Its errors are ErrTarget, ErrState or ErrUnsupported, with the fault in their text.
func (p *Plan) Check() error {
	if len(p.Faults) == 0 {
		return nil
	}
	if !supported {
		return ErrUnsupported
	}
	var state *State
	for _, f := range p.Faults {
		if f.named() && state == nil {
			if p.State == "" {
				return fmt.Errorf("%w: none given, and %q needs one: expected what `limpet demo --state FILE` writes", ErrState, f)
			}
			var err error
			if state, err = ReadState(p.State); err != nil {
				return err
			}
		}
		if err := checkFault(f, state); err != nil {
			return fmt.Errorf("%q: %w", f, err)
		}
	}
	return nil
}

func checkFault(f Fault, s *State) error {
	switch {
	case f.Verb == Run:
		return nil
	case f.Target.Kind == Process:
		return present(f.Target.PID)
	}
	parts := s.of(f.Target.Kind)
	if !f.Target.Random || len(parts) == 0 {
		found, err := s.find(f.Target)
		if err != nil {
			return err
		}
		parts = []part{found}
	}
	for _, found := range parts {
		if f.revives() && found.Restart == "" {
			return fmt.Errorf("%w: %s: the state file has no command to start it", ErrTarget, found.target)
		}
	}
	return nil
}

// Run does the faults at their times after start, a stamp of pace.Now. It returns when ctx is done and every fault is undone
// whose undoing is due then, which takes no longer than its processes need to end and to start. Faults that are due at the same
// instant are done side by side, but never two at once to the same target.
//
// tell, unless nil, is called one call at a time: when a fault begins, and again with the same Number when it is over; only then
// if it could not begin, or not before the run was over. It should be quick: the fault waits for it. A fault that could not be done does not end the run. The error is what Check says, and then nothing was
// done, or ErrFailed with every fault that was not done or not undone.
func (p *Plan) Run(ctx context.Context, start int64, tell func(Event)) error {
	if err := p.Check(); err != nil {
		return err
	}
	r := p.newRun(start, tell)
	var faults sync.WaitGroup
	for i, f := range p.Faults {
		faults.Go(func() { r.repeat(ctx, f, rand.New(rand.NewPCG(p.Seed, uint64(i)))) })
	}
	<-ctx.Done()
	faults.Wait()
	return r.end()
}

func (p *Plan) newRun(start int64, tell func(Event)) *run {
	return &run{plan: p, start: start, tell: tell, over: make(chan struct{}), subjects: map[Target]*subject{}}
}

func (p *Plan) patience() time.Duration { return cmp.Or(p.Patience, DefaultPatience) }

// run is a plan that is under way.
type run struct {
	plan    *Plan
	start   int64
	over    chan struct{} // closed when every fault is undone
	reapers sync.WaitGroup

	mu       sync.Mutex // held while tell is called
	tell     func(Event)
	events   int
	failures []error
	subjects map[Target]*subject
}

// end lets go of what was started again, after all faults.
func (r *run) end() error {
	close(r.over)
	r.reapers.Wait()
	return errors.Join(r.failures...)
}

// repeat does one fault at its times.
func (r *run) repeat(ctx context.Context, f Fault, choice *rand.Rand) {
	due := r.start + int64(f.first())
	for begun := false; ; {
		if r.wait(ctx, due) != nil || !r.once(ctx, f, choice) {
			if !begun {
				r.missed(ctx, f)
			}
			return
		}
		if begun = true; f.Every == 0 {
			return
		}
		for now := pace.Now(); due <= now; { // those that it was too late for are left out
			due += int64(f.Every)
		}
	}
}

// wait waits until the clock shows a time, and says so if the run ended before that.
func (r *run) wait(ctx context.Context, until int64) error {
	for {
		left := time.Duration(until - pace.Now())
		if ctx.Err() != nil {
			return ErrOver
		}
		if left <= 0 {
			return nil
		}
		t := time.NewTimer(left)
		select {
		case <-ctx.Done():
			t.Stop()
			return ErrOver
		case <-t.C: // the clock may be another one than the timer's
		}
	}
}

// missed tells of a fault that did not begin before the run ended.
func (r *run) missed(ctx context.Context, f Fault) {
	e := &Event{Fault: f}
	r.begin(e, false)
	e.End, e.Failed, e.Outcome = e.Begin, true, "not done: the run ended before"
	r.mu.Lock()
	defer r.mu.Unlock()
	if context.Cause(ctx) == ErrOver {
		r.failures = append(r.failures, fmt.Errorf("%w: %s: %s", ErrFailed, f, e.Outcome))
	}
	if r.tell != nil {
		r.tell(*e)
	}
}

// once does a fault, undoes it and tells of both; false if the run ended before it began.
func (r *run) once(ctx context.Context, f Fault, choice *rand.Rand) bool {
	e := &Event{Fault: f}
	outcome, err := r.do(ctx, e, choice)
	if e.Number == 0 && errors.Is(err, ErrOver) {
		return false
	}
	if e.Number == 0 {
		r.begin(e, false)
	}
	e.End, e.Outcome = pace.Now(), outcome
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		e.Failed, e.Outcome = true, err.Error()
		r.failures = append(r.failures, fmt.Errorf("%w: %s: %w", ErrFailed, f, err))
	}
	if r.tell != nil {
		r.tell(*e)
	}
	return true
}

// begin stamps the beginning of a fault, which is to be done at once after this.
func (r *run) begin(e *Event, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events++
	e.Number = r.events
	e.Begin = pace.Now()
	if tell && r.tell != nil {
		r.tell(*e)
	}
}

// took is a time for an outcome.
func (r *run) took(since int64) string {
	d := time.Duration(pace.Now() - since)
	if d >= time.Second {
		return text(d.Round(10 * time.Millisecond))
	}
	return text(d.Round(time.Millisecond))
}
