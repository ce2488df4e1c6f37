package pace

import "time"

// An anchor ties one instant of three clocks together: the runtime's monotonic clock (inside goes), the host's, and the calendar.
type anchor struct {
	goes time.Time
	host int64
}

// zero is taken once, when the program starts: stamps of one run must not jump with the calendar's clock.
var zero = newAnchor()

// Now returns the time in nanoseconds of the host's monotonic clock: CLOCK_MONOTONIC on Linux, so that stamps of all processes of one
// machine compare (to a microsecond); elsewhere this process's own monotonic clock, set by the calendar at its start.
//
// It is as cheap as time.Since, and in a testing/synctest bubble it is the bubble's clock.
func Now() int64 { return zero.host + int64(time.Since(zero.goes)) }

// Wall returns the calendar time of a stamp. Corrections of the calendar's clock since the program started are left out, so stamps
// stay in order.
func Wall(stamp int64) time.Time {
	return zero.goes.Add(time.Duration(stamp - zero.host)).Round(0) // without a monotonic part: for people, not for sums
}

// Stamp is the inverse of Wall.
func Stamp(t time.Time) int64 { return zero.host + int64(t.Round(0).Sub(zero.goes.Round(0))) }
