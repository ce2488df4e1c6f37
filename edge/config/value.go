package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/limpet-mesh/limpet/registry"
)

// A value is a node of the file with the path of its field. Numbers are text like everything else: a min_version of 1.2 is no quantity.
// Its readers return the zero value after they have reported a mistake.
type value struct {
	r    *report
	node *node
	path string // "" = the whole file
}

// fields is what a mapping may hold: a reader for each name.
type fields map[string]func(value)

// newValue notes where a field is. What is empty stands at its key.
func newValue(r *report, n *node, path string, key Pos) value {
	r.pos[path] = n.pos
	if n.kind == empty {
		r.pos[path] = key
	}
	return value{r, n, path}
}

func (v value) fail(format string, args ...any) { v.r.addf(v.path, format, args...) }

// expected reports what should stand here; hint is what was probably meant, or "".
func (v value) expected(what, hint string) {
	if len(hint) > 100 {
		hint = ""
	}
	if hint != "" {
		hint = fmt.Sprintf(": did you mean %q?", hint)
	}
	v.fail("expected %s, found %s%s", what, v.found(), hint)
}

// found describes what stands here.
func (v value) found() string {
	switch {
	case v.node.kind == scalar:
		return fmt.Sprintf("%.60q", v.node.text)
	case v.node.kind == mapping:
		return "a mapping (text with a ':' in it may need quotes)"
	case v.node.kind == list && len(v.node.items) == 0:
		return "an empty list"
	case v.node.kind == list:
		return "a list"
	}
	return "nothing"
}

// child is the path of a field below v.
func (v value) child(name string) string {
	if v.path == "" {
		return name
	}
	return v.path + "." + name
}

// mapping reads a mapping. An empty one may be left out altogether.
func (v value) mapping(known fields, required ...string) {
	first := map[string]Pos{}
	switch v.node.kind {
	case empty:
	case mapping:
		for _, f := range v.node.fields {
			if v.r.full() {
				return
			}
			name, at := f.name, f.pos
			read, ok := known[name]
			fault := ""
			if p, again := first[name]; again {
				fault = fmt.Sprintf("duplicate field: it is set in line %d", p.Line)
			} else if !ok {
				fault = "unknown field: " + suggestion(name, known)
			}
			if fault != "" {
				v.r.add(&Error{File: v.r.file, Pos: at, Field: v.child(clip(name, 60)), Message: fault})
				continue
			}
			first[name] = at
			read(newValue(v.r, f.value, v.child(name), at))
		}
	default:
		v.expected("a mapping with "+among(known), "")
		return
	}
	for _, name := range required {
		if _, ok := first[name]; !ok {
			v.r.addf(v.child(name), "required field is missing")
		}
	}
}

// suggestion names the field that was probably meant, else all there are.
func suggestion(name string, known fields) string {
	if near := nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "expected " + among(known)
}

func among(known fields) string { return oneOfText(slices.Sorted(maps.Keys(known))) }

// oneOfText lists the members of a closed set.
func oneOfText(set []string) string {
	if len(set) == 1 {
		return set[0]
	}
	return "one of " + strings.Join(set, ", ")
}

// clip bounds text of the file that a message quotes.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// has reports whether a mapping that was read holds a field.
func (v value) has(name string) bool {
	_, ok := v.r.pos[v.child(name)]
	return ok
}

// list calls read for each entry of a list, which has at least that many.
func (v value) list(what string, least int, read func(i int, entry value)) {
	if v.node.kind != list && v.node.kind != empty || len(v.node.items) < least {
		v.expected("a list of "+what, "")
		return
	}
	for i, item := range v.node.items {
		if v.r.full() {
			return
		}
		read(i, newValue(v.r, item, fmt.Sprintf("%s[%d]", v.path, i), item.pos))
	}
}

// text reads any scalar that is not empty. what says what is expected.
// Control characters, which quoted text can hold as escapes, are wanted nowhere.
func (v value) text(what string) (string, bool) {
	s := v.node.text
	if v.node.kind != scalar || s == "" || strings.ContainsFunc(s, unicode.IsControl) {
		v.expected(what, "")
		return "", false
	}
	return s, true
}

// parsed reads a scalar that parse understands; parse may return a hint instead.
func parsed[T any](v value, what string, parse func(string) (t T, hint string, ok bool)) (zero T) {
	s, ok := v.text(what)
	if !ok {
		return zero
	}
	t, hint, ok := parse(s)
	if !ok {
		v.expected(what, hint)
		return zero
	}
	return t
}

// plain reads text without a form of its own, such as a user name.
func (v value) plain(what string) string {
	s, _ := v.text(what)
	return s
}

// name reads the name of a mesh, pool, edge, listener or broker.
func (v value) name() string {
	return parsed(v, fmt.Sprintf("a name of 1 to %d letters a-z, digits and '-'", registry.MaxNameLen), func(s string) (string, string, bool) {
		return s, NameFrom(s), registry.ValidName(s)
	})
}

// oneOf reads a member of a closed set of texts.
func oneOf[T ~string](v value, set ...T) T {
	names := make([]string, len(set))
	for i, s := range set {
		names[i] = string(s)
	}
	return parsed(v, oneOfText(names), func(s string) (T, string, bool) {
		return T(s), nearest(s, names), slices.Contains(names, s)
	})
}

// file reads a file name and resolves it against the folder of the configuration file.
func (v value) file(what string) string {
	s, ok := v.text("the name of " + what)
	if !ok || filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(filepath.Dir(v.r.file), s)
}

// absolute reads the name of a file that other machines read.
func (v value) absolute(what string) string {
	return parsed(v, "the absolute path of "+what+", as on every edge's machine", func(s string) (string, string, bool) {
		return s, "", filepath.IsAbs(s)
	})
}

// number reads a whole number.
func (v value) number(low, high int) int {
	return parsed(v, fmt.Sprintf("a whole number from %d to %d", low, high), func(s string) (int, string, bool) {
		n, err := strconv.Atoi(s)
		hint := withoutZeros(s)
		return n, hint, err == nil && hint == "" && n >= low && n <= high
	})
}

// factor reads a number, or -1 for "off".
func (v value) factor(low, high float64) float64 {
	return parsed(v, fmt.Sprintf("a number from %v to %v, or off", low, high), func(s string) (float64, string, bool) {
		if s == "off" {
			return -1, "", true
		}
		if strings.Trim(s, "0123456789.") != "" { // no exponents, and neither infinity nor NaN
			return 0, "", false
		}
		f, err := strconv.ParseFloat(s, 64)
		return f, "", err == nil && f >= low && f <= high
	})
}

// duration reads a length of time.
func (v value) duration(low, high time.Duration) time.Duration {
	what := fmt.Sprintf("a duration from %s to %s, such as 10s or 1h30m", FormatDuration(low), FormatDuration(high))
	return parsed(v, what, func(s string) (time.Duration, string, bool) {
		d, hint, ok := parseDuration(s)
		return d, hint, ok && d >= low && d <= high
	})
}

// size reads a number of bytes.
func (v value) size(low, high int) int {
	what := fmt.Sprintf("a size from %s to %s, such as 131072 or 128KiB", formatSize(low), formatSize(high))
	return parsed(v, what, func(s string) (int, string, bool) {
		n, hint, ok := parseSize(s)
		return n, hint, ok && n >= low && n <= high
	})
}

// requestPath reads the path of a WebSocket request.
func (v value) requestPath() string {
	return parsed(v, "a path that begins with '/', such as /mqtt", parseRequestPath)
}
