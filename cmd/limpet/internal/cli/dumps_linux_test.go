package cli

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// It is for the whole life of a process, so another process has it.
func TestGuardMemory(t *testing.T) {
	const env = "CLI_TEST_GUARD_MEMORY"
	if os.Getenv(env) == "" {
		for _, allow := range []string{"", "0", "1"} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestGuardMemory$")
			cmd.Env = append(os.Environ(), env+"=1", dumpsEnv+"="+allow)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s=%q: %v\n%s", dumpsEnv, allow, err, out)
			}
		}
		return
	}
	want := 0
	if os.Getenv(dumpsEnv) == "1" {
		want = 1
	}
	guardMemory(zerolog.Nop())
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); got != want || err != nil {
		t.Errorf("PR_GET_DUMPABLE = %d, %v; want %d", got, err, want)
	}
}
