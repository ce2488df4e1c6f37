//go:build unix

package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// do does a fault and undoes it. Before it changes anything it calls begin.
func (r *run) do(ctx context.Context, e *Event, choice *rand.Rand) (outcome string, err error) {
	f := e.Fault
	if f.Verb == Run {
		return r.command(ctx, e)
	}
	target, err := r.choose(f, choice)
	e.Target = target.String()
	if err != nil {
		return "", err
	}
	s := r.subject(target)
	switch f.Verb {
	case Freeze:
		return s.freeze(ctx, e)
	case Start:
		return s.revive(ctx, e)
	default:
		return s.end(ctx, e)
	}
}

// choose finds the target: one of those that the fault can be done to if it is a random one.
func (r *run) choose(f Fault, choice *rand.Rand) (Target, error) {
	if f.Target.Kind == Process {
		return f.Target, nil
	}
	state, err := ReadState(r.plan.State)
	if err != nil {
		return f.Target, err
	}
	if !f.Target.Random {
		found, err := state.find(f.Target)
		if err != nil {
			return f.Target, err
		}
		return found.target, nil
	}
	var fit []Target
	for _, candidate := range state.of(f.Target.Kind) {
		if runs := candidate.PID > 0 && alive(candidate.PID) || r.subject(candidate.target).child() != nil; runs != (f.Verb == Start) {
			fit = append(fit, candidate.target)
		}
	}
	if len(fit) == 0 {
		return f.Target, fmt.Errorf("there is no %s that it could be done to", f.Target.Kind)
	}
	return fit[choice.IntN(len(fit))], nil
}

// freeze stops the process from running for a while.
func (s *subject) freeze(ctx context.Context, e *Event) (string, error) {
	if err := s.acquire(ctx); err != nil {
		return "", err
	}
	p, err := s.running()
	if err != nil {
		s.release()
		return "", err
	}
	defer p.close()
	e.PID = p.pid
	s.run.begin(e, true)
	if err = p.signal(syscall.SIGSTOP); err == nil {
		s.frozen[p.pid]++
	}
	s.release()
	if err != nil {
		return "", err
	}
	s.run.last(ctx, e)

	s.lock <- struct{}{}
	defer s.release()
	holds, frozen := s.frozen[p.pid]
	switch {
	case !frozen:
		return "frozen, and ended or thawed by another fault " + s.run.took(e.Begin) + " later", nil
	case holds > 1:
		s.frozen[p.pid]--
		return "frozen for " + s.run.took(e.Begin) + ", and longer by another fault", nil
	}
	delete(s.frozen, p.pid)
	switch err := p.signal(syscall.SIGCONT); {
	case errors.Is(err, os.ErrProcessDone):
		return "frozen, and gone " + s.run.took(e.Begin) + " later", nil
	case err != nil:
		return "", fmt.Errorf("frozen; to thaw it: %w", err)
	}
	return "frozen for " + s.run.took(e.Begin), nil
}

// end ends the process, and starts it again if it is to be.
func (s *subject) end(ctx context.Context, e *Event) (string, error) {
	f := e.Fault
	how, err := s.down(ctx, e)
	if err != nil {
		return "", err
	}
	if f.Verb == Restart || !f.revives() {
		return how, nil
	}
	s.run.last(ctx, e)
	s.lock <- struct{}{}
	defer s.release()
	pid, already, err := s.start()
	switch {
	case err != nil:
		return "", fmt.Errorf("%s; to start it again: %w", how, err)
	case already:
		how += "; it was started by another"
	default:
		how += "; started again after " + s.run.took(e.Begin)
	}
	return how + pidText(pid), nil
}

// down ends the process; for Restart it starts it at once.
func (s *subject) down(ctx context.Context, e *Event) (string, error) {
	if err := s.acquire(ctx); err != nil {
		return "", err
	}
	defer s.release()
	f := e.Fault
	p, err := s.running()
	if err != nil && (f.Verb != Restart || !errors.Is(err, errNotRunning)) {
		return "", err
	}
	how := "it did not run"
	if p != nil {
		defer p.close()
		e.PID = p.pid
		s.run.begin(e, true)
		if how, err = s.stop(p, f.Verb); err != nil {
			return "", err
		}
	} else {
		s.run.begin(e, true)
	}
	if f.Verb != Restart {
		return how, nil
	}
	pid, _, err := s.start()
	if err != nil {
		return "", fmt.Errorf("%s; to start it again: %w", how, err)
	}
	return how + "; started again after " + s.run.took(e.Begin) + pidText(pid), nil
}

// revive starts the process if it does not run.
func (s *subject) revive(ctx context.Context, e *Event) (string, error) {
	if err := s.acquire(ctx); err != nil {
		return "", err
	}
	defer s.release()
	s.run.begin(e, true)
	pid, already, err := s.start()
	switch {
	case err != nil:
		return "", err
	case already:
		return "it ran already" + pidText(pid), nil
	}
	e.PID = pid
	return "started in " + s.run.took(e.Begin) + pidText(pid), nil
}

// command runs a command to its end, or to that of its time.
func (r *run) command(ctx context.Context, e *Event) (string, error) {
	if ctx.Err() != nil {
		return "", ErrOver
	}
	r.begin(e, true)
	c, err := r.spawn(e.Fault.Command)
	if err != nil {
		return "", err
	}
	e.PID = c.pid
	var end <-chan time.Time
	if e.Fault.For > 0 {
		t := time.NewTimer(e.Fault.For)
		defer t.Stop()
		end = t.C
	}
	select {
	case <-c.done:
		return c.verdict()
	case <-end:
	case <-ctx.Done():
	}
	if err := c.terminate(r.plan.patience()); err != nil {
		return "", err
	}
	return "ended after " + r.took(e.Begin), nil
}

// last waits until the time of a fault is over, or the run is.
func (r *run) last(ctx context.Context, e *Event) {
	if e.Fault.For == 0 {
		<-ctx.Done()
		return
	}
	_ = r.wait(ctx, e.Begin+int64(e.Fault.For)) // either way it is over
}

func pidText(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf(", pid %d", pid)
}
