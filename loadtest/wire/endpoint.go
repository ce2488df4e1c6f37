package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Target is what a user wrote: a host that may be a name with several addresses.
type Target struct {
	Transport Transport
	Host      string // a name or an IP address, without brackets
	Port      uint16
	Path      string // of WebSocket: begins with "/", may have a query; empty otherwise
	Name      string // the label of its endpoints in results; empty: see [Resolve]
}

// DefaultPath is the path of WebSocket targets that name none.
const DefaultPath = "/mqtt"

// maxTarget bounds what Parse reads: a DNS name has at most 253 bytes, and a path is a line of HTTP.
const maxTarget = 4096

// ErrTarget is the error of a target that cannot be read.
var ErrTarget = errors.New("wire: bad target")

// Parse reads "tcp://host:port" (see [ParseTransport] for the schemes), "ws://host:port/path", or "host:port" and "host", whose transport
// is def. A missing port is the transport's own, a missing path of WebSocket [DefaultPath]. IPv6 addresses stand in brackets where a port
// follows.
func Parse(s string, def Transport) (Target, error) {
	t, why := parse(s, def)
	if why != "" {
		return Target{}, fmt.Errorf("%w %.200q: %s", ErrTarget, s, why)
	}
	return t, nil
}

// ParseAll is Parse for each of all.
func ParseAll(all []string, def Transport) ([]Target, error) {
	targets := make([]Target, 0, len(all))
	for _, s := range all {
		t, err := Parse(s, def)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func parse(s string, def Transport) (t Target, why string) {
	t.Transport = def
	if len(s) > maxTarget {
		return t, "longer than " + strconv.Itoa(maxTarget) + " bytes"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return t, "it has a space, a control character, or one beyond ASCII (write a name as punycode, a path with %XX)"
	}
	rest := s
	if scheme, after, found := strings.Cut(s, "://"); found {
		kind, err := ParseTransport(scheme)
		if err != nil {
			return t, "no scheme " + strconv.Quote(scheme) + ": tcp, mqtt, tls, mqtts, ssl, ws, wss or quic"
		}
		t.Transport, rest = kind, after
	}
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	switch webSocket := t.Transport == WS || t.Transport == WSS; {
	case strings.ContainsRune(path, '#'):
		return t, "a fragment (#) means nothing here"
	case !webSocket && path != "" && path != "/":
		return t, "only ws:// and wss:// have a path"
	case !webSocket:
	case path == "":
		t.Path = DefaultPath
	case path[0] == '?':
		t.Path = "/" + path
	default:
		t.Path = path
	}
	if strings.ContainsRune(authority, '@') {
		return t, "user name and password are options of their own"
	}
	return t.withAuthority(authority)
}

// withAuthority reads "host", "host:port", "[v6]", "[v6]:port" or "v6".
func (t Target) withAuthority(s string) (_ Target, why string) {
	t.Port = t.Transport.Port()
	if a, err := netip.ParseAddr(s); err == nil {
		t.Host = a.String()
		return t, ""
	}
	host, port := s, ""
	if colon := strings.LastIndexByte(s, ':'); colon > strings.LastIndexByte(s, ']') {
		host, port = s[:colon], s[colon+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, "expected a port from 1 to 65535 after the last colon"
		}
		t.Port = uint16(n)
	}
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() || !strings.HasSuffix(inner, "]") {
			return t, "expected an IPv6 address between brackets"
		}
		t.Host = a.String()
		return t, ""
	}
	switch {
	case host == "":
		return t, "no host"
	case len(host) > 253:
		return t, "a host name has at most 253 bytes" // RFC 1035 §2.3.4
	case strings.ContainsFunc(host, func(r rune) bool { return !hostRune(r) }):
		return t, "a host name has letters, digits, hyphens, underscores and dots; an IPv6 address stands in brackets"
	}
	t.Host = host
	return t, ""
}

func hostRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '.' || r == '_'
}

// String writes t as Parse reads it.
func (t Target) String() string {
	return t.Transport.String() + "://" + net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) + t.Path
}

// Endpoint is one address to connect to. It is shared by all who connect to it, and never changed.
type Endpoint struct {
	Transport Transport
	Addr      netip.AddrPort
	Host      string // as given: for TLS's server name and HTTP's Host
	Port      uint16 // as given: for HTTP's Host
	Path      string // of WebSocket
	Name      string // the label in results, e.g. "e1 tcp"
}

// String is "tcp 127.0.0.1:1883".
func (e *Endpoint) String() string { return e.Transport.String() + " " + e.Addr.String() }

// Resolve returns the endpoints of targets, in the order of the targets; the addresses of a name are sorted. network is "ip" for all
// addresses, "ip4" or "ip6". "localhost" is one machine, whose IPv4 address is used if it has one. An endpoint without a label
// is called "host:port transport", with the address in parentheses where a name has several. Errors are [ErrResolve]; ctx bounds the questions.
func Resolve(ctx context.Context, network string, targets ...Target) ([]*Endpoint, error) {
	return resolve(ctx, net.DefaultResolver.LookupNetIP, network, targets)
}

type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

func resolve(ctx context.Context, ask lookup, network string, targets []Target) ([]*Endpoint, error) {
	var all []*Endpoint
	for _, t := range targets {
		addrs, err := ask(ctx, network, t.Host)
		if err != nil {
			return nil, fmt.Errorf("%w %q: %w", ErrResolve, t.Host, err)
		}
		for i := range addrs {
			addrs[i] = addrs[i].Unmap()
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
		if strings.EqualFold(t.Host, "localhost") && len(addrs) > 1 && addrs[0].Is4() {
			addrs = slices.DeleteFunc(addrs, netip.Addr.Is6)
		}
		if len(addrs) == 0 {
			return nil, fmt.Errorf("%w %q: it has no address", ErrResolve, t.Host)
		}
		for _, a := range addrs {
			name := net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) + " " + t.Transport.String()
			if len(addrs) > 1 {
				name += " (" + a.String() + ")"
			}
			all = append(all, &Endpoint{
				Transport: t.Transport, Addr: netip.AddrPortFrom(a, t.Port), Host: t.Host, Port: t.Port, Path: t.Path, Name: cmp.Or(t.Name, name),
			})
		}
	}
	return all, nil
}

// Chooser says who connects where. It may be used by many goroutines.
type Chooser struct {
	all    []*Endpoint
	random bool
	seed   uint64
	next   atomic.Uint64
}

// RoundRobin chooses all in turn. It panics if there is none.
func RoundRobin(all []*Endpoint) *Chooser { return newChooser(&Chooser{all: all}) }

// Random chooses each time one of all, as clients do behind DNS round robin. Equal seeds choose alike. It panics if there is none.
func Random(all []*Endpoint, seed uint64) *Chooser {
	return newChooser(&Chooser{all: all, random: true, seed: seed})
}

func newChooser(c *Chooser) *Chooser {
	if len(c.all) == 0 {
		panic("wire: a chooser of no endpoints")
	}
	return c
}

// Next is At(0), At(1), … over all calls.
func (c *Chooser) Next() *Endpoint { return c.At(c.next.Add(1) - 1) }

// At is the n-th choice: a function of n alone, so that worker processes that share out the clients choose as one process would.
func (c *Chooser) At(n uint64) *Endpoint {
	if !c.random {
		return c.all[n%uint64(len(c.all))]
	}
	i, _ := bits.Mul64(splitMix(c.seed+n*0x9e3779b97f4a7c15), uint64(len(c.all))) // the high half: uniform without a division
	return c.all[i]
}

// splitMix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func splitMix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
