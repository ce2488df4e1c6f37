package config

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// A node is a value of the file: text, a mapping, a list, or nothing (also written as null or ~).
type node struct {
	kind   kind
	pos    Pos
	text   string  // of a scalar, as it was written but for quotes and escapes
	fields []field // of a mapping, in order, duplicates included
	items  []*node // of a list
}

type kind uint8

const (
	empty kind = iota
	scalar
	mapping
	list
)

type field struct {
	name  string
	pos   Pos
	value *node
}

// maxDepth bounds mappings and lists within each other; a mesh file needs 6.
const maxDepth = 32

// parseYAML returns the root of a file's only document; nil after a mistake, which is reported.
//
// The lexer is the YAML library's. The tree is built here, because that library's parser takes minutes and gigabytes for
// some files of the permitted size, and because a configuration needs only this much of YAML:
//
//	file    = ["---"] [ value ] ["..."]
//	value   = text | mapping | list | "[" values "]" | "{" text ":" value, … "}" | nothing
//	mapping = text ":" value          one below the other in one column; values stand on the same line, or
//	list    = "-" value               below and more to the right (a list's dashes also right below its name)
func (r *report) parseYAML(data []byte) *node {
	if len(data) > MaxFile {
		r.add(&Error{File: r.file, Message: fmt.Sprintf("expected at most %d bytes", MaxFile)})
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors write
	if p, ok := firstBad(data); !ok {
		r.add(&Error{File: r.file, Pos: p, Message: "expected text in UTF-8 without control characters"})
		return nil
	}
	p, e := newTreeParser(lexer.Tokenize(string(data)))
	var root *node
	if e == nil {
		root, e = p.file()
	}
	if e != nil {
		e.File = r.file
		r.add(e)
		return nil
	}
	return root
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

// treeParser builds the tree of a file, each token looked at once or twice.
type treeParser struct {
	tokens []*token.Token // without comments; the last is an end that stands in column 0
	last   *token.Token   // taken
	depth  int
}

// newTreeParser refuses the parts of YAML that a configuration does not need.
func newTreeParser(all token.Tokens) (*treeParser, *Error) {
	p := &treeParser{tokens: make([]*token.Token, 0, len(all)+1)}
	for _, tk := range all {
		message := ""
		switch tk.Type {
		case token.InvalidType:
			message = "not valid YAML: " + lexerError(tk.Error)
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			message = "anchors and aliases are not supported: write the value out"
		case token.TagType:
			message = "tags are not supported: quote text that begins with '!'"
		case token.DirectiveType:
			message = "directives are not supported"
		case token.MappingKeyType:
			message = "complex keys ('?') are not supported"
		case token.LiteralType, token.FoldedType:
			message = "blocks of text ('|', '>') are not supported: use quotes"
		case token.CommentType:
			continue
		}
		if message != "" {
			return nil, &Error{Pos: position(tk), Message: message}
		}
		p.tokens = append(p.tokens, tk)
	}
	p.tokens = append(p.tokens, &token.Token{Type: token.DocumentEndType, Position: &token.Position{}})
	return p, nil
}

// lexerError is what the lexer says, on one line. Of tabs it says, with a tab in its words, only that they cannot be.
func lexerError(s string) string {
	if strings.Contains(s, "character '\t'") || strings.HasPrefix(s, "tab character") {
		return "found a tab where only spaces may indent (YAML 1.2.2 §6.1): replace it by spaces"
	}
	return clip(strings.Join(strings.Fields(s), " "), 100)
}

func position(tk *token.Token) Pos { return Pos{tk.Position.Line, tk.Position.Column} }

func (p *treeParser) next() *token.Token { return p.tokens[0] }

func (p *treeParser) take() *token.Token {
	p.last, p.tokens = p.tokens[0], p.tokens[1:]
	return p.last
}

// unexpected is the mistake of a token that does not belong where it stands.
func (p *treeParser) unexpected(what string) *Error {
	tk := p.next()
	found := fmt.Sprintf("%.60q", tk.Value)
	switch {
	case len(p.tokens) == 1:
		tk, found = p.last, "the end of the file"
	case strings.HasPrefix(tk.Value, ":"):
		found += ": text with a ':' in it may need quotes"
	}
	return &Error{Pos: position(tk), Message: "not valid YAML: expected " + what + ", found " + found}
}

func (p *treeParser) file() (*node, *Error) {
	if p.next().Type == token.DocumentHeaderType {
		if start := p.take(); p.next().Position.Line == start.Position.Line {
			return nil, p.unexpected("a new line after '---'")
		}
	}
	root := &node{pos: Pos{1, 1}}
	if !marker(p.next()) {
		var e *Error
		if root, e = p.block(); e != nil {
			return nil, e
		}
	}
	if len(p.tokens) > 1 && p.next().Type == token.DocumentEndType {
		p.take()
	}
	switch tk := p.next(); {
	case len(p.tokens) == 1:
		return root, nil
	case tk.Type == token.DocumentHeaderType:
		return nil, &Error{Pos: position(tk), Message: "expected one YAML document, found a second"}
	}
	return nil, p.unexpected("nothing more")
}

func marker(tk *token.Token) bool {
	return tk.Type == token.DocumentHeaderType || tk.Type == token.DocumentEndType
}

// block reads a value in any form; its place was judged by the caller.
func (p *treeParser) block() (*node, *Error) {
	if p.depth++; p.depth > maxDepth {
		return nil, &Error{Pos: position(p.next()), Message: fmt.Sprintf("expected at most %d levels of nesting", maxDepth)}
	}
	defer func() { p.depth-- }()
	switch tk := p.next(); {
	case tk.Type == token.SequenceEntryType:
		return p.blockList()
	case isText(tk) && p.tokens[1].Type == token.MappingValueType && p.tokens[1].Position.Line == tk.Position.Line:
		return p.blockMapping()
	}
	return p.inline()
}

// blockMapping reads fields that stand in one column.
func (p *treeParser) blockMapping() (*node, *Error) {
	column := p.next().Position.Column
	n := &node{kind: mapping, pos: position(p.next())}
	for {
		f := field{pos: position(p.next()), value: &node{}}
		if !isText(p.next()) {
			return nil, p.unexpected("a field")
		}
		f.name = p.take().Value
		if colon := p.next(); colon.Type != token.MappingValueType || colon.Position.Line != f.pos.Line {
			return nil, p.unexpected("':' after a field's name")
		}
		line := p.take().Position.Line
		var e *Error
		switch tk := p.next(); {
		case marker(tk):
		case tk.Position.Line == line: // text: only the next line may start a block
			f.value, e = p.inline()
		case tk.Position.Column > column, tk.Position.Column == column && tk.Type == token.SequenceEntryType:
			f.value, e = p.block()
		}
		if e != nil {
			return nil, e
		}
		n.fields = append(n.fields, f)
		if more, e := p.goesOn(column); !more {
			return n, e
		}
	}
}

// blockList reads entries whose dashes stand in one column.
func (p *treeParser) blockList() (*node, *Error) {
	column := p.next().Position.Column
	n := &node{kind: list, pos: position(p.next())}
	for p.next().Type == token.SequenceEntryType {
		dash := p.take()
		item := &node{pos: position(dash)}
		if tk := p.next(); !marker(tk) && (tk.Position.Line == dash.Position.Line || tk.Position.Column > column) {
			var e *Error
			if item, e = p.block(); e != nil {
				return nil, e
			}
		}
		n.items = append(n.items, item)
		if more, e := p.goesOn(column); !more {
			return n, e
		}
	}
	return n, nil // the field after a list that stands right below its name
}

// goesOn reports whether the next token belongs to a block that stands in a column. What is more to the right is a mistake.
func (p *treeParser) goesOn(column int) (bool, *Error) {
	switch tk := p.next(); {
	case marker(tk):
		return false, nil
	case tk.Position.Column <= column:
		return tk.Position.Column == column, nil
	case tk.Position.Line == p.last.Position.Line:
		return false, p.unexpected("a new line after the value")
	}
	return false, p.unexpected(fmt.Sprintf("a line that begins in column %d, like those above, or further left", column))
}

// inline reads text, or a mapping or list in brackets.
func (p *treeParser) inline() (*node, *Error) {
	switch tk := p.next(); {
	case tk.Type == token.NullType:
		return &node{pos: position(p.take())}, nil
	case isText(tk):
		return &node{kind: scalar, pos: position(tk), text: p.take().Value}, nil
	case tk.Type != token.MappingStartType && tk.Type != token.SequenceStartType:
		return nil, p.unexpected("a value")
	}
	if p.depth++; p.depth > maxDepth {
		return nil, &Error{Pos: position(p.next()), Message: fmt.Sprintf("expected at most %d levels of nesting", maxDepth)}
	}
	defer func() { p.depth-- }()
	if p.next().Type == token.MappingStartType {
		return p.flowMapping()
	}
	return p.flowList()
}

func (p *treeParser) flowMapping() (*node, *Error) {
	n := &node{kind: mapping, pos: position(p.take())}
	for p.next().Type != token.MappingEndType {
		f := field{pos: position(p.next()), value: &node{}}
		if !isText(p.next()) {
			return nil, p.unclosed(n, "'}'")
		}
		f.name = p.take().Value
		if colon := p.next(); colon.Type != token.MappingValueType || colon.Position.Line != f.pos.Line {
			return nil, p.unexpected("':' after a field's name")
		}
		p.take()
		if t := p.next().Type; t != token.CollectEntryType && t != token.MappingEndType {
			var e *Error
			if f.value, e = p.inline(); e != nil {
				return nil, e
			}
		}
		n.fields = append(n.fields, f)
		switch p.next().Type {
		case token.CollectEntryType:
			p.take()
		case token.MappingEndType:
		default:
			return nil, p.unclosed(n, "'}'")
		}
	}
	p.take()
	return n, nil
}

func (p *treeParser) flowList() (*node, *Error) {
	n := &node{kind: list, pos: position(p.take())}
	for p.next().Type != token.SequenceEndType {
		if len(p.tokens) == 1 {
			return nil, p.unclosed(n, "']'")
		}
		item, e := p.inline()
		if e != nil {
			return nil, e
		}
		n.items = append(n.items, item)
		switch p.next().Type {
		case token.CollectEntryType:
			p.take()
		case token.SequenceEndType:
		default:
			return nil, p.unclosed(n, "']'")
		}
	}
	p.take()
	return n, nil
}

// unclosed is the mistake of a mapping or list in brackets that neither goes on nor ends.
func (p *treeParser) unclosed(n *node, bracket string) *Error {
	if len(p.tokens) == 1 {
		return &Error{Pos: n.pos, Message: "not valid YAML: expected " + bracket + " to what begins here, found the end of the file"}
	}
	return p.unexpected("',' or " + bracket)
}

// isText reports whether a token is a scalar of any type: what its text means, its reader decides.
func isText(tk *token.Token) bool {
	switch tk.Type {
	case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.BoolType, token.NullType, token.FloatType,
		token.IntegerType, token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType, token.InfinityType, token.NanType:
		return true
	}
	return false
}
