package demo

import (
	"context"
	"time"
)

const (
	// beat is how often the demo looks whether its machine runs.
	beat = 20 * time.Millisecond
	// stillness is what makes a claim about time worthless: the machine, or this process on it, did nothing for so long.
	stillness = 500 * time.Millisecond
)

// pulse tells how long the machine stood still at most: a laptop that sleeps, a virtual machine that is paused, more work than processors.
// A mesh that is closed up "within 1 s" cannot be seen to be by a process that did not run for 5 s.
type pulse struct {
	worst time.Duration // read after stop
	end   context.CancelFunc
	ended chan struct{}
}

// feel watches until stop is called.
func feel(ctx context.Context) *pulse {
	ctx, cancel := context.WithCancel(ctx)
	p := &pulse{end: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		tick := time.NewTicker(beat)
		defer tick.Stop()
		// The wall clock too: some monotonic clocks stand still with their machine.
		for last := time.Now(); ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			now := time.Now()
			p.worst = max(p.worst, now.Sub(last)-beat, now.Round(0).Sub(last.Round(0))-beat)
			last = now
		}
	}()
	return p
}

// stop ends the watch and returns the longest stillness, 0 if none was worth telling.
func (p *pulse) stop() time.Duration {
	p.end()
	<-p.ended
	if p.worst < stillness {
		return 0
	}
	return p.worst
}
