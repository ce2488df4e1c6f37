package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// forbidDumps makes the process one whose memory nobody without privileges sees: it dumps no core, not even to a program, and its user cannot
// attach to it (prctl(2), PR_SET_DUMPABLE). A limit of 0 for cores would not do: what pipes them to a program does not heed it (core(5)).
func forbidDumps() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
