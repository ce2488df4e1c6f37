package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// outline writes a tree in one line, positions included.
func outline(n *node) string {
	at := func(p Pos, s string) string { return fmt.Sprintf("%s@%d:%d", s, p.Line, p.Column) }
	var parts []string
	switch n.kind {
	case scalar:
		return at(n.pos, fmt.Sprintf("%q", n.text))
	case mapping:
		for _, f := range n.fields {
			parts = append(parts, at(f.pos, fmt.Sprintf("%q", f.name))+": "+outline(f.value))
		}
		return at(n.pos, "{"+strings.Join(parts, ", ")+"}")
	case list:
		for _, item := range n.items {
			parts = append(parts, outline(item))
		}
		return at(n.pos, "["+strings.Join(parts, ", ")+"]")
	}
	return "nothing"
}

func tree(file string) (string, error) {
	r := &report{index: index{file: "f", pos: map[string]Pos{}}}
	root := r.parseYAML([]byte(file))
	if err := r.err(); err != nil {
		return "", err
	}
	return outline(root), nil
}

func TestTree(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"", "nothing"},
		{"---\n", "nothing"},
		{"# a\n", "nothing"},
		{"null", "nothing"},
		{"a", `"a"@1:1`},
		{"a: b", `{"a"@1:1: "b"@1:4}@1:1`},
		{"a:\nb: ~\nc:", `{"a"@1:1: nothing, "b"@2:1: nothing, "c"@3:1: nothing}@1:1`},
		{"a:\n  b\n", `{"a"@1:1: "b"@2:3}@1:1`},
		{"a: b\n  c\nd: e", `{"a"@1:1: "b c"@1:4, "d"@3:1: "e"@3:4}@1:1`},
		{"a:\n  b: c\n  d:\n    e: f\ng: h", `{"a"@1:1: {"b"@2:3: "c"@2:6, "d"@3:3: {"e"@4:5: "f"@4:8}@4:5}@2:3, "g"@5:1: "h"@5:4}@1:1`},
		{"a:\n- b\n- c\nd: e", `{"a"@1:1: ["b"@2:3, "c"@3:3]@2:1, "d"@4:1: "e"@4:4}@1:1`},
		{"a:\n  - b\n  -\n  - c: d\n    e: f\n", `{"a"@1:1: ["b"@2:5, nothing, {"c"@4:5: "d"@4:8, "e"@5:5: "f"@5:8}@4:5]@2:3}@1:1`},
		{"- - a\n  - b\n-\n  - c\n", `[["a"@1:5, "b"@2:5]@1:3, ["c"@4:5]@4:3]@1:1`},
		{"- a:\n  - b\n- c", `[{"a"@1:3: ["b"@2:5]@2:3}@1:3, "c"@3:3]@1:1`},
		{"a: [b, {c: d, e: }, [], {},\n  f, ]", `{"a"@1:1: ["b"@1:5, {"c"@1:9: "d"@1:12, "e"@1:15: nothing}@1:8, []@1:21, {}@1:25, "f"@2:3]@1:4}@1:1`},
		{"'a b': \"c\\td\"\n1: 0x1F\ntrue: 1.20\n", `{"a b"@1:1: "c\td"@1:8, "1"@2:1: "0x1F"@2:4, "true"@3:1: "1.20"@3:7}@1:1`},
		{"a: b # c\n# d\nb: 'c#d' #e", `{"a"@1:1: "b"@1:4, "b"@3:1: "c#d"@3:4}@1:1`},
		{"--- # x\na: b\n...\n", `{"a"@2:1: "b"@2:4}@2:1`},
		{"a: b\na: c", `{"a"@1:1: "b"@1:4, "a"@2:1: "c"@2:4}@1:1`},
		{"a: :1883\nb: http://c:1/\nd: é: x", ""},
		{"a: :1883\nb: http://c:1/\n", `{"a"@1:1: ":1883"@1:4, "b"@2:1: "http://c:1/"@2:4}@1:1`},
	} {
		got, err := tree(c.file)
		if (err != nil) != (c.want == "") || got != c.want {
			t.Errorf("%q: %s, %v\nwant %s", c.file, got, err, c.want)
		}
	}
}

// library is the tree of a file by the YAML library's own parser.
func library(file string) (string, error) {
	f, err := parser.ParseBytes([]byte(strings.TrimPrefix(file, "\ufeff")), 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return "", err
	}
	if len(f.Docs) == 0 || f.Docs[0].Body == nil {
		return "nothing", nil
	}
	n, err := fromLibrary(f.Docs[0].Body)
	if err != nil {
		return "", err
	}
	return outline(n), nil
}

func fromLibrary(n ast.Node) (*node, error) {
	switch n := n.(type) {
	case *ast.NullNode:
		return &node{}, nil
	case ast.MapNode:
		out := &node{kind: mapping, pos: position(n.(ast.Node).GetToken())}
		for it := n.MapRange(); it.Next(); {
			f := field{name: it.Key().GetToken().Value, pos: position(it.Key().GetToken())}
			if _, scalar := it.Key().(ast.ScalarNode); !scalar {
				return nil, fmt.Errorf("a key that is a %T", it.Key())
			}
			if len(out.fields) == 0 && out.pos.Line >= f.pos.Line && n.(ast.Node).GetToken().Type != token.MappingStartType {
				out.pos = f.pos
			}
			value, err := fromLibrary(it.Value())
			if err != nil {
				return nil, err
			}
			f.value = value
			out.fields = append(out.fields, f)
		}
		return out, nil
	case *ast.SequenceNode:
		out := &node{kind: list, pos: position(n.GetToken())}
		for _, v := range n.Values {
			item, err := fromLibrary(v)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, item)
		}
		return out, nil
	case ast.ScalarNode:
		return &node{kind: scalar, pos: position(n.GetToken()), text: n.GetToken().Value}, nil
	}
	return nil, fmt.Errorf("a %T", n)
}

// What we accept means to us what it means to the library.
func FuzzTree(f *testing.F) {
	f.Add(fullEdge)
	f.Add(fullMesh)
	for _, m := range mistakes {
		f.Add(m.file)
	}
	for _, m := range meshMistakes {
		f.Add(m.file)
	}
	f.Add("- - a\n  - b:\n    - c\n- {d: [e, {}], f: }\n")
	f.Fuzz(func(t *testing.T, file string) {
		if len(file) > 1000 { // beyond which the library may take very long
			return
		}
		ours, err := tree(file)
		if err != nil || strings.Contains(ours, "nothing") && strings.Contains(file, "-") {
			return // the library takes "a:\n-\nb:" for a list with {b:} in it: YAML 1.2.2 §8.2.1 says an empty entry
		}
		theirs, err := library(file)
		if err != nil {
			t.Fatalf("%q: we read %s, the library %v", file, ours, err)
		}
		if ours != theirs {
			t.Errorf("%q:\n   ours %s\n theirs %s", file, ours, theirs)
		}
	})
}
