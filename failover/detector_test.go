package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestClassify(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, tt := range []struct {
		err  error
		want Outcome
	}{
		{nil, OK},
		{dial(syscall.ECONNREFUSED), Refused},
		{fmt.Errorf("upstream: b1: %w", dial(syscall.ECONNREFUSED)), Refused},
		{dial(syscall.ETIMEDOUT), Failed},
		{dial(syscall.EHOSTUNREACH), Failed},
		{dial(syscall.ECONNRESET), Failed},
		{context.DeadlineExceeded, Failed},
		{errors.New("no CONNACK"), Failed},
		{&net.DNSError{Err: "no such host", Name: "b1", IsNotFound: true}, Failed},
		{&net.DNSError{Err: "server misbehaving", Name: "b1", IsTemporary: true}, Unknown},
		{&net.DNSError{Err: "i/o timeout", Name: "b1", IsTimeout: true}, Unknown},
		{dial(syscall.EMFILE), Unknown},
		{dial(syscall.ENFILE), Unknown},
		{dial(syscall.EADDRNOTAVAIL), Unknown},
		{context.Canceled, Unknown},
	} {
		if got := Classify(tt.err); got != tt.want {
			t.Errorf("Classify(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestReasonIsShort(t *testing.T) {
	if got := reasonOf(Failed, errors.New(strings.Repeat("ü", 5000))); len(got) > 210 || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
	for _, tt := range []struct {
		o    Outcome
		err  error
		want string
	}{
		{OK, nil, ""},
		{Refused, syscall.ECONNREFUSED, "connection refused"},
		{Failed, context.DeadlineExceeded, "no answer in time"},
		{Failed, errors.New("not MQTT"), "not MQTT"},
	} {
		if got := reasonOf(tt.o, tt.err); got != tt.want {
			t.Errorf("reasonOf(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}

// TestDetector feeds observations, one letter each: + success, - failure, r refusal, ? unknown. After each one the detector's judgement
// is expected: u up, d down, . none yet (upper case: and it just changed). Rise 2, Fall 3.
func TestDetector(t *testing.T) {
	for _, tt := range []struct {
		name        string
		presumeDown bool
		in, want    string
	}{
		{name: "first success", in: "++", want: "Uu"},
		{name: "fall", in: "+---", want: "UuuD"},
		{name: "a success in between", in: "+--+---", want: "UuuuuuD"},
		{name: "rise", in: "+---++", want: "UuuDdU"},
		{name: "a failure in between", in: "+---+-++", want: "UuuDdddU"},
		{name: "never seen up", in: "---", want: "..D"},
		{name: "two refusals", in: "+rr", want: "UuD"},
		{name: "one refusal", in: "+r+", want: "Uuu"},
		{name: "refusal, failure, refusal", in: "+r-r", want: "UuuD"},
		{name: "failure, two refusals", in: "+-rr", want: "UuuD"},
		{name: "refusals apart", in: "+r+r+r", want: "Uuuuuu"},
		{name: "unknown is nothing", in: "+-?-?-", want: "UuuuuD"},
		{name: "unknown at first", in: "??+", want: "..U"},
		{name: "unknown between refusals", in: "+r?r", want: "UuuD"},
		{name: "back after refusals", in: "+rr++", want: "UuDdU"},
		{name: "presumed down, fails", presumeDown: true, in: "-", want: "D"},
		{name: "presumed down, returns", presumeDown: true, in: "++", want: ".U"},
		{name: "presumed down, flaps", presumeDown: true, in: "+-", want: ".D"},
		{name: "flapping", in: "+-+-+-+--+--+", want: "Uuuuuuuuuuuuu"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := Detector{Rise: 2, Fall: 3}
			d.Presume(tt.presumeDown)
			now := time.Unix(1000, 0)
			got := ""
			for _, c := range tt.in {
				now = now.Add(time.Second)
				o := map[rune]Outcome{'+': OK, '-': Failed, 'r': Refused, '?': Unknown}[c]
				changed := d.Observe(o, string(c), now)
				r, judged := d.Report()
				s := "."
				if judged {
					s = map[bool]string{true: "u", false: "d"}[r.Up]
				}
				if changed {
					s = strings.ToUpper(s)
					if r.Since != now {
						t.Errorf("changed at %v, since %v", now, r.Since)
					}
				}
				if judged && r.Up != (r.Reason == "") {
					t.Errorf("up = %v, reason %q", r.Up, r.Reason)
				}
				got += s
			}
			if got != tt.want {
				t.Errorf("%s\ngot  %s\nwant %s", tt.in, got, tt.want)
			}
		})
	}
}

func TestPresumeDoesNotDisturb(t *testing.T) {
	now := time.Unix(1000, 0)
	d := Detector{Rise: 2, Fall: 3}
	d.Observe(Failed, "x", now)
	d.Presume(false) // said again with every State
	d.Observe(Failed, "x", now)
	d.Presume(false)
	if !d.Observe(Failed, "x", now) || d.Up() {
		t.Error("three failures did not bring it down")
	}
	d.Presume(false) // a verdict up does not overrule what was seen
	if d.Up() {
		t.Error("a verdict overruled the judgement")
	}
}

func TestDetectorSettledAndConfirm(t *testing.T) {
	now := time.Unix(1000, 0)
	d := Detector{Rise: 2, Fall: 3}
	type state struct{ up, settled, confirm, refused bool }
	for i, step := range []struct {
		o    Outcome
		want state
	}{
		{OK, state{up: true, settled: true}},
		{Failed, state{up: true}},
		{OK, state{up: true, settled: true}},
		{Refused, state{up: true, confirm: true}},
		{Refused, state{settled: true, refused: true}},
		{Refused, state{settled: true, refused: true}},
		{Failed, state{settled: true}},
		{OK, state{}},
		{Refused, state{settled: true, refused: true}},
		{OK, state{}},
		{OK, state{up: true, settled: true}},
	} {
		d.Observe(step.o, "x", now)
		if got := (state{d.Up(), d.Settled(), d.Confirm(), d.Refused()}); got != step.want {
			t.Errorf("step %d: got %+v, want %+v", i, got, step.want)
		}
	}
}

// A detector only ever changes after Fall failures (or two refusals) or Rise successes in a row.
func TestDetectorHysteresis(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Detector{Rise: rapid.IntRange(1, 5).Draw(t, "rise"), Fall: rapid.IntRange(1, 5).Draw(t, "fall")}
		now := time.Unix(1000, 0)
		d.Observe(OK, "", now)
		good, bad, refused := 1, 0, 0
		for _, o := range rapid.SliceOf(rapid.SampledFrom([]Outcome{OK, Failed, Refused})).Draw(t, "outcomes") {
			was := d.Up()
			changed := d.Observe(o, "x", now)
			switch o {
			case OK:
				good, bad, refused = good+1, 0, 0
			case Refused:
				good, bad, refused = 0, bad+1, refused+1
			default:
				good, bad, refused = 0, bad+1, 0
			}
			want := was
			if was && (bad >= d.Fall || refused >= 2) {
				want = false
			} else if !was && good >= d.Rise {
				want = true
			}
			if d.Up() != want || changed != (was != want) {
				t.Fatalf("after %d good, %d bad, %d refused in a row: up %v → %v, changed %v", good, bad, refused, was, d.Up(), changed)
			}
		}
	})
}
