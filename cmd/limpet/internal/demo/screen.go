package demo

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-isatty"
)

// repaint is how often a live block is drawn again.
const repaint = 100 * time.Millisecond

// screen is where the demo tells its story: lines, and blocks that are drawn in place while they change, if the output
// is a terminal that has room for them. Elsewhere a block is printed once, when it is finished, and nothing has colours.
type screen struct {
	w       io.Writer
	size    func() (columns, rows int) // nil = nothing is drawn in place
	colours bool
	failed  func(error) // called when nobody reads any more

	mu sync.Mutex
}

func newScreen(w io.Writer, failed func(error)) *screen {
	s := &screen{w: w, failed: failed}
	if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) && os.Getenv("TERM") != "dumb" {
		s.size = func() (int, int) { return terminalSize(f) }
		s.colours = os.Getenv("NO_COLOR") == ""
	}
	return s
}

func (s *screen) write(text string) {
	if _, err := io.WriteString(s.w, text); err != nil {
		s.failed(err)
	}
}

// line prints one line.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(fmt.Sprintf(format, args...) + "\n")
}

// lines prints each.
func (s *screen) lines(lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range lines {
		s.write(l + "\n")
	}
}

// live draws a block again and again until end is called, which leaves it there in its last state. Nothing else may be
// printed meanwhile.
func (s *screen) live(draw func() []string) (end func()) {
	if s.size == nil {
		return func() { s.lines(draw()) }
	}
	stop := make(chan struct{})
	var painting sync.WaitGroup
	above := 0
	painting.Go(func() {
		tick := time.NewTicker(repaint)
		defer tick.Stop()
		var shown []string
		for {
			if lines := draw(); !slices.Equal(lines, shown) && s.fits(lines) {
				above, shown = s.paint(lines, above), lines
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(stop)
		painting.Wait()
		s.paint(draw(), above)
	}
}

func (s *screen) fits(lines []string) bool {
	columns, rows := s.size()
	if len(lines) >= rows {
		return false
	}
	for _, l := range lines {
		if width(l) > columns {
			return false
		}
	}
	return true
}

// paint draws lines over a block that is so many lines high, and returns the height of the new one.
func (s *screen) paint(lines []string, above int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	if above > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", above) // up
	}
	for _, l := range lines {
		b.WriteString("\r" + l + "\x1b[K\n") // and nothing behind it
	}
	b.WriteString("\x1b[J") // nor below
	s.write(b.String())
	return len(lines)
}

// The colours, few of them.
func (s *screen) bold(t string) string  { return s.sgr("1", t) }
func (s *screen) faint(t string) string { return s.sgr("2", t) }
func (s *screen) green(t string) string { return s.sgr("32", t) }
func (s *screen) red(t string) string   { return s.sgr("31", t) }

func (s *screen) sgr(code, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// width is how many columns a line takes; colours take none.
func width(line string) int {
	n := 0
	for {
		before, rest, found := strings.Cut(line, "\x1b[")
		n += utf8.RuneCountInString(before)
		if !found {
			return n
		}
		_, line, _ = strings.Cut(rest, "m")
	}
}
