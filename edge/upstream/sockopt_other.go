//go:build !linux

package upstream

import "syscall"

// setUserTimeout does nothing: TCP_USER_TIMEOUT is Linux's. Keep-alive notices a vanished broker that owes no acknowledgement,
// the system's retransmission limit one that does.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
