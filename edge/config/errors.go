package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a file; lines and columns count from 1, columns in characters.
type Pos struct{ Line, Column int }

// Error is one mistake and where it is.
type Error struct {
	File    string
	Pos     Pos    // zero: the file as a whole
	Field   string // listeners[1].tls.certificates[0].cert; "" = the file as a whole
	Message string // what was expected, what was found, and the nearest valid name
}

// Error is one line: file:line:column: field: message.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Pos.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Pos.Line, e.Pos.Column)
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Errors are all mistakes of one file in order of position, or the first [MaxErrors] and a last one that counts the rest.
type Errors []*Error

// MaxErrors bounds what is reported of one file.
const MaxErrors = 20

// Error is one line per mistake.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.As find an *Error.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// index is where the fields of a file are.
type index struct {
	file string
	pos  map[string]Pos
}

// find returns the position of a field; that of the nearest field around it, if the file leaves it out.
func (x *index) find(field string) Pos {
	for x != nil {
		if p, ok := x.pos[field]; ok {
			return p
		}
		if field == "" {
			break
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return Pos{}
}

// name is the file's; a configuration that was not read from one has none.
func (x *index) name() string {
	if x == nil {
		return "configuration"
	}
	return x.file
}

func (x *index) errorf(field, format string, args ...any) *Error {
	return &Error{File: x.name(), Pos: x.find(field), Field: field, Message: fmt.Sprintf(format, args...)}
}

// Errorf makes an error about a field, with its position: for what only running can tell, such as a port in use.
// The field is a path as in `listeners[1].address`.
func (e *Edge) Errorf(field, format string, args ...any) *Error {
	return e.at.errorf(field, format, args...)
}

// maxCollected bounds the mistakes that are looked for: those of the file's beginning are not always found first.
const maxCollected = 1000

// A report gathers the mistakes of one file.
type report struct {
	index
	errs []*Error
}

// full reports whether reading on is of no use.
func (r *report) full() bool { return len(r.errs) >= maxCollected }

func (r *report) add(e *Error) {
	if !r.full() {
		r.errs = append(r.errs, e)
	}
}

func (r *report) addf(field, format string, args ...any) {
	r.add(r.errorf(field, format, args...))
}

// err returns Errors, or nil.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(r.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	if len(r.errs) <= MaxErrors {
		return Errors(r.errs)
	}
	more := fmt.Sprintf("and %d more mistakes", len(r.errs)-MaxErrors)
	if r.full() {
		more = fmt.Sprintf("and more than %d more mistakes", len(r.errs)-MaxErrors-1)
	}
	return append(Errors(r.errs[:MaxErrors:MaxErrors]), &Error{File: r.file, Message: more})
}
