package edge

import "time"

// outage is a time in which nobody can be accepted: without descriptors, say. Zero: there is none.
type outage struct{ first, last time.Time } // failures

// acceptFailed is told of each failure by all who accept: many times a second, by several loops. It says when it begins; awaitAccept says when
// it is over.
func (ln *listener) acceptFailed(err error) {
	ln.mu.Lock()
	now := time.Now()
	begins := ln.outage.first.IsZero()
	if begins {
		ln.outage.first = now
		ln.srv.log.Warn().Err(err).Str("listener", ln.name).Int("sessions", ln.srv.Live()).Msg("accept failed; trying again")
	}
	ln.outage.last = now
	ln.mu.Unlock()
	if begins {
		ln.srv.task(ln.awaitAccept)
	}
}

// awaitAccept waits until nothing has failed for acceptCalm. Whom a failure leaves waiting is tried again until it is accepted, so those who
// accept need not tell that they have.
func (ln *listener) awaitAccept() {
	for wait := acceptCalm; sleep(ln.srv.ctx, wait); {
		ln.mu.Lock()
		o, closed := ln.outage, ln.closed
		if wait = time.Until(o.last.Add(acceptCalm)); wait <= 0 {
			ln.outage = outage{}
			if !closed {
				ln.srv.log.Info().Str("listener", ln.name).Dur("failed_ms", o.last.Sub(o.first)).Int("sessions", ln.srv.Live()).Msg("accept works again")
			}
		}
		ln.mu.Unlock()
		if wait <= 0 {
			return
		}
	}
}
