//go:build unix

package fault

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the process that faults are done to.
const (
	asService = "FAULT_TEST_SERVICE" // its name; it writes its pid into the state file, as a supervisor would
	inState   = "FAULT_TEST_STATE"
	isDeaf    = "FAULT_TEST_DEAF" // to SIGTERM
)

func TestMain(m *testing.M) {
	if name := os.Getenv(asService); name != "" {
		if err := serve(name, os.Getenv(inState), os.Getenv(isDeaf) != ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serve runs until SIGTERM, or until its test is over and has removed its directory.
func serve(name, path string, deaf bool) error {
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM) // before anybody can know the pid
	if err := setPID(path, func(b *BrokerState) bool { return b.ID == name }, os.Getpid()); err != nil {
		return err
	}
	for tick := time.Tick(50 * time.Millisecond); ; {
		select {
		case <-terms:
			if !deaf {
				return nil
			}
		case <-tick:
			if _, err := os.Stat(path); err != nil {
				return nil
			}
		}
	}
}

// setPID writes the pid of a broker into the state file in one step, one process at a time.
func setPID(path string, of func(*BrokerState) bool, pid int) error {
	lock, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	s, err := ReadState(path)
	if err != nil {
		return err
	}
	for i := range s.Brokers {
		if of(&s.Brokers[i]) {
			s.Brokers[i].PID = pid
		}
	}
	return writeState(path, s)
}

func writeState(path string, s *State) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

const patience = time.Minute // of tests, for what takes a moment

// mesh is some brokers and their state file, which is kept as a supervisor would.
type mesh struct {
	t     *testing.T
	state string

	mu    sync.Mutex
	lives map[int]string // of the processes that no fault has started: running, stopped, or how it ended
}

// newMesh runs brokers. Names that begin with "deaf" do not hear SIGTERM, those with "dead" do not run.
func newMesh(t *testing.T, names ...string) *mesh {
	t.Helper()
	m := &mesh{t: t, state: filepath.Join(t.TempDir(), "state.json"), lives: map[int]string{}}
	var waiting sync.WaitGroup
	t.Cleanup(func() {
		if err := os.Remove(m.state); err != nil { // ends those that the test did not start itself
			t.Error(err)
		}
		m.mu.Lock()
		for pid, how := range m.lives {
			if how == "running" || how == "stopped" {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		m.mu.Unlock()
		waiting.Wait()
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var s State
	for _, name := range names {
		deaf := ""
		if strings.HasPrefix(name, "deaf") {
			deaf = isDeaf + "=1 "
		}
		command := fmt.Sprintf("%s%s=%s %s='%s' exec '%s'", deaf, asService, name, inState, m.state, exe)
		s.Brokers = append(s.Brokers, BrokerState{ID: name, ProcessState: ProcessState{Restart: command}})
	}
	if err := writeState(m.state, &s); err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Brokers {
		if strings.HasPrefix(b.ID, "dead") {
			continue
		}
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", b.Restart}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
		if err != nil {
			t.Fatal(err)
		}
		m.set(p.Pid, "running")
		waiting.Go(func() {
			m.follow(p.Pid)
			_ = setPID(m.state, func(b *BrokerState) bool { return b.PID == p.Pid }, 0) // the file is gone when the test is over
		})
		m.until("the pid of "+b.ID, func() bool { return m.pid(b.ID) != 0 })
	}
	return m
}

// follow notes how a child does, until its end.
func (m *mesh) follow(pid int) {
	for {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, syscall.WUNTRACED|syscall.WCONTINUED, nil); err == syscall.EINTR {
			continue
		} else if err != nil {
			m.set(pid, err.Error())
			return
		}
		switch {
		case status.Stopped():
			m.set(pid, "stopped")
		case status.Continued():
			m.set(pid, "running")
		case status.Signaled():
			m.set(pid, status.Signal().String())
			return
		default:
			m.set(pid, fmt.Sprint("exit ", status.ExitStatus()))
			return
		}
	}
}

func (m *mesh) set(pid int, life string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives[pid] = life
}

func (m *mesh) life(pid int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lives[pid]
}

func (m *mesh) pid(name string) int {
	m.t.Helper()
	s, err := ReadState(m.state)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, b := range s.Brokers {
		if b.ID == name {
			return b.PID
		}
	}
	m.t.Fatalf("no broker %s in %+v", name, s)
	return 0
}

// until waits for something that must happen.
func (m *mesh) until(what string, ok func() bool) {
	m.t.Helper()
	if !within(patience, ok) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.t.Fatalf("%s: not within %v; processes: %v", what, patience, m.lives)
	}
}

func (m *mesh) await(pid int, life string) {
	m.t.Helper()
	m.until(fmt.Sprintf("process %d %s", pid, life), func() bool { return m.life(pid) == life })
}
