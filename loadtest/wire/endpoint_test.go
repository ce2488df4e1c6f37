package wire

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"edge.test":               "tls://edge.test:8883",
		"edge.test:99":            "tls://edge.test:99",
		"10.0.0.1":                "tls://10.0.0.1:8883",
		"::1":                     "tls://[::1]:8883",
		"[::1]":                   "tls://[::1]:8883",
		"[::1]:99":                "tls://[::1]:99",
		"tcp://[fe80::1%eth0]:99": "tcp://[fe80::1%eth0]:99",
		"mqtt://h":                "tcp://h:1883",
		"TCP://h/":                "tcp://h:1883",
		"mqtts://h":               "tls://h:8883",
		"ssl://h:1":               "tls://h:1",
		"ws://h":                  "ws://h:80/mqtt",
		"ws://h/":                 "ws://h:80/",
		"wss://h?a=b":             "wss://h:443/?a=b",
		"wss://h:8084/x/y?a=/":    "wss://h:8084/x/y?a=/",
		"quic://h":                "quic://h:14567",
	} {
		got, err := Parse(in, TLS)
		if err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %v, %v, want %s", in, got, err, want)
		}
		if again, err := Parse(got.String(), TCP); err != nil || again != got {
			t.Errorf("Parse(%q) = %v, %v, want %v", got, again, err, got)
		}
	}
	for in, want := range map[string]string{
		"":                                "no host",
		"tcp://":                          "no host",
		":1883":                           "no host",
		"http://h":                        `no scheme "http"`,
		"tcp://h:0":                       "port from 1 to 65535",
		"tcp://h:65536":                   "port from 1 to 65535",
		"tcp://h:":                        "port from 1 to 65535",
		"tcp://h/mqtt":                    "only ws:// and wss:// have a path",
		"ws://h/#x":                       "fragment",
		"tcp://u:p@h":                     "options of their own",
		"tcp://a b":                       "space",
		"ws://h/\r\nX: y":                 "control character",
		"tcp://[::1":                      "between brackets",
		"tcp://[10.0.0.1]":                "between brackets",
		"tcp://h*":                        "letters, digits",
		strings.Repeat("a", 300):          "253",
		strings.Repeat("a", 5000):         "longer than 4096",
		"ws://h/" + "\x00":                "control character",
		"fe80::1:zz":                      "port from 1 to 65535",
		"tcp://1.2.3.4:1883,1.2.3.5:1883": "letters, digits",
	} {
		if _, err := Parse(in, TCP); !errors.Is(err, ErrTarget) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.40q): %v, want %q", in, err, want)
		}
	}
}

// FuzzParse: what is accepted is written and read back alike, and fits a line of HTTP.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"h", "tcp://h:1", "ws://[::1]:80/a?b", "quic://x", "[::1%lo]:5", "wss://h/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Parse(s, WS)
		if err != nil {
			return
		}
		if again, err := Parse(got.String(), TCP); err != nil || again != got {
			t.Fatalf("%q is %+v, written %q, read %+v, %v", s, got, got, again, err)
		}
		if strings.ContainsAny(got.Host+got.Path, " \r\n\x00") || got.Port == 0 {
			t.Fatalf("%q is %+v", s, got)
		}
	})
}

func TestResolve(t *testing.T) {
	addrs := map[string][]string{
		"edge.test": {"10.0.0.2", "::ffff:10.0.0.1", "10.0.0.1", "2001:db8::1"}, "localhost": {"::1", "127.0.0.1"}, "one.test": {"10.0.0.9"}, "none.test": {},
	}
	lookup := func(_ context.Context, _, host string) (all []netip.Addr, err error) {
		found, ok := addrs[host]
		if !ok {
			return nil, errors.New("no such host")
		}
		for _, a := range found {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
	targets, err := ParseAll([]string{"ws://edge.test:81/x", "localhost", "one.test", "quic://one.test"}, TCP)
	if err != nil {
		t.Fatal(err)
	}
	targets[2].Name = "e1 tcp"
	all, err := resolve(t.Context(), lookup, "ip", targets)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ep := range all {
		got = append(got, ep.String()+ep.Path+", "+ep.Name)
	}
	want := []string{
		"ws 10.0.0.1:81/x, edge.test:81 ws (10.0.0.1)", "ws 10.0.0.2:81/x, edge.test:81 ws (10.0.0.2)", "ws [2001:db8::1]:81/x, edge.test:81 ws (2001:db8::1)",
		"tcp 127.0.0.1:1883, localhost:1883 tcp", "tcp 10.0.0.9:1883, e1 tcp", "quic 10.0.0.9:14567, one.test:14567 quic",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, host := range []string{"none.test", "unknown.test"} {
		if _, err := resolve(t.Context(), lookup, "ip", []Target{{Host: host}}); !errors.Is(err, ErrResolve) || Reason(err) != "resolve" {
			t.Errorf("%s: %v (%s)", host, err, Reason(err))
		}
	}
}

func TestChooser(t *testing.T) {
	all := []*Endpoint{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	turn := RoundRobin(all)
	for i := range 9 {
		if got := turn.Next(); got != all[i%3] {
			t.Errorf("choice %d is %s", i, got.Name)
		}
	}
	const n = 30_000
	counts, same, pairs := map[*Endpoint]int{}, 0, map[[2]*Endpoint]int{}
	random, again, other := Random(all, 7), Random(all, 7), Random(all, 8)
	for i := range uint64(n) {
		ep := random.Next()
		counts[ep]++
		pairs[[2]*Endpoint{ep, random.At(i + 1)}]++
		if again.At(i) != ep {
			t.Fatalf("choice %d differs with one seed", i)
		}
		if other.At(i) == ep {
			same++
		}
	}
	for _, ep := range all {
		if c := counts[ep]; c < n/3*95/100 || c > n/3*105/100 {
			t.Errorf("%s was chosen %d times of %d", ep.Name, c, n)
		}
	}
	for pair, c := range pairs {
		if c < n/9*90/100 || c > n/9*110/100 {
			t.Errorf("%s after %s %d times of %d", pair[1].Name, pair[0].Name, c, n)
		}
	}
	if same < n*30/100 || same > n*37/100 {
		t.Errorf("two seeds agree %d times of %d", same, n)
	}
}

func TestParseTransport(t *testing.T) {
	for _, kind := range Transports() {
		if got, err := ParseTransport(kind.String()); err != nil || got != kind {
			t.Errorf("%v: %v, %v", kind, got, err)
		}
	}
	if _, err := ParseTransport("udp"); !errors.Is(err, ErrTarget) {
		t.Errorf("udp: %v", err)
	}
	if s := Transport(9).String(); s != "transport(9)" {
		t.Error(s)
	}
}
