package loadtest

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

const goodScenario = `# what a day begins with
name: morning
endpoints: [mqtt://127.0.0.1:1883, "wss://[::1]:8084/mqtt"]
tls: {ca: ca.pem}
seed: 7
warmup: 5s
duration: 1m
fleets:
  - {name: sensors, clients: 500, connect: 100/s, version: 3.1.1, keep: 90s, publish: {topic: s/%i, qos: 1, rate: "ramp 100..1000 over 50s"}}
  - name: board
    clients: 1
    clean: true
    password: 007
    subscribe:
    - filter: s/#
      qos: 2
verify:
  clients: 20
  qos: [0, 1]
  drop:
    - half-open
faults: ['at 20s run "true"']
assert: [e2e.p99<100ms, errors==0]
`

func TestReadPlan(t *testing.T) {
	p, err := ReadPlan("good.yaml", strings.NewReader(goodScenario), nil)
	if err != nil {
		t.Fatal(err)
	}
	f := p.Fleets
	if p.Verb != "scenario" || p.Name != "morning" || p.Seed != 7 || p.Warmup != 5*time.Second || p.Duration != time.Minute || p.TLS.CA != "ca.pem" {
		t.Errorf("%+v", p)
	}
	if !reflect.DeepEqual(p.Endpoints, []string{"mqtt://127.0.0.1:1883", "wss://[::1]:8084/mqtt"}) {
		t.Errorf("endpoints %q", p.Endpoints)
	}
	if f[0].Clients != 500 || f[0].Connect.String() != "100/s" || f[0].Version != "3.1.1" || f[0].Keep != 90*time.Second {
		t.Errorf("%+v", f[0])
	}
	if pub := f[0].Publish; pub.Topic != "s/%i" || pub.QoS != 1 || pub.Rate.String() != "ramp 100..1000 over 50s" {
		t.Errorf("%+v", pub)
	}
	if !f[1].Clean || f[1].Password != "007" || !reflect.DeepEqual(f[1].Subscribe, []Subscription{{Filter: "s/#", QoS: 2}}) {
		t.Errorf("%+v", f[1])
	}
	if v := p.Verify; v.Clients != 20 || !reflect.DeepEqual(v.QoS, []int{0, 1}) || !reflect.DeepEqual(v.Drop, []string{"half-open"}) {
		t.Errorf("%+v", v)
	}
	if len(p.Faults) != 1 || len(p.Assert) != 2 || p.Assert[0].String() != "e2e.p99<100ms" {
		t.Errorf("faults %v, assertions %v", p.Faults, p.Assert)
	}
}

// Every mistake names its place, its field, and what was meant.
func TestReadPlanRefuses(t *testing.T) {
	const head = "endpoints: [h]\nfleets:\n- clients: 5\n"
	for in, want := range map[string]string{
		"":                                                 `f.yaml:1:1: expected a mapping with one of name, endpoints,`,
		"- a\n":                                            `f.yaml:1:1: expected a mapping with one of name, endpoints,`,
		head + "  clents: 5\n":                             `f.yaml:4:3: fleets[0].clents: unknown field: did you mean "clients"?`,
		head + "  x: 5\n":                                  `f.yaml:4:3: fleets[0].x: unknown field: expected one of name, clients,`,
		head + "  clients: 6\n":                            `f.yaml:4:3: fleets[0].clients: duplicate field: it is set in line 3`,
		head + "warmup: 5\n":                               `f.yaml:4:9: warmup: expected a duration, such as 500ms, 10s or 1h30m, found "5": did you mean "5s"?`,
		head + "warmup:\n":                                 `f.yaml:4:1: warmup: expected a duration, such as 500ms, 10s or 1h30m, found nothing`,
		head + "warmup: -1s\n":                             `f.yaml:4:9: warmup: expected no negative duration, found -1s`,
		head + "seed: many\n":                              `f.yaml:4:7: seed: expected a whole number, found "many"`,
		head + "  clean: yes\n":                            `f.yaml:4:10: fleets[0].clean: expected true or false, found "yes"`,
		head + "  connect: fast\n":                         `f.yaml:4:12: fleets[0].connect: `,
		head + "choose: rnd\n":                             `f.yaml:4:9: choose: expected one of random, round-robin, found "rnd"`,
		head + "choose: randm\n":                           `f.yaml:4:9: choose: expected one of random, round-robin, found "randm": did you mean "random"?`,
		head + "faults: kill\n":                            `f.yaml:4:9: faults: expected a list, found "kill"`,
		head + "faults: [kil x]\n":                         `f.yaml:4:10: faults[0]: `,
		head + "assert: [lost=0]\n":                        `f.yaml:4:10: assert[0]: `,
		head + "tls: ca.pem\n":                             `f.yaml:4:6: tls: expected a mapping with one of ca, cert,`,
		head + "tls: {cert: a}\n":                          `f.yaml:4:6: tls: expected cert and key together`,
		head + "name: [a]\n":                               `f.yaml:4:7: name: expected text, found a list`,
		head + "name: |\n  a\n":                            `f.yaml:4:7: blocks of text`,
		head + "name: &a b\n":                              `f.yaml:4:7: anchors and aliases are not supported`,
		head + "name: !!str b\n":                           `f.yaml:4:7: tags are not supported`,
		head + "name: a: b\n":                              `f.yaml:4:7: not valid YAML: mapping value is not allowed in this context: text with a ':'`,
		head + "name: [a\n":                                `f.yaml:4:`,
		head + "name:\n\tx: a\n":                           `f.yaml:5:1: not valid YAML: found a tab where only spaces may indent`,
		head + "---\nname: b\n":                            `f.yaml:4:1: expected one YAML document, found a second`,
		head + "name: \x00\n":                              `f.yaml:4:7: expected text in UTF-8 without control characters`,
		head + "name: \xff\n":                              `f.yaml:4:7: expected text in UTF-8 without control characters`,
		head + "  name: {a: b}\n":                          `f.yaml:4:9: fleets[0].name: expected text, found a mapping`,
		"fleets: [{clients: 5}]\n":                         `f.yaml: endpoints: expected at least one`,
		"endpoints: [h]\n":                                 `f.yaml: nobody to run`,
		"endpoints: [ftp://h]\nfleets: [{clients: 5}]\n":   `f.yaml:1:13: endpoints[0]: `,
		"endpoints: [h]\nfleets: [{clients: 0}]\n":         `f.yaml:2:20: fleets[0].clients: expected 1 to`,
		"endpoints: [h]\nverify: {clients: 2, qos: [3]}\n": `f.yaml:2:28: verify.qos[0]: expected 0, 1 or 2, found 3`,
		strings.Repeat("[", 100_000):                       `f.yaml:1:33: expected at most 32 levels of nesting`,
		strings.Repeat("- ", 50_000):                       `expected at most 32 levels of nesting`,
		strings.Repeat(" ", maxFile+1):                     `f.yaml: expected at most 131072 bytes`,
		"endpoints: [h" + strings.Repeat(",h", 4096) + "]": `f.yaml:1:12: endpoints: expected at most 4096 entries, found 4097`,
	} {
		shown := in
		if len(shown) > 99 {
			shown = shown[:99] + "…"
		}
		_, err := ReadPlan("f.yaml", strings.NewReader(in), nil)
		switch {
		case err == nil:
			t.Errorf("%q was taken", shown)
		case !strings.Contains(err.Error(), want):
			t.Errorf("%q gives %q, want %q", shown, err, want)
		case !errors.Is(err, ErrPlan):
			t.Errorf("%q gives a %T, which is no ErrPlan", shown, err)
		}
	}
}

// All mistakes are told at once, in the order of the file, but no more than somebody reads.
func TestReadPlanTellsAll(t *testing.T) {
	_, err := ReadPlan("f.yaml", strings.NewReader("seed: x\nwarmup: 1\nendpoints: h\n"), nil)
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("%d lines:\n%v", got, err)
	}
	_, err = ReadPlan("f.yaml", strings.NewReader("endpoints: ["+strings.Repeat("[], ", 1000)+"[]]"), nil)
	if lines := strings.Split(err.Error(), "\n"); len(lines) != maxMistakes+1 || lines[maxMistakes] != "f.yaml: and more mistakes" {
		t.Errorf("%d lines:\n%v", len(lines), err)
	}
}

// A caller's addition is checked with the rest, and its error stands.
func TestReadPlanCompletes(t *testing.T) {
	const text = "fleets: [{clients: 1}]\n"
	p, err := ReadPlan("f", strings.NewReader(text), func(p *Plan) error { p.Endpoints = []string{"h"}; return nil })
	if err != nil || p.Endpoints[0] != "h" {
		t.Errorf("%v, %v", p, err)
	}
	mine := errors.New("mine")
	if _, err := ReadPlan("f", strings.NewReader(text), func(*Plan) error { return mine }); err != mine {
		t.Errorf("%v", err)
	}
}

// FuzzReadPlan: whatever a file holds, it is a plan that can be run, or mistakes of a line each.
func FuzzReadPlan(f *testing.F) {
	f.Add(goodScenario)
	for _, s := range []string{"", "a: [", "a:\n - b\n- c", "? a\n: b", "%YAML 1.2\n---\n", "a: {b: 1}}", "a: 'x\n\n y'", "- - -\n", "a: \"\\x41\"", "<<: *a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ReadPlan("f.yaml", strings.NewReader(text), nil)
		if err == nil {
			if again := p.Check(); again != nil {
				t.Errorf("a plan that was taken is none: %v", again)
			}
			return
		}
		if !errors.Is(err, ErrPlan) {
			t.Errorf("%T: %v", err, err)
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.HasPrefix(line, "f.yaml:") || strings.ContainsFunc(line, unicode.IsControl) || len(line) > 2000 {
				t.Errorf("a mistake in %q", line)
			}
		}
	})
}
