package fault

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// demoState is a file as `limpet demo --state` writes it; etcd is dead.
const demoState = `{
  "edges": [
    {
      "id": "e1",
      "tcp": "127.0.0.1:1883",
      "tls": "127.0.0.1:8883",
      "ws": "127.0.0.1:8083",
      "wss": "127.0.0.1:8084",
      "quic": "127.0.0.1:14567",
      "admin": "127.0.0.1:9883",
      "pid": 11,
      "restart": "limpet edge"
    }
  ],
  "brokers": [
    {
      "id": "b1",
      "mqtt": "127.0.0.1:2",
      "pid": 12,
      "restart": "limpet demo-broker"
    }
  ],
  "etcd": [
    {
      "url": "http://127.0.0.1:3",
      "restart": "limpet store"
    }
  ],
  "nats": [
    {
      "url": "nats://127.0.0.1:4",
      "pid": 14,
      "restart": "limpet store"
    }
  ],
  "ca": "/tmp/ca.pem"
}
`

func stateFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadState(t *testing.T) {
	s, err := ReadState(stateFile(t, demoState))
	if err != nil {
		t.Fatal(err)
	}
	e := EdgeState{"e1", "127.0.0.1:1883", "127.0.0.1:8883", "127.0.0.1:8083", "127.0.0.1:8084", "127.0.0.1:14567", "127.0.0.1:9883", ProcessState{11, "limpet edge"}}
	if len(s.Edges) != 1 || s.Edges[0] != e || s.Brokers[0] != (BrokerState{"b1", "127.0.0.1:2", ProcessState{12, "limpet demo-broker"}}) ||
		s.Etcd[0] != (StoreState{"http://127.0.0.1:3", ProcessState{0, "limpet store"}}) || s.NATS[0].URL != "nats://127.0.0.1:4" || s.CA != "/tmp/ca.pem" {
		t.Errorf("%+v", s)
	}
	var names []string
	for _, p := range s.parts() {
		names = append(names, p.target.String())
	}
	if got := strings.Join(names, ", "); got != "edge e1, broker b1, etcd, nats" {
		t.Error(got)
	}
	if p, err := s.find(Target{Kind: NATS, Name: "1"}); err != nil || p.PID != 14 || p.target.String() != "nats" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestStateThatCannotBeUsed(t *testing.T) {
	for content, want := range map[string]string{
		"":                                      "unexpected end",
		"[]":                                    "cannot unmarshal",
		"{}":                                    "names no edge, broker, etcd or nats",
		`{"brokers":[{"id":"b1","pid":-12}]}`:   "broker b1: expected a pid above 1, or none, found -12",
		`{"etcd":[{},{"pid":1}]}`:               "etcd 2: expected a pid above 1, or none, found 1",
		`{"brokers":[{"id":"b1","pid":"one"}]}`: "cannot unmarshal",
		strings.Repeat(" ", maxState) + "{}":    "at most 1048576 bytes",
	} {
		if _, err := ReadState(stateFile(t, content)); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v; want %q", content, err, want)
		}
	}
	if _, err := ReadState(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrState) || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestFindsNot(t *testing.T) {
	s, err := parseState([]byte(`{"brokers":[{"id":"b1"},{"id":"broker-two"}],"etcd":[{},{},{}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"kill broker b2":        "broker b2: the state file names b1, broker-two",
		"kill broker brokertwo": `the state file names b1, broker-two: did you mean "broker-two"?`,
		"kill edge e1":          "edge e1: the state file names no edge",
		"kill etcd":             "there are 3 of them: expected one of etcd 1 to 3, or random etcd",
		"kill etcd 4":           "etcd 4: the state file names 3 of them",
		"kill random nats":      "random nats: the state file names no nats",
	} {
		f, err := Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkFault(f, s); !errors.Is(err, ErrTarget) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v; want %q", line, err, want)
		}
	}
	if p, err := s.find(Target{Kind: Etcd, Name: "3"}); err != nil || p.target.Name != "3" {
		t.Errorf("%+v, %v", p, err)
	}
}
