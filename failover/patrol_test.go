package failover

import (
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// after is a planned probe's distance from now; -1 = none is planned.
func after(p *patrol, now time.Time) time.Duration {
	if p.due.IsZero() {
		return -1
	}
	return p.due.Sub(now)
}

func newPatrol() *patrol {
	p := &patrol{}
	p.configure(registry.Probe{}) // every 2 s, rise 2, fall 3
	return p
}

func TestPatrolPlans(t *testing.T) {
	for _, tt := range []struct {
		name string
		duty bool
		down bool // judged down before
		o    Outcome
		want time.Duration
	}{
		{name: "on duty, serves", duty: true, o: OK, want: 2 * time.Second},
		{name: "off duty, serves", o: OK, want: -1},
		{name: "on duty, fails", duty: true, o: Failed, want: settleEvery},
		{name: "off duty, fails", o: Failed, want: settleEvery},
		{name: "off duty, refuses", o: Refused, want: confirmAfter},
		{name: "off duty, down", down: true, o: Failed, want: 2 * time.Second},
		{name: "off duty, returns", down: true, o: OK, want: settleEvery},
		{name: "on duty, our own fault", duty: true, o: Unknown, want: 2 * time.Second},
		{name: "off duty, our own fault", o: Unknown, want: -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, now := newPatrol(), noon
			p.duty = tt.duty
			if tt.down {
				p.det.Presume(true)
				p.det.Observe(Failed, "x", now)
			}
			p.begin(now)
			p.end(tt.o, "x", now)
			if got := after(p, now); got != tt.want {
				t.Errorf("next probe after %v, want %v", got, tt.want)
			}
		})
	}
}

func TestPatrolDoubts(t *testing.T) {
	p, now := newPatrol(), noon
	p.doubt(now, 300*time.Millisecond)
	p.doubt(now, 400*time.Millisecond)
	if got := after(p, now); got != 300*time.Millisecond {
		t.Errorf("two doubts: probe after %v", got)
	}
	p.doubt(now, 100*time.Millisecond)
	if got := after(p, now); got != 100*time.Millisecond {
		t.Errorf("a more urgent doubt: probe after %v", got)
	}

	// A flood of doubts does not become a flood of probes.
	p.begin(now)
	p.end(OK, "", now)
	now = now.Add(time.Millisecond)
	p.doubt(now, 0)
	if got := after(p, now); got != probeGap-time.Millisecond {
		t.Errorf("a doubt right after a probe: probe after %v", got)
	}

	// A doubt while a probe is under way is not answered by that probe.
	now = now.Add(time.Second)
	p.begin(now)
	p.doubt(now.Add(10*time.Millisecond), 0)
	p.end(OK, "", now.Add(20*time.Millisecond))
	if got := after(p, now); got != probeGap {
		t.Errorf("a doubt during a probe: probe after %v", got)
	}
}

func TestPatrolCountsOneDialBetweenProbes(t *testing.T) {
	p, now := newPatrol(), noon
	p.begin(now)
	p.end(OK, "", now)
	for range 1000 { // a crowd
		if p.dialed(Failed, "x", now) {
			t.Fatal("a crowd of failed dials is a judgement")
		}
	}
	if !p.det.Up() || p.det.Settled() {
		t.Error("a failed dial did not count")
	}
	for range 2 {
		p.begin(now)
		p.end(Failed, "x", now)
	}
	if p.det.Up() {
		t.Error("a failed dial and two failed probes are not three failures")
	}

	p = newPatrol()
	p.dialed(Refused, "x", now)
	p.begin(now)
	if !p.end(Refused, "x", now) || p.det.Up() {
		t.Error("a refused dial was not confirmed by a refused probe")
	}

	p = newPatrol()
	if p.dialed(Unknown, "x", now) || after(p, now) != -1 {
		t.Error("our own fault made a doubt")
	}
}

func TestPatrolTells(t *testing.T) {
	p, now := newPatrol(), noon
	if p.tells(OK, now) || p.tells(Unknown, now) {
		t.Error("told without a failure")
	}
	if !p.tells(Failed, now) || p.tells(Failed, now.Add(tellEvery/2)) || !p.tells(Failed, now.Add(tellEvery)) {
		t.Error("not told once a second")
	}
	p.det.Presume(true)
	if p.tells(Failed, now.Add(time.Hour)) {
		t.Error("told of a broker that is down")
	}
}

func TestPatrolAssign(t *testing.T) {
	p := newPatrol()
	p.assign(false, noon, time.Second)
	if got := after(p, noon); got != -1 {
		t.Errorf("off duty: probe after %v", got)
	}
	p.assign(true, noon, time.Second)
	p.assign(true, noon, 0) // said again with every State
	if got := after(p, noon); got != time.Second {
		t.Errorf("on duty: probe after %v", got)
	}
}

func TestPatrolSurvivesAnyRules(t *testing.T) {
	p := &patrol{}
	p.configure(registry.Probe{Interval: -1, Timeout: -1, Rise: -1, Fall: -1})
	if p.rules.Interval < probeGap || p.rules.Timeout < probeGap || p.det.Rise < 1 || p.det.Fall < 1 {
		t.Errorf("%+v, %+v", p.rules, p.det)
	}
}
