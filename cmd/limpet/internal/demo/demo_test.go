//go:build unix

package demo

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limpet builds the binary, once.
var limpet = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(binDir, "limpet")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/limpet-mesh/limpet/cmd/limpet").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

var binDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "limpet-demo-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binDir = dir
		return m.Run()
	}())
}

// run is a demo under test.
type run struct {
	t      *testing.T
	cmd    *exec.Cmd
	output bytes.Buffer // after done
	done   chan struct{}
	temp   string
	file   string
}

// start starts `limpet demo` with a temporary directory of its own. At the test's end it must be gone, and have left nothing.
func start(t *testing.T, args ...string) *run {
	t.Helper()
	bin, err := limpet()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{t: t, done: make(chan struct{}), file: filepath.Join(t.TempDir(), "state.json")}
	if r.temp, err = os.MkdirTemp(binDir, ""); err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command(bin, append([]string{"demo", "--shifted", "--state", r.file}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.temp)
	r.cmd.Stdout, r.cmd.Stderr = &r.output, &r.output
	r.cmd.WaitDelay = 10 * time.Second
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.done)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it has ended, unless the test failed
		<-r.done
		if t.Failed() {
			t.Logf("the demo said:\n%s", &r.output)
			r.logs()
		}
	})
	return r
}

// logs shows the logs that were left.
func (r *run) logs() {
	files, _ := filepath.Glob(filepath.Join(r.temp, "*", "logs", "*.log"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		r.t.Logf("%s, %v:\n%s", filepath.Base(f), err, data[max(0, len(data)-8000):])
	}
}

// poll waits until ok returns nil.
func (r *run) poll(what string, ok func() error) {
	r.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// state waits for the state file.
func (r *run) state() (s State) {
	r.t.Helper()
	r.poll("state", func() error {
		select {
		case <-r.done:
			r.t.Fatalf("the demo has ended: %s", r.cmd.ProcessState)
		default:
		}
		var err error
		s, err = readState(r.file)
		return err
	})
	return s
}

func readState(path string) (s State, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return s, d.Decode(&s)
}

func (s State) processes() []Process {
	var all []Process
	for _, e := range s.Edges {
		all = append(all, e.Process)
	}
	for _, b := range s.Brokers {
		all = append(all, b.Process)
	}
	return append(all, s.Etcd[0].Process, s.NATS[0].Process)
}

// ends waits for the demo's end.
func (r *run) ends() {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(2 * time.Minute):
		r.t.Fatal("the demo does not end")
	}
}

// end waits for the demo's end and expects nothing to be left of it.
func (r *run) end(code int, pids ...int) {
	r.t.Helper()
	r.ends()
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.t.Errorf("exit code %d, want %d", got, code)
	}
	for _, pid := range pids {
		if alive(pid) {
			r.t.Errorf("process %d is left", pid)
		}
	}
	if left, err := os.ReadDir(r.temp); err != nil || len(left) > 0 {
		r.t.Errorf("%v, %v: files are left", left, err)
	}
}

// alive reports whether a process runs. One that has ended, and whose parent has not noticed yet, does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	if runtime.GOOS != "linux" {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// The story, told once: it holds, and nothing is left. Some of its claims are about time: no other test runs meanwhile, and it is told
// again where the machine itself stood still.
func TestOnce(t *testing.T) {
	for more := 2; !tellOnce(t, more); more-- {
	}
}

// tellOnce tells the story and reports whether it counts; with no more attempts it does.
func tellOnce(t *testing.T, more int) bool {
	r := start(t, "--once")
	s := r.state()
	if len(s.Edges) != edges || len(s.Brokers) != brokers || len(s.Etcd) != 1 || len(s.NATS) != 1 {
		t.Fatalf("state: %+v", s)
	}
	var pids []int
	for _, p := range s.processes() {
		if p.PID == 0 || p.Restart == "" {
			t.Errorf("state: %+v", p)
		}
		pids = append(pids, p.PID)
	}
	r.ends()
	if more > 0 && !r.cmd.ProcessState.Success() && strings.Contains(r.output.String(), "This machine stood still") {
		t.Logf("to be told again, since the machine stood still:\n%s", &r.output)
		return false
	}
	r.end(0, pids...)
	if n := strings.Count(r.output.String(), "\n   held "); n < 12 {
		t.Errorf("%d claims held", n)
	}
	for line := range strings.Lines(r.output.String()) {
		if width(strings.TrimRight(line, "\n")) > 80 && !strings.Contains(line, r.temp) {
			t.Errorf("too wide for a terminal: %s", line)
		}
	}
	after, err := readState(r.file)
	if err != nil {
		t.Error(err)
	}
	for _, p := range after.processes() {
		if p.PID != 0 {
			t.Errorf("state after the end: %+v", p)
		}
	}
	return true
}

// A standalone demo has brokers that know nothing of each other.
func TestStandalone(t *testing.T) {
	t.Parallel()
	r := start(t, "--idle", "--standalone")
	s := r.state()
	for _, b := range s.Brokers {
		if !strings.Contains(b.Restart, " --standalone") || strings.Contains(b.Restart, " --peer") {
			t.Errorf("%s runs as %s", b.ID, b.Restart)
		}
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	r.end(0)
}

// A demo that is stopped in the middle of its story ends everything in order, and does not say that it held.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	r := start(t, "--once", "--clients", "60")
	var pids []int
	for _, p := range r.state().processes() {
		pids = append(pids, p.PID)
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	r.end(1, pids...)
	if !strings.Contains(r.output.String(), "stopped before the end of its story") {
		t.Error("it does not say why")
	}
}

// An idle demo is a mesh to play with: everybody finds everybody; what is killed can be brought back, and ends with it.
func TestIdle(t *testing.T) {
	t.Parallel()
	r := start(t, "--idle")
	s := r.state()
	t.Run("every pair of edges and transports", func(t *testing.T) { testPairs(t, s) })

	victim := s.Edges[1]
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.poll("the end of e2", func() error {
		if p := r.state().Edges[1].PID; p != 0 {
			return fmt.Errorf("its pid is %d", p)
		}
		return nil
	})
	again := exec.Command("sh", "-c", victim.Restart)
	again.Stdout, again.Stderr = io.Discard, io.Discard
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	r.poll("e2 again", func() error { return edgeReady(bound(t), "http://"+victim.Admin) })
	r.poll("the state of e2", func() error {
		if p := r.state().Edges[1].PID; p == 0 || p == victim.PID {
			return fmt.Errorf("its pid is %d", p)
		}
		return nil
	})

	s = r.state()
	if err := syscall.Kill(s.Brokers[2].PID, syscall.SIGSTOP); err != nil { // frozen, it ends all the same
		t.Fatal(err)
	}
	var pids []int
	for _, p := range s.processes() {
		pids = append(pids, p.PID)
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err != nil {
		t.Errorf("e2, restarted by hand, after the demo's end: %v", err)
	}
	r.end(0, pids...)
}

// A demo that is killed takes its processes along, a frozen one too where the kernel helps, and its files go with the next demo.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := start(t, "--idle")
	s := r.state()
	if runtime.GOOS == "linux" {
		if err := syscall.Kill(s.Brokers[0].PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.done
	for _, p := range s.processes() {
		r.poll("the end of its processes", func() error {
			if alive(p.PID) {
				return fmt.Errorf("process %d lives", p.PID)
			}
			return nil
		})
	}
	if removed := sweep(r.temp); len(removed) != 1 {
		t.Errorf("the next demo would remove %v", removed)
	}
	if left, err := os.ReadDir(r.temp); err != nil || len(left) > 0 {
		t.Errorf("%v, %v: files are left", left, err)
	}
}

// testPairs has a message go from every edge and transport to every other.
func testPairs(t *testing.T, s State) {
	l := &layout{}
	for i, e := range s.Edges {
		l.edges[i] = e.edgeAddresses
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	var all []*actor
	for i := range edges {
		for _, over := range transports {
			a := &actor{id: fmt.Sprintf("%s-%s", edgeName(i), over), version: [...]byte{mqtt311, mqtt5}[len(all)%2], clean: true, layout: l, roots: roots}
			if _, err := a.come(t.Context(), place{i, over}); err != nil {
				t.Fatal(err)
			}
			if err := a.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			all = append(all, a)
		}
	}
	each(all, func(_ int, from *actor) {
		for _, to := range all {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			payload := from.id + " to " + to.id
			if err := errors.Join(from.tell(ctx, to, payload), to.hear(ctx, payload)); err != nil {
				t.Errorf("%s: %v", payload, err)
			}
			cancel()
		}
	})
	for _, a := range all {
		a.leave()
	}
}
