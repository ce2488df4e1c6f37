package loadtest

import "github.com/limpet-mesh/limpet/loadtest/result"

// firing records how well one schedule is kept. The events of a burst are all intended for the same instant, and yet can only begin one
// after the other: each is late by what passed since the one before it, so that a burst takes as long as it takes, and the generator is
// behind only if it stalls in the middle. Latencies count from the intended time all the same.
type firing struct {
	rec      *result.Recorder
	intended int64 // of the event before
	begun    int64 // that event
}

// pace begins a record of a schedule.
func (r *run) pace() *firing { return &firing{rec: r.rec} }

// fired notes that an event begins.
func (f *firing) fired(intended, now int64) {
	from := intended
	if intended == f.intended {
		from = f.begun
	}
	f.intended, f.begun = intended, now
	f.rec.Fired(from, now)
}
