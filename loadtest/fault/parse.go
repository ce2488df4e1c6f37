package fault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/near"
)

// The bounds of a line.
const (
	maxLine = 4096                // characters; a longer command belongs in a script
	maxName = 63                  // of a broker or an edge, as in a mesh
	maxTime = 30 * 24 * time.Hour // longer than any run
)

// SyntaxError is what Parse says.
type SyntaxError struct {
	Column  int // characters from 1: where what was not expected begins
	Message string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("column %d: %s", e.Column, e.Message) }

// Unwrap makes it an ErrSyntax.
func (*SyntaxError) Unwrap() error { return ErrSyntax }

// A word may be said in several ways; the first is the one that String writes.
type word[T ~string] struct {
	value T
	also  []string
}

var verbs = []word[Verb]{
	{Kill, []string{"crash"}},
	{Term, []string{"terminate"}},
	{Stop, []string{"halt"}},
	{Freeze, []string{"pause", "suspend"}},
	{Restart, []string{"bounce"}},
	{Start, nil},
	{Run, []string{"exec"}},
}

var kinds = []word[Kind]{
	{Broker, nil},
	{Edge, nil},
	{Etcd, nil},
	{NATS, nil},
	{Process, []string{"process"}},
}

type clause string

const (
	clauseAt    clause = "at"
	clauseEvery clause = "every"
	clauseFor   clause = "for"
)

var clauses = []word[clause]{
	{clauseAt, []string{"after", "in"}},
	{clauseEvery, []string{"each"}},
	{clauseFor, []string{"during"}},
}

var randoms = []string{"random", "any"}

func find[T ~string](words []word[T], s string) (T, bool) {
	for _, w := range words {
		if string(w.value) == s || slices.Contains(w.also, s) {
			return w.value, true
		}
	}
	return "", false
}

// said lists the words; all = with the other ways to say them.
func said[T ~string](words []word[T], all bool) []string {
	var list []string
	for _, w := range words {
		list = append(list, string(w.value))
		if all {
			list = append(list, w.also...)
		}
	}
	return list
}

// Parse reads a fault. at, every and for may also follow the target, in any order.
func Parse(line string) (Fault, error) {
	tokens, err := split(line)
	if err != nil {
		return Fault{}, err
	}
	p := parser{tokens: tokens, columns: map[clause]int{}}
	if err := p.fault(); err != nil {
		return Fault{}, err
	}
	return p.f, nil
}

type parser struct {
	tokens  []token // the last one is the end of the line
	f       Fault
	columns map[clause]int // where the clauses that were given begin
}

func (p *parser) next() token { return p.tokens[0] }

func (p *parser) take() token {
	t := p.tokens[0]
	if t.kind != ending {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) fault() error {
	for {
		c, ok := p.clause()
		if !ok {
			break
		}
		if c == clauseFor {
			return p.next().expected("the verb before for")
		}
		if err := p.duration(c); err != nil {
			return err
		}
	}
	verb := p.next()
	if err := p.verb(); err != nil {
		return err
	}
	target := p.next()
	if err := p.object(); err != nil {
		return err
	}
	for p.next().kind != ending {
		c, ok := p.clause()
		switch {
		case ok:
		case p.next().startsDuration() && p.columns[clauseFor] == 0: // freeze edge e1 5s
			c = clauseFor
		default:
			return p.next().expected("for, at, every or the end", said(clauses, true)...)
		}
		if err := p.duration(c); err != nil {
			return err
		}
	}
	return p.check(verb, target)
}

// clause tells which clause begins here.
func (p *parser) clause() (clause, bool) {
	if p.next().kind != bare {
		return "", false
	}
	return find(clauses, p.next().text)
}

// duration reads a clause; that of for may lack its first word.
func (p *parser) duration(c clause) error {
	first := p.next()
	if p.columns[c] > 0 {
		return first.fail("there is one %s already, at column %d", c, p.columns[c])
	}
	p.columns[c] = first.column
	if _, ok := p.clause(); ok {
		p.take()
	}
	t := p.take()
	d, err := t.duration()
	if err != nil {
		return err
	}
	if d == 0 && c != clauseAt {
		return t.fail("expected more than nothing, found %s", t)
	}
	switch c {
	case clauseAt:
		p.f.At = d
	case clauseEvery:
		p.f.Every = d
	case clauseFor:
		p.f.For = d
	}
	return nil
}

func (p *parser) verb() error {
	t := p.take()
	v, ok := find(verbs, t.text)
	if !ok || t.kind != bare {
		known := said(verbs, true)
		if p.f.At == 0 && p.f.Every == 0 {
			known = append(known, said(clauses[:2], true)...)
		}
		return t.expected("a verb ("+strings.Join(said(verbs, false), ", ")+")", known...)
	}
	p.f.Verb = v
	return nil
}

// object reads what the verb is done to.
func (p *parser) object() error {
	if p.f.Verb == Run {
		t := p.take()
		if t.kind != quoted {
			return t.expected(`the command in quotes, as in run "systemctl restart nats"`)
		}
		if strings.TrimSpace(t.text) == "" {
			return t.fail("expected a command, found none between the quotes")
		}
		p.f.Command = t.text
		return nil
	}
	t := p.take()
	if p.f.Target.Random = t.kind == bare && slices.Contains(randoms, t.text); p.f.Target.Random {
		t = p.take()
	}
	kind, ok := find(kinds, t.text)
	switch {
	case p.f.Target.Random && (!ok || t.kind != bare || kind == Process):
		return t.expected("broker, edge, etcd or nats after random", said(kinds[:4], true)...)
	case !ok || t.kind != bare:
		err := t.expected("a target ("+strings.Join(said(kinds, false), ", ")+" or random)", append(said(kinds, true), randoms...)...)
		if t.kind == bare && (strings.HasPrefix(t.text, "b") || strings.HasPrefix(t.text, "e")) && near.Of(t.text, said(kinds, true)) == "" && validName(t.text) {
			guess := Broker
			if t.text[0] == 'e' {
				guess = Edge
			}
			err.Message += fmt.Sprintf(": did you mean %q?", string(guess)+" "+t.text)
		}
		return err
	}
	p.f.Target.Kind = kind
	if p.f.Target.Random {
		return nil
	}
	return p.name(kind)
}

// name reads which one of a kind it is.
func (p *parser) name(kind Kind) error {
	t := p.next()
	_, isClause := p.clause()
	switch kind {
	case Process:
		p.take()
		pid, err := strconv.ParseInt(t.text, 10, 32)
		if t.kind != bare || err != nil || pid < 2 {
			return t.expected("the number of a process above 1")
		}
		p.f.Target.PID = int(pid)
	case Etcd, NATS:
		if n, err := strconv.ParseUint(t.text, 10, 16); err == nil && t.kind == bare {
			p.take()
			if n == 0 {
				return t.fail("expected which %s, counted from 1, found 0", kind)
			}
			p.f.Target.Name = strconv.FormatUint(n, 10)
		}
	default:
		p.take()
		if _, err := t.duration(); err == nil || isClause || t.kind != bare || !validName(t.text) {
			return t.expected(fmt.Sprintf("the name of %s, as in %s %c1", article(kind), kind, kind[0]))
		}
		p.f.Target.Name = t.text
	}
	return nil
}

func article(k Kind) string {
	if k == Edge {
		return "an edge"
	}
	return "a " + string(k)
}

// check says what each word allows and all together do not.
func (p *parser) check(verb, target token) error {
	at := func(c clause) token { return token{column: p.columns[c]} }
	f := p.f
	switch {
	case f.For > 0 && f.Verb == Restart:
		return at(clauseFor).fail("restart starts at once: for a while without it say %q", Fault{Verb: Stop, Target: f.Target, For: f.For})
	case f.For > 0 && f.Verb == Start:
		return at(clauseFor).fail("start has no duration")
	case f.Target.Kind == Process && f.revives() && f.For > 0 && f.Verb != Stop:
		return at(clauseFor).fail("expected the end: nothing says how to start a process again that is known by its pid alone")
	case f.Target.Kind == Process && f.revives():
		return target.fail("expected a target out of the state file: nothing says how to %s a process that is known by its pid alone", f.Verb)
	case f.Every > 0 && f.For == 0 && (f.Verb == Stop || f.Verb == Freeze):
		return verb.fail("%s lasts to the end of the run and cannot come again: expected for DURATION behind the target", f.Verb)
	case f.Every > 0 && f.For >= f.Every:
		return at(clauseFor).fail("expected less than the %s from one to the next, found %s", text(f.Every), text(f.For))
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}
