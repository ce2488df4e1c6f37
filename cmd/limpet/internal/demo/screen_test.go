package demo

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// terminal understands the little that a screen writes.
type terminal struct {
	mu     sync.Mutex
	rows   []string // without colours
	cursor int
}

func (v *terminal) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text := string(p)
	for text != "" {
		if v.cursor == len(v.rows) {
			v.rows = append(v.rows, "")
		}
		switch {
		case text[0] == '\r':
			v.rows[v.cursor], text = "", text[1:] // what is written next covers the line: see "\x1b[K"
		case text[0] == '\n':
			v.cursor, text = v.cursor+1, text[1:]
		case strings.HasPrefix(text, "\x1b["):
			end := strings.IndexAny(text, "AJKm")
			switch n := 0; text[end] {
			case 'A':
				fmt.Sscanf(text[2:], "%d", &n)
				if v.cursor -= n; v.cursor < 0 {
					return 0, errors.New("above the first line")
				}
			case 'J':
				v.rows = v.rows[:v.cursor]
			}
			text = text[end+1:]
		default:
			n := strings.IndexAny(text, "\r\n\x1b")
			if n < 0 {
				n = len(text)
			}
			v.rows[v.cursor] += text[:n]
			text = text[n:]
		}
	}
	return len(p), nil
}

func (v *terminal) String() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.TrimRight(strings.Join(v.rows, "\n"), "\n")
}

// block is what a test draws, and draws differently later.
type block struct {
	mu    sync.Mutex
	lines []string
}

func (b *block) set(lines ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = lines
}

func (b *block) draw() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines
}

func TestLiveBlockIsDrawnInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &terminal{}
		s := &screen{w: v, colours: true, size: func() (int, int) { return 80, 24 }, failed: func(err error) { t.Error(err) }}
		s.line("before")
		b := &block{lines: []string{s.green("one"), "two"}}
		end := s.live(b.draw)
		synctest.Wait()
		if got := v.String(); got != "before\none\ntwo" {
			t.Errorf("first:\n%s", got)
		}
		b.set("ONE", "two", "three")
		time.Sleep(2 * repaint)
		synctest.Wait()
		if got := v.String(); got != "before\nONE\ntwo\nthree" {
			t.Errorf("grown:\n%s", got)
		}
		b.set("the end")
		end()
		s.line("after")
		if got := v.String(); got != "before\nthe end\nafter" {
			t.Errorf("shrunk:\n%s", got)
		}
	})
}

// What does not fit a terminal cannot be drawn over: it is printed once, at its end, as on no terminal at all.
func TestBlockThatIsPrintedOnce(t *testing.T) {
	for name, size := range map[string]func() (int, int){
		"no terminal":  nil,
		"size unknown": func() (int, int) { return 0, 0 },
		"too low":      func() (int, int) { return 80, 2 },
		"too narrow":   func() (int, int) { return 4, 24 },
	} {
		synctest.Test(t, func(t *testing.T) {
			v := &terminal{}
			s := &screen{w: v, size: size, failed: func(err error) { t.Error(err) }}
			b := &block{lines: []string{"first, still changing", "second"}}
			end := s.live(b.draw)
			time.Sleep(2 * repaint)
			synctest.Wait()
			if got := v.String(); got != "" {
				t.Errorf("%s: early:\n%s", name, got)
			}
			b.set("first", "second")
			end()
			if got := v.String(); got != "first\nsecond" {
				t.Errorf("%s:\n%s", name, got)
			}
		})
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestScreenThatNobodyReads(t *testing.T) {
	var told error
	s := newScreen(broken{}, func(err error) { told = err })
	s.line("hello")
	if told == nil {
		t.Error("nobody was told")
	}
	if s.size != nil || s.bold("x") != "x" {
		t.Error("taken for a terminal")
	}
}

func TestWidth(t *testing.T) {
	s := &screen{colours: true}
	for text, want := range map[string]int{"": 0, "abc": 3, "b1 ✓": 4, s.green("b1 ✓"): 4, "a" + s.red("b") + "c" + s.faint(""): 3} {
		if got := width(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	plain := &screen{}
	b := newBoard("", "edge", "what")
	b.add("c1", "e1")
	row := b.add("c2")
	b.set(row, 1, "e2 quic", "yes")
	want := "       edge     what\n   c1  e1\n   c2  e2 quic  yes"
	if got := strings.Join(b.lines(plain), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// Colours change nothing about the columns.
	coloured := &screen{colours: true}
	b.set(0, 1, coloured.red("e1"))
	v := &terminal{}
	fmt.Fprint(v, strings.Join(b.lines(coloured), "\n"))
	var trimmed []string
	for _, l := range v.rows {
		trimmed = append(trimmed, strings.TrimRight(l, " "))
	}
	if got := strings.Join(trimmed, "\n"); got != want {
		t.Errorf("with colours\n%s\nwant\n%s", got, want)
	}

	// A long one is folded, an odd row left over.
	long := newBoard("n", "x")
	long.table.tight = true
	for i := range foldAbove + 1 {
		long.add(fmt.Sprint(i), "x")
	}
	lines := long.lines(plain)
	if len(lines) != 1+(foldAbove+2)/2 || lines[1] != "   0  x   7  x" || lines[len(lines)-1] != "   6  x" {
		t.Errorf("folded:\n%s", strings.Join(lines, "\n"))
	}
	// Unless that would be too wide.
	long.set(0, 1, strings.Repeat("w", foldedWidth/2))
	if lines := long.lines(plain); len(lines) != 1+foldAbove+1 {
		t.Errorf("too wide, and folded:\n%s", strings.Join(lines, "\n"))
	}
}

func TestClaim(t *testing.T) {
	s := &screen{}
	c := &claim{says: "all is well"}
	show := func() string { return strings.Join(c.lines(s), "\n") }
	if c.held() || !strings.Contains(show(), "untold") {
		t.Errorf("without a case:\n%s", show())
	}
	c.prove("c01", nil)
	if want := "   held      1 of 1    all is well"; !c.held() || show() != want {
		t.Errorf("held:\n%s\nwant\n%s", show(), want)
	}
	for i := range brokenShown + 2 {
		c.prove(fmt.Sprintf("c%02d", i+2), errors.New("lost\nits way"))
	}
	got := show()
	if c.held() || !strings.Contains(got, "broken    1 of 8 ") || !strings.Contains(got, "c02: lost its way\n") || !strings.HasSuffix(got, "and 2 more") {
		t.Errorf("broken:\n%s", got)
	}
}

func TestOrdinal(t *testing.T) {
	for n, want := range map[int]string{1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 112: "112th", 122: "122nd"} {
		if got := ordinal(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
