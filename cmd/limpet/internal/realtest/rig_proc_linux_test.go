package realtest

import (
	"os/exec"
	"syscall"
)

// bind makes the child die when the thread that started it does, so that a test run that is killed leaves nobody behind.
func bind(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
