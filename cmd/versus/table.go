//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
)

// A row is one quantity of a figure.
type row struct {
	Figure string `json:"figure"`
	Value  string `json:"value"` // key of unit.Values
	Label  string `json:"label"`
	Cells  []cell `json:"cells"` // one for each peer, as in mode.Peers

	scale   float64 // shown is Value × scale
	form    string
	latency bool // does not count where the generator was late
	less    bool // what Direct has is taken off, repetition by repetition
	plain   bool // no ratio: it says something about the measuring
	direct  bool // Direct has one too
}

// A cell is what the repetitions of one peer found.
type cell struct {
	Peer   string    `json:"peer"`
	All    []float64 `json:"all"` // by repetition; those that count
	Median float64   `json:"median"`
	Ratios []float64 `json:"ratios,omitempty"` // to the reference, in repetitions where both count
	Ratio  float64   `json:"ratio,omitempty"`  // median; 0: none
	Failed int       `json:"failed,omitempty"` // repetitions that do not count
}

// mode is the table of a mode.
type mode struct {
	Mode  peer.Mode `json:"mode"`
	Peers []string  `json:"peers"`
	Rows  []row     `json:"rows"`
	Notes []string  `json:"notes,omitempty"`
}

const (
	micro = 1e-3 // ns to µs
	kilo  = 1. / 1024
	mega  = kilo / 1024
)

// rows are those of a figure.
func rows(figure string) []row {
	switch figure {
	case idle:
		return []row{
			{Value: "rss", Label: "RSS an idle client, KiB", scale: kilo, form: "%.2f"},
			{Value: "kernel", Label: "RSS and kernel memory an idle client, KiB", scale: kilo, form: "%.2f", less: true},
			{Value: "machine", Label: "the same by MemAvailable, KiB", scale: kilo, form: "%.2f", less: true, plain: true},
			{Value: "cpu", Label: "idle CPU, ms a second", scale: 1e-6, form: "%.2f"},
			{Value: "base", Label: "RSS before, MiB", scale: mega, form: "%.1f", plain: true},
		}
	case connect:
		return []row{
			{Value: "known", Label: "CPU a connection, known, µs", scale: micro, form: "%.0f"},
			{Value: "resumed", Label: "CPU a connection, known, resumed, µs", scale: micro, form: "%.0f"},
			{Value: "new", Label: "CPU a connection, storm of new ones, µs", scale: micro, form: "%.0f"},
			{Value: "new.connack", Label: "CONNACK p99 in that storm, ms", scale: 1e-6, form: "%.0f", direct: true},
			{Value: "known.rest", Label: "machine a connection, known, µs", scale: micro, form: "%.0f", less: true},
		}
	case saturated:
		return []row{
			{Value: "cpu", Label: "CPU a message, saturated, µs", scale: micro, form: "%.2f"},
			{Value: "rest", Label: "machine a message, saturated, µs", scale: micro, form: "%.2f", less: true},
			{Value: "busy", Label: "cores busy, saturated, %", scale: 100, form: "%.0f", plain: true},
			{Value: "throughput", Label: "messages a second, saturated, thousands", scale: 1e-3, form: "%.0f", plain: true, direct: true},
		}
	}
	return []row{
		{Value: "cpu", Label: "CPU a message, " + figure + "/s, µs", scale: micro, form: "%.2f"},
		{Value: "rest", Label: "machine a message, " + figure + "/s, µs", scale: micro, form: "%.2f", less: true},
		{Value: "p50", Label: "latency p50, " + figure + "/s, µs", scale: micro, form: "%.0f", latency: true, direct: true},
		{Value: "p99", Label: "latency p99, " + figure + "/s, µs", scale: micro, form: "%.0f", latency: true, direct: true},
		{Value: "p99.9", Label: "latency p99.9, " + figure + "/s, µs", scale: micro, form: "%.0f", latency: true, direct: true},
		{Value: "p50", Label: "added latency p50, " + figure + "/s, µs", scale: micro, form: "%.0f", latency: true, less: true},
		{Value: "p99", Label: "added latency p99, " + figure + "/s, µs", scale: micro, form: "%.0f", latency: true, less: true},
	}
}

// results finds units.
type results map[string]*unit

func resultKey(figure, peer string, rep int) string {
	return fmt.Sprintf("%s %s %d", figure, peer, rep)
}

// value is what r has of a peer in a repetition; false if it does not count.
func (all results) value(r row, name string, rep int) (float64, bool) {
	u := all[resultKey(r.Figure, name, rep)]
	if u == nil || len(u.Faults) > 0 || r.latency && u.Late != "" {
		return 0, false
	}
	v, ok := u.Values[r.Value]
	if ok && r.less {
		bare := r
		bare.less = false
		zero, found := all.value(bare, string(peer.Direct), rep)
		v, ok = v-zero, found
	}
	return v, ok
}

// tabulate makes the table of a mode out of its units.
func tabulate(p *params, m peer.Mode, units []*unit) mode {
	t := mode{Mode: m}
	all := results{}
	notes := map[string]int{}
	for _, u := range units {
		if u.Mode != m {
			continue
		}
		all[resultKey(u.Figure, u.Peer, u.Rep)] = u
		for _, f := range u.Faults {
			notes[fmt.Sprintf("%s, %s, repetition %d does not count: %s", u.Figure, u.Peer, u.Rep+1, f)]++
		}
		if u.Late != "" {
			notes[fmt.Sprintf("%s, %s, repetition %d: its latency does not count: %s", u.Figure, u.Peer, u.Rep+1, u.Late)]++
		}
	}
	for n := range notes {
		t.Notes = append(t.Notes, n)
	}
	slices.Sort(t.Notes)
	for _, one := range p.Peers {
		t.Peers = append(t.Peers, one.Name)
	}
	for _, figure := range p.figures(m) {
		for _, r := range rows(figure) {
			r.Figure = figure
			found := false
			for _, one := range p.Peers {
				c := all.cell(r, one, p.Reps)
				found = found || len(c.All) > 0 || c.Failed > 0
				r.Cells = append(r.Cells, c)
			}
			if found {
				t.Rows = append(t.Rows, r)
			}
		}
	}
	return t
}

func (all results) cell(r row, one peer.Peer, reps int) cell {
	c := cell{Peer: one.Name}
	if one.Kind == peer.Direct && !r.direct {
		return c
	}
	for rep := range reps {
		v, ok := all.value(r, one.Name, rep)
		if !ok {
			if u := all[resultKey(r.Figure, one.Name, rep)]; u != nil && u.note() != "" {
				c.Failed++
			}
			continue
		}
		c.All = append(c.All, v)
		if ref, ok := all.value(r, one.Reference(), rep); ok && ref > 0 && !r.plain && one.Kind != peer.Direct {
			c.Ratios = append(c.Ratios, v/ref)
		}
	}
	c.Median, c.Ratio = median(c.All), median(c.Ratios)
	return c
}

func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(of))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// text is what the table shows: "17.3 ×0.76 [0.71–0.80]", with the number of repetitions that do not count.
func (c cell) text(r row) string {
	if len(c.All) == 0 {
		if c.Failed > 0 {
			return fmt.Sprintf("failed (%d)", c.Failed)
		}
		return "–"
	}
	s := fmt.Sprintf(r.form, c.Median*r.scale)
	if len(c.Ratios) > 0 {
		s += fmt.Sprintf(" ×%.2f", c.Ratio)
		if len(c.Ratios) > 1 {
			s += fmt.Sprintf(" [%.2f–%.2f]", slices.Min(c.Ratios), slices.Max(c.Ratios))
		}
	}
	if c.Failed > 0 {
		s += fmt.Sprintf(" (%d failed)", c.Failed)
	}
	return s
}

// print writes a table that Markdown and people can read.
func (t mode) print(w io.Writer) {
	lines := [][]string{append([]string{string(t.Mode)}, t.Peers...)}
	for _, r := range t.Rows {
		line := []string{r.Label}
		for _, c := range r.Cells {
			line = append(line, c.text(r))
		}
		lines = append(lines, line)
	}
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, s := range line {
			width[i] = max(width[i], len([]rune(s)))
		}
	}
	pad := func(s string, n int) string { return s + strings.Repeat(" ", n-len([]rune(s))) }
	fmt.Fprintln(w)
	for n, line := range lines {
		for i, s := range line {
			line[i] = pad(s, width[i])
		}
		fmt.Fprintln(w, "| "+strings.Join(line, " | ")+" |")
		if n == 0 {
			for i := range line {
				line[i] = strings.Repeat("-", width[i])
			}
			fmt.Fprintln(w, "| "+strings.Join(line, " | ")+" |")
		}
	}
	for i, n := range t.Notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, "* "+n)
	}
}

// printEnd says how it was measured, and what differs.
func (r *Report) printEnd(w io.Writer) {
	p, m := r.Params, r.Machine
	fmt.Fprintf(w, "\nMedians of %d repetition(s); × is the median of the ratios to HAProxy with as many threads in the same repetition [lowest–highest]: below 1 is better.\n", p.Reps)
	fmt.Fprintf(w, "%s, %s, %d cores, %s, %d MiB, %d descriptors, %s.\n", r.Date.Format("2006-01-02"), m.CPU, m.Cores, m.System, m.Memory>>20, m.Descriptors, m.Go)
	fmt.Fprintf(w, "%d clients carry messages of %d bytes for %s after %s; %d are idle, %d connect; %d in flight each when saturated; %d brokers.\n",
		p.Conns, p.Payload, p.Window, p.Warmup, p.Idle, p.Connects, p.Inflight, p.Brokers)
	if p.Quick {
		fmt.Fprintln(w, "This was --quick: the figures mean nothing.")
	}
	said := map[string]bool{}
	for _, one := range p.Peers {
		if v := r.Versions[one.Name]; v != "" && !said[v] {
			said[v] = true
			fmt.Fprintln(w, "* "+v)
		}
	}
	cores := map[string]bool{}
	for _, u := range r.Units {
		line := "cores, " + u.Figure + ", " + u.Peer + ": " + u.Cores
		if u.Cores != "" && strings.Contains(u.Cores, "proxy on") && !cores[line] {
			cores[line] = true
			fmt.Fprintln(w, "* "+line)
		}
	}
	if len(cores) == 0 || p.Pin == "auto" {
		fmt.Fprintln(w, "* cores, all others: proxy, broker and generator share all cores")
	}
	var clock, ticks time.Duration
	for _, u := range r.Units {
		for _, s := range u.Spent {
			clock, ticks = clock+s.Proxy.Clock, ticks+s.Proxy.Ticks
		}
	}
	var others []float64
	for _, u := range r.Units {
		others = append(others, 100*u.others())
	}
	if p.Patience > 0 {
		fmt.Fprintf(w, "* what other programs disturbed (above %.0f %% of the machine) was measured again, up to %d times, and the least disturbed counts\n", 100*quiet, tries)
	}
	fmt.Fprintf(w, "* other programs used %.0f %% of the machine at the median, %.0f %% at most; above %.0f %% ratios say little\n", median(others), slices.Max(others), 100*quiet)
	fmt.Fprintf(w, "* CPU of all proxies: %.1f s by their CPU clocks, %.1f s by /proc/PID/stat\n", clock.Seconds(), ticks.Seconds())
	for _, missing := range r.Missing {
		fmt.Fprintln(w, "* "+missing)
	}
	fmt.Fprintln(w, "\nWhat differs:")
	for _, d := range r.Differs {
		fmt.Fprintln(w, "* "+d)
	}
}
