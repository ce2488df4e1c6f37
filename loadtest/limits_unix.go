//go:build linux || darwin

package loadtest

import "syscall"

// raiseDescriptors asks for room for so many open files, and returns for how many there is.
func raiseDescriptors(need uint64) uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return need // the system does not tell: connects will
	}
	for _, hard := range []uint64{l.Max, need} { // root may go beyond the hard limit
		if l.Cur >= need {
			break
		}
		more := syscall.Rlimit{Cur: min(need, hard), Max: max(l.Max, hard)}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
			l = more
		}
	}
	return l.Cur
}
