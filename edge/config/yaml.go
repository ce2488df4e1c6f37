package config

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on the shape of a file. The parser's work and memory grow with the square of both,
// while the lexer's stay linear: so both are judged on the tokens, before the parser sees them.
const (
	maxDepth = 32   // mappings and lists within each other; a mesh file needs 6
	maxKeys  = 1000 // of one mapping; the largest has about 15
)

// parseYAML returns the root of a file's only document; nil for an empty file or after a mistake.
func (r *report) parseYAML(data []byte) ast.Node {
	if len(data) > MaxFile {
		r.add(&Error{File: r.file, Message: fmt.Sprintf("expected at most %d bytes", MaxFile)})
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors write
	if p, ok := firstBad(data); !ok {
		r.add(&Error{File: r.file, Pos: p, Message: "expected text in UTF-8 without control characters"})
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if e := checkTokens(tokens); e != nil {
		e.File = r.file
		r.add(e)
		return nil
	}
	f, err := parseTokens(tokens)
	if err != nil {
		e := &Error{File: r.file, Message: "not valid YAML: " + err.Error()}
		var ye yaml.Error
		if errors.As(err, &ye) {
			e.Message = "not valid YAML: " + ye.GetMessage()
			if tk := ye.GetToken(); tk != nil {
				e.Pos = position(tk)
				if bytes.Contains(line(data, e.Pos.Line), []byte("]:")) {
					e.Message += ": an address such as \"[::]:1883\" needs quotes"
				}
			}
		}
		r.add(e)
		return nil
	}
	if len(f.Docs) == 0 {
		return nil
	}
	if len(f.Docs) > 1 {
		e := &Error{File: r.file, Message: "expected one YAML document, found a second"}
		if start := f.Docs[1].Start; start != nil {
			e.Pos = position(start)
		}
		r.add(e)
		return nil
	}
	return f.Docs[0].Body
}

// parseTokens turns a panic of the parser into an error: a file may be refused, but must never end the process.
func parseTokens(tokens token.Tokens) (f *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			f, err = nil, fmt.Errorf("the parser gave up: %v", p)
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

func position(tk *token.Token) Pos { return Pos{tk.Position.Line, tk.Position.Column} }

// line returns the n-th line of a file, counted from 1.
func line(data []byte, n int) []byte {
	for i := 1; i < n; i++ {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	data, _, _ = bytes.Cut(data, []byte("\n"))
	return data
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

// frame is a mapping or a list that is open at a token.
type frame struct {
	flow   bool // [] or {}
	column int  // of the entries of a block
	keys   int
}

// checkTokens refuses the parts of YAML that configuration does not need, and shapes beyond the bounds.
func checkTokens(tokens token.Tokens) *Error {
	var open []frame
	block := func(column int) *frame { // the block whose entries stand at column
		for len(open) > 0 && !open[len(open)-1].flow && open[len(open)-1].column > column {
			open = open[:len(open)-1]
		}
		if len(open) == 0 || open[len(open)-1].column != column {
			open = append(open, frame{column: column})
		}
		return &open[len(open)-1]
	}
	for _, tk := range tokens {
		var f *frame
		switch tk.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return refuse(tk, "anchors and aliases are not supported: write the value out")
		case token.TagType:
			return refuse(tk, "tags are not supported: quote text that begins with '!'")
		case token.DirectiveType:
			return refuse(tk, "directives are not supported")
		case token.MappingKeyType:
			return refuse(tk, "complex keys ('?') are not supported")
		case token.SequenceStartType, token.MappingStartType:
			open = append(open, frame{flow: true})
		case token.SequenceEndType, token.MappingEndType:
			for len(open) > 0 && !open[len(open)-1].flow {
				open = open[:len(open)-1]
			}
			open = open[:max(0, len(open)-1)]
		case token.SequenceEntryType:
			block(tk.Position.Column)
		case token.MappingValueType:
			switch {
			case len(open) > 0 && open[len(open)-1].flow:
				f = &open[len(open)-1]
			case tk.Prev != nil:
				f = block(tk.Prev.Position.Column) // the key
			default:
				f = block(tk.Position.Column)
			}
			f.keys++
		}
		if len(open) > maxDepth {
			return refuse(tk, fmt.Sprintf("expected at most %d levels of nesting", maxDepth))
		}
		if f != nil && f.keys > maxKeys {
			return refuse(tk, fmt.Sprintf("expected at most %d fields", maxKeys))
		}
	}
	return nil
}

func refuse(tk *token.Token, message string) *Error {
	return &Error{Pos: position(tk), Message: message}
}
