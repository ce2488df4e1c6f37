package report

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-isatty"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

const (
	redrawEvery = time.Second     // a result has whole seconds
	lineEvery   = 5 * time.Second // where nothing can be drawn in place
	minColumns  = 40
	maxColumns  = 120
)

// Live shows a run while it goes on: on a terminal a block that is drawn in place, elsewhere now and then a line.
type Live struct {
	w       io.Writer
	source  Source
	planned time.Duration
	size    func() (columns, rows int) // nil: not a terminal
	drawn   int                        // lines of the block on the screen
}

// NewLive returns a view of what source tells. planned is how long the run will take; 0 if that is not known. It starts
// nothing.
func NewLive(w io.Writer, source Source, planned time.Duration) *Live {
	l := &Live{w: w, source: source, planned: planned}
	if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) && os.Getenv("TERM") != "dumb" {
		l.size = func() (int, int) { return terminalSize(f) }
	}
	return l
}

// Run shows the run until ctx ends. A block that was drawn is wiped, since the summary follows.
func (l *Live) Run(ctx context.Context) error {
	every := redrawEvery
	if l.size == nil {
		every = lineEvery
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return l.wipe()
		case <-ticker.C:
		}
		r := l.source()
		if r == nil {
			continue
		}
		if err := l.show(r); err != nil {
			return fmt.Errorf("report: live view: %w", err)
		}
	}
}

func (l *Live) show(r *result.Result) error {
	if l.size == nil {
		_, err := fmt.Fprintln(l.w, plainLine(r))
		return err
	}
	columns, rows := l.size()
	lines := block(r, l.planned, min(max(columns-1, minColumns), maxColumns))
	lines = lines[:min(len(lines), max(rows-1, 1))]
	var b strings.Builder
	b.WriteString(l.up())
	for _, line := range lines {
		b.WriteString(line + "\x1b[K\n") // what was longer there is erased
	}
	b.WriteString("\x1b[J")
	l.drawn = len(lines)
	_, err := io.WriteString(l.w, b.String())
	return err
}

// up goes to the first line of the block.
func (l *Live) up() string {
	if l.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r", l.drawn)
}

func (l *Live) wipe() error {
	if l.drawn == 0 {
		return nil
	}
	_, err := io.WriteString(l.w, l.up()+"\x1b[J")
	l.drawn = 0
	return err
}

// now returns the last row, or an empty one.
func now(r *result.Result) *result.Row {
	if n := len(r.Series.Rows); n > 0 {
		return &r.Series.Rows[n-1]
	}
	return &result.Row{}
}

// perSecond returns the rates of the last row.
func perSecond(r *result.Result) (connects, publishes, receives, errors string) {
	row := now(r)
	of := func(n int64) string { return rate(r.Series.Rate(row, n, time.Duration(r.Duration))) }
	return of(row.Connects), of(row.Publishes), of(row.Receives), of(row.Errors)
}

// plainLine is the state of a run in one line.
func plainLine(r *result.Result) string {
	connects, publishes, receives, _ := perSecond(r)
	s := fmt.Sprintf("%s  %s connected, %s connects/s, %s published/s, %s received/s, %s", clock(time.Duration(r.Duration)),
		count(int64(r.Series.Connected(now(r)))), connects, publishes, receives, plural(r.Counters[result.Errors], "error"))
	for _, l := range []result.Latency{result.Connack, result.Puback, result.E2E} {
		if h := &r.Latency[l]; h.Count() > 0 {
			s += fmt.Sprintf(", %s p99 %s", l, brief(h.Percentile(99)))
		}
	}
	if p, ok := r.Verify.Stickiness(); ok {
		s += ", stickiness " + percentage(p)
	}
	if r.Generator.Behind {
		s += ", the generator is behind"
	}
	return clean(s)
}

// block is the state of a run in several lines of at most so many columns.
func block(r *result.Result, planned time.Duration, columns int) []string {
	connects, publishes, receives, errors := perSecond(r)
	elapsed := clock(time.Duration(r.Duration))
	if planned > 0 {
		elapsed += " of " + clock(planned)
	}
	if time.Duration(r.Duration) < time.Duration(r.Warmup.Seconds)*time.Second {
		elapsed += " (warm-up)"
	}
	lines := []string{
		strings.TrimSpace(fmt.Sprintf("%s %s  %s  %s connected", r.Verb, r.Name, elapsed, count(int64(r.Series.Connected(now(r)))))),
		fmt.Sprintf("%s connects/s  %s published/s  %s received/s  %s errors/s", connects, publishes, receives, errors),
		"",
		fmt.Sprintf("%-16s %9s %9s %9s %9s", "", "p50", "p99", "p99.9", "max"),
	}
	for _, l := range []result.Latency{result.Connack, result.ConnackService, result.Puback, result.PubackService, result.E2E, result.E2EService, result.Outage} {
		if h := &r.Latency[l]; h.Count() > 0 {
			lines = append(lines, fmt.Sprintf("%-16s %9s %9s %9s %9s", l, brief(h.Percentile(50)), brief(h.Percentile(99)), brief(h.Percentile(99.9)), brief(h.Max())))
		}
	}
	lines = append(lines, "")
	if all := failures(r); len(all) > 0 {
		var words []string
		for _, f := range all {
			words = append(words, f.Words+" "+f.Label)
		}
		lines = append(lines, "errors      "+strings.Join(words, ", "))
	}
	for _, f := range proven(r) {
		lines = append(lines, fmt.Sprintf("%-11s %s", strings.ToLower(f.Label), f.Words))
	}
	for i := range r.Faults {
		when, words := faultWords(&r.Faults[i])
		lines = append(lines, fmt.Sprintf("%-11s %s: %s", when, r.Faults[i].Spec, words))
	}
	if r.Generator.Behind {
		lines = append(lines, "generator   behind: "+strings.Join(r.Generator.Reasons, "; "))
	}
	const label = 12
	for _, g := range []struct {
		name  string
		value func(*result.Row) float64
	}{
		{"messages/s", func(row *result.Row) float64 { return float64(row.Publishes + row.Receives) }},
		{"connects/s", func(row *result.Row) float64 { return float64(row.Connects) }},
		{"connack p99", func(row *result.Row) float64 { return float64(row.Connack.Percentiles(99)[0]) }},
		{"e2e p99", func(row *result.Row) float64 { return float64(row.E2E.Percentiles(99)[0]) }},
	} {
		if bars, any := sparkline(r.Series.Rows, columns-label, g.value); any {
			lines = append(lines, fmt.Sprintf("%-*s%s", label, g.name, bars))
		}
	}
	for i, line := range lines {
		lines[i] = cut(clean(line), columns)
	}
	return lines
}

// sparkline draws the last rows as bars, a column each; any is false if all are zero.
func sparkline(rows []result.Row, columns int, value func(*result.Row) float64) (bars string, any bool) {
	const steps = " ▁▂▃▄▅▆▇█"
	rows = rows[max(0, len(rows)-columns):]
	high := 0.0
	for i := range rows {
		high = max(high, value(&rows[i]))
	}
	if high == 0 {
		return "", false
	}
	all := []rune(steps)
	var b strings.Builder
	for i := range rows {
		v := value(&rows[i])
		k := int(v/high*float64(len(all)-1) + 0.5)
		if v > 0 {
			k = max(k, 1) // whatever happened is seen
		}
		b.WriteRune(all[k])
	}
	return b.String(), true
}

// cut shortens a line to so many columns.
func cut(s string, columns int) string {
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}
