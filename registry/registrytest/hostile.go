package registrytest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/registry"
)

// hostileKeys are what strangers can make of a client ID, a user name or a certificate's name, all different:
// no two may meet in one record, and none may leave its place.
func hostileKeys() []string {
	long := strings.Repeat("a", 128)
	most := strings.Repeat("z", 65535)
	keys := []string{
		"plain", "PLAIN", "Plain", " plain", "plain ",
		"a/b", "a%2Fb", "a%2fb", "a%252Fb", "a//b", "a/b/", "/a/b", "/",
		"%", "%%", "%2", "%zz", "%00",
		"..", "../", "../../pools/p", "./", ".", "...", "~", "~a",
		"*", ">", "+", "#", "a.>", "a.*", "$SYS/x", "$share/g/t", "a.b", "a b",
		"\x00", "a\x00", "a\x00b", "\x01", "\n", "\r\n", "a\tb", "\x7f", "\x1b[2J",
		"\xff", "\xff\xfe", "\xc3\x28", "é", "e\u0301", "日本", "\u202e", "\ufeff",
		"'", `"`, `\`, "`", "$(x)", "{}", "[]", "<b>", "k=v", "k:v", "a,b", "a;b", "a|b", "a&b", "?",
		long[:127], long, long + "a", long + "b", long + "ab", strings.Repeat("/", 128), strings.Repeat("/", 129),
		most, most[:65534], most[:65534] + "y", strings.Repeat("\x00", 65535), strings.Repeat("../", 21845),
	}
	// A name that a store might make of a long key must not be another key's name.
	return append(keys, "~"+strings.Repeat("0", 64), "~"+strings.Repeat("0", 63)+"1")
}

func testHostileKeys(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	keys := hostileKeys()
	broker := func(i int) string { return fmt.Sprintf("b-%d", i) }
	revisions := make([]int64, len(keys))
	for i, key := range keys {
		res := commit(t, s, create(key, broker(i)))[0]
		if res.Status != registry.Committed {
			t.Fatalf("key %q collides with that of %s: %v", short(key), res.Found.Broker, res.Status)
		}
		revisions[i] = res.Revision
	}
	all := func(v view) bool {
		for i, key := range keys {
			if v.record(key).Broker != broker(i) {
				return false
			}
		}
		return len(v.records) == len(keys) && len(v.Pools) == 0
	}
	r.until(t, "every record under its key, as changes", all)
	record(t, s, 0).until(t, "every record under its key, as a listing", all)
	for i, key := range keys {
		if got := get(t, s, "p", key); got.Broker != broker(i) {
			t.Errorf("key %q belongs to %q, want %s", short(key), got.Broker, broker(i))
		}
	}
	for i, key := range keys {
		if i%2 == 0 {
			commitOne(t, s, erase(key, revisions[i]), registry.Committed)
		}
	}
	half := func(v view) bool {
		for i, key := range keys {
			if got := v.record(key); got.Present() != (i%2 == 1) {
				return false
			}
		}
		return len(v.records) == len(keys)/2
	}
	r.until(t, "every second record deleted, as changes", half)
	record(t, s, 0).until(t, "every second record deleted, as a listing", half)
}

func testHostilePins(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	keys := hostileKeys()
	for i, key := range keys {
		if err := s.SetPin(within(t), registry.PinRef{Pool: "p", Key: key}, fmt.Sprintf("b-%d", i)); err != nil {
			t.Fatalf("pin of %q: %v", short(key), err)
		}
	}
	all := func(v view) bool {
		for i, key := range keys {
			if v.Pins[registry.PinRef{Pool: "p", Key: key}] != fmt.Sprintf("b-%d", i) {
				return false
			}
		}
		return len(v.Pins) == len(keys) && len(v.records) == 0
	}
	r.until(t, "every pin under its key, as changes", all)
	record(t, s, 0).until(t, "every pin under its key, as a listing", all)
	for _, key := range keys {
		if err := s.SetPin(within(t), registry.PinRef{Pool: "p", Key: key}, ""); err != nil {
			t.Fatalf("unpin of %q: %v", short(key), err)
		}
	}
	r.until(t, "no pins", func(v view) bool { return len(v.Pins) == 0 })
}

// A name that is none is refused, and nothing is written.
func testInvalidNames(t *testing.T, fx Fixture) {
	s := client(t, fx)
	r := record(t, s, 0)
	r.isListed(t)
	for _, name := range []string{"", "A", "a/b", "../x", "a b", "a_b", "a.b", "é", "\x00", strings.Repeat("a", 64)} {
		ref := registry.BrokerRef{Pool: "p", Broker: name}
		w := create("k", "b1")
		w.Pool = name
		_, commit := s.Commit(within(t), []registry.Write{w})
		_, get := s.Get(within(t), name, "k")
		_, join := s.Join(within(t), registry.Edge{ID: name})
		for what, err := range map[string]error{
			"Commit":             commit,
			"Get":                get,
			"Join":               join,
			"PutPool":            s.PutPool(within(t), &registry.Pool{Name: name}, 0),
			"DeletePool":         s.DeletePool(within(t), name, 1),
			"SetAdmin":           s.SetAdmin(within(t), ref, registry.AdminOut),
			"SetAdmin of a pool": s.SetAdmin(within(t), registry.BrokerRef{Pool: name, Broker: "b1"}, registry.AdminOut),
			"SetPin":             s.SetPin(within(t), registry.PinRef{Pool: name, Key: "k"}, "b1"),
		} {
			if err == nil {
				t.Errorf("%s took the name %q", what, short(name))
			}
		}
	}
	if err := s.SetAdmin(within(t), registry.BrokerRef{Pool: "last", Broker: "b1"}, registry.AdminOut); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the one valid write", func(v view) bool { return len(v.Admin) == 1 })
	r.until(t, "nothing else", func(v view) bool {
		if len(v.seen) != 1 {
			t.Errorf("%d changes were written: %s", len(v.seen), tail(v.seen))
		}
		return true
	})
}
