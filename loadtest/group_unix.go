//go:build unix

package loadtest

import (
	"os/exec"
	"syscall"
)

// setGroup gives a process a group of its own.
func setGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
