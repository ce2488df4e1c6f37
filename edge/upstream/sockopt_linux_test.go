package upstream

import (
	"syscall"
	"testing"
)

// checkTimers reads the timers back from the kernel.
func checkTimers(t *testing.T, fd int) {
	for name, o := range map[string][2]int{
		"TCP_KEEPIDLE":     {syscall.TCP_KEEPIDLE, int(KeepAliveIdle.Seconds())},
		"TCP_KEEPINTVL":    {syscall.TCP_KEEPINTVL, int(KeepAliveInterval.Seconds())},
		"TCP_KEEPCNT":      {syscall.TCP_KEEPCNT, KeepAliveCount},
		"TCP_USER_TIMEOUT": {tcpUserTimeout, int(UserTimeout.Milliseconds())},
	} {
		if v, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, o[0]); err != nil || v != o[1] {
			t.Errorf("%s is %d (%v), want %d", name, v, err, o[1])
		}
	}
}
