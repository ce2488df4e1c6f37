//go:build unix

package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const supported = true

// process is somebody's process, or a command of our own with all that it has started.
type process struct {
	pid    int
	handle *os.Process // nil for a command of our own; on Linux it stands for this very process even when its number is given anew
	child  *child
	killed bool
}

// open finds a process. One that is not there, or has ended and waits for its parent to notice, is os.ErrProcessDone.
func open(pid int) (*process, error) {
	if pid == os.Getpid() {
		return nil, fmt.Errorf("%w: pid %d is this process itself", ErrTarget, pid)
	}
	handle, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, handle: handle}
	if p.gone() {
		p.close()
		return nil, os.ErrProcessDone
	}
	return p, nil
}

// present says whether there is a process that may be signalled.
func present(pid int) error {
	p, err := open(pid)
	if err == nil {
		err = p.signal(0)
		p.close()
	}
	if err != nil && !errors.Is(err, ErrTarget) {
		err = fmt.Errorf("%w: pid %d: %w", ErrTarget, pid, err)
	}
	return err
}

func alive(pid int) bool {
	p, err := open(pid)
	if err == nil {
		p.close()
	}
	return err == nil
}

// close lets go of the process, which goes on.
func (p *process) close() {
	if p.handle != nil {
		_ = p.handle.Release() // it never fails on these systems
	}
}

// signal sends a signal; os.ErrProcessDone says that there is nobody left.
func (p *process) signal(sig syscall.Signal) error {
	p.killed = p.killed || sig == syscall.SIGKILL
	if p.child != nil {
		return p.child.signal(sig)
	}
	err := p.handle.Signal(sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

func (p *process) gone() bool {
	if p.child != nil {
		return p.child.ended() && (p.killed || p.child.alone())
	}
	return errors.Is(p.signal(0), os.ErrProcessDone) || zombie(p.pid)
}

// kill ends the process at once, frozen or not.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !p.awaitEnd(killPatience) {
		return fmt.Errorf("it still runs %s after SIGKILL", text(killPatience))
	}
	return nil
}

// awaitEnd reports whether the process has ended in time.
func (p *process) awaitEnd(patience time.Duration) bool { return within(patience, p.gone) }

// within waits until done says so, at most for a while.
func within(patience time.Duration, done func() bool) bool {
	if done() {
		return true
	}
	tick, late := time.NewTicker(lookEvery), time.NewTimer(patience)
	defer tick.Stop()
	defer late.Stop()
	for {
		select {
		case <-tick.C:
			if done() {
				return true
			}
		case <-late.C:
			return done()
		}
	}
}

// child is a command that we run, in a session of its own: no terminal's Ctrl-C reaches it, and a signal to its group reaches
// all that it has started.
type child struct {
	pid    int
	done   chan struct{} // closed when it has ended
	status syscall.WaitStatus
	log    string // file of its output; "" = none
}

// spawn runs a command. It is waited for until the run is over.
func (r *run) spawn(command string) (*child, error) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		return nil, err
	}
	none, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer none.Close()
	output := none
	if r.plan.Output != "" {
		if output, err = os.OpenFile(r.plan.Output, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			return nil, err
		}
		defer output.Close()
	}
	handle, err := os.StartProcess(shell, []string{"sh", "-c", command}, &os.ProcAttr{
		Files: []*os.File{none, output, output},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	c := &child{pid: handle.Pid, done: make(chan struct{}), log: r.plan.Output}
	r.reapers.Go(func() {
		c.reap(r.over)
		_ = handle.Release() // it never fails on these systems
	})
	return c, nil
}

// reap waits for the end of the command, or of the run, whichever comes first: a process that was started again outlives the
// run, so nobody may wait for it without an end.
func (c *child) reap(over <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		pid, err := syscall.Wait4(c.pid, &c.status, syscall.WNOHANG, nil)
		if pid == c.pid || err != nil && !errors.Is(err, syscall.EINTR) {
			close(c.done)
			return
		}
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// alone reports whether nothing that it has started runs any more. It has ended itself.
func (c *child) alone() bool { return errors.Is(syscall.Kill(-c.pid, 0), syscall.ESRCH) }

// signal sends a signal to the command and to all that it has started.
func (c *child) signal(sig syscall.Signal) error {
	err := syscall.Kill(-c.pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// terminate ends the command with all that it has started.
func (c *child) terminate(patience time.Duration) error {
	p := &process{pid: c.pid, child: c}
	if err := p.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = p.signal(syscall.SIGCONT) // it may have ended
	if p.awaitEnd(patience) {
		return nil
	}
	if err := p.kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// verdict says how it ended: anything but success is an error.
func (c *child) verdict() (string, error) {
	said := ""
	if c.log != "" {
		said = ", see " + c.log
	}
	switch {
	case c.status.Signaled():
		return "", fmt.Errorf("ended by %v%s", c.status.Signal(), said)
	case c.status.ExitStatus() != 0:
		return "", fmt.Errorf("exit status %d%s", c.status.ExitStatus(), said)
	}
	return "exit status 0", nil
}
