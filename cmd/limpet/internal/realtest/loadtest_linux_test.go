package realtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/liar"
)

// TestLoadtestWorkerKilled: who loses a part of a run is told so, on the terminal and by the exit code.
func TestLoadtestWorkerKilled(t *testing.T) {
	t.Parallel()
	l := lyingMesh(t, liar.Config{})
	p := start(t, t.TempDir(), "loadtest", nil, limpet, "loadtest", "pub", "--edge", "tcp://"+l.Addr(), "-c", "10", "-I", "100", "-q", "1",
		"--duration", "4s", "--workers", "2")
	until(t, patience, "messages", func() (bool, any) { told := l.Told(); return told.Connects == 10, told })
	workers := childrenOf(t, p.cmd.Process.Pid)
	if len(workers) != 2 {
		t.Fatalf("%d workers", len(workers))
	}
	if err := syscall.Kill(workers[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, 4*patience, "the end", func() (bool, any) { return !p.running(), p.output() })
	if code := p.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{"of 2 ended early (signal: killed)", "limpet: loadtest: a worker ended early: worker "} {
		if !strings.Contains(p.output(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	for _, pid := range workers {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("worker %d outlives its parent: %v", pid, err)
		}
	}
}

// childrenOf lists the children of a process.
func childrenOf(t *testing.T, pid int) (all []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // of each thread those that it made
	if err != nil || len(lists) == 0 {
		t.Fatalf("%v: %d threads", err, len(lists))
	}
	for _, name := range lists {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread is gone
		}
		for _, word := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	return all
}
