package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bin is the binary as people run it, its version by ldflags.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "limpet-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = filepath.Join(dir, "limpet")
		build := exec.Command("go", "build", "-o", bin, "-ldflags", "-X github.com/limpet-mesh/limpet/cmd/limpet/internal/cli.version=v9.8.7", ".")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// Version, exit codes, a store and an apply as two processes.
func TestBinary(t *testing.T) {
	dir := t.TempDir()
	limpet := func(args ...string) (code int, output string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode(), string(out)
		} else if err != nil {
			t.Fatal(err)
		}
		return 0, string(out)
	}
	if code, out := limpet("version"); code != 0 || !strings.HasPrefix(out, "limpet v9.8.7 ") {
		t.Errorf("version: exit %d, %s", code, out)
	}
	if code, out := limpet("--version"); code != 0 || !strings.HasPrefix(out, "limpet v9.8.7 ") {
		t.Errorf("--version: exit %d, %s", code, out)
	}
	if code, out := limpet("versoin"); code != 2 || out != "limpet: unknown verb \"versoin\": did you mean \"version\"? (see \"limpet --help\")\n" {
		t.Errorf("a misspelt verb: exit %d, %s", code, out)
	}

	store := exec.Command(bin, "store", "--data", filepath.Join(dir, "data"), "--etcd-port", "0", "--peer-port", "0", "--only", "etcd")
	stdout, err := store.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	store.Stderr = &logs
	if err := store.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(2*time.Minute, func() { store.Process.Kill() })
	defer kill.Stop()
	defer store.Process.Kill()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "etcd ")
	if err != nil || !ok {
		t.Fatalf("store printed %q, %v", line, err)
	}

	mesh := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(mesh, []byte("mesh: m\npools: [{name: p, brokers: [{id: b, address: 'h:1'}]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := limpet("apply", "-f", mesh, "--etcd", url, "--timeout", "30s"); code != 0 || out != "pool p: created (1 broker)\n  brokers[b]: added, h:1\n" {
		t.Errorf("apply: exit %d, %s", code, out)
	}
	if code, out := limpet("apply", "-f", mesh, "--etcd", url, "--timeout", "30s", "--diff"); code != 0 || out != "pool p: unchanged\n" {
		t.Errorf("apply --diff: exit %d, %s", code, out)
	}

	if err := store.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := store.Wait(); err != nil {
		t.Errorf("store after SIGTERM: %v\n%s", err, logs.String())
	}
}
