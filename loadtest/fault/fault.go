// Package fault breaks things on purpose while a load test runs, says when it did so, and mends them afterwards.
//
//	f, err := fault.Parse("at 30s kill broker b2 for 10s") // the error names the column, and the word that was meant
//	plan := fault.Plan{Faults: []fault.Fault{f}, State: "mesh.json"}
//	err = plan.Check()                                     // before the run: does the state file name all of it?
//	err = plan.Run(ctx, start, func(e fault.Event) {       // until ctx is done and all is mended
//		log.Println(e.Target, e.Begin, e.End, e.Outcome)
//	})
//
// A fault is one line of
//
//	[at DURATION] [every DURATION] VERB TARGET [for DURATION]
//
//	kill TARGET [for D]     SIGKILL; with D it is started again, D after the signal
//	term TARGET [for D]     SIGTERM, and never more than that; with D it is started again
//	stop TARGET [for D]     SIGTERM, SIGKILL when that does not end it; started again after D, or at the end of the run
//	freeze TARGET [for D]   SIGSTOP; SIGCONT after D, or at the end of the run
//	restart TARGET          SIGTERM, SIGKILL when that does not end it; started again at once
//	start TARGET            started, if it does not run
//	run "COMMAND" [for D]   a shell's command; ended after D, or with the run
//
//	TARGET is one of: broker NAME, edge NAME, etcd [N], nats [N], random KIND, pid N
//
// "for" may be left out before a duration. Times count from the start of the run; every without at begins after one DURATION.
// All targets but pid come out of a state file, as `limpet demo --state FILE` writes it: it is read anew at each fault, since
// a process that was started again has another pid.
//
// Each fault undoes itself, when its time is over or the run is, whichever comes first: a run that is interrupted in the middle
// of a freeze thaws what it froze before Run returns. Only kill and term without a duration are for good. What was started again
// runs in a session of its own and stays when Run returns: things are left as they were found.
//
// It refuses to signal the process that it runs in, pid 1 and groups; and it does nothing on systems without POSIX signals.
package fault

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Verb is what is done.
type Verb string

// The verbs; the package comment says what each does.
const (
	Kill    Verb = "kill"
	Term    Verb = "term"
	Stop    Verb = "stop"
	Freeze  Verb = "freeze"
	Restart Verb = "restart"
	Start   Verb = "start"
	Run     Verb = "run"
)

// Kind is what a target is.
type Kind string

// The kinds of targets.
const (
	Broker  Kind = "broker"
	Edge    Kind = "edge"
	Etcd    Kind = "etcd"
	NATS    Kind = "nats"
	Process Kind = "pid"
)

// Target is what a fault is done to. The zero value is that of Run, which has none.
type Target struct {
	Kind   Kind
	Name   string // of a broker or an edge; of etcd and NATS which one, counted from 1, or "" for the only one
	Random bool   // any one of the kind, without a name
	PID    int    // of kind Process
}

// String is the target as Parse reads it.
func (t Target) String() string {
	switch {
	case t.Random:
		return "random " + string(t.Kind)
	case t.Kind == Process:
		return "pid " + strconv.Itoa(t.PID)
	case t.Name != "":
		return string(t.Kind) + " " + t.Name
	default:
		return string(t.Kind)
	}
}

// Fault is one line of the grammar in the package comment, read.
type Fault struct {
	At      time.Duration // from the start of the run; 0 = at the start, or after Every
	Every   time.Duration // from one beginning to the next; 0 = once
	Verb    Verb
	Target  Target
	Command string        // of Run, for a POSIX shell
	For     time.Duration // from the beginning to its undoing; 0 = not given
}

// String is the fault in the grammar's plain form: Parse gives the same fault again.
func (f Fault) String() string {
	var b strings.Builder
	if f.At > 0 {
		b.WriteString("at " + text(f.At) + " ")
	}
	if f.Every > 0 {
		b.WriteString("every " + text(f.Every) + " ")
	}
	b.WriteString(string(f.Verb) + " ")
	if f.Verb == Run {
		b.WriteString(quote(f.Command))
	} else {
		b.WriteString(f.Target.String())
	}
	if f.For > 0 {
		b.WriteString(" for " + text(f.For))
	}
	return b.String()
}

// MarshalText writes a fault as String does; with UnmarshalText a fault in JSON or YAML is a line of text.
func (f Fault) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads a fault as Parse does.
func (f *Fault) UnmarshalText(line []byte) error {
	parsed, err := Parse(string(line))
	if err != nil {
		return err
	}
	*f = parsed
	return nil
}

// first is when the fault begins, from the start of the run.
func (f Fault) first() time.Duration {
	if f.At == 0 {
		return f.Every
	}
	return f.At
}

// named reports whether the target comes out of the state file.
func (f Fault) named() bool { return f.Verb != Run && f.Target.Kind != Process }

// revives reports whether the fault starts its target, sooner or later.
func (f Fault) revives() bool {
	switch f.Verb {
	case Stop, Restart, Start:
		return true
	case Kill, Term:
		return f.For > 0
	default:
		return false
	}
}

// text is a duration without the zeros at the end: 1m, not 1m0s.
func text(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Event is a fault that was done.
type Event struct {
	Number  int    `json:"number"` // counts the events of a run from 1, in the order of their beginnings
	Fault   Fault  `json:"fault"`
	Target  string `json:"target,omitempty"`  // as found: "broker b2" where the fault says "random broker"; "" for a command
	PID     int    `json:"pid,omitempty"`     // that was signalled, or of the command
	Begin   int64  `json:"begin"`             // stamp of pace.Now, taken just before the signal, or before the start
	End     int64  `json:"end,omitempty"`     // when it was undone; kill and term for good: when the process had ended; 0 = it lasts
	Outcome string `json:"outcome,omitempty"` // in words; "" = it lasts
	Failed  bool   `json:"failed,omitempty"`  // it could not be done, or not be undone: Outcome says why
}

var (
	// ErrSyntax is what every error of Parse is.
	ErrSyntax = errors.New("fault: not a fault")
	// ErrUnsupported is what Plan.Check and Plan.Run say on systems without POSIX signals.
	ErrUnsupported = errors.New("fault: this system has no signals to break things with")
	// ErrTarget is what Plan.Check says of a target that there is none of.
	ErrTarget = errors.New("fault: no such target")
	// ErrState is that of a state file that cannot be used.
	ErrState = errors.New("fault: state file")
	// ErrFailed is what Plan.Run returns when a fault was not done, or not undone.
	ErrFailed = errors.New("fault: failed")
)
