package failover

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// Outcome is what one probe or dial says of a broker.
type Outcome uint8

const (
	OK      Outcome = iota
	Failed          // no connection in time, or not the answer that the probe asks for
	Refused         // the broker's host says that nobody listens there
	Unknown         // it failed on our side of the wire: nothing is known
)

// Classify tells what an error of a dial or a probe says of the broker. A failure that the broker has no part in (this process
// gave up, or is out of descriptors, ports or memory; the resolver does not answer) is Unknown: such faults strike every
// broker and perhaps every edge at once, and must not close every client of the mesh.
func Classify(err error) Outcome {
	if err == nil {
		return OK
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return Refused
	}
	for _, ours := range []error{context.Canceled, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, ours) {
			return Unknown
		}
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && !dns.IsNotFound {
		return Unknown
	}
	return Failed
}

// A Detector turns what is observed of one broker into a judgement, with hysteresis: Fall failures in a row from up to
// down, Rise successes in a row from down to up.
//
//	       Fall failures, or 2 refusals, in a row
//	 ┌───────────────────────────────────────────────┐
//	up                                              down
//	 └───────────────────────────────────────────────┘
//	              Rise successes in a row
//
// It has no clock: it is told the time. The zero value, with Rise and Fall set, presumes that the broker is up; Presume
// changes that before anything was observed.
type Detector struct {
	Rise, Fall int // at least 1; may change at any time

	down   bool
	judged bool      // something was observed that suffices for a judgement
	since  time.Time // when the judgement began

	against int // observations in a row that speak against the judgement
	refused int // refusals in a row
	reason  string
}

// Presume sets what is believed until the first judgement: the mesh's verdict. A broker that is presumed down
// is judged down by its first failure.
func (d *Detector) Presume(down bool) {
	if !d.judged && d.down != down {
		d.down, d.against = down, 0
	}
}

// Observe adds an observation and reports whether the judgement changed; the first one is a change.
func (d *Detector) Observe(o Outcome, reason string, now time.Time) bool {
	if o == Unknown {
		return false
	}
	d.refused++
	if o != Refused {
		d.refused = 0
	}
	failed := o != OK
	if failed {
		d.reason = reason
	}
	if failed == d.down { // as we thought
		d.against = 0
		return d.judge(d.down, now)
	}
	d.against++
	if !failed && d.against >= d.Rise || failed && d.against >= d.Fall || d.refused >= 2 {
		d.against = 0
		return d.judge(failed, now)
	}
	return false
}

func (d *Detector) judge(down bool, now time.Time) bool {
	if d.judged && d.down == down {
		return false
	}
	d.down, d.judged, d.since = down, true, now
	return true
}

// Up reports what the broker is judged, or presumed, to be.
func (d *Detector) Up() bool { return !d.down }

// Settled reports whether nothing that was observed lately speaks against the judgement.
func (d *Detector) Settled() bool { return d.against == 0 }

// Confirm reports whether a refusal waits for the second one that decides.
func (d *Detector) Confirm() bool { return !d.down && d.refused == 1 }

// Refused reports whether the broker is judged down and its host refused the last connection.
func (d *Detector) Refused() bool { return d.judged && d.down && d.refused > 0 }

// Report is the judgement, and whether there is one.
func (d *Detector) Report() (registry.Report, bool) {
	r := registry.Report{Up: !d.down, Since: d.since}
	if d.down {
		r.Reason = d.reason
	}
	return r, d.judged
}

// reasonOf is what people are told of an error, short enough for a report.
func reasonOf(o Outcome, err error) string {
	if err == nil {
		return ""
	}
	if o == Refused {
		return "connection refused"
	}
	if t := net.Error(nil); errors.As(err, &t) && t.Timeout() {
		return "no answer in time"
	}
	const most = 200
	s := err.Error()
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " ..."
}
