package demo

import "sync"

// board is a table that many clients fill while it is shown.
type board struct {
	mu    sync.Mutex
	table table
}

func newBoard(header ...string) *board { return &board{table: table{header: header}} }

// add appends a row and returns its number.
func (b *board) add(cells ...string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	row := make([]string, len(b.table.header))
	copy(row, cells)
	b.table.rows = append(b.table.rows, row)
	return len(b.table.rows) - 1
}

// set fills cells of a row, from a column on.
func (b *board) set(row, column int, cells ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	copy(b.table.rows[row][column:], cells)
}

// lines lays the board out as it is now.
func (b *board) lines(s *screen) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.table.lines(s)
}
