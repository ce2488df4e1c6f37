package fault

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	const s = time.Second
	b2, e1 := Target{Kind: Broker, Name: "b2"}, Target{Kind: Edge, Name: "e1"}
	for _, c := range []struct {
		line, plain string // plain "" = as line
		want        Fault
	}{
		{"kill broker b2", "", Fault{Verb: Kill, Target: b2}},
		{"at 30s kill broker b2", "", Fault{At: 30 * s, Verb: Kill, Target: b2}},
		{"kill broker b2 for 3s", "", Fault{Verb: Kill, Target: b2, For: 3 * s}},
		{"stop etcd for 20s", "", Fault{Verb: Stop, Target: Target{Kind: Etcd}, For: 20 * s}},
		{"stop etcd 2 20s", "stop etcd 2 for 20s", Fault{Verb: Stop, Target: Target{Kind: Etcd, Name: "2"}, For: 20 * s}},
		{"freeze edge e1 5s", "freeze edge e1 for 5s", Fault{Verb: Freeze, Target: e1, For: 5 * s}},
		{"freeze edge e1", "", Fault{Verb: Freeze, Target: e1}},
		{"restart nats", "", Fault{Verb: Restart, Target: Target{Kind: NATS}}},
		{"freeze nats 01", "freeze nats 1", Fault{Verb: Freeze, Target: Target{Kind: NATS, Name: "1"}}},
		{"start broker b2", "", Fault{Verb: Start, Target: b2}},
		{"term pid 1234", "", Fault{Verb: Term, Target: Target{Kind: Process, PID: 1234}}},
		{"freeze process 1234 500ms", "freeze pid 1234 for 500ms", Fault{Verb: Freeze, Target: Target{Kind: Process, PID: 1234}, For: s / 2}},
		{"every 20s kill random broker for 5s", "", Fault{Every: 20 * s, Verb: Kill, Target: Target{Kind: Broker, Random: true}, For: 5 * s}},
		{"at 1m every 1m30s freeze any edge for 1m", "at 1m every 1m30s freeze random edge for 1m", Fault{At: 60 * s, Every: 90 * s, Verb: Freeze, Target: Target{Kind: Edge, Random: true}, For: 60 * s}},
		{"  every 2h\tat 0s  crash broker b2 ", "every 2h kill broker b2", Fault{Every: 7200 * s, Verb: Kill, Target: b2}},
		{"pause edge e1 in 3s during 1s each 5s", "at 3s every 5s freeze edge e1 for 1s", Fault{At: 3 * s, Every: 5 * s, Verb: Freeze, Target: e1, For: s}},
		{"halt edge E_1.a-b", "stop edge E_1.a-b", Fault{Verb: Stop, Target: Target{Kind: Edge, Name: "E_1.a-b"}}},
		{`at 10s run "echo hi; exit 3" for 5s`, "", Fault{At: 10 * s, Verb: Run, Command: "echo hi; exit 3", For: 5 * s}},
		{`run 'say "it\n"' 5s`, `run "say \"it\\n\"" for 5s`, Fault{Verb: Run, Command: `say "it\n"`, For: 5 * s}},
		{`exec "a\"b\\c\d"`, `run "a\"b\\c\\d"`, Fault{Verb: Run, Command: `a"b\c\d`}},
		{"run \"two\nlines, ü\"", "", Fault{Verb: Run, Command: "two\nlines, ü"}},
	} {
		got, err := Parse(c.line)
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.line, got, err, c.want)
			continue
		}
		plain := c.plain
		if plain == "" {
			plain = c.line
		}
		if got.String() != plain {
			t.Errorf("%q is written %q, want %q", c.line, got, plain)
		}
		if again, err := Parse(plain); err != nil || again != c.want {
			t.Errorf("%q: %+v, %v; want %+v", plain, again, err, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	const verbs = "expected a verb (kill, term, stop, freeze, restart, start, run), found "
	const targets = "expected a target (broker, edge, etcd, nats, pid or random), found "
	const durations = "expected a duration, as 30s, 1m30s or 500ms, found "
	for _, c := range []struct {
		line, want string
		column     int
	}{
		{"", verbs + "the end", 1},
		{"  ", verbs + "the end", 3},
		{"kil broker b2", verbs + `"kil": did you mean "kill"?`, 1},
		{"KILL broker b2", verbs + `"KILL": did you mean "kill"?`, 1},
		{"at 30s frezee broker b2", verbs + `"frezee": did you mean "freeze"?`, 8},
		{"ta 30s kill broker b2", verbs + `"ta": did you mean "at"?`, 1},
		{"xyzzy broker b2", verbs + `"xyzzy"`, 1},
		{`"kill" broker b2`, verbs + `"kill"`, 1},
		{"for 3s kill broker b2", `expected the verb before for, found "for"`, 1},
		{"at", durations + "the end", 3},
		{"at kill broker b2", durations + `"kill"`, 4},
		{"at 30 kill broker b2", durations + `"30": did you mean "30s"?`, 4},
		{"at 30x kill broker b2", durations + `"30x"`, 4},
		{"at -3s kill broker b2", durations + `"-3s", which is before the start`, 4},
		{"at 1000h kill broker b2", `expected at most 720h, found "1000h"`, 4},
		{"at 1s at 2s kill broker b2", "there is one at already, at column 1", 7},
		{"at 1s kill broker b2 at 2s", "there is one at already, at column 1", 22},
		{"every 0s kill broker b2", `expected more than nothing, found "0s"`, 7},
		{"kill", targets + "the end", 5},
		{"kill b2", targets + `"b2": did you mean "broker b2"?`, 6},
		{"kill e2", targets + `"e2": did you mean "edge e2"?`, 6},
		{"kill borker b2", targets + `"borker": did you mean "broker"?`, 6},
		{"kill sword", targets + `"sword"`, 6},
		{"kill broker", "expected the name of a broker, as in broker b1, found the end", 12},
		{"kill edge for 3s", `expected the name of an edge, as in edge e1, found "for"`, 11},
		{"freeze broker 5s", `expected the name of a broker, as in broker b1, found "5s"`, 15},
		{"kill broker b/2", `expected the name of a broker, as in broker b1, found "b/2"`, 13},
		{"kill broker " + strings.Repeat("b", 64), `expected the name of a broker, as in broker b1, found "` + strings.Repeat("b", 40) + `…"`, 13},
		{"kill random", "expected broker, edge, etcd or nats after random, found the end", 12},
		{"kill random broke", `expected broker, edge, etcd or nats after random, found "broke": did you mean "broker"?`, 13},
		{"kill random pid", `expected broker, edge, etcd or nats after random, found "pid"`, 13},
		{"kill pid", "expected the number of a process above 1, found the end", 9},
		{"kill pid 1", `expected the number of a process above 1, found "1"`, 10},
		{"kill pid -7", `expected the number of a process above 1, found "-7"`, 10},
		{"kill pid 99999999999", `expected the number of a process above 1, found "99999999999"`, 10},
		{"kill etcd 0", "expected which etcd, counted from 1, found 0", 11},
		{"kill broker b2 fro 3s", `expected for, at, every or the end, found "fro": did you mean "for"?`, 16},
		{"kill broker b2 b3", `expected for, at, every or the end, found "b3"`, 16},
		{"kill broker b2 for", durations + "the end", 19},
		{"kill broker b2 3", durations + `"3": did you mean "3s"?`, 16},
		{"kill broker b2 for 0s", `expected more than nothing, found "0s"`, 20},
		{"kill broker b2 3s 4s", `expected for, at, every or the end, found "4s"`, 19},
		{"kill broker b2 3s for 4s", "there is one for already, at column 16", 19},
		{"restart broker b2 for 3s", `restart starts at once: for a while without it say "stop broker b2 for 3s"`, 19},
		{"start broker b2 for 3s", "start has no duration", 17},
		{"kill pid 123 for 3s", "expected the end: nothing says how to start a process again that is known by its pid alone", 14},
		{"stop pid 123", "expected a target out of the state file: nothing says how to stop a process that is known by its pid alone", 6},
		{"stop pid 123 for 3s", "expected a target out of the state file: nothing says how to stop a process that is known by its pid alone", 6},
		{"every 5s freeze broker b2", "freeze lasts to the end of the run and cannot come again: expected for DURATION behind the target", 10},
		{"every 5s freeze broker b2 5s", "expected less than the 5s from one to the next, found 5s", 27},
		{"run", `expected the command in quotes, as in run "systemctl restart nats", found the end`, 4},
		{"run echo", `expected the command in quotes, as in run "systemctl restart nats", found "echo"`, 5},
		{`run " "`, "expected a command, found none between the quotes", 5},
		{`run "echo`, `expected a closing " for this one`, 5},
		{`run "echo\"`, `expected a closing " for this one`, 5},
		{`run 'a'b`, `expected a blank after the closing quote, found "b"`, 8},
		{`run "ü" för 3s`, `expected for, at, every or the end, found "för": did you mean "for"?`, 9},
		{"kill \xff broker", "expected UTF-8, found byte 0xff", 6},
		{"kill \x00", "expected text, found a NUL", 6},
		{`run "` + strings.Repeat("x", maxLine) + `"`, "expected at most 4096 characters", 4097},
	} {
		got, err := Parse(c.line)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %+v, %v", c.line, got, err)
			continue
		}
		if syntax.Column != c.column || syntax.Message != c.want {
			t.Errorf("%q: column %d: %s\nwant column %d: %s", c.line, syntax.Column, syntax.Message, c.column, c.want)
		}
	}
}

func TestFaultAsText(t *testing.T) {
	var list []Fault
	if err := json.Unmarshal([]byte(`["kill broker b2 3s", "run 'a \"b\"'"]`), &list); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(list)
	if want := `["kill broker b2 for 3s","run \"a \\\"b\\\"\""]`; err != nil || string(data) != want {
		t.Errorf("%s, %v; want %s", data, err, want)
	}
	if err := json.Unmarshal([]byte(`["kil broker b2"]`), &list); !errors.Is(err, ErrSyntax) {
		t.Error(err)
	}
}

// What is read is written so that it is read again alike; what is not read is told with a column on the line.
func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"at 30s kill broker b2 for 10s", "every 1m30s freeze any edge 5s", `run "a\"b\\" for 1h`, "run 'x", "stop etcd 2", "kill pid 123", "restart nats", "kil",
		"at 1s at 2s kill broker b2", "kill broker b2 at .5s", "freeze pid 2 1h1m1.000000001s",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := Parse(line)
		var syntax *SyntaxError
		switch {
		case errors.As(err, &syntax):
			if most := utf8.RuneCountInString(line) + 1; syntax.Column < 1 || syntax.Column > most || !utf8.ValidString(syntax.Message) {
				t.Errorf("%q: %v: not a column from 1 to %d, or no text", line, err, most)
			}
		case err != nil:
			t.Errorf("%q: %v: no column", line, err)
		default:
			if again, err := Parse(got.String()); err != nil || again != got {
				t.Errorf("%q is %+v, written %q, and that is %+v, %v", line, got, got, again, err)
			}
			if got.Target.Kind == Process && (got.Target.PID < 2 || got.revives()) {
				t.Errorf("%q: %+v", line, got)
			}
		}
	})
}
