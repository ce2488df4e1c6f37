package demo

import "strings"

const (
	indent = "   "
	// A table of more rows than this is folded into two columns, if they fit foldedWidth.
	foldAbove   = 12
	foldedWidth = 80
)

// table is text in columns.
type table struct {
	header []string
	rows   [][]string
	tight  bool // one space between columns, not two
}

func (t *table) gutter() string {
	if t.tight {
		return " "
	}
	return "  "
}

// lines lays the table out: columns as wide as their widest cell, a long table in two halves side by side.
func (t *table) lines(s *screen) []string {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], width(cell))
		}
	}
	total := len(t.gutter()) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	head := s.faint(t.pad(t.header, widths))
	var out []string
	if n := len(t.rows); n > foldAbove && len(indent)+2*total+len(indent) <= foldedWidth {
		out = append(out, indent+head+indent+head)
		half := (n + 1) / 2
		for i := range half {
			line := indent + t.pad(t.rows[i], widths)
			if i+half < n {
				line += indent + t.pad(t.rows[i+half], widths)
			}
			out = append(out, strings.TrimRight(line, " "))
		}
		return out
	}
	out = append(out, indent+head)
	for _, row := range t.rows {
		out = append(out, strings.TrimRight(indent+t.pad(row, widths), " "))
	}
	return out
}

func (t *table) pad(cells []string, widths []int) string {
	var b strings.Builder
	for i, w := range widths {
		cell := ""
		if i < len(cells) {
			cell = cells[i]
		}
		if i > 0 {
			b.WriteString(t.gutter())
		}
		b.WriteString(cell)
		b.WriteString(strings.Repeat(" ", w-width(cell)))
	}
	return b.String()
}
