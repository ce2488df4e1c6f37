package demo

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The format is read by others: it changes on purpose only.
func TestStateFormat(t *testing.T) {
	const want = `{
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
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	if err := os.WriteFile(path, []byte("of an earlier demo"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := State{
		Edges:   []EdgeState{{"e1", newEdgeAddresses("127.0.0.1", standard), Process{11, "limpet edge"}}},
		Brokers: []BrokerState{{"b1", "127.0.0.1:2", Process{12, "limpet demo-broker"}}},
		Etcd:    []StoreState{{"http://127.0.0.1:3", Process{0, "limpet store"}}}, // dead
		NATS:    []StoreState{{"nats://127.0.0.1:4", Process{14, "limpet store"}}},
		CA:      "/tmp/ca.pem",
	}.write(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: more than the file is left", entries, err)
	}
}

func TestStateFileThatCannotBe(t *testing.T) {
	if err := creatable(filepath.Join(t.TempDir(), "no", "state.json")); err == nil {
		t.Error("creatable in a directory that is not there")
	}
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := creatable(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file of an earlier demo is still there: %v", err)
	}
}

// A shell reads the words that were quoted.
func TestQuote(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("there is no sh to ask")
	}
	for _, word := range []string{"plain", "/a/b.c-d_e", "two words", "it's", "", `$HOME "\`, "a;b", "*", "ü", "#no comment", "~"} {
		out, err := exec.Command(shell, "-c", "printf %s "+quote([]string{word})).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q is read as %q, %v", word, out, err)
		}
	}
	if got := quote([]string{"limpet", "demo child", "-c"}); got != "limpet 'demo child' -c" {
		t.Error(got)
	}
}
