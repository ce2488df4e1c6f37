package tree

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/token"
)

func (p *parser) next() *token.Token { return p.tokens[0] }

func (p *parser) take() *token.Token {
	p.last, p.tokens = p.tokens[0], p.tokens[1:]
	return p.last
}

// unexpected is the mistake of a token that does not belong where it stands.
func (p *parser) unexpected(what string) *Error {
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

func (p *parser) file() (*Node, *Error) {
	if p.next().Type == token.DocumentHeaderType {
		if start := p.take(); p.next().Position.Line == start.Position.Line {
			return nil, p.unexpected("a new line after '---'")
		}
	}
	root := &Node{Pos: Pos{1, 1}}
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
func (p *parser) block() (*Node, *Error) {
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
func (p *parser) blockMapping() (*Node, *Error) {
	column := p.next().Position.Column
	n := &Node{Kind: Mapping, Pos: position(p.next())}
	for {
		f := Field{Pos: position(p.next()), Value: &Node{}}
		if !isText(p.next()) {
			return nil, p.unexpected("a field")
		}
		f.Name = p.take().Value
		if colon := p.next(); colon.Type != token.MappingValueType || colon.Position.Line != f.Pos.Line {
			return nil, p.unexpected("':' after a field's name")
		}
		line := p.take().Position.Line
		var e *Error
		switch tk := p.next(); {
		case marker(tk):
		case tk.Position.Line == line: // text: only the next line may start a block
			f.Value, e = p.inline()
		case tk.Position.Column > column, tk.Position.Column == column && tk.Type == token.SequenceEntryType:
			f.Value, e = p.block()
		}
		if e != nil {
			return nil, e
		}
		n.Fields = append(n.Fields, f)
		if more, e := p.goesOn(column); !more {
			return n, e
		}
	}
}

// blockList reads entries whose dashes stand in one column.
func (p *parser) blockList() (*Node, *Error) {
	column := p.next().Position.Column
	n := &Node{Kind: List, Pos: position(p.next())}
	for p.next().Type == token.SequenceEntryType {
		dash := p.take()
		item := &Node{Pos: position(dash)}
		if tk := p.next(); !marker(tk) && (tk.Position.Line == dash.Position.Line || tk.Position.Column > column) {
			var e *Error
			if item, e = p.block(); e != nil {
				return nil, e
			}
		}
		n.Items = append(n.Items, item)
		if more, e := p.goesOn(column); !more {
			return n, e
		}
	}
	return n, nil // the field after a list that stands right below its name
}

// goesOn reports whether the next token belongs to a block that stands in a column. What is more to the right is a mistake.
func (p *parser) goesOn(column int) (bool, *Error) {
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
func (p *parser) inline() (*Node, *Error) {
	switch tk := p.next(); {
	case tk.Type == token.NullType:
		return &Node{Pos: position(p.take())}, nil
	case isText(tk):
		return &Node{Kind: Scalar, Pos: position(tk), Text: p.take().Value}, nil
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

func (p *parser) flowMapping() (*Node, *Error) {
	n := &Node{Kind: Mapping, Pos: position(p.take())}
	for p.next().Type != token.MappingEndType {
		f := Field{Pos: position(p.next()), Value: &Node{}}
		if !isText(p.next()) {
			return nil, p.unclosed(n, "'}'")
		}
		f.Name = p.take().Value
		if colon := p.next(); colon.Type != token.MappingValueType || colon.Position.Line != f.Pos.Line {
			return nil, p.unexpected("':' after a field's name")
		}
		p.take()
		if t := p.next().Type; t != token.CollectEntryType && t != token.MappingEndType {
			var e *Error
			if f.Value, e = p.inline(); e != nil {
				return nil, e
			}
		}
		n.Fields = append(n.Fields, f)
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

func (p *parser) flowList() (*Node, *Error) {
	n := &Node{Kind: List, Pos: position(p.take())}
	for p.next().Type != token.SequenceEndType {
		if len(p.tokens) == 1 {
			return nil, p.unclosed(n, "']'")
		}
		item, e := p.inline()
		if e != nil {
			return nil, e
		}
		n.Items = append(n.Items, item)
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
func (p *parser) unclosed(n *Node, bracket string) *Error {
	if len(p.tokens) == 1 {
		return &Error{Pos: n.Pos, Message: "not valid YAML: expected " + bracket + " to what begins here, found the end of the file"}
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
