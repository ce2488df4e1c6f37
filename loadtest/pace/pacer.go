package pace

import (
	"context"
	"time"
)

// A Pacer fires the events of a schedule when they are due. The zero value is ready for use.
type Pacer struct {
	Lag Lag // how late events were fired; readable during Run

	// Coarse waits with the runtime's timers alone: some milliseconds late. That is how it is done elsewhere than on Linux, and
	// what a testing/synctest bubble needs.
	Coarse bool
}

const (
	// quantum is the shortest wait: events that are due within it are fired together, late by at most that, so that 100,000 events
	// a second do not cost 100,000 system calls.
	quantum = 50 * time.Microsecond

	// margin is left of a long wait for the precise sleep, which cannot be interrupted: more than the runtime's timers are late,
	// and no more than anybody minds waiting for the end of Run.
	margin = 3 * time.Millisecond
)

// Run calls fire(i, intended) for event i = 0, 1, … of s, never before its time: intended is a stamp (see Now), start plus the offset.
// Events that are overdue, because start lies in the past, the machine was busy or fire took long, follow each other at once. None is
// left out. It returns when s has ended, or ctx is done (with its cause).
//
// Calls come from one goroutine, one at a time. On Linux it keeps a thread and is precise to about 100 µs while a processor is free.
func (p *Pacer) Run(ctx context.Context, start int64, s Schedule, fire func(i int, intended int64)) error {
	sleep, done := sleeper(p.Coarse)
	defer done()
	alarm := time.NewTimer(time.Hour)
	defer alarm.Stop()
	for i := 0; ; i++ {
		offset, ok := s.Next()
		if !ok {
			return nil
		}
		intended := start + int64(offset)
		for {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			left := time.Duration(intended - Now())
			if left <= 0 {
				p.Lag.Record(-left)
				break
			}
			if sleep != nil && left <= margin {
				sleep(max(left, quantum))
				continue
			}
			if sleep != nil {
				left -= margin / 2
			}
			alarm.Reset(left)
			select {
			case <-ctx.Done():
			case <-alarm.C:
			}
		}
		fire(i, intended)
	}
}
