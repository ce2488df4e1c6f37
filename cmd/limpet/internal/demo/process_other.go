//go:build !unix

package demo

import (
	"os"
	"syscall"
)

func attributes() *syscall.SysProcAttr { return nil }

// terminate ends a process: there are no signals here to ask it.
func terminate(p *os.Process) error { return p.Kill() }

// terminalSize is not known here: nothing is drawn in place.
func terminalSize(*os.File) (columns, rows int) { return 0, 0 }
