//go:build !linux

package wire

import "syscall"

// controlBind has nothing to do: only Linux can choose the port of a bound socket at connect.
func controlBind(_, _ string, _ syscall.RawConn) error { return nil }
