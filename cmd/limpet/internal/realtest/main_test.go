package realtest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	// The binary is built of this: imported, so that no cached result outlives a change of it.
	_ "github.com/limpet-mesh/limpet/cmd/limpet/internal/cli"
)

// limpet is the path of the binary under test, built once per run.
var limpet string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) { // its default
		f.Value.Set("6") // the tests wait more than they work
	}
	dir, err := os.MkdirTemp("", "limpet-real-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	limpet = filepath.Join(dir, "limpet")
	build := exec.Command("go", "build", "-o", limpet, "github.com/limpet-mesh/limpet/cmd/limpet")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building limpet:", err)
		return 1
	}
	return m.Run()
}

// program returns the path of a program that a test needs.
func program(t *testing.T, name string, also ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, path := range also { // Debian keeps servers where only root's PATH looks
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	missing(t, name+" is not installed (make deps installs it)")
	return ""
}

// missing ends a test that cannot run here.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
