//go:build unix

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// drill is a plan that runs.
type drill struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	events []Event // as told
}

func plan(t *testing.T, state string, lines ...string) *Plan {
	t.Helper()
	p := &Plan{State: state, Patience: patience}
	for _, line := range lines {
		f, err := Parse(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		p.Faults = append(p.Faults, f)
	}
	return p
}

func launch(t *testing.T, p *Plan) *drill {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &drill{t: t, cancel: cancel, done: make(chan error, 1)}
	go func() { d.done <- p.Run(ctx, pace.Now(), d.tell) }()
	return d
}

func (d *drill) tell(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
}

// over returns the events that are over.
func (d *drill) over() []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.events), func(e Event) bool { return e.End == 0 })
}

// await waits until so many events are over.
func (d *drill) await(n int) []Event {
	d.t.Helper()
	if !within(patience, func() bool { return len(d.over()) >= n }) {
		d.t.Fatalf("not %d events within %v: %+v", n, patience, d.over())
	}
	return d.over()
}

// awaitTold waits until so many beginnings and ends were told.
func (d *drill) awaitTold(n int) {
	d.t.Helper()
	told := func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.events) >= n
	}
	if !within(patience, told) {
		d.t.Fatalf("not %d told within %v: %+v", n, patience, d.events)
	}
}

// end ends the run, and returns what it says and all events that are over.
func (d *drill) end() ([]Event, error) {
	d.t.Helper()
	d.cancel()
	select {
	case err := <-d.done:
		d.check()
		return d.over(), err
	case <-time.After(patience):
		d.t.Fatalf("the run does not end; events: %+v", d.over())
		return nil, nil
	}
}

// check: every event is told at its beginning and at its end, with the same stamps, or only at its end if it failed.
func (d *drill) check() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	begun := map[int]Event{}
	for _, e := range d.events {
		b, ok := begun[e.Number]
		switch {
		case e.End == 0 && !ok:
			begun[e.Number] = e
		case e.End == 0 || e.Begin == 0 || e.End < e.Begin || e.Outcome == "":
			d.t.Errorf("%+v", e)
		case !ok && !e.Failed:
			d.t.Errorf("%+v: its beginning was not told", e)
		case ok && (b.Begin != e.Begin || b.Target != e.Target || b.Fault != e.Fault):
			d.t.Errorf("begun as %+v, ended as %+v", b, e)
		}
		if e.End != 0 {
			delete(begun, e.Number)
		}
	}
	if len(begun) > 0 {
		d.t.Errorf("their ends were not told: %v", begun)
	}
}

// one is the only event, which went well.
func one(t *testing.T, events []Event, err error) Event {
	t.Helper()
	if err != nil || len(events) != 1 || events[0].Failed {
		t.Fatalf("%+v, %v", events, err)
	}
	return events[0]
}

func TestKill(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	pid, other := m.pid("b1"), m.pid("b2")
	d := launch(t, plan(t, m.state, "kill broker b1"))
	d.await(1)
	events, err := d.end()
	e := one(t, events, err)
	m.await(pid, "killed")
	m.until("no pid of b1", func() bool { return m.pid("b1") == 0 })
	if e.PID != pid || e.Target != "broker b1" || e.Outcome != "killed" || e.Number != 1 || m.life(other) != "running" {
		t.Errorf("%+v; b2 is %s", e, m.life(other))
	}
}

func TestKillForAWhile(t *testing.T) {
	m := newMesh(t, "b1")
	pid := m.pid("b1")
	d := launch(t, plan(t, m.state, "kill broker b1 for 1ms"))
	d.await(1)
	events, err := d.end()
	e := one(t, events, err)
	m.await(pid, "killed")
	now := m.pid("b1")
	if now == pid || !alive(now) || !strings.HasPrefix(e.Outcome, "killed; started again after ") || !strings.HasSuffix(e.Outcome, fmt.Sprintf(", pid %d", now)) {
		t.Errorf("%+v; the pid is %d, was %d, alive: %v", e, now, pid, alive(now))
	}
}

// A run that is interrupted undoes what lasts: the frozen one runs, the stopped one and the killed one are back, the command has ended.
func TestInterrupted(t *testing.T) {
	m := newMesh(t, "b1", "b2", "b3")
	frozen, stopped, killed := m.pid("b1"), m.pid("b2"), m.pid("b3")
	d := launch(t, plan(t, m.state, "freeze broker b1 1h", "stop broker b2", "kill broker b3 for 1h", `run "exec sleep 3600"`, "at 1h kill broker b1"))
	m.await(frozen, "stopped")
	m.await(stopped, "exit 0")
	m.await(killed, "killed")
	d.awaitTold(4)
	if over := d.over(); len(over) != 0 {
		t.Errorf("over: %+v", over)
	}
	events, err := d.end()
	if err != nil || len(events) != 5 { // with the one that was not reached
		t.Fatalf("%v, %+v", err, events)
	}
	m.await(frozen, "running")
	for _, name := range []string{"b2", "b3"} {
		if pid := m.pid(name); pid == stopped || pid == killed || !alive(pid) {
			t.Errorf("%s: %d was not started again", name, pid)
		}
	}
	for _, e := range events {
		if e.Fault.Verb == Run && (!strings.HasPrefix(e.Outcome, "ended after ") || syscall.Kill(e.PID, 0) != syscall.ESRCH) {
			t.Errorf("%+v: it still runs", e)
		}
	}
}

// What has not begun by the end is not done, and told: as a failure, unless somebody wanted that end.
func TestNothingAfterTheEnd(t *testing.T) {
	m := newMesh(t, "b1")
	p := plan(t, m.state, "kill broker b1", `run "exit 1"`, "freeze broker b1", "restart broker b1", "start broker b1", "every 1ms kill broker b1")
	for _, cause := range []error{ErrOver, context.Canceled} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		var told []Event
		err := p.Run(ctx, pace.Now(), func(e Event) { told = append(told, e) })
		if m.life(m.pid("b1")) != "running" || len(told) != len(p.Faults) {
			t.Errorf("%v: %s, %+v", cause, m.life(m.pid("b1")), told)
		}
		for _, e := range told {
			if !e.Failed || e.End == 0 || e.Outcome != "not done: the run ended before" {
				t.Errorf("%v: %+v", cause, e)
			}
		}
		failed := errors.Is(err, ErrFailed) && strings.Count(err.Error(), "not done: the run ended before") == len(p.Faults)
		if failed != (cause == ErrOver) || !failed && err != nil {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

// No faults: a run is waited for all the same.
func TestNoFaults(t *testing.T) {
	d := launch(t, &Plan{})
	if events, err := d.end(); err != nil || len(events) != 0 {
		t.Error(err, events)
	}
}

func TestTerm(t *testing.T) {
	m := newMesh(t, "b1", "deaf")
	pid, deaf := m.pid("b1"), m.pid("deaf")
	p := plan(t, m.state, "term broker b1", fmt.Sprintf("term pid %d", deaf))
	p.Patience = 20 * time.Millisecond
	d := launch(t, p)
	m.await(pid, "exit 0")
	d.await(2)
	events, err := d.end()
	if want := fmt.Sprintf("fault: failed: term pid %d: it still runs 20ms after SIGTERM", deaf); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
	for _, e := range events {
		if e.PID == deaf && (!e.Failed || e.Outcome != "it still runs 20ms after SIGTERM") {
			t.Errorf("%+v", e)
		}
	}
	if m.life(deaf) != "running" {
		t.Error(m.life(deaf))
	}
}

// Who does not hear is killed where the fault is to have it again.
func TestRestartOfADeafOne(t *testing.T) {
	m := newMesh(t, "deaf")
	pid := m.pid("deaf")
	p := plan(t, m.state, "restart broker deaf")
	p.Patience = 20 * time.Millisecond
	d := launch(t, p)
	d.await(1)
	events, err := d.end()
	e := one(t, events, err)
	m.await(pid, "killed")
	if now := m.pid("deaf"); now == pid || !alive(now) || !strings.HasPrefix(e.Outcome, "killed 20ms after SIGTERM; started again after ") {
		t.Errorf("%+v; pid %d, was %d", e, now, pid)
	}
}

func TestStart(t *testing.T) {
	m := newMesh(t, "b1", "dead1", "dead2")
	d := launch(t, plan(t, m.state, "start broker b1", "start broker dead1", "restart broker dead2"))
	d.await(3)
	events, err := d.end()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		name := e.Fault.Target.Name
		m.until("the pid of "+name, func() bool { return m.pid(name) != 0 }) // nothing says that the file will name one that it never did
		switch pid := m.pid(name); {
		case !alive(pid):
			t.Errorf("%+v: pid %d", e, pid)
		case e.Target == "broker b1" && e.Outcome != fmt.Sprintf("it ran already, pid %d", pid):
			t.Errorf("%+v", e)
		case e.Target == "broker dead1" && (!strings.HasPrefix(e.Outcome, "started in ") || e.PID != pid):
			t.Errorf("%+v: pid %d", e, pid)
		case e.Target == "broker dead2" && !strings.HasPrefix(e.Outcome, "it did not run; started again after "):
			t.Errorf("%+v", e)
		}
	}
}

func TestWhatDoesNotRun(t *testing.T) {
	m := newMesh(t, "dead", "dead2")
	d := launch(t, plan(t, m.state, "kill broker dead", "freeze broker dead", "stop broker dead 1ms", "kill random broker"))
	d.await(4)
	events, err := d.end()
	if !errors.Is(err, ErrFailed) || len(events) != 4 {
		t.Errorf("%v, %+v", err, events)
	}
	for _, e := range events {
		want := "it does not run"
		if e.Fault.Target.Random {
			want = "there is no broker that it could be done to"
		}
		if !e.Failed || e.Outcome != want || e.PID != 0 {
			t.Errorf("%+v, want %q", e, want)
		}
	}
}

func TestRandom(t *testing.T) {
	m := newMesh(t, "dead", "b1")
	pid := m.pid("b1")
	d := launch(t, plan(t, m.state, "kill random broker"))
	d.await(1)
	events, err := d.end()
	if e := one(t, events, err); e.Target != "broker b1" || e.PID != pid || e.Fault.String() != "kill random broker" {
		t.Errorf("%+v", e)
	}
}

// Two faults freeze one process: the one that ends first does not thaw it.
func TestFrozenTwice(t *testing.T) {
	m := newMesh(t, "b1")
	pid := m.pid("b1")
	d := launch(t, plan(t, m.state, "freeze broker b1 200ms", "freeze broker b1"))
	first := d.await(1)[0]
	d.awaitTold(3)
	if strings.HasSuffix(first.Outcome, "longer by another fault") {
		m.await(pid, "stopped") // it may not have been noticed yet
	}
	events, err := d.end()
	if err != nil || len(events) != 2 {
		t.Fatalf("%v, %+v", err, events)
	}
	m.await(pid, "running")
	if !strings.HasPrefix(first.Outcome, "frozen for ") || !strings.HasPrefix(events[1].Outcome, "frozen for ") {
		t.Errorf("%+v", events)
	}
}

// What one fault freezes another may end.
func TestTermOfAFrozenOne(t *testing.T) {
	m := newMesh(t, "b1")
	pid := m.pid("b1")
	p := plan(t, m.state, "freeze broker b1", "term broker b1")
	var told drill
	r := p.newRun(pace.Now(), told.tell)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var freezing sync.WaitGroup
	freezing.Go(func() { r.once(ctx, p.Faults[0], nil) })
	m.await(pid, "stopped")
	r.once(ctx, p.Faults[1], nil)
	m.await(pid, "exit 0")
	cancel()
	freezing.Wait()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	events := told.over()
	if len(events) != 2 || !strings.HasPrefix(events[0].Outcome, "ended ") || !strings.HasPrefix(events[1].Outcome, "frozen, and ended or thawed by another fault") {
		t.Errorf("%+v", events)
	}
}

// A frozen process that somebody else kills is no failure of the fault.
func TestFrozenAndGone(t *testing.T) {
	m := newMesh(t, "b1")
	pid := m.pid("b1")
	d := launch(t, plan(t, "", fmt.Sprintf("freeze pid %d", pid)))
	m.await(pid, "stopped")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.await(pid, "killed")
	events, err := d.end()
	if e := one(t, events, err); !strings.HasPrefix(e.Outcome, "frozen, and gone ") {
		t.Errorf("%+v", e)
	}
}

func TestEvery(t *testing.T) {
	d := launch(t, plan(t, "", `at 1ms every 5ms run "exit 0"`))
	d.await(3)
	events, err := d.end()
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range events {
		if e.Number != i+1 || e.PID == 0 || i > 0 && e.Begin < events[i-1].End {
			t.Errorf("%d: %+v", i, e)
		}
	}
}

func TestCommand(t *testing.T) {
	p := plan(t, "", `run "echo out; echo err >&2; exit 3"`, `run "exec sleep 3600" for 1ms`, `run "kill -9 $$"`)
	p.Output = filepath.Join(t.TempDir(), "log")
	d := launch(t, p)
	d.await(3)
	events, err := d.end()
	if !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	for _, e := range events {
		switch {
		case strings.HasPrefix(e.Fault.Command, "echo") && (!e.Failed || e.Outcome != "exit status 3, see "+p.Output),
			strings.HasPrefix(e.Fault.Command, "exec") && (e.Failed || !strings.HasPrefix(e.Outcome, "ended after ")),
			strings.HasPrefix(e.Fault.Command, "kill") && (!e.Failed || e.Outcome != "ended by killed, see "+p.Output):
			t.Errorf("%+v", e)
		}
	}
	if out, err := os.ReadFile(p.Output); err != nil || string(out) != "out\nerr\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// Where nobody keeps the state file, the command that was started is the process.
func TestStateFileThatStandsStill(t *testing.T) {
	state := stateFile(t, `{"etcd":[{"restart":"sleep 3600; true"}]}`) // a shell that has a child
	p := plan(t, state, "start etcd", "restart etcd", "kill etcd")
	var told drill
	r := p.newRun(pace.Now(), told.tell)
	for _, f := range p.Faults {
		r.once(t.Context(), f, nil)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	events := told.over()
	if len(events) != 3 || events[0].PID != events[1].PID || events[1].PID == events[2].PID {
		t.Fatalf("%+v", events)
	}
	for _, e := range events {
		if syscall.Kill(e.PID, 0) != syscall.ESRCH {
			t.Errorf("%+v: it still runs", e)
		}
	}
}

func TestCommandThatStartsNothing(t *testing.T) {
	m := newMesh(t, "b1")
	s, err := ReadState(m.state)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.Brokers[0].PID
	s.Brokers[0].Restart = "exit 7"
	if err := writeState(m.state, s); err != nil {
		t.Fatal(err)
	}
	d := launch(t, plan(t, m.state, "restart broker b1"))
	d.await(1)
	events, err := d.end()
	m.await(pid, "exit 0")
	if !errors.Is(err, ErrFailed) || len(events) != 1 || !events[0].Failed || !strings.HasSuffix(events[0].Outcome, "; to start it again: its command: exit status 7") {
		t.Errorf("%v, %+v", err, events)
	}
}

func TestCheck(t *testing.T) {
	m := newMesh(t, "b1")
	mute := stateFile(t, `{"brokers":[{"id":"b1"}]}`)
	for _, c := range []struct {
		state, line string
		is          error
		want        string
	}{
		{"", "kill broker b1", ErrState, `none given, and "kill broker b1" needs one`},
		{m.state + ".not", "kill broker b1", os.ErrNotExist, ".not"},
		{m.state, "kill broker b2", ErrTarget, `"kill broker b2": fault: no such target: broker b2: the state file names b1`},
		{mute, "kill broker b1", nil, ""},
		{mute, "kill broker b1 1s", ErrTarget, "broker b1: the state file has no command to start it"},
		{mute, "stop random broker", ErrTarget, "broker b1: the state file has no command to start it"},
		{"", fmt.Sprintf("kill pid %d", os.Getpid()), ErrTarget, "this process itself"},
		{"", "kill pid 2147483647", ErrTarget, "pid 2147483647: os: process already finished"},
		{"", fmt.Sprintf("freeze pid %d", m.pid("b1")), nil, ""},
		{"", `run "x"`, nil, ""},
	} {
		p := plan(t, c.state, c.line)
		if err := p.Check(); !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.line, err, c.want)
		}
		if c.is == nil {
			continue
		}
		if err := p.Run(t.Context(), pace.Now(), func(e Event) { t.Errorf("%+v", e) }); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.line, err)
		}
	}
}
