//go:build unix

package demo

import (
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

// terminalSize is how many columns and rows the terminal has; 0 = not known.
func terminalSize(f *os.File) (columns, rows int) {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(w.Col), int(w.Row)
}
