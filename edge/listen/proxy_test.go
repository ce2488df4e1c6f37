package listen

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/edge/relay"
	proxyproto "github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(addr(s)) }

func tlv(kind proxyproto.PP2Type, value string) proxyproto.TLV {
	return proxyproto.TLV{Type: kind, Value: []byte(value)}
}

// headerV2 writes a header as other programs do.
func headerV2(t testing.TB, from, to string, tlvs ...proxyproto.TLV) []byte {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(2, tcpAddr(from), tcpAddr(to))
	if err := h.SetTLVs(tlvs); err != nil {
		t.Fatal(err)
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sslTLV(t testing.TB, client uint8, verify uint32, subs ...proxyproto.TLV) proxyproto.TLV {
	t.Helper()
	v, err := tlvparse.PP2SSL{Client: client, Verify: verify, TLV: subs}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// rawV2 is a version 2 header byte by byte.
func rawV2(command, family byte, length int, rest string) []byte {
	b := append([]byte(signatureV2), command, family)
	return append(binary.BigEndian.AppendUint16(b, uint16(length)), rest...)
}

func TestParseProxy(t *testing.T) {
	full := headerV2(t, "[2001:db8::1]:5000", "[2001:db8::2]:1883",
		tlv(proxyproto.PP2_TYPE_ALPN, "mqtt"), tlv(proxyproto.PP2_TYPE_AUTHORITY, "b.example.com"), tlv(proxyproto.PP2_TYPE_UNIQUE_ID, "id-7"),
		sslTLV(t, 3, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.3"), tlv(proxyproto.PP2_SUBTYPE_SSL_CIPHER, "TLS_AES_128_GCM_SHA256"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "dev-1")),
		tlv(proxyproto.PP2_TYPE_NETNS, "blue"), tlv(0xE0, "ours"))
	client := &relay.TLS{Version: tls.VersionTLS13, ServerName: "b.example.com", ALPN: "mqtt", Cipher: "TLS_AES_128_GCM_SHA256", CommonName: "dev-1", Verified: true}
	for name, c := range map[string]struct {
		in   []byte
		want ProxyHeader
	}{
		"v1, IPv4":       {[]byte("PROXY TCP4 192.0.2.1 198.51.100.2 5000 1883\r\n"), ProxyHeader{Version: 1, Source: addr("192.0.2.1:5000"), Destination: addr("198.51.100.2:1883")}},
		"v1, IPv6":       {[]byte("PROXY TCP6 2001:db8::1 ::1 5000 1883\r\n"), ProxyHeader{Version: 1, Source: addr("[2001:db8::1]:5000"), Destination: addr("[::1]:1883")}},
		"v1, mapped":     {[]byte("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 5000 1883\r\n"), ProxyHeader{Version: 1, Source: addr("192.0.2.1:5000"), Destination: addr("192.0.2.2:1883")}},
		"v1, longest":    {[]byte("PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"), ProxyHeader{Version: 1, Local: true}},
		"v1, unknown":    {[]byte("PROXY UNKNOWN\r\n"), ProxyHeader{Version: 1, Local: true}},
		"v2, IPv4":       {headerV2(t, "192.0.2.1:5000", "198.51.100.2:1883"), ProxyHeader{Version: 2, Source: addr("192.0.2.1:5000"), Destination: addr("198.51.100.2:1883")}},
		"v2, everything": {full, ProxyHeader{Version: 2, Source: addr("[2001:db8::1]:5000"), Destination: addr("[2001:db8::2]:1883"), UniqueID: []byte("id-7"), ALPN: "mqtt", Authority: "b.example.com", TLS: client}},
		"v2, local":      {rawV2(0x20, 0, 0, ""), ProxyHeader{Version: 2, Local: true}},
		"v2, local with a block that must be discarded":   {rawV2(0x20, 0x11, 5, "junk!"), ProxyHeader{Version: 2, Local: true}},
		"v2, local with addresses that must be discarded": {rawV2(0x20, 0x11, 15, "\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02\x05\x00\x09"), ProxyHeader{Version: 2, Local: true}},
		"v2, Unix socket":                                {rawV2(0x21, 0x31, 216, strings.Repeat("/a\x00", 72)), ProxyHeader{Version: 2, Local: true}},
		"v2, unspecified":                                {rawV2(0x21, 0x00, 0, ""), ProxyHeader{Version: 2, Local: true}},
		"v2, unspecified, with TLVs":                     {rawV2(0x21, 0x00, 9, "\x05\x00\x01u\x02\x00\x02ab"), ProxyHeader{Version: 2, Local: true, UniqueID: []byte("u"), Authority: "ab"}},
		"v2, UDP":                                        {rawV2(0x21, 0x12, 12, "\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02"), ProxyHeader{Version: 2, Source: addr("1.2.3.4:1"), Destination: addr("5.6.7.8:2")}},
		"v2, certificate refused by the proxy":           {headerV2(t, "192.0.2.1:1", "192.0.2.2:2", sslTLV(t, 3, 18, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.2"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "liar"))), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2"), TLS: &relay.TLS{Version: tls.VersionTLS12}}},
		"v2, nothing verified because nothing was shown": {headerV2(t, "192.0.2.1:1", "192.0.2.2:2", sslTLV(t, 1, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.2"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "liar"))), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2"), TLS: &relay.TLS{Version: tls.VersionTLS12}}},
		"v2, SSL says no TLS":                            {headerV2(t, "192.0.2.1:1", "192.0.2.2:2", sslTLV(t, 0, 1)), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2")}},
		"v2, certificate of an earlier connection":       {headerV2(t, "192.0.2.1:1", "192.0.2.2:2", sslTLV(t, 5, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.2"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "dev"))), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2"), TLS: &relay.TLS{Version: tls.VersionTLS12, CommonName: "dev", Verified: true}}},
		"v2, checksum":                                   {checksummed(headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_NOOP, "xx"), tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00"), tlv(proxyproto.PP2_TYPE_ALPN, "mqtt"))), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2"), ALPN: "mqtt"}},
		"v2, as long as we take":                         {headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(0xE1, strings.Repeat("x", MaxProxyHeader-16-12-3))), ProxyHeader{Version: 2, Source: addr("192.0.2.1:1"), Destination: addr("192.0.2.2:2")}},
		"v2, local with TLVs that must be discarded":     {rawV2(0x20, 0x00, 3, "\x04\x00\x00"), ProxyHeader{Version: 2, Local: true}},
	} {
		t.Run(name, func(t *testing.T) {
			behind := append(bytes.Clone(c.in), "\x10\x0cMQTT"...)
			n, h, err := ParseProxy(behind)
			if err != nil || n != len(c.in) {
				t.Fatalf("%d, %v; want %d bytes", n, err, len(c.in))
			}
			clear(behind) // h may share nothing with it
			if !equalHeader(h, c.want) {
				t.Errorf("got  %+v %+v\nwant %+v %+v", h, h.TLS, c.want, c.want.TLS)
			}
			if !LooksLikeProxy(c.in) {
				t.Error("does not look like a header")
			}
			for i := range c.in {
				if n, _, err := ParseProxy(c.in[:i]); err != ErrShort || n != 0 {
					t.Fatalf("first %d bytes: %d, %v; want ErrShort", i, n, err)
				}
			}
		})
	}
}

// What the header says of the client's names reaches the Origin, with TLS or without.
func TestProxyHeaderApplies(t *testing.T) {
	names := []proxyproto.TLV{tlv(proxyproto.PP2_TYPE_ALPN, "mqtt"), tlv(proxyproto.PP2_TYPE_AUTHORITY, "b.example.com")}
	ssl := func(subs ...proxyproto.TLV) []proxyproto.TLV {
		return append(slices.Clone(names), sslTLV(t, 1, 1, subs...))
	}
	for name, c := range map[string]struct {
		tlvs []proxyproto.TLV
		want *relay.TLS
	}{
		"nothing":         {nil, nil},
		"names":           {names, &relay.TLS{ServerName: "b.example.com", ALPN: "mqtt"}},
		"host alone":      {names[1:], &relay.TLS{ServerName: "b.example.com"}},
		"protocol alone":  {names[:1], &relay.TLS{ALPN: "mqtt"}},
		"TLS":             {ssl(tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.2")), &relay.TLS{Version: tls.VersionTLS12, ServerName: "b.example.com", ALPN: "mqtt"}},
		"TLS of tomorrow": {ssl(tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.9")), &relay.TLS{Version: foreignTLS, ServerName: "b.example.com", ALPN: "mqtt"}},
	} {
		_, h, err := ParseProxy(headerV2(t, "192.0.2.1:1", "192.0.2.2:2", c.tlvs...))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var o relay.Origin
		h.Apply(&o)
		if (o.TLS == nil) != (c.want == nil) || o.TLS != nil && *o.TLS != *c.want {
			t.Errorf("%s: %+v, want %+v", name, o.TLS, c.want)
		}
	}
}

func equalHeader(a, b ProxyHeader) bool {
	if (a.TLS == nil) != (b.TLS == nil) || a.TLS != nil && *a.TLS != *b.TLS || !bytes.Equal(a.UniqueID, b.UniqueID) {
		return false
	}
	return a.Version == b.Version && a.Local == b.Local && a.Source == b.Source && a.Destination == b.Destination && a.ALPN == b.ALPN && a.Authority == b.Authority
}

// checksummed fills in the checksum of a header that has room for one.
func checksummed(b []byte) []byte {
	at := bytes.Index(b, []byte{byte(proxyproto.PP2_TYPE_CRC32C), 0, 4}) + 3
	binary.BigEndian.PutUint32(b[at:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestParseProxyRefuses(t *testing.T) {
	flipped := checksummed(headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")))
	flipped[16] ^= 1
	for name, in := range map[string][]byte{
		"MQTT":                     []byte("\x10\x0c\x00\x04MQTT"),
		"HTTP":                     []byte("POST / HTTP/1.1\r\n"),
		"P alone is not enough":    []byte("PR0"),
		"v1, no blank":             []byte("PROXYTCP4"),
		"v1, lower case":           []byte("proxy TCP4"),
		"v1, two blanks":           []byte("PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
		"v1, LF alone":             []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n"),
		"v1, bad family":           []byte("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n"),
		"v1, wrong family":         []byte("PROXY TCP4 ::1 ::1 1 2\r\n"),
		"v1, port out of range":    []byte("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n"),
		"v1, negative port":        []byte("PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n"),
		"v1, missing port":         []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n"),
		"v1, too much":             []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n"),
		"v1, no address":           []byte("PROXY TCP4 example.com 192.0.2.2 1 2\r\n"),
		"v1, endless":              []byte("PROXY UNKNOWN " + strings.Repeat("x", 93)),
		"v1, 108 bytes":            []byte("PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n"),
		"v2, damaged signature":    []byte("\r\n\r\n\x00\r\nQUIP"),
		"v2, blank line":           []byte("\r\n\r\n\r"),
		"v2, version 3":            append([]byte(signatureV2), 0x31),
		"v2, command 2":            rawV2(0x22, 0x11, 12, strings.Repeat("x", 12)),
		"v2, unspecified, stream":  rawV2(0x21, 0x01, 0, ""),
		"v2, unspecified, TLV cut": rawV2(0x21, 0x00, 4, "\x01\x00\x05m"),
		"v2, family 5":             rawV2(0x21, 0x51, 12, strings.Repeat("x", 12)),
		"v2, transport 3":          rawV2(0x21, 0x13, 12, strings.Repeat("x", 12)),
		"v2, no room":              rawV2(0x21, 0x11, 11, strings.Repeat("x", 11)),
		"v2, no room for IPv6":     rawV2(0x21, 0x21, 12, strings.Repeat("x", 12)),
		"v2, huge":                 rawV2(0x21, 0x11, 0xffff, ""),
		"v2, one too long":         rawV2(0x21, 0x11, MaxProxyHeader-16+1, ""),
		"v2, local, huge":          rawV2(0x20, 0x00, 0xffff, ""),
		"v2, TLV cut":              rawV2(0x21, 0x11, 15, strings.Repeat("x", 12)+"\x01\x00\x01"),
		"v2, TLV header cut":       rawV2(0x21, 0x11, 14, strings.Repeat("x", 12)+"\x01\x00"),
		"v2, unique id too long":   headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_UNIQUE_ID, strings.Repeat("x", 129))),
		"v2, SSL cut":              headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_SSL, "\x01\x00")),
		"v2, SSL sub-TLV cut":      headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_SSL, "\x01\x00\x00\x00\x00\x21\x00\x09T")),
		"v2, checksum of 3 bytes":  headerV2(t, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_CRC32C, "abc")),
		"v2, checksum is wrong":    flipped,
		"v2, common name no UTF-8": headerV2(t, "192.0.2.1:1", "192.0.2.2:2", sslTLV(t, 3, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.3"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "\xff"))),
	} {
		t.Run(name, func(t *testing.T) {
			if n, _, err := ParseProxy(in); !errors.Is(err, ErrProxy) || n != 0 {
				t.Errorf("%d, %v; want ErrProxy", n, err)
			}
		})
	}
}

func TestLooksLikeProxy(t *testing.T) {
	for in, want := range map[string]bool{
		"PROXY ": true, "PROXY": false, "PROXYx": false, signatureV2: true, signatureV2[:11]: false, "": false, "\x10\x0c": false, "\x16\x03\x01": false, "GET / ": false,
	} {
		if got := LooksLikeProxy([]byte(in)); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestProxyFromTrustedPeers(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TCP, TLS, WS, WSS} {
		for version, header := range map[string][]byte{
			"v1":          []byte("PROXY TCP4 192.0.2.1 198.51.100.2 5000 1883\r\n"),
			"v2":          headerV2(t, "192.0.2.1:5000", "198.51.100.2:1883", tlv(proxyproto.PP2_TYPE_UNIQUE_ID, "u"), sslTLV(t, 3, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.2"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "dev"))),
			"local":       rawV2(0x20, 0, 0, ""),
			"unspecified": rawV2(0x21, 0, 0, ""),
		} {
			t.Run(transport+"/"+version, func(t *testing.T) {
				cfg := config(t, transport, ca)
				// As a network that holds IPv4 addresses in IPv6 clothes, on a socket of both families.
				cfg.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::ffff:127.0.0.0/104")}
				cfg.Address = ":0"
				l := start(t, cfg)
				c := dial(t, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addrPort(l.Addr()).Port())))
				var s io.ReadWriter = c
				switch transport {
				case TCP:
					// In one segment with what follows.
					send(t, c, append(bytes.Clone(header), "with the header"...))
					readN(t, c, len("with the header"))
				default:
					send(t, c, header[:7]) // torn
					send(t, c, header[7:])
				}
				if transport == TLS || transport == WSS {
					s = tls.Client(c, ca.client())
				}
				if transport == WS || transport == WSS {
					upgradeRaw(t, s)
				} else {
					echoed(t, s, noise(t, 10_000))
				}
				o := l.arrival(t).origin
				self := addrPort(c.LocalAddr())
				want := relay.Origin{Listener: "test", Transport: transport, Peer: self, Client: addr("192.0.2.1:5000"), Server: addr("198.51.100.2:1883")}
				if version == "local" || version == "unspecified" {
					want.Client, want.Server = self, addrPort(c.RemoteAddr())
				}
				if o.Peer != want.Peer || o.Client != want.Client || o.Server != want.Server {
					t.Errorf("origin %+v, want %+v", o, want)
				}
				if (version == "v2") != (string(o.UniqueID) == "u") {
					t.Errorf("unique id %q", o.UniqueID)
				}
				switch {
				case cfg.secure(): // our own handshake counts, and has seen no certificate
					if o.TLS == nil || o.TLS.CommonName != "" || o.TLS.Version != tls.VersionTLS13 {
						t.Errorf("TLS %+v", o.TLS)
					}
				case version == "v2":
					if o.TLS == nil || o.TLS.CommonName != "dev" || !o.TLS.Verified {
						t.Errorf("TLS %+v", o.TLS)
					}
				default:
					if o.TLS != nil {
						t.Errorf("TLS %+v", o.TLS)
					}
				}
				_ = c.Close()
			})
		}
	}
}

func TestProxyIsRequiredFromTrustedPeers(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TCP, TLS, WS, WSS} {
		cfg := config(t, transport, ca)
		cfg.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		l := start(t, cfg)
		for name, in := range map[string]string{
			"MQTT": "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", "HTTP": goodUpgrade, "malformed": "PROXY TCP4 nobody\r\n", "huge": string(rawV2(0x21, 0x11, 0xffff, "")),
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				c := dial(t, l.Addr())
				send(t, c, []byte(in))
				if got := ended(t, c); len(got) > 0 {
					t.Errorf("answered %q", got)
				}
				r := l.rejected(t, ReasonProxyHeader)
				if !errors.Is(r.err, ErrProxy) || r.origin.Peer != addrPort(c.LocalAddr()) || r.origin.Client != r.origin.Peer {
					t.Errorf("%v, %+v", r.err, r.origin)
				}
			})
		}
		t.Run(transport+"/cut", func(t *testing.T) {
			c := dial(t, l.Addr())
			send(t, c, []byte("PROXY TCP4 192.0"))
			_ = c.CloseWrite()
			ended(t, c)
			l.rejected(t, ReasonClientGone)
		})
	}
}

func TestProxyFromUntrustedPeers(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TLS, WS, WSS} {
		cfg := config(t, transport, ca)
		cfg.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::1/128")}
		l := start(t, cfg)
		for name, header := range map[string][]byte{
			"v1": []byte("PROXY TCP4 192.0.2.1 198.51.100.2 5000 1883\r\n"), "v2": headerV2(t, "192.0.2.1:5000", "198.51.100.2:1883"), "local": rawV2(0x20, 0, 0, ""),
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				c := dial(t, l.Addr())
				send(t, c, append(bytes.Clone(header), goodUpgrade...))
				ended(t, c)
				r := l.rejected(t, ReasonProxyUntrusted)
				if r.origin.Client != addrPort(c.LocalAddr()) { // what the header claims is not even remembered
					t.Errorf("origin %+v", r.origin)
				}
			})
		}
		t.Run(transport+"/without", func(t *testing.T) {
			echoed(t, connect(t, transport, l.Addr(), ca), []byte("direct clients are welcome"))
		})
	}
	// Plain TCP hands the bytes over as they are: sessions recognise a header by themselves, on every driver.
	l := start(t, Config{Transport: TCP, ProxyFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	echoed(t, connect(t, TCP, l.Addr(), ca), []byte("PROXY UNKNOWN\r\n"))
	if o := l.arrival(t).origin; o.Client != o.Peer {
		t.Errorf("origin %+v", o)
	}
}

func TestTrusted(t *testing.T) {
	cfg := Config{Transport: TCP, Address: ":0"}
	for _, p := range []string{"10.1.0.0/16", "2001:db8::/32", "::ffff:192.0.2.0/120", "fe80::/10", "203.0.113.9/24"} {
		cfg.ProxyFrom = append(cfg.ProxyFrom, netip.MustParsePrefix(p))
	}
	given := cfg.ProxyFrom[2]
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	if given != netip.MustParsePrefix("::ffff:192.0.2.0/120") {
		t.Error("the caller's slice was changed")
	}
	for a, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.0": false, "2001:db8::7": true, "2001:db9::7": false, "192.0.2.200": true,
		"::ffff:192.0.2.1": true, "192.0.3.1": false, "fe80::1%eth0": true, "203.0.113.77": true, "::1": false, "::": false,
	} {
		if got := cfg.trusted(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if cfg.trusted(netip.Addr{}) {
		t.Error("no address is trusted")
	}
}

func FuzzProxy(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 192.0.2.1 198.51.100.2 5000 1883\r\n", "PROXY TCP6 ::1 ::2 1 2\r\n", "PROXY UNKNOWN\r\n", "PROXY ", "\r\n\r\n", "\x10\x0c", "",
		string(rawV2(0x20, 0, 0, "")), string(rawV2(0x21, 0x31, 216, strings.Repeat("/a\x00", 72))), string(rawV2(0x21, 0x11, 0xffff, "")),
		string(checksummed(headerV2(f, "192.0.2.1:1", "192.0.2.2:2", tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")))),
		string(headerV2(f, "[::1]:1", "[::2]:2", tlv(proxyproto.PP2_TYPE_ALPN, "mqtt"), tlv(proxyproto.PP2_TYPE_UNIQUE_ID, "u"), sslTLV(f, 7, 0, tlv(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.3"), tlv(proxyproto.PP2_SUBTYPE_SSL_CN, "dev")))),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		n, h, err := ParseProxy(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the input was changed")
		}
		switch {
		case err == ErrShort:
			if len(b) >= MaxProxyHeader {
				t.Fatalf("%d bytes are not enough", len(b))
			}
			return
		case err != nil:
			if !errors.Is(err, ErrProxy) || n != 0 {
				t.Fatalf("%d, %v", n, err)
			}
			return
		}
		if n <= 0 || n > len(b) || n > MaxProxyHeader || !LooksLikeProxy(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if !h.Local && (!h.Source.IsValid() || !h.Destination.IsValid() || h.Source.Addr().Is4In6()) {
			t.Fatalf("addresses of %+v", h)
		}
		if h.TLS != nil && h.TLS.CommonName != "" && !h.TLS.Verified {
			t.Fatalf("unverified name in %+v", h.TLS)
		}
		// What is behind the header does not matter, and no part of it is enough.
		if m, again, err := ParseProxy(b[:n]); err != nil || m != n || !equalHeader(h, again) {
			t.Fatalf("alone: %d, %+v, %v", m, again, err)
		}
		if _, _, err := ParseProxy(b[:n-1]); err != ErrShort {
			t.Fatalf("one byte less: %v", err)
		}
		var o relay.Origin
		h.Apply(&o)
	})
}
