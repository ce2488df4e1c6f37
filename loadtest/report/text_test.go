package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

func written(t *testing.T, format string, r *result.Result) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, format, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTextOfARun(t *testing.T) {
	got := written(t, "text", sample())
	for _, want := range []string{
		"limpet loadtest verify “nightly”: 10 min from 2026-03-01 12:00:00 UTC, the first 15 s as warm-up\n",
		"against tcp://127.0.0.1:1883, wss://127.0.0.1:8884/mqtt\n",
		"\nStickiness   100 %: 3,500 of 3,500 reconnects came home\n",
		"\nNot judged   1,000 as the home was down\n",
		"\nMessages     mesh: 880,000 expected, 0 lost, 786 lost with their session, 12 duplicated after the publisher sent them again\n",
		"\nMessages     control: 40,000 expected, 0 lost, 31 out of order\n",
		"\nGenerator    kept its schedule (0 of ",
		"\nlatency           count      p50 ", "\nconnack.service ", "\ne2e ",
		"\nErrors\n       1,700  reset\n           1  timeout\n",
		"\n  2:00–2:03     at 2m kill broker b2: killed; up again after 3 s; 115 clients back after ",
		"\n   at    client        broker  met  why\n   2:01  verify-00000  b2      b2   its broker was killed (at 2m kill broker b2)\n", "\n  and 990 more\n",
		"\n  ok      stickiness>=99.99 (100 %)\n",
		"\n  FAILED  connack.p99<50ms: connack.p99 is ",
		"\n1 of 4 assertions failed.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

func TestTextOfNothing(t *testing.T) {
	if got, want := written(t, "text", result.New()), "limpet loadtest: 0 s\n\nGenerator    had no schedule to keep\n\nNothing was asserted.\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestTerminalsAreSafe: nothing that comes from outside can command a terminal.
func TestTerminalsAreSafe(t *testing.T) {
	text := written(t, "text", dangerous()) + strings.Join(block(dangerous(), 0, 200), "\n") + plainLine(dangerous())
	for i, c := range text {
		if c != '\n' && !unicode.IsPrint(c) {
			t.Fatalf("%q at %d", c, i)
		}
	}
	if !strings.Contains(text, `\x1b[2J`) {
		t.Error("the escape is not shown as what it is")
	}
}

func TestUnknownFormat(t *testing.T) {
	if err := Write(io.Discard, "xml", result.New()); err == nil || !strings.Contains(err.Error(), "text, json, csv, html") {
		t.Errorf("got %v", err)
	}
}

func TestJSONReadsBack(t *testing.T) {
	r := sample()
	read, err := result.Decode(strings.NewReader(written(t, "json", r)))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := written(t, "text", read), written(t, "text", r); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
	if a, b := written(t, "html", read), written(t, "html", r); a != b {
		t.Error("the page of what was read differs")
	}
}

func TestCSVOfARun(t *testing.T) {
	rows, err := csv.NewReader(strings.NewReader(written(t, "csv", sample()))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 601 {
		t.Fatalf("%d lines for ten minutes and a head", len(rows))
	}
	column := func(name string) int {
		for i, n := range rows[0] {
			if n == name {
				return i
			}
		}
		t.Fatalf("no column %q in %v", name, rows[0])
		return 0
	}
	row := rows[1+300]
	for name, want := range map[string]string{"t_s": "300", "warmup": "false", "connected": "3000", "publishes": "1500", "errors": "0"} {
		if got := row[column(name)]; got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if ms, err := strconv.ParseFloat(row[column("e2e_p50_ms")], 64); err != nil || ms < 0.5 || ms > 2 {
		t.Errorf("e2e_p50_ms is %s", row[column("e2e_p50_ms")])
	}
	if rows[1][column("warmup")] != "true" {
		t.Error("the warm-up is not marked")
	}
}

// TestHGRM reads the files as HdrHistogram's plotters do: lines of four numbers, comments from '#'.
func TestHGRM(t *testing.T) {
	r := sample()
	names, err := WriteHGRM(filepath.Join(t.TempDir(), "run.hgrm"), r)
	if err != nil {
		t.Fatal(err)
	}
	var bases []string
	for _, n := range names {
		bases = append(bases, filepath.Base(n))
	}
	if got, want := fmt.Sprint(bases), "[run.connack.hgrm run.connack.service.hgrm run.puback.hgrm run.puback.service.hgrm run.e2e.hgrm run.e2e.service.hgrm run.outage.hgrm run.lag.hgrm]"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	f, err := os.Open(names[4])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lastValue, lastShare float64
	var lastCount int64
	lines, comments := 0, 0
	for in := bufio.NewScanner(f); in.Scan(); {
		line := strings.TrimSpace(in.Text())
		switch fields := strings.Fields(line); {
		case line == "" || strings.HasPrefix(line, "Value"):
		case strings.HasPrefix(line, "#["):
			comments++
		default:
			value, errV := strconv.ParseFloat(fields[0], 64)
			share, errS := strconv.ParseFloat(fields[1], 64)
			n, errN := strconv.ParseInt(fields[2], 10, 64)
			if errV != nil || errS != nil || errN != nil || value < lastValue || share < lastShare || n < lastCount {
				t.Errorf("line %q after %g %g %d", line, lastValue, lastShare, lastCount)
			}
			if len(fields) == 4 {
				if inverse, err := strconv.ParseFloat(fields[3], 64); err != nil || inverse < 1 {
					t.Errorf("line %q", line)
				}
			}
			lastValue, lastShare, lastCount = value, share, n
			lines++
		}
	}
	h := &r.Latency[result.E2E]
	if lines < 50 || comments != 3 || lastShare != 1 || lastCount != h.Count() || lastValue != float64(h.Max().Microseconds())/1000 {
		t.Errorf("%d lines, %d comments, at the end %g ms, %g, %d", lines, comments, lastValue, lastShare, lastCount)
	}
}

func TestFormats(t *testing.T) {
	for _, c := range [][2]string{
		{count(0), "0"},
		{count(999), "999"},
		{count(-1234567), "-1,234,567"},
		{rate(0), "0"},
		{rate(0.5), "0.50"},
		{rate(123.45), "123.5"},
		{rate(1666.7), "1,667"},
		{brief(12 * time.Microsecond), "12 µs"},
		{brief(1234 * time.Microsecond), "1.23 ms"},
		{brief(123456 * time.Microsecond), "123 ms"},
		{brief(12345 * time.Millisecond), "12.3 s"},
		{brief(time.Hour), "1:00:00"},
		{clock(65 * time.Second), "1:05"},
		{size(512), "512 B"},
		{size(61 << 20), "61 MiB"},
		{percentage(99.99999), "99.9999 %"},
		{percentage(100), "100 %"},
		{clean("a\x00b\u202e"), `a\x00b\u202e`},
		{cut("abcdef", 4), "abc…"},
		{label(1500), "1,500"},
		{label(20000), "20k"},
	} {
		if c[0] != c[1] {
			t.Errorf("got %q, want %q", c[0], c[1])
		}
	}
}

func TestLiveBlockFits(t *testing.T) {
	for _, columns := range []int{40, 79, 120} {
		lines := block(sample(), 20*time.Minute, columns)
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); n > columns {
				t.Errorf("%d columns of %d: %s", n, columns, l)
			}
		}
		text := strings.Join(lines, "\n")
		if columns < 79 {
			continue
		}
		for _, want := range []string{"10:00 of 20:00", "3,000 connected", "connack ", "errors      1,700 reset", "stickiness  100 %", "messages/s  ", "█"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing at %d columns in\n%s", want, columns, text)
			}
		}
	}
}

func TestLiveDrawsInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, terminal := range []bool{false, true} {
			var out strings.Builder
			r := sample()
			live := NewLive(&out, func() *result.Result { return r }, 0)
			if terminal {
				live.size = func() (int, int) { return 80, 10 }
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10500*time.Millisecond)
			if err := live.Run(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
			text := out.String()
			if terminal {
				if got := strings.Count(text, "\x1b[9A"); got != 10 || !strings.HasSuffix(text, "\x1b[9A\r\x1b[J") {
					t.Errorf("went up %d times for 10 frames of 9 lines; ends in %q", got, text[max(0, len(text)-20):])
				}
			} else if n := strings.Count(text, "\n"); n != 2 || strings.Contains(text, "\x1b") ||
				!strings.Contains(text, "10:00  3,000 connected, ") || !strings.Contains(text, "stickiness 100 %") {
				t.Errorf("%d lines in ten seconds: %q", n, text)
			}
		}
	})
}

// TestLiveTellsThatNobodyReads rather than going on.
func TestLiveTellsThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read, write := io.Pipe()
		_ = read.Close()
		if err := NewLive(write, result.New, 0).Run(t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

func TestPrometheus(t *testing.T) {
	r := sample()
	r.Errors["\xff"] = 1 // no label, and no reason to lose the others
	e, err := Listen("127.0.0.1:0", func() *result.Result { return r })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + e.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %v\n%s", resp.Status, err, body)
	}
	for _, want := range []string{
		"limpet_loadtest_publishes_total 876560\n", `limpet_loadtest_errors_total{reason="reset"} 1700` + "\n",
		`limpet_loadtest_errors_total{reason="tls"} 0` + "\n", "limpet_loadtest_connected 3000\n", "limpet_loadtest_stickiness_ratio 1\n",
		"limpet_loadtest_generator_behind 0\n",
		fmt.Sprintf(`limpet_loadtest_latency_seconds_bucket{kind="e2e",le="+Inf"} %d`+"\n", r.Latency[result.E2E].Count()),
		`limpet_loadtest_latency_seconds_count{kind="outage"} 200` + "\n",
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("%q is missing in\n%s", want, body)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := Listen("127.0.0.1:http-but-not-a-port", nil); err == nil {
		t.Error("listened on no port")
	}
}
