//go:build unix

package demo

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminate asks a process to end; one that is frozen is woken up for that.
func terminate(p *os.Process) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.Signal(syscall.SIGCONT)
}

// mine reports whether a file is this user's.
func mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Getuid()
}

// terminalSize is how many columns and rows the terminal has; 0 = not known.
func terminalSize(f *os.File) (columns, rows int) {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(w.Col), int(w.Row)
}
