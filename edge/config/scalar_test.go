package config

import (
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

func TestNameFrom(t *testing.T) {
	for in, want := range map[string]string{
		"edge1": "edge1", "Edge-1.example.COM": "edge-1-example-com", "__x__": "x", "": "", "...": "", "é1": "1",
		"a123456789012345678901234567890123456789012345678901234567890123456789": "a12345678901234567890123456789012345678901234567890123456789012",
	} {
		got := NameFrom(in)
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if got != "" && !registry.ValidName(got) {
			t.Errorf("%q: %q is not valid", in, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[string]time.Duration{"10s": 10 * time.Second, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "168h": 168 * time.Hour, "0s": 0} {
		got, _, ok := parseDuration(in)
		if !ok || got != want {
			t.Errorf("%q: %v %v", in, got, ok)
		}
		if s := FormatDuration(got); s != in {
			t.Errorf("%v is written %q, want %q", got, s, in)
		}
	}
	for in, hint := range map[string]string{"10": "10s", "0": "0s", "2d": "48h", "": "", "x": "", "1 s": "", "99999999999d": ""} {
		if _, got, ok := parseDuration(in); ok || got != hint {
			t.Errorf("%q: %v, hint %q, want %q", in, ok, got, hint)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int{"0": 0, "131072": 131072, "12B": 12, "128KiB": 131072, "1MiB": 1 << 20, "2 GiB": 2 << 30, "2147483647GiB": 1 << 40} {
		if got, _, ok := parseSize(in); !ok || got != want {
			t.Errorf("%q: %d %v", in, got, ok)
		}
	}
	for in, hint := range map[string]string{"64kb": "64KiB", "1M": "1MiB", "1g": "1GiB", "5 bytes": "5B", "x": "", "": "", "-1": "", "1.5MiB": "", "9999999999": "", "1TiB": "", "010": "10", "000": "0", "0128KiB": "128KiB"} {
		if _, got, ok := parseSize(in); ok || got != hint {
			t.Errorf("%q: %v, hint %q, want %q", in, ok, got, hint)
		}
	}
	for n, want := range map[int]string{0: "0B", 5: "5B", 1024: "1KiB", 1536: "1536B", 1 << 20: "1MiB"} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		":1": ":1", ":0": ":0", "h": "h:7", "h:1": "h:1", "10.0.0.1": "10.0.0.1:7", "::1": "[::1]:7", "[::1]": "[::1]:7", "[::]:1": "[::]:1",
		"[fe80::1%eth0]:1": "[fe80::1%eth0]:1", "a_b.example.com.:1": "a_b.example.com.:1", "h:01": "h:1",
	} {
		if got, _, ok := parseAddress(in, 7, true); !ok || got != want {
			t.Errorf("%q: %q %v, want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{"h:", "h:x", "h:-1", "h:65536", "-h:1", "a..b:1", "1.2.3:1", "a b:1", "[::1", "::1]:1", "[x]:1:2", "h:1:2", "h/x:1"} {
		if got, _, ok := parseAddress(in, 0, true); ok {
			t.Errorf("%q: accepted as %q", in, got)
		}
	}
	for _, in := range []string{":1", "h:0", "h"} {
		if got, _, ok := parseAddress(in, 0, false); ok {
			t.Errorf("%q: accepted as %q to dial", in, got)
		}
	}
}

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{":1", ":1", true},
		{":1", ":2", false},
		{":0", ":0", false},
		{"127.0.0.1:1", "127.0.0.2:1", false},
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "[::ffff:127.0.0.1]:1", true},
		{"0.0.0.0:1", "127.0.0.1:1", true},
		{"0.0.0.0:1", "[::1]:1", false},
		{"[::]:1", "127.0.0.1:1", true},
		{"localhost:1", "localhost:1", true},
		{"localhost:1", "example.com:1", false},
		{"localhost:1", "[::]:1", true},
	} {
		if got := overlap(c.a, c.b); got != c.want {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
		if got := overlap(c.b, c.a); got != c.want {
			t.Errorf("%s and %s: %v", c.b, c.a, got)
		}
	}
}

func TestNearest(t *testing.T) {
	set := []string{"listeners", "connect_size", "certificates", "tcp", "tls", "ws", "wss", "none", "warn"}
	for in, want := range map[string]string{
		"listner": "listeners", "Listeners": "listeners", "listener": "listeners", "lsiteners": "listeners", "connectSize": "connect_size", "connect-size": "connect_size",
		"cert": "certificates", "warning": "warn", "tpc": "tcp", "WS": "ws", "nune": "none",
		"w": "", "udp": "", "": "", "xyzzy": "", "brokers": "",
	} {
		if got := nearest(in, set); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "axc", 1}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.b, c.a, got, c.want)
		}
	}
}

func TestEtcdURL(t *testing.T) {
	for in, want := range map[string]string{"http://h": "http://h:2379", "https://[::1]:1/": "https://[::1]:1"} {
		if got, err := EtcdURL(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"h:1":      `expected a URL such as http://127.0.0.1:2379, found "h:1": did you mean "http://h:1"?`,
		"ftp://h":  `expected a URL such as http://127.0.0.1:2379, found "ftp://h"`,
		"http://:": `expected a URL such as http://127.0.0.1:2379, found "http://:"`,
		"":         `expected a URL such as http://127.0.0.1:2379, found ""`,
	} {
		if got, err := EtcdURL(in); err == nil || err.Error() != want {
			t.Errorf("%q: %q, %v, want %s", in, got, err, want)
		}
	}
}
