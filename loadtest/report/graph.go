package report

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

const (
	// points bounds how many points a line has: more than a screen can show.
	points = 600
	// The plane of a graph. The page stretches it; lines keep their width.
	planeWidth, planeHeight = 1000.0, 200.0
)

// A graph is several lines over one axis.
type graph struct {
	Name   string // short, for the page's anchors
	Title  string
	Unit   string
	Lines  []line
	Y      []tick
	Values [][]float64 // of Lines, point by point: NaN where there is nothing
	log    bool
	min    float64 // of the axis, if log
	max    float64
}

// A line is one series of a graph.
type line struct {
	Label string
	Class string // its colour
	Path  string // of SVG
}

// A tick is a mark on an axis: its place in percent, and its label.
type tick struct {
	At    float64
	Label string
}

// A band is a fault on the axis of time.
type band struct {
	Left, Width float64 // percent
	Number      int
	Words       string
}

// axis is the axis of time that all graphs of the series share.
type axis struct {
	span   float64 // seconds
	step   int     // rows of a point
	times  []float64
	X      []tick
	Faults []band
	Warmup float64 // percent
}

// newAxis lays out the time of a run.
func newAxis(r *result.Result) *axis {
	a := &axis{span: max(time.Duration(r.Duration).Seconds(), 1)}
	if n := len(r.Series.Rows); n > 0 {
		a.span = max(a.span, float64(r.Series.Rows[n-1].T))
		a.step = (n + points - 1) / points
		for i := 0; i < n; i += a.step {
			a.times = append(a.times, float64(r.Series.Rows[i].T))
		}
	}
	every := niceTime(a.span / 6)
	for t := 0.0; t <= a.span; t += every {
		a.X = append(a.X, tick{a.percent(t), clock(time.Duration(t * float64(time.Second)))})
	}
	a.Warmup = a.percent(float64(r.Warmup.Seconds))
	for i := range r.Faults {
		f := &r.Faults[i]
		begin, end := time.Duration(f.Begin).Seconds(), time.Duration(f.End).Seconds()
		left := a.percent(begin)
		a.Faults = append(a.Faults, band{left, a.percent(max(end, begin)) - left, f.Number, f.Spec})
	}
	return a
}

func (a *axis) percent(t float64) float64 { return 100 * min(t/a.span, 1) }

// values makes a line's points out of the rows: the average of each point's, or the largest. value says false where a
// row has nothing.
func (a *axis) values(s *result.Series, largest bool, value func(*result.Row) (float64, bool)) []float64 {
	out := make([]float64, len(a.times))
	for p := range out {
		sum, n := 0.0, 0
		for i := p * a.step; i < min((p+1)*a.step, len(s.Rows)); i++ {
			if v, ok := value(&s.Rows[i]); ok {
				if largest {
					sum, n = max(sum, v), 1
				} else {
					sum, n = sum+v, n+1
				}
			}
		}
		out[p] = math.NaN()
		if n > 0 {
			out[p] = sum / float64(n)
		}
	}
	return out
}

// timeGraphs draws the series. A graph in which nothing ever happened is left out, except the first.
func timeGraphs(r *result.Result, a *axis) []*graph {
	s, ran := &r.Series, time.Duration(r.Duration)
	if len(s.Rows) == 0 {
		return nil
	}
	perSecond := func(n func(*result.Row) int64) func(*result.Row) (float64, bool) {
		return func(row *result.Row) (float64, bool) { return s.Rate(row, n(row), ran), true }
	}
	type source struct {
		label   string
		largest bool
		value   func(*result.Row) (float64, bool)
	}
	spread := func(of func(*result.Row) *result.Spread) []source {
		percentile := func(p float64) func(*result.Row) (float64, bool) {
			return func(row *result.Row) (float64, bool) {
				x := of(row)
				return float64(x.Percentiles(p)[0]) / 1000, x.Count() > 0
			}
		}
		return []source{{"p50", false, percentile(50)}, {"p99", true, percentile(99)}, {"max", true, percentile(100)}}
	}
	plans := []struct {
		name, title, unit string
		log               bool
		lines             []source
	}{
		{"connected", "Clients connected", "", false, []source{
			{"connected", false, func(row *result.Row) (float64, bool) { return s.Connected(row), true }},
		}},
		{"connects", "Connections a second", "/s", false, []source{
			{"connects", false, perSecond(func(row *result.Row) int64 { return row.Connects })},
			{"closed by the other side", false, perSecond(func(row *result.Row) int64 { return row.Closed })},
		}},
		{"messages", "Messages a second", "/s", false, []source{
			{"published", false, perSecond(func(row *result.Row) int64 { return row.Publishes })},
			{"acknowledged", false, perSecond(func(row *result.Row) int64 { return row.Acked })},
			{"received", false, perSecond(func(row *result.Row) int64 { return row.Receives })},
		}},
		{"errors", "Errors a second", "/s", false, []source{
			{"errors", true, perSecond(func(row *result.Row) int64 { return row.Errors })},
			{"begun late by the generator", true, perSecond(func(row *result.Row) int64 { return row.Late })},
		}},
		{"connack", "Connect to CONNACK, ms", " ms", true, spread(func(row *result.Row) *result.Spread { return &row.Connack })},
		{"puback", "Publish to acknowledgement, ms", " ms", true, spread(func(row *result.Row) *result.Spread { return &row.Puback })},
		{"e2e", "Publish to receipt, ms", " ms", true, spread(func(row *result.Row) *result.Spread { return &row.E2E })},
	}
	var all []*graph
	for i, p := range plans {
		g := &graph{Name: p.name, Title: p.title, Unit: p.unit, log: p.log}
		for k, l := range p.lines {
			g.Lines = append(g.Lines, line{Label: l.label, Class: fmt.Sprintf("c%d", k+1)})
			g.Values = append(g.Values, a.values(s, l.largest, l.value))
		}
		if !g.scale() && i > 0 {
			continue
		}
		for k := range g.Lines {
			g.Lines[k].Path = path(a.times, g.Values[k], func(t float64) float64 { return t / a.span }, g.height)
		}
		all = append(all, g)
	}
	return all
}

// scale lays out the vertical axis; false if no value is above zero.
func (g *graph) scale() bool {
	low, high := math.Inf(1), 0.0
	for _, values := range g.Values {
		for _, v := range values {
			if v > 0 { // false for NaN
				low, high = min(low, v), max(high, v)
			}
		}
	}
	some := high > 0
	if g.log {
		high = max(high, 0.001)
		low = max(min(low, high), 0.001)
		g.min = math.Pow(10, math.Floor(math.Log10(low)))
		g.max = math.Pow(10, math.Ceil(math.Log10(high)))
		if g.max <= g.min {
			g.max = 10 * g.min
		}
		for v := g.min; v <= g.max*1.001; v *= 10 {
			g.Y = append(g.Y, tick{100 * g.height(v), label(v)})
		}
	} else {
		step := nice(max(high, 1) / 4)
		g.max = step * math.Ceil(max(high, 1)/step)
		for v := 0.0; v <= g.max*1.001; v += step {
			g.Y = append(g.Y, tick{100 * g.height(v), label(v)})
		}
	}
	return some
}

// height returns where a value is on the axis: 0 … 1.
func (g *graph) height(v float64) float64 {
	if !g.log {
		return min(v/g.max, 1)
	}
	if v <= g.min {
		return 0
	}
	return min(math.Log(v/g.min)/math.Log(g.max/g.min), 1)
}

// path draws points as one path of SVG, interrupted where there is no value. A lone point is a short dash.
func path(x, y []float64, across, up func(float64) float64) string {
	var b strings.Builder
	drawn, last := 0, 0.0
	lone := func() {
		if drawn == 1 {
			fmt.Fprintf(&b, "H%.1f", last+1.5)
		}
	}
	for i, v := range y {
		if math.IsNaN(v) || math.IsNaN(up(v)) {
			lone()
			drawn = 0
			continue
		}
		command := "L"
		if drawn == 0 {
			command = "M"
		}
		last = planeWidth * across(x[i])
		fmt.Fprintf(&b, "%s%.1f %.1f", command, last, planeHeight*(1-up(v)))
		drawn++
	}
	lone()
	return b.String()
}

// nice returns the next of 1, 2, 5, 10, 20 … that is not below v.
func nice(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 5} {
		if n*unit >= v*0.9999 {
			return n * unit
		}
	}
	return 10 * unit
}

// niceTime returns a round time, in seconds, that is not below v.
func niceTime(v float64) float64 {
	for _, t := range []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200} {
		if t >= v {
			return t
		}
	}
	return 86400 * math.Ceil(v/86400)
}

// label writes a value of an axis shortly.
func label(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	case v >= 1000:
		return count(int64(math.Round(v)))
	}
	return fmt.Sprintf("%.3g", v)
}

// distribution draws the latencies that a run has over the percentiles, as HdrHistogram's plotters do: every halving, or
// here every nine tenths, of what is left takes the same room.
func distribution(r *result.Result) *graph {
	const nines = 5.0 // to 99.999 %
	g := &graph{Name: "percentiles", Title: "Latency by percentile, ms", Unit: " ms", log: true}
	var x [][]float64
	for _, l := range result.Latencies() {
		h := &r.Latency[l]
		if h.Count() == 0 || l == result.Lag || l == result.Connect || l == result.ConnectService {
			continue
		}
		var across, up []float64
		for s := range h.Steps(8) {
			if s.Percentile > 100-math.Pow10(2-nines) {
				break
			}
			across = append(across, -math.Log10(1-s.Percentile/100)/nines)
			up = append(up, float64(s.Value)/1e6)
		}
		g.Lines = append(g.Lines, line{Label: l.String(), Class: fmt.Sprintf("c%d", len(g.Lines)%8+1)})
		x, g.Values = append(x, across), append(g.Values, up)
	}
	if !g.scale() {
		return nil
	}
	for i := range g.Lines {
		g.Lines[i].Path = path(x[i], g.Values[i], func(v float64) float64 { return v }, g.height)
	}
	g.Values = nil // its lines have no common points to read off
	return g
}

// percentileTicks are the marks under the distribution.
var percentileTicks = []tick{{0, "0"}, {20, "90 %"}, {40, "99 %"}, {60, "99.9"}, {80, "99.99"}, {100, "99.999"}}
