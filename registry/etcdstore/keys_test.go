package etcdstore

import (
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ key, want string }{
		{"", ""},
		{"thermostat-17_a.B", "thermostat-17_a.B"},
		{"a/b", "a%2Fb"},
		{"../../pools/p", "..%2F..%2Fpools%2Fp"},
		{"%2F", "%252F"},
		{"~", "%7E"},
		{"\x00\xff", "%00%FF"},
		{strings.Repeat("a", 128), strings.Repeat("a", 128)},
		{strings.Repeat("/", 42) + "ab", strings.Repeat("%2F", 42) + "ab"},
	} {
		if got := escape(c.key); got != c.want {
			t.Errorf("escape(%q) = %q, want %q", c.key, got, c.want)
		}
	}
	// printf 'a%.0s' {1..129} | sha256sum
	const sum = "c12cb024a2e5551cca0e08fce8f1c5e314555cc3fef6329ee994a3db752166ae"
	if got := escape(strings.Repeat("a", 129)); got != "~"+sum {
		t.Errorf("escape of 129 bytes = %q, want ~%s", got, sum)
	}
	if got := escape(strings.Repeat("/", 43)); len(got) != 65 || got[0] != '~' {
		t.Errorf("escape of 43 slashes = %q, want a hash", got)
	}
}

func TestUnescapeTakesOnlyWhatEscapeWrites(t *testing.T) {
	for _, e := range []string{"a/b", "%2f", "%", "%2", "%zz", "%41", "a b", "~", "~ab", "~" + strings.Repeat("A", 64), strings.Repeat("a", 129), "é"} {
		if key, hash, ok := unescape([]byte(e)); ok {
			t.Errorf("unescape(%q) = %q, hash %q", e, key, hash)
		}
	}
}

func TestParse(t *testing.T) {
	k := newKeyspace("m")
	ref := registry.BrokerRef{Pool: "p", Broker: "b"}
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		key  string
		want place
	}{
		{k.schema(), place{schema: true}},
		{k.leader(), place{kind: registry.KindLeader}},
		{k.prune(), place{kind: registry.KindPrune}},
		{k.pool("p"), place{kind: registry.KindPool, name: "p"}},
		{k.admin(ref), place{kind: registry.KindAdmin, pool: "p", name: "b"}},
		{k.verdict(ref), place{kind: registry.KindVerdict, pool: "p", name: "b"}},
		{k.edge("e1"), place{kind: registry.KindEdge, name: "e1"}},
		{k.health("e1"), place{kind: registry.KindHealth, name: "e1"}},
		{k.affinity("p", "a/b"), place{kind: registry.KindAffinity, pool: "p", name: "a/b"}},
		{k.affinity("p", ""), place{kind: registry.KindAffinity, pool: "p"}},
		{k.affinity("p", long), place{kind: registry.KindAffinity, pool: "p", hash: escape(long)}},
		{k.pin("p", "\x00"), place{kind: registry.KindPin, pool: "p", name: "\x00"}},
		{"/limpet/m/secrets/tickets/1", place{}},
		{"/limpet/m/jobs/7", place{}},
		{"/limpet/m/dns/e1", place{}},
	} {
		var d wire.Decoder
		if got, ok := k.parse([]byte(c.key), &d); !ok || got != c.want {
			t.Errorf("parse(%q) = %+v, %v; want %+v", c.key, got, ok, c.want)
		}
	}
	for _, key := range []string{
		"", "/limpet/m", "/limpet/m2/leader", "/limpet/m/", "/limpet/m/leaders", "/limpet/m/leader/x", "/limpet/m/pruned/x", "/limpet/m/pools/", "/limpet/m/pools/A",
		"/limpet/m/pools/p/q", "/limpet/m/brokers/p", "/limpet/m/brokers/p/", "/limpet/m/brokers/p/b/c", "/limpet/m/affinity/p",
		"/limpet/m/affinity/P/k", "/limpet/m/affinity/p/a/b", "/limpet/m/affinity/p/%41", "/limpet/m/affinity/p/~00", "/limpet/m/unknown/x",
	} {
		var d wire.Decoder
		if got, ok := k.parse([]byte(key), &d); ok {
			t.Errorf("parse(%q) = %+v", key, got)
		}
	}
}

// FuzzKeys proves of any two keys that strangers choose: they stay under their prefix, they do not meet, they read back.
func FuzzKeys(f *testing.F) {
	f.Add("a", "b")
	f.Add("a/b", "a%2Fb")
	f.Add("../../pools/p", "~"+strings.Repeat("0", 64))
	f.Add(strings.Repeat("/", 43), strings.Repeat("/", 44))
	f.Add(strings.Repeat("a", 128), strings.Repeat("a", 129))
	f.Add("\x00", "\xff")
	k := newKeyspace("m")
	f.Fuzz(func(t *testing.T, a, b string) {
		ka, kb := k.affinity("p", a), k.affinity("p", b)
		if (ka == kb) != (a == b) {
			t.Fatalf("%q and %q are both %q", a, b, ka)
		}
		e, ok := strings.CutPrefix(ka, "/limpet/m/affinity/p/")
		if !ok || strings.Contains(e, "/") || len(e) > maxEscapedLen {
			t.Fatalf("%q is at %q", a, ka)
		}
		for i := 0; i < len(e); i++ {
			if c := e[i]; !plain(c) && c != '%' && (c != hashMark || i > 0) {
				t.Fatalf("%q is at %q, which holds %q", a, ka, c)
			}
		}
		var d wire.Decoder
		p, ok := k.parse([]byte(ka), &d)
		if !ok || p.kind != registry.KindAffinity || p.pool != "p" {
			t.Fatalf("%q is at %q, which reads %+v, %v", a, ka, p, ok)
		}
		if (p.hash != "") != (hidden(a) != "") || p.hash == "" && p.name != a {
			t.Fatalf("%q is at %q, which reads %+v", a, ka, p)
		}
		// And the other way: whatever is read as a key is written so.
		if p, ok := k.parse([]byte("/limpet/m/pins/p/"+a), &d); ok && p.hash == "" && k.pin("p", p.name) != "/limpet/m/pins/p/"+a {
			t.Fatalf("%q reads %q, which is written %q", a, p.name, k.pin("p", p.name))
		}
	})
}
