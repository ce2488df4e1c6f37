package loadtest

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/limpet-mesh/limpet/loadtest/near"
)

// ScenarioError is one mistake in a scenario and where it is.
type ScenarioError struct {
	File    string
	Pos     Pos    // zero: the file as a whole
	Field   string // fleets[0].publish.topic; "" = the file as a whole
	Message string // what was expected, what was found, and what was probably meant
}

// Error is one line: file:line:column: field: message.
func (e *ScenarioError) Error() string {
	s := e.File
	if e.Pos.Line > 0 {
		s += fmt.Sprintf(":%d:%d", e.Pos.Line, e.Pos.Column)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	return printable(s + ": " + e.Message)
}

// printable escapes what would leave its line, or hide in it.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// Is tells that e is ErrPlan.
func (e *ScenarioError) Is(target error) bool { return target == ErrPlan }

// Bounds of a scenario.
const (
	maxMistakes = 20   // reported
	maxEntries  = 4096 // of a list
)

// ReadPlan reads a scenario: a Plan in YAML. name is the file's, for errors: all mistakes that are found at once, each a *ScenarioError on a
// line of its own. What Plan.Check refuses is among them. complete, unless nil, may add to the plan before that; its error is returned.
func ReadPlan(name string, r io.Reader, complete func(*Plan) error) (*Plan, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("loadtest: reading %s: %w", name, err)
	}
	root, e := parseYAML(data)
	if e != nil {
		e.File = name
		return nil, e
	}
	d := &decoder{file: name, at: map[string]Pos{}}
	plan := &Plan{Verb: "scenario"}
	if root.kind == mapping {
		d.value(root, reflect.ValueOf(plan).Elem(), "")
	} else {
		d.fail(root.pos, "", "expected a mapping with %s, found %s", near.Among(names(reflect.TypeFor[Plan]())), found(root))
	}
	if len(d.mistakes) == 0 {
		if complete != nil {
			if err := complete(plan); err != nil {
				return nil, err
			}
		}
		if e, ok := errors.AsType[*PlanError](plan.Check()); ok {
			d.fail(d.find(e.Field), e.Field, "%s", e.Message)
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return plan, nil
}

// decoder reads a tree into Go values by their yaml tags.
type decoder struct {
	file     string
	at       map[string]Pos // of fields
	mistakes []*ScenarioError
}

func (d *decoder) fail(at Pos, field, format string, args ...any) {
	if len(d.mistakes) <= maxMistakes {
		d.mistakes = append(d.mistakes, &ScenarioError{d.file, at, field, fmt.Sprintf(format, args...)})
	}
}

// err returns all mistakes in the order of their places, or nil.
func (d *decoder) err() error {
	slices.SortStableFunc(d.mistakes, func(a, b *ScenarioError) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	var all []error
	for i, e := range d.mistakes {
		if i == maxMistakes {
			all = append(all, &ScenarioError{File: d.file, Message: "and more mistakes"})
			break
		}
		all = append(all, e)
	}
	return errors.Join(all...)
}

// find is where a field is; that of the nearest one around it, if the file leaves it out.
func (d *decoder) find(field string) Pos {
	for field != "" {
		if p, ok := d.at[field]; ok {
			return p
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return Pos{}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textReader   = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value reads n into v, whose type is one of those that a Plan is made of.
func (d *decoder) value(n *node, v reflect.Value, field string) {
	d.at[field] = n.pos
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), field)
	case v.Type() == durationType:
		d.duration(n, v, field)
	case v.Addr().Type().Implements(textReader):
		if text, ok := d.text(n, field, "text"); ok {
			if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
				_, message, ok := strings.Cut(err.Error(), ": ") // the package's name says nothing here
				if !ok {
					message = err.Error()
				}
				d.fail(n.pos, field, "%s", message)
			}
		}
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, field)
	case v.Kind() == reflect.Slice:
		d.list(n, v, field)
	default:
		d.scalar(n, v, field)
	}
}

func (d *decoder) mapping(n *node, v reflect.Value, field string) {
	known := names(v.Type())
	switch n.kind {
	case empty:
		return
	case mapping:
	default:
		d.fail(n.pos, field, "expected a mapping with %s, found %s", near.Among(known), found(n))
		return
	}
	first := map[string]Pos{}
	for _, f := range n.fields {
		path := f.name
		if field != "" {
			path = field + "." + f.name
		}
		target, ok := member(v, f.name)
		if !ok {
			hint := near.Meant(f.name, known)
			if hint == "" {
				hint = ": expected " + near.Among(known)
			}
			d.fail(f.pos, clip(path), "unknown field%s", hint)
			continue
		}
		if at, again := first[f.name]; again {
			d.fail(f.pos, path, "duplicate field: it is set in line %d", at.Line)
			continue
		}
		first[f.name] = f.pos
		if f.value.kind == empty { // what is empty stands at its key
			f.value.pos = f.pos
		}
		d.value(f.value, target, path)
	}
}

func (d *decoder) list(n *node, v reflect.Value, field string) {
	switch {
	case n.kind == empty:
		return
	case n.kind != list:
		d.fail(n.pos, field, "expected a list, found %s", found(n))
		return
	case len(n.items) > maxEntries:
		d.fail(n.pos, field, "expected at most %d entries, found %d", maxEntries, len(n.items))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", field, i))
	}
}

// text reads a scalar that is not empty.
func (d *decoder) text(n *node, field, want string) (string, bool) {
	if n.kind != scalar || n.text == "" || strings.ContainsFunc(n.text, unicode.IsControl) {
		d.fail(n.pos, field, "expected %s, found %s", want, found(n))
		return "", false
	}
	return n.text, true
}

func (d *decoder) duration(n *node, v reflect.Value, field string) {
	const want = "a duration, such as 500ms, 10s or 1h30m"
	text, ok := d.text(n, field, want)
	if !ok {
		return
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		hint := ""
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			hint = fmt.Sprintf(": did you mean %q?", clip(text)+"s")
		}
		d.fail(n.pos, field, "expected %s, found %s%s", want, found(n), hint)
		return
	}
	v.SetInt(int64(length))
}

func (d *decoder) scalar(n *node, v reflect.Value, field string) {
	want := map[reflect.Kind]string{reflect.String: "text", reflect.Bool: "true or false"}[v.Kind()]
	if want == "" {
		want = "a whole number"
	}
	text, ok := d.text(n, field, want)
	if !ok {
		return
	}
	var err error
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true":
			v.SetBool(true)
		case "false":
		default:
			err = strconv.ErrSyntax
		}
	case reflect.Int:
		var i int64
		if i, err = strconv.ParseInt(text, 10, 64); err == nil {
			v.SetInt(i)
		}
	case reflect.Uint8, reflect.Uint64:
		var u uint64
		if u, err = strconv.ParseUint(text, 10, v.Type().Bits()); err == nil {
			v.SetUint(u)
		}
	default:
		panic("loadtest: a plan has a " + v.Kind().String())
	}
	if err != nil {
		d.fail(n.pos, field, "expected %s, found %s", want, found(n))
	}
}

// found describes what stands somewhere.
func found(n *node) string {
	switch n.kind {
	case scalar:
		return strconv.Quote(clip(n.text))
	case mapping:
		return "a mapping (text with a ':' in it may need quotes)"
	case list:
		return "a list"
	}
	return "nothing"
}

// clip bounds text of the file that a message quotes.
func clip(s string) string { return clipTo(s, 60) }

func clipTo(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// names lists the fields of a struct by their yaml tags, those of an inlined one among them.
func names(t reflect.Type) []string {
	var all []string
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			all = append(all, names(f.Type)...)
		case name != "-":
			all = append(all, name)
		}
	}
	return all
}

// member finds the field of a struct by its yaml tag.
func member(v reflect.Value, name string) (reflect.Value, bool) {
	for f, value := range v.Fields() {
		tag, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			if m, ok := member(value, name); ok {
				return m, true
			}
		} else if tag == name && name != "-" {
			return value, true
		}
	}
	return reflect.Value{}, false
}
