//go:build unix

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

var (
	errNotRunning = errors.New("it does not run")
	errNoCommand  = errors.New("the state file has no command to start it")
)

// subject is a target and what the faults of a run have done to it.
type subject struct {
	run    *run
	target Target
	own    atomic.Pointer[child] // the latest that we have started

	lock   chan struct{} // full while a fault is at work: guards what follows
	frozen map[int]int   // how many faults hold a process frozen, by pid
	gone   int           // pid that we have seen end: a state file that still names it is behind
	named  bool          // the state file has named a pid: it will name the next one
}

func (r *run) subject(t Target) *subject {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.subjects[t]
	if s == nil {
		s = &subject{run: r, target: t, lock: make(chan struct{}, 1), frozen: map[int]int{}}
		r.subjects[t] = s
	}
	return s
}

// acquire is for the beginning of a fault; what undoes one waits for the lock however long it takes.
func (s *subject) acquire(ctx context.Context) error {
	select {
	case s.lock <- struct{}{}:
	case <-ctx.Done():
		return ErrOver
	}
	if ctx.Err() != nil { // both were ready
		s.release()
		return ErrOver
	}
	return nil
}

func (s *subject) release() { <-s.lock }

// child is the latest that we have started, nil if it has ended.
func (s *subject) child() *child {
	if c := s.own.Load(); c != nil && !c.ended() {
		return c
	}
	return nil
}

// look finds the process, nil if none runs, and the command that starts it.
func (s *subject) look() (*process, string, error) {
	if s.target.Kind == Process {
		p, err := open(s.target.PID)
		if errors.Is(err, os.ErrProcessDone) {
			return nil, "", nil
		}
		return p, "", err
	}
	state, err := ReadState(s.run.plan.State)
	if err != nil {
		return nil, "", err
	}
	found, err := state.find(s.target)
	if err != nil {
		return nil, "", err
	}
	s.named = s.named || found.PID > 0
	if found.PID > 0 && found.PID != s.gone {
		p, err := open(found.PID)
		if !errors.Is(err, os.ErrProcessDone) {
			return p, found.Restart, err
		}
	}
	if c := s.child(); c != nil {
		return &process{pid: c.pid, child: c}, found.Restart, nil
	}
	return nil, found.Restart, nil
}

// running finds the process, which must be there.
func (s *subject) running() (*process, error) {
	p, _, err := s.look()
	if err == nil && p == nil {
		err = errNotRunning
	}
	return p, err
}

// stop ends a process as a verb says, and waits until it has ended.
func (s *subject) stop(p *process, verb Verb) (how string, err error) {
	since, patience := pace.Now(), s.run.plan.patience()
	if verb == Kill {
		how, err = "killed", p.kill()
	} else {
		if err = p.signal(syscall.SIGTERM); err == nil {
			_ = p.signal(syscall.SIGCONT) // one that is frozen would not hear the other; it may have ended by now
			delete(s.frozen, p.pid)
		}
		switch {
		case err != nil:
		case p.awaitEnd(patience):
			how = "ended " + s.run.took(since) + " after SIGTERM"
		case verb == Term:
			err = fmt.Errorf("it still runs %s after SIGTERM", text(patience))
		default:
			how, err = "killed "+text(patience)+" after SIGTERM", p.kill()
		}
	}
	if err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			err = errNotRunning
		}
		return "", err
	}
	delete(s.frozen, p.pid)
	s.gone = p.pid
	if c := s.child(); c != nil { // the shell around the process, which has nothing left to wait for
		if err := c.terminate(patience); err != nil {
			return "", err
		}
	}
	return how, nil
}

// start runs the command that starts the process, and waits until it is there.
func (s *subject) start() (pid int, already bool, err error) {
	p, command, err := s.look()
	switch {
	case err != nil:
		return 0, false, err
	case p != nil:
		p.close()
		return p.pid, true, nil
	case command == "":
		return 0, false, errNoCommand
	}
	c, err := s.run.spawn(command)
	if err != nil {
		return 0, false, err
	}
	if c.pid == s.gone {
		s.gone = 0 // numbers come round
	}
	s.own.Store(c)
	pid, err = s.arrival(c)
	return pid, false, err
}

// arrival waits until the state file names a new process, whose pid it returns. Where the file stands still, or has never named
// one, a command that lives on is the process itself.
func (s *subject) arrival(c *child) (int, error) {
	began := time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for range tick.C {
		named := 0
		state, err := ReadState(s.run.plan.State)
		if err == nil {
			var found part
			found, err = state.find(s.target)
			named = found.PID
		}
		if named > 0 && named != s.gone && alive(named) {
			return named, nil
		}
		if c.ended() {
			if _, failed := c.verdict(); failed != nil {
				return 0, fmt.Errorf("its command: %w", failed)
			}
		}
		waited, behind := time.Since(began), s.named && named == 0
		if err == nil && !behind && !c.ended() && waited > settled {
			return c.pid, nil
		}
		if waited > startPatience {
			if err == nil {
				err = fmt.Errorf("the state file names no process")
			}
			return 0, fmt.Errorf("after %s: %w", text(startPatience), err)
		}
	}
	panic("unreachable: a ticker's channel is never closed")
}
