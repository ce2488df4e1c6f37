package demo

import "syscall"

// attributes keep a terminal's Ctrl-C from the children, which end in the demo's order, and have the kernel end them, frozen
// ones too, should the demo be killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
