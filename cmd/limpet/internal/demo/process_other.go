//go:build !unix

package demo

import (
	"io/fs"
	"os"
	"syscall"
)

func attributes() *syscall.SysProcAttr { return nil }

// terminate ends a process: there are no signals here to ask it.
func terminate(p *os.Process) error { return p.Kill() }

// mine is not known here: what killed demos leave stays.
func mine(fs.FileInfo) bool { return false }

// terminalSize is not known here: nothing is drawn in place.
func terminalSize(*os.File) (columns, rows int) { return 0, 0 }
