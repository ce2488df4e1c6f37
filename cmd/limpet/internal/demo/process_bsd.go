//go:build unix && !linux

package demo

import "syscall"

// attributes keep a terminal's Ctrl-C from the children, which end in the demo's order.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
