package realtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
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

const (
	// patience is how long a test waits for what should take well below a second.
	patience = 15 * time.Second
	// exitPatience is how long a process may take to end in order.
	exitPatience = 20 * time.Second
	pollEvery    = 5 * time.Millisecond
)

// until polls ok, and fails with what was seen last if it never is.
func until(t testing.TB, within time.Duration, what string, ok func() (bool, any)) {
	t.Helper()
	var seen any
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(pollEvery) {
		good, s := ok()
		if good {
			return
		}
		seen = s
	}
	t.Fatalf("%s: not within %v; seen last: %v", what, within, seen)
}

// claim checks a time that was promised. On a machine that runs other tests besides it is held against three times as much;
// LIMPET_DRILLS=1 takes it at its word.
func claim(t testing.TB, what string, took, promised time.Duration) {
	t.Helper()
	allowed := promised
	if !drilling() {
		allowed *= 3
	}
	t.Logf("%s: %v (promised %v)", what, took.Round(time.Millisecond), promised)
	if took > allowed {
		t.Errorf("%s took %v, promised are %v", what, took, promised)
	}
}

func drilling() bool { return os.Getenv("LIMPET_DRILLS") == "1" }

// starts hands processes to the one thread that starts them all (see bind).
var starts = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// proc is a child process. Its output goes to a file, shown when the test fails.
type proc struct {
	name string
	args []string
	env  []string
	log  string // path

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of the process that exited
	frozen bool
}

// start starts a program and sees to its end.
func start(t testing.TB, dir, name string, env []string, args ...string) *proc {
	t.Helper()
	p := &proc{name: name, args: args, env: env, log: filepath.Join(dir, name+".log")}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s (%s):\n%s", name, strings.Join(args, " "), tail(p.output(), 30))
		}
	})
	p.start(t)
	return p
}

// start starts the process, or starts it again.
func (p *proc) start(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = f, f
	bind(cmd)
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	exited := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.exited, p.err, p.frozen = cmd, exited, nil, false
	p.mu.Unlock()
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(exited)
	}()
}

// signal sends a signal to the process and its children.
func (p *proc) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited: // its number may be another's by now
	default:
		syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// kill ends the process at once.
func (p *proc) kill() {
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	if exited == nil {
		return
	}
	p.signal(syscall.SIGKILL)
	<-exited
}

// freeze stops the process without ending it; thaw lets it go on.
func (p *proc) freeze() { p.signal(syscall.SIGSTOP) }
func (p *proc) thaw()   { p.signal(syscall.SIGCONT) }

// terminate asks the process to end, and returns how it did.
func (p *proc) terminate(t testing.TB) error {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(exitPatience):
		t.Fatalf("%s did not end within %v of SIGTERM", p.name, exitPatience)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// running reports whether the process has not ended.
func (p *proc) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *proc) output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// lineWith waits for a line of output that contains all of words, and returns it: the last one.
func (p *proc) lineWith(t testing.TB, within time.Duration, words ...string) string {
	t.Helper()
	var found string
	until(t, within, fmt.Sprintf("%s prints %q", p.name, words), func() (bool, any) {
		found = ""
		out := p.output()
		for line := range strings.Lines(out) {
			if containsAll(line, words) {
				found = strings.TrimSpace(line)
			}
		}
		if found == "" && !p.running() {
			t.Fatalf("%s has ended; its output:\n%s", p.name, tail(out, 20))
		}
		return found != "", tail(out, 5)
	})
	return found
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = append([]string{"…"}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}

// command runs a program to its end and returns what it printed on stdout. Its stdin is what input has.
func command(t testing.TB, within time.Duration, input []byte, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	bind(cmd)
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return "", err
	}
	timer := time.AfterFunc(within, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, tail(stderr.String(), 20))
	}
	return stdout.String(), nil
}

// Ports that processes must be told are taken from below the range that systems give to outgoing connections.
const firstPort, lastPort = 12_000, 24_000

var ports struct {
	mu    sync.Mutex
	taken map[int]bool
}

// freePort returns a port of 127.0.0.1 on which nobody listens.
func freePort(t testing.TB) int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if ports.taken[port] {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		ln.Close()
		ports.taken[port] = true
		return port
	}
	t.Fatal("no free port")
	return 0
}

// listening waits until somebody accepts connections at address.
func listening(t testing.TB, within time.Duration, p *proc, address string) {
	t.Helper()
	until(t, within, p.name+" listens on "+address, func() (bool, any) {
		if !p.running() {
			t.Fatalf("%s has ended:\n%s", p.name, tail(p.output(), 20))
		}
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false, err
		}
		c.Close()
		return true, nil
	})
}
