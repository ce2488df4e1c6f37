package pace

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper returns a sleep that is precise to some microseconds, for the calling goroutine alone, and what gives its thread back. A
// thread's timer slack, 50 µs unless set, is what the kernel may add to each sleep.
func sleeper(coarse bool) (sleep func(time.Duration), done func()) {
	if coarse {
		return nil, func() {}
	}
	runtime.LockOSThread()
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	}
	return nanosleep, func() {
		if err == nil {
			// It was valid when it was read. Failing that, this thread's timers are more precise than they were.
			_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
		}
		runtime.UnlockOSThread()
	}
}

// nanosleep can end early, by a signal: who calls it looks at the clock again.
func nanosleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
}
