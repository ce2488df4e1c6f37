package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/config"
)

// logPatience is how long these tests wait for what should take milliseconds.
const logPatience = 20 * time.Second

// in fails the test if fn takes longer than it may.
func in(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(logPatience):
		t.Fatalf("%s: not within %v", what, logPatience)
	}
}

// A reader that stalls costs lines, all of which are counted, and told of once it reads again.
func TestLogQueue(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log, q := openLog(config.Log{}, w)
	const wrote = 50_000
	in(t, "writing to a log that nobody reads", func() {
		for i := range wrote {
			log.Info().Int("line", i).Str("text", strings.Repeat("x", 100)).Msg("")
		}
	})
	if lost := q.lost.Load(); lost == 0 || lost > wrote-maxLogQueue/200 {
		t.Errorf("%d lines of %d lost", lost, wrote)
	}
	type line struct {
		Line    *int
		Lines   uint64
		Message string
	}
	var seen, told uint64
	read := json.NewDecoder(r)
	in(t, "reading what is left", func() {
		for seen+told < wrote {
			var l line
			if err := read.Decode(&l); err != nil {
				t.Errorf("after %d lines: %v", seen, err)
				return
			}
			if l.Line == nil {
				told += l.Lines
			} else {
				seen++
			}
		}
	})
	if seen+told != wrote || told != q.lost.Load() {
		t.Errorf("%d lines arrived, %d told lost, %d counted; wrote %d", seen, told, q.lost.Load(), wrote)
	}

	// What was written before the end arrives.
	log.Info().Msg("last words")
	in(t, "close", q.close)
	w.Close()
	rest, err := io.ReadAll(io.MultiReader(read.Buffered(), r))
	if err != nil || !strings.Contains(string(rest), `"last words"`) || strings.Count(string(rest), "\n") != 2 { // that of the line before, and its own
		t.Errorf("%q, %v", rest, err)
	}

	// A reader that does not come back keeps nobody from ending.
	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	log, q = openLog(config.Log{}, w2)
	log.Info().Str("text", strings.Repeat("x", 200<<10)).Msg("more than a pipe holds")
	in(t, "close, unread", q.close)
	r2.Close() // lets the goroutine go
	<-q.ended
	w2.Close()
	if q.lost.Load() != 1 {
		t.Errorf("%d lines lost of one that could not be written", q.lost.Load())
	}
}

// stalling is a standard error that takes all until it has seen some text, and then nothing for ever.
type stalling struct {
	after string
	buf   lockedBuffer
	stall chan struct{} // closed: go on
}

func (s *stalling) Write(p []byte) (int, error) {
	if strings.Contains(s.buf.String(), s.after) {
		<-s.stall
	}
	return s.buf.Write(p)
}

// edgeFile configures an edge without stores, with its broker b.
func edgeFile(t *testing.T, broker string) string {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "mesh.yaml"), fmt.Sprintf("mesh: m\npools: [{name: default, probe: {type: none}, brokers: [{id: b, address: %q}]}]\n", broker))
	return write(t, filepath.Join(dir, "edge.yaml"), `
mesh: m
id: e
store: none
mesh_file: mesh.yaml
listeners: [{type: tcp, address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
shutdown: {grace: 100ms}
`)
}

// where is what an edge says of its addresses.
type where struct {
	Listeners map[string]string
	Admin     string
}

// accepting waits until the log says where the edge is.
func accepting(t *testing.T, log func() string) (at where) {
	t.Helper()
	for end := time.Now().Add(logPatience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		for line := range strings.Lines(log()) {
			if strings.Contains(line, `"accepting clients"`) && json.Unmarshal([]byte(line), &at) == nil {
				return at
			}
		}
	}
	t.Fatalf("the edge does not accept clients: %s", log())
	return at
}

// refused connects as a client would and expects a CONNACK that says no: there is no broker.
func refused(t *testing.T, at where, id string) {
	t.Helper()
	c, err := net.Dial("tcp", at.Listeners["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(logPatience))
	fmt.Fprintf(c, "\x10%c\x00\x04MQTT\x04\x02\x00\x3c\x00%c%s", 12+len(id), len(id), id)
	if got, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(got, []byte{0x20, 2, 0, 3}) {
		t.Fatalf("%s: CONNACK %x, %v", id, got, err)
	}
}

// Clients are served, and the edge ends in order, while nobody reads its log.
func TestAStalledLogStopsNoEdge(t *testing.T) {
	errs := &stalling{after: `"accepting clients"`, stall: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	exit := make(chan int, 1)
	go func() { exit <- run(ctx, []string{"edge", "-c", edgeFile(t, "127.0.0.1:1")}, io.Discard, errs) }()
	at := accepting(t, errs.buf.String)
	for i := range 200 { // each is a line, and the first of them would be waited for
		refused(t, at, fmt.Sprintf("client-%d-%s", i, strings.Repeat("x", 80)))
	}
	r, err := http.Get("http://" + at.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	metrics, err := io.ReadAll(r.Body)
	if err != nil || !strings.Contains(string(metrics), "\nlimpet_edge_log_lines_lost_total ") {
		t.Errorf("metrics: %v, no count of lost lines in\n%s", err, metrics)
	}
	cancel()
	select {
	case code := <-exit:
		if code != 0 {
			t.Errorf("exit %d", code)
		}
	case <-time.After(logPatience):
		t.Fatal("the edge does not end")
	}
	close(errs.stall)
}
