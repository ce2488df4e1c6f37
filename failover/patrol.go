package failover

import (
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// A patrol is what one edge knows of one broker and when it probes it next. It has no clock and no lock.
type patrol struct {
	det   Detector
	rules registry.Probe // resolved
	duty  bool           // probe at every interval, although nothing is wrong

	due   time.Time // of the next probe; zero = none is planned
	began time.Time // of the last probe
	dials bool      // a failed dial was counted since the last probe
	told  time.Time // when this edge last announced a doubt
}

// configure sets the rules of the patrol, whatever the store holds: nothing here may become a busy loop.
func (p *patrol) configure(rules registry.Probe) {
	p.rules = rules.Resolved()
	p.rules.Interval = max(p.rules.Interval, probeGap)
	p.rules.Timeout = max(p.rules.Timeout, probeGap)
	p.det.Rise, p.det.Fall = max(p.rules.Rise, 1), max(p.rules.Fall, 1)
}

// assign puts the patrol on duty, its first probe within wait from now, or takes it off.
func (p *patrol) assign(duty bool, now time.Time, wait time.Duration) {
	if duty && !p.duty {
		p.plan(now.Add(wait))
	}
	p.duty = duty
}

// doubt plans a probe for wait from now, if none is planned earlier.
func (p *patrol) doubt(now time.Time, wait time.Duration) {
	at := now.Add(wait)
	if soonest := p.began.Add(probeGap); at.Before(soonest) {
		at = soonest
	}
	p.plan(at)
}

func (p *patrol) plan(at time.Time) {
	if p.due.IsZero() || at.Before(p.due) {
		p.due = at
	}
}

// dialed counts a client's failed dial, and reports whether the judgement changed. Many clients fail at once, so at most
// one counts between two probes: a row of failures is a matter of time, not of crowd.
func (p *patrol) dialed(o Outcome, reason string, now time.Time) (changed bool) {
	if o == OK || o == Unknown {
		return false
	}
	if !p.dials {
		p.dials = true
		changed = p.det.Observe(o, reason, now)
	}
	p.doubt(now, 0)
	return changed
}

// begin is called when a probe starts. A doubt that comes while it is under way plans another one.
func (p *patrol) begin(now time.Time) {
	p.due, p.began, p.dials = time.Time{}, now, false
}

// end takes in a probe's outcome, plans the next probe, and reports whether the judgement changed.
func (p *patrol) end(o Outcome, reason string, now time.Time) (changed bool) {
	changed = p.det.Observe(o, reason, now)
	switch {
	case p.det.Confirm():
		p.plan(now.Add(confirmAfter))
	case !p.det.Settled():
		p.plan(now.Add(min(p.rules.Interval, settleEvery)))
	case p.duty || !p.det.Up():
		p.plan(now.Add(p.rules.Interval))
	}
	return changed
}

// tells reports whether this edge is to announce a doubt: the broker failed although it is judged up.
func (p *patrol) tells(o Outcome, now time.Time) bool {
	if o == OK || o == Unknown || !p.det.Up() || now.Sub(p.told) < tellEvery {
		return false
	}
	p.told = now
	return true
}
