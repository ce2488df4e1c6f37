// Package report shows a result: as words, JSON, CSV, a page, a distribution for HdrHistogram's plotters, metrics for
// Prometheus, and live on a terminal while the run goes on.
//
//	err := report.Write(os.Stdout, "text", res) // or json, csv, html
//	names, err := report.WriteHGRM("run.hgrm", res)
//
//	live := report.NewLive(os.Stderr, source, time.Minute) // source: func() *result.Result
//	go live.Run(ctx)
//
//	exporter, err := report.Listen("127.0.0.1:9200", source)
//	go exporter.Run(ctx)
//
// The page is one file that loads nothing: graphs are SVG drawn here, and its few lines of script only read values off
// them. Every fault of the run is drawn through every graph.
//
// Names, topics, client IDs and errors come from outside: they are escaped for where they go (HTML, a terminal).
package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// Formats lists what Write can write.
func Formats() []string { return []string{"text", "json", "csv", "html"} }

// Write writes the result in a format out of Formats.
func Write(w io.Writer, format string, r *result.Result) error {
	switch format {
	case "text":
		return Text(w, r)
	case "json":
		return r.Encode(w)
	case "csv":
		return CSV(w, r)
	case "html":
		return HTML(w, r)
	}
	return fmt.Errorf("report: unknown format %q: there are %s", format, strings.Join(Formats(), ", "))
}

// Text writes the summary in words and tables.
func Text(w io.Writer, r *result.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", clean(headline(r)))
	if len(r.Targets) > 0 {
		fmt.Fprintf(&b, "against %s\n", clean(targets(r.Targets)))
	}
	b.WriteByte('\n')
	for _, f := range facts(r) {
		fmt.Fprintf(&b, "%-12s %s\n", f.Label, clean(f.Words))
	}
	if rows := latencyRows(r); len(rows) > 0 {
		b.WriteByte('\n')
		table(&b, append([][]string{latencyHead()}, rows...))
		b.WriteString("A .service time counts from the real sending, the others from the intended one.\n")
	}
	if all := failures(r); len(all) > 0 {
		b.WriteString("\nErrors\n")
		for _, f := range all {
			fmt.Fprintf(&b, "  %10s  %s\n", f.Words, clean(f.Label))
		}
	}
	if len(r.Faults) > 0 {
		b.WriteString("\nFaults\n")
		for i := range r.Faults {
			when, words := faultWords(&r.Faults[i])
			fmt.Fprintf(&b, "  %-13s %s: %s\n", when, clean(r.Faults[i].Spec), clean(words))
		}
	}
	found(&b, r)
	if r.Sweep != nil {
		b.WriteByte('\n')
		table(&b, sweepRows(r.Sweep))
	}
	if len(r.Assertions) > 0 {
		b.WriteString("\nAssertions\n")
		for _, o := range r.Assertions {
			if o.Passed {
				fmt.Fprintf(&b, "  ok      %s (%s)\n", clean(o.Assertion), clean(o.Actual))
			} else {
				fmt.Fprintf(&b, "  FAILED  %s: %s\n", clean(o.Assertion), clean(o.Why))
			}
		}
	}
	words, _ := verdict(r)
	fmt.Fprintf(&b, "\n%s\n", words)
	_, err := io.WriteString(w, b.String())
	return err
}

// shown is how many entries of each list the text shows; the JSON and the page have more.
const shown = 10

// found lists the first of what verify and race found.
func found(b *strings.Builder, r *result.Result) {
	for _, l := range lists(r) {
		if l.Count == 0 {
			continue
		}
		fmt.Fprintf(b, "\n%s\n", l.Title)
		rows := append([][]string{l.Head}, l.Rows[:min(len(l.Rows), shown)]...)
		for i, row := range rows {
			rows[i] = append([]string{" "}, row...)
		}
		columns(b, rows, func(int) bool { return true })
		if more := l.Count - int64(min(len(l.Rows), shown)); more > 0 {
			fmt.Fprintf(b, "  and %s more\n", count(more))
		}
	}
}

// table writes rows in columns: the first to the left, the others to the right.
func table(b *strings.Builder, rows [][]string) {
	columns(b, rows, func(column int) bool { return column == 0 })
}

// columns writes rows in columns, made fit for a terminal.
func columns(b *strings.Builder, rows [][]string, left func(column int) bool) {
	var widths []int
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line.WriteString("  ")
			}
			if left(i) {
				line.WriteString(cell + space)
			} else {
				line.WriteString(space + cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
