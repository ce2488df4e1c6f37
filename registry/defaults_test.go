package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	var none Pool
	all := Pool{
		Sessions: SessionsReplicated, RehomeAfter: time.Minute, TTL: time.Hour, MaxTTL: 2 * time.Hour,
		ConnectTimeout: time.Second, DialTimeout: 2 * time.Second,
	}
	for _, c := range []struct {
		what string
		got  any
		want any
	}{
		{"rehome_after of local sessions", none.RehomeDelay(), 60 * time.Second},
		{"rehome_after of replicated sessions", (&Pool{Sessions: SessionsReplicated}).RehomeDelay(), 2 * time.Second},
		{"rehome_after", all.RehomeDelay(), time.Minute},
		{"connect_timeout by default", none.ConnectDeadline(), 10 * time.Second},
		{"connect_timeout", all.ConnectDeadline(), time.Second},
		{"dial_timeout by default", none.DialDeadline(), 3 * time.Second},
		{"dial_timeout", all.DialDeadline(), 2 * time.Second},
		{"ttl by default", none.RecordTTL(-1), 168 * time.Hour},
		{"ttl", all.RecordTTL(-1), time.Hour},
		{"max_ttl by default", none.RecordTTL(ExpiryNever), 720 * time.Hour},
		{"max_ttl", all.RecordTTL(ExpiryNever), 2 * time.Hour},
		{"probe by default", Probe{}.Resolved(), Probe{ProbeMQTT, 2 * time.Second, 2 * time.Second, 2, 3}},
		{"probe", Probe{ProbeTCP, 1, 2, 3, 4}.Resolved(), Probe{ProbeTCP, 1, 2, 3, 4}},
		{"weight by default", (&Broker{}).Share(), 1},
		{"weight", (&Broker{Weight: 7}).Share(), 7},
		{"weight above the bound", (&Broker{Weight: 5000}).Share(), 1000},
		{"transport by default", (&Broker{}).Over(), TransportTCP},
		{"transport", (&Broker{Transport: TransportWSS}).Over(), TransportWSS},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	p := Pool{Brokers: []Broker{{ID: "b1"}, {ID: "b2", Weight: 3}}}
	if b := p.Broker("b2"); b == nil || b.Weight != 3 || p.Broker("b3") != nil {
		t.Errorf("brokers by ID: %+v, %+v", b, p.Broker("b3"))
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "0", "-", "edge-17", strings.Repeat("z", 63)} {
		if err := CheckName("an edge", name); err != nil || !ValidName(name) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "A", "a.b", "a/b", "a b", "ä", "\x00", strings.Repeat("z", 64)} {
		if err := CheckName("an edge", name); err == nil || ValidName(name) || len(err.Error()) > 500 {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := CheckRef(BrokerRef{"p", "b1"}); err != nil {
		t.Error(err)
	}
	if CheckRef(BrokerRef{"P", "b1"}) == nil || CheckRef(BrokerRef{"p", ""}) == nil {
		t.Error("an invalid reference passed")
	}
}

func TestCheckWrites(t *testing.T) {
	w := Write{Pool: "p", Key: "k"}
	ok := []Write{w, {Pool: "q", Key: "k", Lease: time.Hour, Facts: []Fact{{Kind: KindPool, Pool: "q"}, {Kind: KindVerdict}, {Kind: KindAdmin}}}}
	if err := CheckWrites(ok); err != nil {
		t.Error(err)
	}
	lease, fact, pool := w, w, w
	lease.Lease, fact.Facts, pool.Pool = -1, []Fact{{Kind: KindEdge}}, "P"
	for what, ws := range map[string][]Write{
		"twice": {w, w}, "too many": make([]Write, MaxCommit+1), "a negative lease": {lease}, "a fact of another kind": {fact}, "a pool's name": {pool},
	} {
		if err := CheckWrites(ws); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Metric labels: every value of a closed set has a name of its own.
func TestLabels(t *testing.T) {
	seen := make(map[string]bool)
	label := func(v fmt.Stringer) {
		t.Helper()
		if s := v.String(); seen[s] || s == "unknown" || s != strings.ToLower(s) || strings.ContainsAny(s, " -") {
			t.Errorf("label %q", s)
		} else {
			seen[s] = true
		}
	}
	for _, s := range Sources {
		label(s)
	}
	if len(Sources) != int(SourceAway) {
		t.Errorf("%d sources listed, there are %d", len(Sources), SourceAway)
	}
	seen = make(map[string]bool)
	for s := Committed; s <= Refused; s++ {
		label(s)
	}
	if Source(0).String() != "unknown" || Status(99).String() != "unknown" {
		t.Error("a value outside the set has a name")
	}
}

func TestMessageIsOfOneKind(t *testing.T) {
	n, h, d := &Notice{}, &Health{}, &BrokerRef{}
	for i, c := range []struct {
		m    Message
		want bool
	}{
		{Message{}, false},
		{Message{Notice: n}, true},
		{Message{Health: h}, true},
		{Message{Doubt: d}, true},
		{Message{Notice: n, Doubt: d}, false},
		{Message{Notice: n, Health: h, Doubt: d}, false},
	} {
		if got := c.m.Valid(); got != c.want {
			t.Errorf("message %d: %v", i, got)
		}
	}
}
