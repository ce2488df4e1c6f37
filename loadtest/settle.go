package loadtest

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

const (
	// interruptedSettle is how long what is under way is waited for when somebody waits for the end.
	interruptedSettle = 500 * time.Millisecond
	interruptedVerify = 10 * time.Second // likewise of a Verify: nothing may be called lost that was not waited for
	// quiet is how long nothing may have come before subscribers are believed to have everything.
	quiet = time.Second
	// heardEvery bounds how often a message's receipt is written where all clients look.
	heardEvery = int64(50 * time.Millisecond)
)

// settle waits for what is under way.
func (r *run) settle(ctx context.Context) {
	if r.verify != nil {
		r.cutShort = !r.verify.settle(ctx, cmp.Or(r.plan.Settle, verifySettle))
	} else {
		r.end.Store(pace.Now())
	}
	most := cmp.Or(r.plan.Settle, DefaultSettle)
	if ctx.Err() != nil {
		ctx, most = context.Background(), min(most, interruptedSettle)
	}
	begin := pace.Now()
	end := begin + int64(most)
	listening := r.listening()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	fleet, next := 0, 0 // whom it waits for: those before are done
	for {
		now := pace.Now()
		for fleet < len(r.fleets) {
			all := r.fleets[fleet].devices
			for next < len(all) && !all[next].pending() {
				next++
			}
			if next < len(all) {
				break
			}
			fleet, next = fleet+1, 0
		}
		done := fleet == len(r.fleets)
		if listening && now-max(r.heard.Load(), begin) < int64(quiet) {
			done = false
		}
		if done || now >= end {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ctx, end = context.Background(), min(end, now+int64(interruptedSettle))
		}
	}
}

// listening reports whether messages may be under way to subscribers.
func (r *run) listening() bool {
	subscribes, publishes := false, r.plan.Settle > 0
	for i := range r.plan.Fleets {
		f := &r.plan.Fleets[i]
		subscribes, publishes = subscribes || len(f.Subscribe) > 0, publishes || f.Publish != nil
	}
	return subscribes && publishes
}

// hear notes that something came.
func (r *run) hear(at int64) {
	if at-r.heard.Load() > heardEvery {
		r.heard.Store(at)
	}
}

// pending reports whether something is under way that may still come to its end.
func (d *device) pending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready {
		d.flush()
	}
	if d.busy || d.fleet.retry.Name != "none" { // else nobody brings it back
		waits, flying := d.owes()
		return waits+flying > 0 || d.ready && d.outage.begin != 0
	}
	return false
}

// owes is how many messages wait to be published, and how many to be acknowledged.
func (d *device) owes() (waits, flying int) {
	if s := d.sender; s != nil {
		return len(s.backlog), len(s.flights) - len(s.free)
	}
	return 0, 0
}

// owed says what was due and did not come to its end; "" if nothing.
func (r *run) owed() string {
	waits, flying, cut := 0, 0, 0
	for _, f := range r.fleets {
		for i := range f.devices {
			d := &f.devices[i]
			d.mu.Lock()
			w, n := d.owes()
			waits, flying = waits+w, flying+n
			if w+n > 0 && !d.ready {
				cut++
			}
			d.mu.Unlock()
		}
	}
	if waits+flying == 0 {
		return ""
	}
	s := fmt.Sprintf("of what was to be published, %d messages were not sent and %d not acknowledged when the run ended", waits, flying)
	switch {
	case cut == 1:
		s += " (1 client was not connected then)"
	case cut > 1:
		s += fmt.Sprintf(" (%d clients were not connected then)", cut)
	}
	return s
}
