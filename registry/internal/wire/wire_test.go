package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"github.com/limpet-mesh/limpet/registry"
)

var (
	texts = rapid.String()
	names = rapid.StringMatching(`[a-z0-9-]{1,12}`)
)

func seconds(t *rapid.T, label string) time.Time {
	if rapid.Bool().Draw(t, label+" zero") {
		return time.Time{}
	}
	return time.Unix(rapid.Int64Range(1, maxUnix).Draw(t, label), 0).UTC()
}

func nanos(t *rapid.T, label string) time.Time {
	if rapid.Bool().Draw(t, label+" zero") {
		return time.Time{}
	}
	return time.Unix(0, rapid.Int64().Draw(t, label)).UTC()
}

func anyAffinity(t *rapid.T) registry.Affinity {
	a := registry.Affinity{
		Broker:  names.Draw(t, "broker"),
		Home:    rapid.SampledFrom([]string{"", "b1", "b2"}).Draw(t, "home"),
		Writer:  names.Draw(t, "writer"),
		Written: seconds(t, "written"),
		Expires: seconds(t, "expires"),
		Reason:  rapid.SampledFrom([]string{"", "placement", "rehomed"}).Draw(t, "reason"),
	}
	if rapid.Bool().Draw(t, "at home") {
		a.Home = a.Broker
	}
	if rapid.Bool().Draw(t, "extra") {
		a.Extra = appendString(nil, protowire.Number(rapid.IntRange(16, 500).Draw(t, "num")), "of a later version")
	}
	return a
}

func TestAffinityRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, wantKey := anyAffinity(t), texts.Draw(t, "key")
		var d Decoder
		got, key, err := d.Affinity(AppendAffinity(nil, want, wantKey))
		if err != nil || key != wantKey || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v key %q, %v\nwant %+v key %q", got, key, err, want, wantKey)
		}
	})
}

func TestUnknownFieldsSurviveARewrite(t *testing.T) {
	var d Decoder
	extra := appendUint(nil, 40, 7)
	extra = protowire.AppendFixed64(protowire.AppendTag(extra, 41, protowire.Fixed64Type), 8)
	a, _, err := d.Affinity(append(AppendAffinity(nil, registry.Affinity{Broker: "b1"}, ""), extra...))
	if err != nil {
		t.Fatal(err)
	}
	a.Broker = "b2"
	b, _, err := d.Affinity(AppendAffinity(nil, a, "k"))
	if err != nil || b.Broker != "b2" || !bytes.Equal(b.Extra, extra) {
		t.Fatalf("got %+v, %v; want extra %x", b, err, extra)
	}
}

func TestPoolRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dur := rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.Int64().Draw(t, "ns")) })
		want := &registry.Pool{
			Policy: registry.Policy(texts.Draw(t, "policy")), Sessions: registry.SessionsReplicated,
			RehomeAfter: dur.Draw(t, "rehome"), TTL: dur.Draw(t, "ttl"), MaxTTL: dur.Draw(t, "max"), Failback: "stay",
			ConnectTimeout: dur.Draw(t, "connect"), DialTimeout: dur.Draw(t, "dial"),
			Probe: registry.Probe{
				Kind: registry.ProbeTCP, Interval: dur.Draw(t, "interval"), Timeout: dur.Draw(t, "timeout"),
				Rise: rapid.IntRange(-1, 9).Draw(t, "rise"), Fall: rapid.IntRange(0, 9).Draw(t, "fall"),
			},
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "brokers") {
			want.Brokers = append(want.Brokers, registry.Broker{
				ID: string(rune('a' + i)), Address: texts.Draw(t, "address"), Weight: rapid.IntRange(0, 1000).Draw(t, "weight"),
				Transport: registry.TransportWSS, Proxy: registry.ProxyV2, Path: texts.Draw(t, "path"),
				TLS: registry.BrokerTLS{CA: "ca", Cert: "c", Key: "k", ServerName: "s"},
			})
		}
		var d Decoder
		got, err := d.Pool(AppendPool(nil, want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
	})
}

func TestPoolRefusesBrokersThatCannotBe(t *testing.T) {
	for _, brokers := range [][]registry.Broker{{{ID: "a"}, {ID: "a"}}, {{ID: ""}}, {{ID: "a", Weight: -1}}} {
		var d Decoder
		if p, err := d.Pool(AppendPool(nil, &registry.Pool{Brokers: brokers})); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: got %+v, %v", brokers, p, err)
		}
	}
	var d Decoder
	p, err := d.Pool(AppendPool(nil, &registry.Pool{Brokers: []registry.Broker{{ID: "b"}, {ID: "a"}}}))
	if err != nil || p.Brokers[0].ID != "a" {
		t.Errorf("not put in order: %+v, %v", p, err)
	}
}

// A word that this program does not know is none: what was known before must stand, not a default.
func TestUnknownWordsDoNotRead(t *testing.T) {
	var d Decoder
	for _, word := range []string{"drain", "Out", "OUT", "maintenance", "unknown"} {
		if got, err := d.Admin(AppendAdmin(nil, registry.AdminState(word))); !errors.Is(err, ErrCorrupt) || got != "" {
			t.Errorf("admin state %q reads %q, %v", word, got, err)
		}
		if got, err := d.Verdict(AppendVerdict(nil, registry.Verdict{State: registry.BrokerState(word)})); !errors.Is(err, ErrCorrupt) || got.State != "" {
			t.Errorf("verdict %q reads %+v, %v", word, got, err)
		}
	}
	if err := d.Prune(AppendPrune(nil)); err != nil {
		t.Error(err)
	}
	if err := d.Prune([]byte{2}); !errors.Is(err, ErrVersion) {
		t.Errorf("a prune of version 2: %v", err)
	}
}

func TestOtherValuesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d Decoder
		v := registry.Verdict{State: registry.BrokerDown, Since: nanos(t, "since"), Reason: texts.Draw(t, "reason")}
		if got, err := d.Verdict(AppendVerdict(nil, v)); err != nil || got != v {
			t.Fatalf("verdict %+v, %v; want %+v", got, err, v)
		}
		e := registry.Edge{Admin: texts.Draw(t, "admin"), Version: "v1", Started: nanos(t, "started"), Leaving: rapid.Bool().Draw(t, "leaving")}
		if got, err := d.Edge(AppendEdge(nil, e)); err != nil || got != e {
			t.Fatalf("edge %+v, %v; want %+v", got, err, e)
		}
		h := registry.Health{Seq: rapid.Uint64().Draw(t, "seq"), Brokers: map[registry.BrokerRef]registry.Report{}}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			ref := registry.BrokerRef{Pool: names.Draw(t, "pool"), Broker: names.Draw(t, "broker")}
			h.Brokers[ref] = registry.Report{Up: rapid.Bool().Draw(t, "up"), Since: nanos(t, "up since"), Reason: texts.Draw(t, "why")}
		}
		if got, err := d.Health(AppendHealth(nil, h)); err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("health %+v, %v; want %+v", got, err, h)
		}
		if got, err := d.Admin(AppendAdmin(nil, registry.AdminOut)); err != nil || got != registry.AdminOut {
			t.Fatalf("admin %q, %v", got, err)
		}
		key := texts.Draw(t, "key")
		if got, k, err := d.Pin(AppendPin(nil, "b1", key)); err != nil || got != "b1" || k != key {
			t.Fatalf("pin %q of %q, %v", got, k, err)
		}
		if got, err := d.Leader(AppendLeader(nil, "e1")); err != nil || got != "e1" {
			t.Fatalf("leader %q, %v", got, err)
		}
		s := Schema{Version: rapid.Uint64().Draw(t, "version"), MinVersion: rapid.Uint64().Draw(t, "min"), Store: rapid.Uint64().Draw(t, "store")}
		if got, err := d.Schema(AppendSchema(nil, s)); err != nil || got != s {
			t.Fatalf("schema %+v, %v; want %+v", got, err, s)
		}
		ref := registry.BrokerRef{Pool: "p", Broker: "b"}
		if got, err := d.Doubt(AppendDoubt(nil, ref)); err != nil || got != ref {
			t.Fatalf("doubt %+v, %v", got, err)
		}
		n := registry.Notice{Pool: "p", Key: key, Revision: rapid.Int64Range(1, 1<<62).Draw(t, "revision")}
		if rapid.Bool().Draw(t, "present") {
			n.Affinity = anyAffinity(t)
			n.Affinity.Revision = n.Revision
		}
		if got, err := d.Notice(AppendNotice(nil, n)); err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("notice %+v, %v; want %+v", got, err, n)
		}
	})
}

func TestRefusals(t *testing.T) {
	good := AppendAffinity(nil, registry.Affinity{Broker: "b1", Written: time.Unix(1e9, 0)}, "")
	other := bytes.Clone(good)
	other[0] = Version + 1
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"another version", other, ErrVersion},
		{"nothing", nil, ErrCorrupt},
		{"no broker", []byte{Version}, ErrCorrupt},
		{"cut short", good[:len(good)-1], ErrCorrupt},
		{"wrong type", appendUint([]byte{Version}, 1, 5), ErrCorrupt},
		{"a length that is not there", []byte{Version, 0x0a, 0xff, 0xff, 0xff, 0x7f}, ErrCorrupt},
		{"a time beyond all times", appendUint(bytes.Clone(good), 5, 1<<63), ErrCorrupt},
		{"text", []byte(`{"broker":"b1"}`), ErrVersion},
	} {
		var d Decoder
		if a, key, err := d.Affinity(c.b); !errors.Is(err, c.want) || a.Present() || key != "" {
			t.Errorf("%s: got %+v %q %v, want %v", c.name, a, key, err, c.want)
		}
	}
}

func TestNamesAreSharedAndBounded(t *testing.T) {
	var d Decoder
	for i := range 3 * maxNames {
		d.Name(protowire.AppendVarint(nil, uint64(i)))
	}
	if len(d.names) > maxNames {
		t.Errorf("%d names kept, want at most %d", len(d.names), maxNames)
	}
	if n := testing.AllocsPerRun(100, func() { d.Name([]byte{1}) }); n != 0 {
		t.Errorf("%v allocations for a name that was met before", n)
	}
}

// FuzzDecode feeds every decoder what strangers may send. Whatever decodes must
// read the same after it was written again.
func FuzzDecode(f *testing.F) {
	f.Add(AppendAffinity(nil, registry.Affinity{Broker: "b1", Home: "b2", Extra: appendUint(nil, 99, 1)}, "key"))
	f.Add(AppendPool(nil, &registry.Pool{Brokers: []registry.Broker{{ID: "a", Address: "h:1"}}, Probe: registry.Probe{Rise: 2}}))
	f.Add(AppendHealth(nil, registry.Health{Seq: 3, Brokers: map[registry.BrokerRef]registry.Report{{Pool: "p", Broker: "b"}: {Up: true}}}))
	f.Add(AppendNotice(nil, registry.Notice{Pool: "p", Key: "k", Revision: 5, Affinity: registry.Affinity{Broker: "b"}}))
	f.Add(AppendVerdict(nil, registry.Verdict{State: registry.BrokerLost, Since: time.Unix(5, 5)}))
	f.Add(AppendDoubt(nil, registry.BrokerRef{Pool: "p", Broker: "b"}))
	f.Add(AppendSchema(nil, Schema{Version: 1, MinVersion: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Decoder
		if a, key, err := d.Affinity(b); err == nil {
			a2, key2, err := d.Affinity(AppendAffinity(nil, a, key))
			same(t, a, a2, err)
			same(t, key, key2, nil)
		}
		if p, err := d.Pool(b); err == nil {
			p2, err := d.Pool(AppendPool(nil, p))
			same(t, p, p2, err)
		}
		if h, err := d.Health(b); err == nil {
			h2, err := d.Health(AppendHealth(nil, h))
			same(t, h, h2, err)
		}
		if n, err := d.Notice(b); err == nil {
			n2, err := d.Notice(AppendNotice(nil, n))
			same(t, n, n2, err)
		}
		if v, err := d.Verdict(b); err == nil {
			v2, err := d.Verdict(AppendVerdict(nil, v))
			same(t, v, v2, err)
		}
		if e, err := d.Edge(b); err == nil {
			e2, err := d.Edge(AppendEdge(nil, e))
			same(t, e, e2, err)
		}
		if s, err := d.Schema(b); err == nil {
			s2, err := d.Schema(AppendSchema(nil, s))
			same(t, s, s2, err)
		}
		if r, err := d.Doubt(b); err == nil {
			r2, err := d.Doubt(AppendDoubt(nil, r))
			same(t, r, r2, err)
		}
		if broker, key, err := d.Pin(b); err == nil {
			b2, k2, err := d.Pin(AppendPin(nil, broker, key))
			same(t, [2]string{broker, key}, [2]string{b2, k2}, err)
		}
	})
}

func same(t *testing.T, want, got any, err error) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("written again it reads %+v, %v\nwant %+v", got, err, want)
	}
}
