package loadtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a scenario's file. Within them the YAML library's parser takes a second at most; without them it can take minutes.
const (
	maxFile  = 128 << 10
	maxDepth = 32  // of mappings and lists within each other
	maxSaid  = 200 // of what the library says of a mistake, which may quote the file
)

// Pos is a place in a file; lines and columns count from 1, columns in characters.
type Pos struct{ Line, Column int }

// node is a value of a file: what the decoder needs of the YAML library's tree.
type node struct {
	kind   kind
	pos    Pos
	text   string  // of a scalar, as it was written but for quotes and escapes: 1.10 is no number here
	fields []field // of a mapping, in order, duplicates included
	items  []*node // of a list
}

type kind uint8

const (
	empty kind = iota // nothing; also written as null or ~
	scalar
	mapping
	list
)

// field is one line of a mapping.
type field struct {
	name  string
	pos   Pos
	value *node
}

// parseYAML returns the root of a file's only document. Anchors, tags and blocks of text are refused: a scenario says plainly what it says.
func parseYAML(data []byte) (*node, *ScenarioError) {
	if len(data) > maxFile {
		return nil, &ScenarioError{Message: fmt.Sprintf("expected at most %d bytes", maxFile)}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors write
	if p, ok := firstBad(data); !ok {
		return nil, &ScenarioError{Pos: p, Message: "expected text in UTF-8 without control characters"}
	}
	tokens := lexer.Tokenize(string(data))
	depth, line, dashes := 0, 0, 0
	for _, tk := range tokens {
		if tk.Position.Line != line {
			line, dashes = tk.Position.Line, 0
		}
		switch tk.Type {
		case token.SequenceEntryType:
			dashes++
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		if max(depth, dashes) > maxDepth { // the parser takes seconds for many, and for ever for unclosed ones
			return nil, tooDeep(tk)
		}
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // the decoder names both
	if err != nil {
		return nil, syntaxError(err)
	}
	if len(file.Docs) > 1 {
		return nil, &ScenarioError{Pos: position(file.Docs[1].Start), Message: "expected one YAML document, found a second"}
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return &node{pos: Pos{1, 1}}, nil
	}
	return convert(file.Docs[0].Body, 0)
}

// syntaxError is what the parser found, on one line.
func syntaxError(err error) *ScenarioError {
	e, ok := errors.AsType[*yaml.SyntaxError](err)
	if !ok {
		return &ScenarioError{Message: "not valid YAML: " + clipTo(strings.Join(strings.Fields(err.Error()), " "), maxSaid)}
	}
	message := clipTo(strings.Join(strings.Fields(e.Message), " "), maxSaid)
	switch {
	case strings.Contains(e.Message, "'\t'"), strings.HasPrefix(e.Message, "tab character"):
		message = "found a tab where only spaces may indent: replace it by spaces" // YAML 1.2.2 §6.1
	case strings.HasPrefix(e.Message, "mapping value is not allowed"):
		message += ": text with a ':' in it may need quotes, or this line other spaces before it"
	}
	return &ScenarioError{Pos: position(e.Token), Message: "not valid YAML: " + message}
}

func tooDeep(tk *token.Token) *ScenarioError {
	return &ScenarioError{Pos: position(tk), Message: fmt.Sprintf("expected at most %d levels of nesting", maxDepth)}
}

func position(tk *token.Token) Pos {
	if tk == nil || tk.Position == nil {
		return Pos{}
	}
	return Pos{tk.Position.Line, tk.Position.Column}
}

// convert makes a node of the library's.
func convert(from ast.Node, depth int) (*node, *ScenarioError) {
	n := &node{pos: position(from.GetToken())}
	if depth > maxDepth {
		return nil, tooDeep(from.GetToken())
	}
	refused := func(what string) (*node, *ScenarioError) {
		return nil, &ScenarioError{Pos: n.pos, Message: what}
	}
	switch from := from.(type) {
	case *ast.NullNode:
	case *ast.StringNode:
		n.kind, n.text = scalar, from.Value
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		n.kind, n.text = scalar, from.GetToken().Value
	case *ast.SequenceNode:
		n.kind = list
		for _, value := range from.Values {
			item, e := convert(value, depth+1)
			if e != nil {
				return nil, e
			}
			n.items = append(n.items, item)
		}
	case *ast.MappingNode:
		n.kind = mapping
		for _, value := range from.Values {
			key, e := convert(value.Key, depth+1)
			if e != nil {
				return nil, e
			}
			if key.kind != scalar {
				return nil, &ScenarioError{Pos: key.pos, Message: "expected a field's name"}
			}
			f := field{name: key.text, pos: key.pos}
			if f.value, e = convert(value.Value, depth+1); e != nil {
				return nil, e
			}
			n.fields = append(n.fields, f)
		}
		if len(n.fields) > 0 && !from.IsFlowStyle {
			n.pos = n.fields[0].pos
		}
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return refused("anchors and aliases are not supported: write the value out")
	case *ast.TagNode:
		return refused("tags are not supported: quote text that begins with '!'")
	case *ast.LiteralNode:
		return refused("blocks of text ('|', '>') are not supported: use quotes")
	default:
		return refused("expected text, a mapping or a list")
	}
	return n, nil
}

// firstBad finds the first byte that is not text.
func firstBad(data []byte) (Pos, bool) {
	p := Pos{1, 1}
	for len(data) > 0 {
		c, n := utf8.DecodeRune(data)
		switch {
		case c == utf8.RuneError && n == 1, c < ' ' && c != '\t' && c != '\n' && c != '\r', c == 0x7f:
			return p, false
		case c == '\n':
			p = Pos{p.Line + 1, 1}
		default:
			p.Column++
		}
		data = data[n:]
	}
	return p, true
}
