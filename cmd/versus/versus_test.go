//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
)

// TestMain: broker and generators are this program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "sink", "load":
			os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
		case "storm":
			os.Exit(storm(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "versus-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		buildDir = dir
		return m.Run()
	}())
}

// TestQuick runs all figures, small, with limpet, the least that relays, and without a proxy; HAProxy is missing.
func TestQuick(t *testing.T) {
	dir := t.TempDir()
	limpet, file := builtLimpet(t), filepath.Join(dir, "report.json")
	var stdout, stderr bytes.Buffer
	args := []string{
		"--quick", "--modes", "plain", "--figures", "500,saturated,connect,idle", "--peers", "limpet,haproxy,floor,direct", "--program", "limpet=" + limpet,
		"--program", "haproxy=" + filepath.Join(dir, "nowhere"), "--json", file,
	}
	if code := run(args, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, &stdout, &stderr)
	}
	for _, want := range []string{"CPU a message, 500/s", "messages a second, saturated", "CPU a connection, known", "RSS an idle client", "What differs:", "apt-get install haproxy"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in the output:\n%s", want, &stdout)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Units) != 12 {
		t.Errorf("%d units, want 4 figures of 3 peers", len(r.Units))
	}
	for _, u := range r.Units {
		// A machine that does much else can be too slow for a rate, and then the unit says so; all else is a mistake of ours.
		if len(u.Faults) > 0 && !strings.Contains(u.Faults[0], "messages a second instead of") {
			t.Errorf("%s, %s: %v", u.Figure, u.Peer, u.Faults)
		}
		switch {
		case u.Total != nil && (u.Total.Received == 0 || u.Total.Received != u.Total.Sent):
			t.Errorf("%s, %s: %d sent, %d received", u.Figure, u.Peer, u.Total.Sent, u.Total.Received)
		case u.Figure == connect && u.Connects["known"].Present != 100:
			t.Errorf("%s: %d of 100 known clients found their session", u.Peer, u.Connects["known"].Present)
		case u.Peer != "direct" && u.Figure != idle && (u.Values["cpu"]+u.Values["known"] <= 0 || u.Sink.Proxied != u.Sink.Connects):
			t.Errorf("%s: values %v, broker %+v", u.Figure, u.Values, u.Sink)
		}
	}
	if text := r.Configs["plain limpet"]["edge.yaml"]; !strings.Contains(text, "store: none") {
		t.Errorf("configuration of limpet: %q", text)
	}
}

func TestFaultyUnitsDoNotCount(t *testing.T) {
	programs := peer.Programs{"limpet": "limpet", "haproxy": "haproxy"}
	var peers []peer.Peer
	for _, name := range []string{"limpet", "haproxy", "direct"} {
		one, err := peer.Parse(name, programs)
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, one)
	}
	p := &params{Peers: peers, Figures: []string{"2k"}, Reps: 3}
	of := func(name string, rep int, cpu, p50 float64) *unit {
		return &unit{Mode: peer.Plain, Figure: "2k", Peer: name, Rep: rep, Values: map[string]float64{"cpu": cpu, "p50": p50}}
	}
	units := []*unit{
		of("limpet", 0, 8000, 90_000), of("haproxy", 0, 10_000, 100_000), of("direct", 0, 1, 50_000),
		of("limpet", 1, 9000, 80_000), of("haproxy", 1, 10_000, 100_000), of("direct", 1, 1, 60_000),
		of("limpet", 2, 1, 1), of("haproxy", 2, 10_000, 100_000), of("direct", 2, 1, 50_000),
	}
	units[6].fault("of 10 messages 9 came back")
	units[4].Late = "the generator fell behind"
	got := map[string]string{}
	for _, r := range tabulate(p, peer.Plain, units).Rows {
		got[r.Label] = r.Cells[0].text(r)
	}
	for label, want := range map[string]string{
		"CPU a message, 2k/s, µs":     "8.50 ×0.85 [0.80–0.90] (1 failed)",
		"latency p50, 2k/s, µs":       "85 ×0.90 (1 failed)", // HAProxy was late in repetition 2
		"added latency p50, 2k/s, µs": "30 ×0.80 (1 failed)",
	} {
		if got[label] != want {
			t.Errorf("%s: %q, want %q", label, got[label], want)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, wrong := range [][]string{
		{"--modes", "quic"}, {"--figures", "many"}, {"--peers", "squid"}, {"--peers", "haproxy:loops=1"}, {"--pin", "yes"}, {"--reps", "0"}, {"--program", "x"}, {"x"},
	} {
		if p, err := parse(append([]string{"--modes", "plain"}, wrong...), new(bytes.Buffer)); err == nil {
			t.Errorf("%q: expected an error, got %+v", wrong, p)
		}
	}
}
