package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An edge that crashes leaves no core behind, with its keys in it, though everything else would let it. One that is told to does: the other half of the
// test shows that the first could have failed.
func TestEdgesDumpNoCore(t *testing.T) {
	var most unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &most); err != nil {
		t.Fatal(err)
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	// Elsewhere it is for others to say whether anything is dumped.
	could := most.Max >= 1<<32 && !strings.ContainsAny(string(pattern), "|/@")

	t.Setenv("GOTRACEBACK", "crash")
	for _, allowed := range []bool{false, true} {
		t.Run(fmt.Sprintf("allowed=%v", allowed), func(t *testing.T) {
			t.Setenv("LIMPET_CORE_DUMPS", map[bool]string{true: "1"}[allowed])
			t.Chdir(t.TempDir()) // where a core would be
			s, serves := startEdge(t)
			serves()
			if err := unix.Prlimit(s.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: most.Max, Max: most.Max}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Process.Pid)); err != nil {
				t.Errorf("what tells the load of a process is hidden: %v", err)
			}
			if err := s.Process.Signal(syscall.SIGABRT); err != nil {
				t.Fatal(err)
			}
			select {
			case err = <-s.ended:
			case <-time.After(patience):
				t.Fatal("does not end")
			}
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok {
				t.Fatalf("ended with %v", err)
			}
			t.Logf("%v; cores are possible: %v", err, could)
			switch dumped := exit.Sys().(syscall.WaitStatus).CoreDump(); {
			case dumped && !allowed:
				t.Errorf("dumped core: %v", err)
			case !dumped && allowed && could:
				t.Errorf("dumped no core: %v", err)
			}
		})
	}
}
