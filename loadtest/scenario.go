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

	"github.com/limpet-mesh/limpet/loadtest/tree"
)

// ScenarioError is one mistake in a scenario and where it is.
type ScenarioError struct {
	File    string
	Pos     tree.Pos // zero: the file as a whole
	Field   string   // fleets[0].publish.topic; "" = the file as a whole
	Message string   // what was expected, what was found, and what was probably meant
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
	return s + ": " + e.Message
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
	data, err := io.ReadAll(io.LimitReader(r, tree.MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("loadtest: reading %s: %w", name, err)
	}
	root, err := tree.Parse(data)
	if err != nil {
		e := err.(*tree.Error)
		return nil, &ScenarioError{File: name, Pos: e.Pos, Message: e.Message}
	}
	d := &decoder{file: name, at: map[string]tree.Pos{}}
	plan := &Plan{Verb: "scenario"}
	if root.Kind == tree.Mapping {
		d.value(root, reflect.ValueOf(plan).Elem(), "")
	} else {
		d.fail(root.Pos, "", "expected a mapping with %s, found %s", among(names(reflect.TypeFor[Plan]())), found(root))
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
	at       map[string]tree.Pos // of fields
	mistakes []*ScenarioError
}

func (d *decoder) fail(at tree.Pos, field, format string, args ...any) {
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
func (d *decoder) find(field string) tree.Pos {
	for field != "" {
		if p, ok := d.at[field]; ok {
			return p
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return tree.Pos{}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textReader   = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value reads n into v, whose type is one of those that a Plan is made of.
func (d *decoder) value(n *tree.Node, v reflect.Value, field string) {
	d.at[field] = n.Pos
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
				d.fail(n.Pos, field, "%s", message)
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

func (d *decoder) mapping(n *tree.Node, v reflect.Value, field string) {
	known := names(v.Type())
	switch n.Kind {
	case tree.Empty:
		return
	case tree.Mapping:
	default:
		d.fail(n.Pos, field, "expected a mapping with %s, found %s", among(known), found(n))
		return
	}
	first := map[string]tree.Pos{}
	for _, f := range n.Fields {
		path := f.Name
		if field != "" {
			path = field + "." + f.Name
		}
		target, ok := member(v, f.Name)
		if !ok {
			hint := meant(f.Name, known)
			if hint == "" {
				hint = ": expected " + among(known)
			}
			d.fail(f.Pos, clip(path), "unknown field%s", hint)
			continue
		}
		if at, again := first[f.Name]; again {
			d.fail(f.Pos, path, "duplicate field: it is set in line %d", at.Line)
			continue
		}
		first[f.Name] = f.Pos
		if f.Value.Kind == tree.Empty { // what is empty stands at its key
			f.Value.Pos = f.Pos
		}
		d.value(f.Value, target, path)
	}
}

func (d *decoder) list(n *tree.Node, v reflect.Value, field string) {
	switch {
	case n.Kind == tree.Empty:
		return
	case n.Kind != tree.List:
		d.fail(n.Pos, field, "expected a list, found %s", found(n))
		return
	case len(n.Items) > maxEntries:
		d.fail(n.Pos, field, "expected at most %d entries, found %d", maxEntries, len(n.Items))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Items), len(n.Items)))
	for i, item := range n.Items {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", field, i))
	}
}

// text reads a scalar that is not empty.
func (d *decoder) text(n *tree.Node, field, want string) (string, bool) {
	if n.Kind != tree.Scalar || n.Text == "" || strings.ContainsFunc(n.Text, unicode.IsControl) {
		d.fail(n.Pos, field, "expected %s, found %s", want, found(n))
		return "", false
	}
	return n.Text, true
}

func (d *decoder) duration(n *tree.Node, v reflect.Value, field string) {
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
		d.fail(n.Pos, field, "expected %s, found %s%s", want, found(n), hint)
		return
	}
	v.SetInt(int64(length))
}

func (d *decoder) scalar(n *tree.Node, v reflect.Value, field string) {
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
		d.fail(n.Pos, field, "expected %s, found %s", want, found(n))
	}
}

// found describes what stands somewhere.
func found(n *tree.Node) string {
	switch n.Kind {
	case tree.Scalar:
		return strconv.Quote(clip(n.Text))
	case tree.Mapping:
		return "a mapping (text with a ':' in it may need quotes)"
	case tree.List:
		return "a list"
	}
	return "nothing"
}

// clip bounds text of the file that a message quotes.
func clip(s string) string {
	const most = 60
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
