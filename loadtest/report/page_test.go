package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

func htmlOf(t *testing.T, r *result.Result) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, r); err != nil {
		t.Fatal(err)
	}
	// For whoever wants to look at it: LIMPET_PAGES=DIR go test -run Page
	if dir := os.Getenv("LIMPET_PAGES"); dir != "" {
		name := regexp.MustCompile(`\W`).ReplaceAllString(t.Name(), "-") + ".html"
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// An outline is what a page consists of.
type outline struct {
	elements map[string]int
	lines    []string // headings, graphs with their lines, marks and labels
	text     string   // all that a reader may see
}

// readPage parses a page and fails if it is not well-formed.
func readPage(t *testing.T, text string) outline {
	t.Helper()
	// A script is no markup.
	text = regexp.MustCompile(`(?s)<script[^>]*>.*?</script>`).ReplaceAllString(text, "<script></script>")
	text = regexp.MustCompile(`(?s)<style>.*?</style>`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`<div class="cursor" hidden>`).ReplaceAllString(text, `<div class="cursor">`)
	text = regexp.MustCompile(`<details open>`).ReplaceAllString(text, `<details>`)
	d := xml.NewDecoder(strings.NewReader(text))
	d.Entity, d.AutoClose = xml.HTMLEntity, []string{"meta", "img"}
	d.Strict = false // for meta, which HTML does not close; an element left open is still an error
	o := outline{elements: map[string]int{}}
	var words strings.Builder
	heading, counts := "", map[string]int{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			o.elements[x.Name.Local]++
			class := ""
			for _, a := range x.Attr {
				if a.Name.Local == "class" {
					class = a.Value
				}
				if strings.HasPrefix(a.Name.Local, "on") {
					t.Errorf("<%s> has the handler %s", x.Name.Local, a.Name.Local)
				}
			}
			switch x.Name.Local {
			case "h1", "h2", "h3":
				heading = x.Name.Local + ":"
			case "figure":
				clear(counts)
			case "path", "li":
				counts[x.Name.Local]++
			case "div", "span":
				if class != "" {
					counts[class]++
				}
			}
		case xml.EndElement:
			switch x.Name.Local {
			case "h1", "h2", "h3":
				o.lines = append(o.lines, heading)
				heading = ""
			case "figure":
				o.lines = append(o.lines, fmt.Sprintf("  %d lines, %d faults, warm-up %d, %s", counts["path"], counts["fault"], counts["warmup"],
					map[bool]string{true: "labelled", false: "not labelled"}[counts["x"] > 3 && counts["y"] > 1]))
			}
		case xml.CharData:
			words.Write(x)
			if heading != "" {
				heading += " " + strings.TrimSpace(string(x))
			}
		}
	}
	o.text = words.String()
	return o
}

func TestPageOfARun(t *testing.T) {
	text := htmlOf(t, sample())
	got := strings.Join(readPage(t, text).lines, "\n")
	want := strings.TrimSpace(`
h1: limpet loadtest verify “nightly”
h2: Assertions
h2: Faults
h2: Second by second
h3: Clients connected
  1 lines, 3 faults, warm-up 1, labelled
h3: Connections a second
  2 lines, 3 faults, warm-up 1, labelled
h3: Messages a second
  3 lines, 3 faults, warm-up 1, labelled
h3: Errors a second
  2 lines, 3 faults, warm-up 1, labelled
h3: Connect to CONNACK, ms
  3 lines, 3 faults, warm-up 1, labelled
h3: Publish to acknowledgement, ms
  3 lines, 3 faults, warm-up 1, labelled
h3: Publish to receipt, ms
  3 lines, 3 faults, warm-up 1, labelled
h2: Summary
h2: Latencies
h3: Latency by percentile, ms
  7 lines, 0 faults, warm-up 0, labelled
h2: Errors
h2: Sessions lost: 1,000
h2: Messages that did not arrive as they should: 31
h2: Plan`)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "ZgotmplZ") || strings.Contains(text, "%!") {
		t.Error("the page shows what is no value")
	}
	if len(text) > 1<<20 {
		t.Errorf("%d bytes", len(text))
	}
}

// TestPageLoadsNothing: the page must work without a network, and tell nobody that it is read.
func TestPageLoadsNothing(t *testing.T) {
	text := htmlOf(t, sample())
	for _, pattern := range []string{`(?i)\bsrc\s*=`, `(?i)\bhref\s*=`, `(?i)@import`, `(?i)url\(`, `fetch\(`, `XMLHttpRequest`, `<link`, `<iframe`} {
		if found := regexp.MustCompile(pattern).FindString(text); found != "" {
			t.Errorf("the page contains %s", found)
		}
	}
	if !strings.Contains(text, `content="default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;; script-src &#39;sha256-`) {
		t.Error("the page has no policy that forbids loading")
	}
}

func TestPageOfNothing(t *testing.T) {
	o := readPage(t, htmlOf(t, result.New()))
	if o.elements["svg"] != 0 || o.elements["table"] != 0 || !strings.Contains(o.text, "No second was recorded.") ||
		!strings.Contains(o.text, "Nothing was asserted.") {
		t.Errorf("%v\n%s", o.elements, o.text)
	}
}

// TestPageOfEnemies: nothing that comes from outside becomes markup, script or style.
func TestPageOfEnemies(t *testing.T) {
	text := htmlOf(t, dangerous())
	o := readPage(t, text)
	if o.elements["img"] != 0 || strings.Contains(text, "<img") {
		t.Error("a name became markup")
	}
	if n := strings.Count(text, "</script>"); n != 2 {
		t.Errorf("%d scripts end: a name ended one", n)
	}
	if n := strings.Count(o.text, `<img src=x onerror="alert(1)">`); n < 20 {
		t.Errorf("only %d names are shown as they are", n)
	}
}

// TestLineIsBroken where there is no value, and a lone value is seen.
func TestLineIsBroken(t *testing.T) {
	nan := func() float64 { var zero float64; return zero / zero }()
	same := func(v float64) float64 { return v }
	got := path([]float64{0, 0.1, 0.2, 0.3, 0.4}, []float64{0, 1, nan, 0.5, nan}, same, same)
	if want := "M0.0 200.0L100.0 0.0M300.0 100.0H301.5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNiceNumbers(t *testing.T) {
	var got []float64
	for _, v := range []float64{0.3, 1, 1.5, 3, 7, 70, 2400} {
		got = append(got, nice(v))
	}
	if want := []float64{0.5, 1, 2, 5, 10, 100, 5000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
