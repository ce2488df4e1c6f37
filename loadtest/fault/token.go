package fault

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/loadtest/near"
)

type tokenKind uint8

const (
	bare tokenKind = iota
	quoted
	ending // of the line
)

// token is a word of a line.
type token struct {
	kind   tokenKind
	text   string
	column int
}

// String is the token for an error.
func (t token) String() string {
	const most = 40
	switch {
	case t.kind == ending:
		return "the end"
	case utf8.RuneCountInString(t.text) > most:
		return fmt.Sprintf("%q", string([]rune(t.text)[:most])+"…")
	default:
		return fmt.Sprintf("%q", t.text)
	}
}

func (t token) fail(format string, a ...any) *SyntaxError {
	return &SyntaxError{t.column, fmt.Sprintf(format, a...)}
}

// expected says what should have been here; known are the words out of which one may have been meant.
func (t token) expected(what string, known ...string) *SyntaxError {
	hint := ""
	if t.kind == bare {
		hint = near.Meant(t.text, known)
	}
	return t.fail("expected %s, found %s%s", what, t, hint)
}

// startsDuration reports whether the token can only be meant as a duration.
func (t token) startsDuration() bool {
	return t.kind == bare && strings.ContainsRune("0123456789.+-", rune(t.text[0]))
}

func (t token) duration() (time.Duration, error) {
	const what = "a duration, as 30s, 1m30s or 500ms"
	d, err := time.ParseDuration(t.text)
	switch {
	case t.kind != bare:
		return 0, t.expected(what)
	case err != nil:
		if _, unitless := time.ParseDuration(t.text + "s"); unitless == nil {
			return 0, t.fail("expected %s, found %s: did you mean %q?", what, t, t.text+"s")
		}
		return 0, t.expected(what)
	case d < 0:
		return 0, t.fail("expected %s, found %s, which is before the start", what, t)
	case d > maxTime:
		return 0, t.fail("expected at most %s, found %s", text(maxTime), t)
	}
	return d, nil
}

// split makes words of a line: what stands between blanks, or between quotes. In double quotes \" is a quote and \\ a backslash;
// in single ones nothing is special, as in a shell.
func split(line string) ([]token, error) {
	var tokens []token
	runes := make([]rune, 0, min(len(line), maxLine))
	for i, r := range line {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(line[i:]); size == 1 {
				return nil, token{column: len(runes) + 1}.fail("expected UTF-8, found byte %#x", line[i])
			}
		}
		if r == 0 {
			return nil, token{column: len(runes) + 1}.fail("expected text, found a NUL")
		}
		if len(runes) == maxLine {
			return nil, token{column: maxLine + 1}.fail("expected at most %d characters", maxLine)
		}
		runes = append(runes, r)
	}
	for i := 0; i < len(runes); {
		t := token{column: i + 1}
		switch r := runes[i]; {
		case unicode.IsSpace(r):
			i++
			continue
		case r == '"' || r == '\'':
			text, n := unquote(runes[i:])
			if n == 0 {
				return nil, t.fail("expected a closing %c for this one", r)
			}
			if i += n; i < len(runes) && !unicode.IsSpace(runes[i]) {
				return nil, token{column: i + 1}.fail("expected a blank after the closing quote, found %q", string(runes[i]))
			}
			t.kind, t.text = quoted, text
		default:
			from := i
			for i < len(runes) && !unicode.IsSpace(runes[i]) {
				i++
			}
			t.text = string(runes[from:i])
		}
		tokens = append(tokens, t)
	}
	return append(tokens, token{kind: ending, column: len(runes) + 1}), nil
}

// unquote reads what begins with a quote; n is how long it is with its quotes, 0 if the second one is missing.
func unquote(runes []rune) (text string, n int) {
	var b strings.Builder
	for i := 1; i < len(runes); i++ {
		switch r := runes[i]; {
		case r == runes[0]:
			return b.String(), i + 1
		case r == '\\' && runes[0] == '"' && i+1 < len(runes) && (runes[i+1] == '"' || runes[i+1] == '\\'):
			i++
			b.WriteRune(runes[i])
		default:
			b.WriteRune(r)
		}
	}
	return "", 0
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// quote writes a command so that unquote reads it.
func quote(s string) string { return `"` + escape.Replace(s) + `"` }
