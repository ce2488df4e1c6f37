// Package tree reads the part of YAML that people write scenarios in, as a tree whose every value knows where it stands.
//
//	root, err := tree.Parse(data)
//	for _, f := range root.Fields {
//		fmt.Println(f.Pos, f.Name, f.Value.Text)
//	}
//
// The lexer is the YAML library's. The tree is built here, because that library's parser takes minutes and gigabytes for some files of the
// permitted size, and because a scenario needs only this much of YAML:
//
//	file    = ["---"] [ value ] ["..."]
//	value   = text | mapping | list | "[" values "]" | "{" text ":" value, … "}" | nothing
//	mapping = text ":" value          one below the other in one column; values stand on the same line, or
//	list    = "-" value               below and more to the right (a list's dashes also right below its name)
//
// It refuses anchors, tags, blocks of text, a second document, and what is deep or large beyond reason. What a text means is its reader's
// business: 1.10 is no number here.
package tree

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Bounds of what is read.
const (
	MaxFile  = 1 << 20
	maxDepth = 32 // of mappings and lists within each other
)

// Pos is a place in a file; lines and columns count from 1, columns in characters.
type Pos struct{ Line, Column int }

// Kind is what a value is.
type Kind uint8

// The kinds.
const (
	Empty Kind = iota // nothing; also written as null or ~
	Scalar
	Mapping
	List
)

// A Node is a value.
type Node struct {
	Kind   Kind
	Pos    Pos
	Text   string  // of a scalar, as it was written but for quotes and escapes
	Fields []Field // of a mapping, in order, duplicates included
	Items  []*Node // of a list
}

// A Field is one line of a mapping.
type Field struct {
	Name  string
	Pos   Pos
	Value *Node
}

// An Error is what is wrong with a file, and where.
type Error struct {
	Pos     Pos // zero: the file as a whole
	Message string
}

func (e *Error) Error() string {
	if e.Pos == (Pos{}) {
		return e.Message
	}
	return fmt.Sprintf("%d:%d: %s", e.Pos.Line, e.Pos.Column, e.Message)
}

// Parse returns the root of a file's only document. The error is an *Error.
func Parse(data []byte) (*Node, error) {
	if len(data) > MaxFile {
		return nil, &Error{Message: fmt.Sprintf("expected at most %d bytes", MaxFile)}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors write
	if p, ok := firstBad(data); !ok {
		return nil, &Error{p, "expected text in UTF-8 without control characters"}
	}
	p, e := newParser(lexer.Tokenize(string(data)))
	if e != nil {
		return nil, e
	}
	root, e := p.file()
	if e != nil {
		return nil, e
	}
	return root, nil
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

// parser builds the tree of a file, each token looked at once or twice.
type parser struct {
	tokens []*token.Token // without comments; the last is an end that stands in column 0
	last   *token.Token   // taken
	depth  int
}

// newParser refuses the parts of YAML that a scenario does not need.
func newParser(all token.Tokens) (*parser, *Error) {
	p := &parser{tokens: make([]*token.Token, 0, len(all)+1)}
	for _, tk := range all {
		message := ""
		switch tk.Type {
		case token.InvalidType:
			message = "not valid YAML: " + clip(tk.Error, 100)
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			message = "anchors and aliases are not supported: write the value out"
		case token.TagType:
			message = "tags are not supported: quote text that begins with '!'"
		case token.DirectiveType:
			message = "directives are not supported: quote text that begins with '%'"
		case token.MappingKeyType:
			message = "complex keys ('?') are not supported"
		case token.LiteralType, token.FoldedType:
			message = "blocks of text ('|', '>') are not supported: use quotes"
		case token.CommentType:
			continue
		}
		if message != "" {
			return nil, &Error{position(tk), message}
		}
		p.tokens = append(p.tokens, tk)
	}
	p.tokens = append(p.tokens, &token.Token{Type: token.DocumentEndType, Position: &token.Position{}})
	return p, nil
}

func position(tk *token.Token) Pos { return Pos{tk.Position.Line, tk.Position.Column} }

// clip bounds text of the file that a message quotes.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
