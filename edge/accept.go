package edge

import (
	"sync"
	"time"
)

// outage is a time in which nobody can be accepted: without descriptors, say. Its lock is its own, and nothing is waited for under it: loops
// take it.
type outage struct {
	mu          sync.Mutex
	first, last time.Time // failures; zero: there is no outage
}

// acceptFailed is told of each failure by all who accept: many times a second, by several loops. It says when an outage begins; awaitAccept
// says when it is over.
func (ln *listener) acceptFailed(err error) {
	o := &ln.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = time.Now()
	if !o.first.IsZero() {
		return
	}
	o.first = o.last
	ln.srv.log.Warn().Err(err).Str("listener", ln.name).Int("sessions", ln.srv.Live()).Msg("accept failed; trying again")
	ln.srv.task(ln.awaitAccept)
}

// awaitAccept waits until nothing has failed for acceptCalm. Whom a failure leaves waiting is tried again until it is accepted, so those who
// accept need not tell that they have.
func (ln *listener) awaitAccept() {
	for wait := acceptCalm; sleep(ln.srv.ctx, wait); {
		ln.mu.Lock()
		closed := ln.closed
		ln.mu.Unlock()
		if wait = ln.acceptWorks(closed); wait <= 0 {
			return
		}
	}
}

// acceptWorks ends an outage if it is over, quietly if the listener is closed; else it returns when to ask again.
func (ln *listener) acceptWorks(closed bool) time.Duration {
	o := &ln.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	wait := time.Until(o.last.Add(acceptCalm))
	if wait > 0 {
		return wait
	}
	if !closed {
		ln.srv.log.Info().Str("listener", ln.name).Dur("failed_ms", o.last.Sub(o.first)).Int("sessions", ln.srv.Live()).Msg("accept works again")
	}
	o.first, o.last = time.Time{}, time.Time{}
	return 0
}
