package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLoadtestUsage: whatever is called wrongly is told in one line that says what was expected, with the exit code for it.
func TestLoadtestUsage(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.json")
	for _, c := range []struct{ args, stderr string }{
		{"", `expected a verb: conn, pub, pubsub, race, report, scenario, storm, sub, sweep, verify (see "limpet loadtest --help")`},
		{"con", `unknown verb "con": did you mean "conn"? (see "limpet loadtest --help")`},
		{"conn|--cuont|3", `unknown flag: --cuont: did you mean --count? (see "limpet loadtest conn --help")`},
		{"conn|--nothing", `unknown flag: --nothing (see "limpet loadtest conn --help")`},
		{"conn|-c|x", `--count: expected a whole number in range, found "x" (see "limpet loadtest conn --help")`},
		{"conn|-c|0", `-c: expected 1 to 10000000, found 0 (see "limpet loadtest conn --help")`},
		{"conn|-p|99999", `--port: expected a whole number in range, found "99999" (see "limpet loadtest conn --help")`},
		{"conn|-p|0", `-p: expected 1 to 65535, found 0 (see "limpet loadtest conn --help")`},
		{"conn|-S|true", `expected no argument, found "true" (see "limpet loadtest conn --help")`},
		{"conn|-u|\xff", `-u: expected UTF-8, found "\xff" (see "limpet loadtest conn --help")`},
		{"conn|--prefix|\xff", `--prefix: expected UTF-8, found "\xff%i" (see "limpet loadtest conn --help")`},
		{"conn|--ifaddr|203.0.113.7", `--ifaddr: expected an IP address of this machine, found 203.0.113.7 (see "limpet loadtest conn --help")`},
		{"conn|--html|" + missing + "/x.html", `--html: cannot create ` + missing + `/x.html: no such file or directory (see "limpet loadtest conn --help")`},
		{"conn|--hgrm|/", `--hgrm: / is a directory (see "limpet loadtest conn --help")`},
		{"verify|--lives|0", `--lives: expected at least 1, found 0 (see "limpet loadtest verify --help")`},
		{"conn|-k|70000", `-k: expected 0 to 65535 seconds, found 70000 (see "limpet loadtest conn --help")`},
		{"conn|--duration|5", `--duration: expected a duration such as 30s or 1m30s, found "5" (see "limpet loadtest conn --help")`},
		{"conn|-C|maybe", `--clean "maybe": expected true or false (see "limpet loadtest conn --help")`},
		{"conn|--assert|connack.p99<50", `--assert "connack.p99<50": column 13: "50" is not a duration like 50ms (see "limpet loadtest conn --help")`},
		{"conn|--fault|at 3s kil broker b1", `--fault "at 3s kil broker b1": column 7: expected a verb (kill, term, stop, freeze, restart, start, run), found "kil": did you mean "kill"? (see "limpet loadtest conn --help")`},
		{"conn|--fault|at 3s kill broker b1", "--fault: state file: none given, and \"at 3s kill broker b1\" needs one: expected what `limpet demo --state FILE` writes (see \"limpet loadtest conn --help\")"},
		{"conn|-h|mqtt://127.0.0.1", `-h: expected a host, found "mqtt://127.0.0.1": did you mean --edge mqtt://127.0.0.1? (see "limpet loadtest conn --help")`},
		{"conn|--edge|foo://127.0.0.1", `--edge: bad target "foo://127.0.0.1": no scheme "foo": tcp, mqtt, tls, mqtts, ssl, ws, wss or quic (see "limpet loadtest conn --help")`},
		{"conn|-o|xml", `-o: expected one of text, json, csv, found "xml" (see "limpet loadtest conn --help")`},
		{"conn|--state|" + missing, `--state: state file: open ` + missing + `: no such file or directory (see "limpet loadtest conn --help")`},
		{"pub|-q|3", `-q: expected 0, 1 or 2, found 3 (see "limpet loadtest pub --help")`},
		{"pub|-t|a/#", `-t: expected a topic without + and #, found "a/#" (see "limpet loadtest pub --help")`},
		{"sub|-t|a/#/b", `-t: expected # alone and as the last level, found "a/#/b" (see "limpet loadtest sub --help")`},
		{"verify|--identity-topic|a/#", `--identity-topic: expected a topic without + and #, found "a/#" (see "limpet loadtest verify --help")`},
		{"race|--identity-topic|a/#", `--identity-topic: expected a topic without + and #, found "a/#" (see "limpet loadtest race --help")`},
		{"pubsub|-t|a", `-t: expected %i in it, so that each pair has a topic of its own, found "a" (or use --pattern) (see "limpet loadtest pubsub --help")`},
		{"verify|--identity|edge", `--identity: expected one of session-present, topic, admin, found "edge" (see "limpet loadtest verify --help")`},
		{"verify|--identity|admin", `--admin: expected the URLs of all edges' admin addresses, which identity "admin" asks, such as http://127.0.0.1:9883 (see "limpet loadtest verify --help")`},
		{"verify|--identity|admin|--admin|127.0.0.1:9883", `--admin: expected a URL such as http://127.0.0.1:9883, found "127.0.0.1:9883" (see "limpet loadtest verify --help")`},
		{"sweep|--objective|nonsense", `--objective: not an assertion: "nonsense", column 9: expected one of >= <= == != > < (see "limpet loadtest sweep --help")`},
		{"scenario|" + missing, `open ` + missing + `: no such file or directory (see "limpet loadtest scenario --help")`},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := []string{"loadtest"}
			if c.args != "" {
				args = append(args, strings.Split(c.args, "|")...)
			}
			expect(t, "", args, codeUsage, "", "limpet: "+c.stderr+"\n")
		})
	}
}
