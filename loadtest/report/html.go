package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
	"unicode"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

//go:embed page.js
var pageScript string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"plain":      func(f float64) template.CSS { return template.CSS(fmt.Sprintf("%.3f", f)) },
	"faultWhen":  func(f result.Fault) string { when, _ := faultWords(&f); return when },
	"faultWords": func(f result.Fault) string { _, words := faultWords(&f); return words },
	"count":      count,
	"faultMark":  faultMark,
}).Parse(pageText))

// view is what the page shows.
type view struct {
	Style  template.CSS
	Script template.JS
	Policy string

	R        *result.Result
	Title    string
	Headline string
	Verdict  string
	Good     bool
	Targets  string
	Figures  []figure
	Facts    []fact
	Failures []fact
	Axis     *axis
	Graphs   []*graph
	Spread   *graph
	Ticks    []tick
	Head     []string
	Rows     [][]string
	Lists    []list
	Sweep    [][]string
	Plan     string
	Data     data
}

// data is what the script reads values from.
type data struct {
	Span   float64               `json:"span"`
	Times  []float64             `json:"times"`
	Graphs map[string][][]*value `json:"graphs"`
}

// value is a number for the script with three digits.
type value float64

func (v value) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%.4g", float64(v)), nil }

// HTML writes the result as one page that loads nothing.
func HTML(w io.Writer, r *result.Result) error {
	hash := sha256.Sum256([]byte(pageScript))
	v := view{
		Style: template.CSS(pageStyle), Script: template.JS(pageScript),
		// Even if something of the result became markup, it could load and run nothing.
		Policy: "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'",
		R:      r, Headline: strings.TrimPrefix(headline(r), title(r)+": "), Targets: targets(r.Targets),
		Figures: figures(r), Facts: facts(r), Failures: failures(r), Axis: newAxis(r), Spread: distribution(r), Ticks: percentileTicks,
		Head: latencyHead(), Rows: latencyRows(r),
	}
	v.Title = title(r)
	v.Verdict, v.Good = verdict(r)
	v.Graphs = timeGraphs(r, v.Axis)
	for _, l := range lists(r) {
		if l.Count > 0 {
			v.Lists = append(v.Lists, l)
		}
	}
	if r.Sweep != nil {
		v.Sweep = sweepRows(r.Sweep)
	}
	if len(r.Plan) > 0 {
		var indented bytes.Buffer
		if json.Indent(&indented, r.Plan, "", "  ") == nil {
			v.Plan = indented.String()
		}
	}
	v.Data = data{Span: v.Axis.span, Times: v.Axis.times, Graphs: map[string][][]*value{}}
	for _, g := range v.Graphs {
		for _, values := range g.Values {
			out := make([]*value, len(values))
			for i, x := range values {
				if !math.IsNaN(x) {
					n := value(x)
					out[i] = &n
				}
			}
			v.Data.Graphs[g.Name] = append(v.Data.Graphs[g.Name], out)
		}
	}
	var text strings.Builder
	if err := page.Execute(&text, v); err != nil {
		return fmt.Errorf("report: writing the page: %w", err)
	}
	_, err := io.WriteString(w, strings.Map(visible, text.String()))
	return err
}

// visible replaces control characters, which HTML forbids, and those that reorder or hide text.
func visible(c rune) rune {
	if c != '\n' && unicode.In(c, unicode.Cc, unicode.Cf) {
		return unicode.ReplacementChar
	}
	return c
}

// Seconds returns how long a row is, for the page.
func (v view) Seconds() string { return spoken(time.Duration(v.R.Series.Width) * time.Second) }
