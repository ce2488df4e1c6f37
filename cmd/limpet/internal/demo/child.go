package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The numbers of processes.
const (
	startTimeout = 30 * time.Second // until a process does its work; an idle machine takes less than one
	askEvery     = 15 * time.Millisecond
	askTimeout   = 2 * time.Second
	stopTimeout  = 5 * time.Second // from SIGTERM to SIGKILL; more than an edge's grace
	logTail      = 5               // lines of a log that an error shows
)

// child is one of the demo's processes, dead or alive.
type child struct {
	sup   *supervisor
	name  string
	args  []string                    // of limpet
	ready func(context.Context) error // asks whether it does its work; nil = yes

	mu   sync.Mutex
	life *life // the latest; nil before the first
}

// life is one process of a child, from start to end.
type life struct {
	process *os.Process
	done    chan struct{} // closed at its end
	how     string        // it ended, for people; set before done is closed
}

func (l *life) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// pid is that of the running process, 0 if there is none.
func (c *child) pid() int {
	if l := c.now(); l != nil && !l.over() {
		return l.process.Pid
	}
	return 0
}

func (c *child) now() *life {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life
}

func (c *child) logFile() string { return filepath.Join(c.sup.logs, c.name+".log") }

// command is what runs the child: also what a person types to bring it back.
func (c *child) command() []string {
	return append([]string{c.sup.exe, "demo-child", "--leash", c.sup.leashPath(), "--name", c.name, "--"}, c.args...)
}

// start starts the process and does not wait until it is ready.
func (c *child) start() error {
	err := c.begin()
	c.sup.change()
	return err
}

func (c *child) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	log, err := os.OpenFile(c.logFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	command := c.command()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	if err := c.sup.launch(cmd.Start); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	l := &life{process: cmd.Process, done: make(chan struct{})}
	c.life = l
	c.sup.wg.Go(func() {
		_ = cmd.Wait() // its state says it better
		c.sup.ended(c, l, cmd.ProcessState.String())
	})
	return nil
}

// await waits until the process is ready.
func (c *child) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	l := c.now()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for c.ready != nil {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		err := c.ready(asking)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-l.done:
			return fmt.Errorf("%s ended too soon: %s%s", c.name, l.how, c.tail())
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s is not ready after %v: %w%s", c.name, startTimeout, err, c.tail())
		case <-tick.C:
		}
	}
	return nil
}

// run starts the process and waits until it is ready.
func (c *child) run(ctx context.Context) error {
	if err := c.start(); err != nil {
		return err
	}
	return c.await(ctx)
}

// tail is the end of the log, for an error.
func (c *child) tail() string {
	data, err := os.ReadFile(c.logFile())
	if err != nil || len(data) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return "\n  " + strings.Join(lines[max(0, len(lines)-logTail):], "\n  ")
}

// kill ends the process with SIGKILL, and waits for that.
func (c *child) kill() { c.end((*os.Process).Kill, 0) }

// stop ends the process in order, frozen or not, and waits for that; whatever does not go in time is killed.
func (c *child) stop() { c.end(terminate, stopTimeout) }

func (c *child) end(how func(*os.Process) error, patience time.Duration) {
	l := c.now()
	if l == nil || l.over() {
		return
	}
	_ = how(l.process) // it may be gone
	if patience > 0 {
		select {
		case <-l.done:
			return
		case <-time.After(patience):
			_ = l.process.Kill()
		}
	}
	<-l.done
}
