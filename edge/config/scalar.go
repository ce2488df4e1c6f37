package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// NameFrom makes a valid name from text such as a host name: lower case, every other character a hyphen.
// It returns "" if nothing is left.
func NameFrom(s string) string {
	s = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(s))
	return strings.Trim(s[:min(len(s), registry.MaxNameLen)], "-")
}

// parseDuration reads Go's form of durations. The hint mends a missing unit, and days.
func parseDuration(s string) (d time.Duration, hint string, ok bool) {
	if d, err := time.ParseDuration(s); err == nil && s != "0" {
		return d, "", true
	}
	if _, err := strconv.ParseUint(s, 10, 31); err == nil {
		return 0, s + "s", false
	}
	if days, err := strconv.ParseUint(strings.TrimSuffix(s, "d"), 10, 16); err == nil {
		return 0, strconv.FormatUint(24*days, 10) + "h", false
	}
	return 0, "", false
}

// FormatDuration writes a duration without empty parts: 168h, 1m30s, 250ms.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

var sizeUnits = []struct {
	suffix string
	bytes  int
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// parseSize reads a number of bytes with or without a binary unit. The hint mends units that mean two things.
func parseSize(s string) (n int, hint string, ok bool) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	v, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		return 0, "", false
	}
	if plain := withoutZeros(digits); plain != "" {
		return 0, plain + s[len(digits):], false
	}
	unit := strings.TrimSpace(s[len(digits):])
	for _, u := range sizeUnits {
		if unit == u.suffix || unit == "" && u.bytes == 1 {
			return int(min(v*uint64(u.bytes), 1<<40)), "", true
		}
		if unit != "" && strings.EqualFold(unit[:1], u.suffix[:1]) {
			return 0, digits + u.suffix, false
		}
	}
	return 0, "", false
}

// withoutZeros is a number without the zeros that make it octal to some readers (YAML 1.1) and decimal to others (YAML 1.2.2
// §10.3.2); "" if it has none.
func withoutZeros(s string) string {
	if len(s) < 2 || s[0] != '0' || strings.Trim(s, "0123456789") != "" {
		return ""
	}
	return cmp.Or(strings.TrimLeft(s, "0"), "0")
}

func formatSize(n int) string {
	for _, u := range sizeUnits {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.Itoa(n/u.bytes) + u.suffix
		}
	}
	return strconv.Itoa(n) + "B"
}

// parsePrefix reads a CIDR, or an address as the CIDR that holds it alone.
func parsePrefix(s string) (p netip.Prefix, hint string, ok bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), "", true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, "", false
	}
	if p != p.Masked() {
		return p, p.Masked().String(), false
	}
	return p, "", true
}

// parseAddress reads host:port. A port that is left out is def, or a mistake if def is 0.
// The host may be empty only if anyHost is set, and the port 0 likewise.
func parseAddress(s string, def int, anyHost bool) (address, hint string, ok bool) {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil && anyHost {
		return "", ":" + s, false // a port alone
	}
	host, port := splitAddress(s)
	if !anyHost && host == "" || host != "" && !validHost(host) {
		return "", "", false
	}
	if port == "" {
		if def == 0 {
			return "", "", false
		}
		port = strconv.Itoa(def)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 && !anyHost {
		return "", "", false
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), "", true
}

// splitAddress accepts what net.SplitHostPort does, and hosts without a port: name, 10.0.0.1, ::1, [::1].
func splitAddress(s string) (host, port string) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, ""
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		return host, port
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), ""
}

// validHost reports whether s is an IP address or has the form of a DNS name (RFC 1123 §2.1, and underscores).
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if len(s) > 253 {
		return false
	}
	last := ""
	for last = range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if last == "" || len(last) > 63 || last[0] == '-' || last[len(last)-1] == '-' {
			return false
		}
		for _, c := range []byte(last) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	// A name whose last label is a number is a mistyped IPv4 address: RFC 1123 §2.1 keeps the two apart by it.
	_, err := strconv.ParseUint(last, 10, 64)
	return err != nil
}

// parseURL reads scheme://host[:port] with one of the schemes; the port that is left out is def.
func parseURL(s string, def int, schemes ...string) (out, hint string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		if a, _, ok := parseAddress(s, def, false); ok {
			return "", schemes[0] + "://" + a, false // host:port without the scheme
		}
		return "", "", false
	}
	known := false
	for _, scheme := range schemes {
		known = known || u.Scheme == scheme
	}
	if !known {
		if near := nearest(u.Scheme, schemes); near != "" {
			hint = near + "://" + u.Host
		}
		return "", hint, false
	}
	a, _, ok := parseAddress(u.Host, def, false)
	bare := u.User == nil && (u.Path == "" || u.Path == "/") && u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
	if !ok {
		return "", "", false
	}
	if !bare {
		return "", u.Scheme + "://" + a, false
	}
	return u.Scheme + "://" + a, "", true
}

// EtcdURL completes the URL of an etcd server as the configuration's endpoints are.
func EtcdURL(s string) (string, error) {
	u, hint, ok := parseURL(s, 2379, "http", "https")
	if ok {
		return u, nil
	}
	if hint != "" {
		hint = fmt.Sprintf(": did you mean %q?", hint)
	}
	return "", fmt.Errorf("expected a URL such as http://127.0.0.1:2379, found %.60q%s", s, hint)
}

// parseOrigin reads an origin as browsers send it (RFC 6454 §6.2), with "*." before the host for every name below,
// or "*" for every origin, or "null" for that of local pages.
func parseOrigin(s string) (origin, hint string, ok bool) {
	if s == "*" || s == "null" {
		return s, "", true
	}
	scheme, host, found := strings.Cut(s, "://")
	if !found {
		scheme, host = "https", s
	}
	u, err := url.Parse(scheme + "://" + strings.TrimPrefix(host, "*."))
	if err != nil || !validHost(u.Hostname()) {
		return "", "", false
	}
	origin = scheme + "://"
	if strings.HasPrefix(host, "*.") {
		origin += "*."
	}
	port := u.Port()
	origin += strings.TrimSuffix(u.Host, ":"+port)
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", "", false
		}
		origin += ":" + strconv.FormatUint(n, 10)
	}
	if port := map[string]string{"http": ":80", "https": ":443"}[strings.ToLower(scheme)]; port != "" {
		origin = strings.TrimSuffix(origin, port) // browsers leave the scheme's own port out
	}
	origin = strings.ToLower(origin)
	if origin != s {
		return "", origin, false
	}
	return origin, "", true
}

// parseRequestPath reads the path of a WebSocket request: no query, no fragment (RFC 6455 §3).
func parseRequestPath(s string) (path, hint string, ok bool) {
	if strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '?' || c == '#' }) || strings.Contains(s, "://") {
		return "", "", false
	}
	if s[0] != '/' {
		return "", "/" + s, false
	}
	return s, "", true
}
