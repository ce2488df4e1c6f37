package natsbus

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// A bus that reaches no server says where it should be and what was wrong, in the log and on request, and no password.
func TestTrouble(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var log bytes.Buffer // of one goroutine, the client's, until Close
	b, err := Open(Config{URLs: []string{"nats://u:secret@" + addr}, Mesh: "m", Edge: "e1", Logger: zerolog.New(&log)})
	if err != nil {
		t.Fatal(err)
	}
	const refused = "connection refused"
	for end := time.Now().Add(20 * time.Second); !strings.Contains(b.Trouble(), refused); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("trouble: %q", b.Trouble())
		}
	}
	trouble := b.Trouble()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if !strings.HasPrefix(trouble, "nats://u:xxxxx@"+addr+": ") {
		t.Errorf("trouble %q", trouble)
	}
	if s := log.String(); !strings.Contains(s, refused) || !strings.Contains(s, "xxxxx@"+addr) || strings.Contains(s, "secret") || strings.Contains(s, "no servers") || !strings.Contains(s, "correct the address") {
		t.Errorf("log: %s", s)
	}
	working := open(t, newMesh(), "e1")
	for end := time.Now().Add(20 * time.Second); working.Trouble() != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of one that is connected: %q", working.Trouble())
		}
	}
}
