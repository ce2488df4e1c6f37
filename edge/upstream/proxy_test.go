package upstream

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
)

func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func TestProxyV1(t *testing.T) {
	for _, c := range []struct{ name, client, server, want string }{
		{"IPv4", "192.0.2.7:50000", "198.51.100.1:1883", "PROXY TCP4 192.0.2.7 198.51.100.1 50000 1883\r\n"},
		{"IPv6", "[2001:db8::7]:50000", "[2001:db8::1]:1883", "PROXY TCP6 2001:db8::7 2001:db8::1 50000 1883\r\n"},
		{"mapped is IPv4", "[::ffff:192.0.2.7]:50000", "198.51.100.1:1883", "PROXY TCP4 192.0.2.7 198.51.100.1 50000 1883\r\n"},
		{"zone goes", "[fe80::7%eth0]:50000", "[fe80::1%eth0]:1883", "PROXY TCP6 fe80::7 fe80::1 50000 1883\r\n"},
		{"client IPv4, server IPv6", "192.0.2.7:5", "[2001:db8::1]:1883", "PROXY TCP6 ::ffff:c000:207 2001:db8::1 5 1883\r\n"},
		{"client IPv6, server IPv4", "[2001:db8::7]:5", "198.51.100.1:1883", "PROXY TCP6 2001:db8::7 ::ffff:c633:6401 5 1883\r\n"},
		{"server unknown", "192.0.2.7:5", "", "PROXY TCP4 192.0.2.7 0.0.0.0 5 0\r\n"},
		{"IPv6, server unknown", "[2001:db8::7]:5", "", "PROXY TCP6 2001:db8::7 :: 5 0\r\n"},
		{"client unknown", "", "198.51.100.1:1883", "PROXY UNKNOWN\r\n"},
	} {
		o := &relay.Origin{Client: addrPort(c.client), Server: addrPort(c.server)}
		if got := string(AppendProxy([]byte("x"), registry.ProxyV1, o)); got != "x"+c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if _, err := proxyproto.Read(bufio.NewReader(strings.NewReader(c.want))); err != nil {
			t.Errorf("%s: go-proxyproto refuses %q: %v", c.name, c.want, err)
		}
	}
}

func TestProxyOfOurOwn(t *testing.T) {
	if got := string(AppendProxy(nil, registry.ProxyV1, nil)); got != "PROXY UNKNOWN\r\n" {
		t.Errorf("version 1: %q", got)
	}
	h := parseProxy(t, AppendProxy(nil, registry.ProxyV2, nil))
	if !h.Command.IsLocal() {
		t.Errorf("version 2: command %v, want LOCAL", h.Command)
	}
	for _, none := range []registry.ProxyProtocol{registry.ProxyNone, "none"} {
		if got := AppendProxy([]byte("x"), none, &relay.Origin{}); string(got) != "x" {
			t.Errorf("mode %q: %q, want nothing appended", none, got)
		}
	}
}

// parseProxy reads a header with the library that brokers in Go use, and insists that it is all there is.
func parseProxy(t *testing.T, b []byte) *proxyproto.Header {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(b))
	h, err := proxyproto.Read(r)
	if err != nil {
		t.Fatalf("header % x: %v", b, err)
	}
	if rest := r.Buffered(); rest != 0 {
		t.Fatalf("header % x: %d bytes are left over", b, rest)
	}
	return h
}

func tlvsOf(t *testing.T, h *proxyproto.Header) map[proxyproto.PP2Type]string {
	t.Helper()
	all, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[proxyproto.PP2Type]string)
	for _, tlv := range all {
		if _, twice := m[tlv.Type]; twice {
			t.Errorf("TLV %#x appears twice", tlv.Type)
		}
		m[tlv.Type] = string(tlv.Value)
	}
	return m
}

func sslOf(t *testing.T, h *proxyproto.Header) (ssl tlvparse.PP2SSL, ok bool) {
	t.Helper()
	all, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	return tlvparse.FindSSL(all)
}

func TestProxyV2(t *testing.T) {
	o := &relay.Origin{
		Client:   addrPort("192.0.2.7:50000"),
		Server:   addrPort("198.51.100.1:8883"),
		UniqueID: []byte("id-from-the-balancer"),
		TLS: &relay.TLS{
			Version: tls.VersionTLS13, ServerName: "mqtt.example.com", ALPN: "mqtt",
			Cipher: "TLS_AES_128_GCM_SHA256", CommonName: "thermostat-17", Verified: true,
		},
	}
	h := parseProxy(t, AppendProxy(nil, registry.ProxyV2, o))
	if !h.Command.IsProxy() || h.TransportProtocol != proxyproto.TCPv4 {
		t.Errorf("command %v, transport %v", h.Command, h.TransportProtocol)
	}
	if h.SourceAddr.String() != "192.0.2.7:50000" || h.DestinationAddr.String() != "198.51.100.1:8883" {
		t.Errorf("addresses %v, %v", h.SourceAddr, h.DestinationAddr)
	}
	tlvs := tlvsOf(t, h)
	for kind, want := range map[proxyproto.PP2Type]string{
		proxyproto.PP2_TYPE_ALPN:      "mqtt",
		proxyproto.PP2_TYPE_AUTHORITY: "mqtt.example.com",
		proxyproto.PP2_TYPE_UNIQUE_ID: "id-from-the-balancer",
	} {
		if tlvs[kind] != want {
			t.Errorf("TLV %#x is %q, want %q", kind, tlvs[kind], want)
		}
	}
	if len(tlvs) != 4 {
		t.Errorf("%d TLVs, want 4: %q", len(tlvs), tlvs)
	}
	ssl, ok := sslOf(t, h)
	if !ok || !ssl.ClientSSL() || !ssl.Verified() || !ssl.ClientCertConn() || !ssl.ClientCertSess() {
		t.Errorf("SSL TLV %+v", ssl)
	}
	if v, _ := ssl.SSLVersion(); v != "TLSv1.3" {
		t.Errorf("version %q", v)
	}
	if c, _ := ssl.SSLCipher(); c != "TLS_AES_128_GCM_SHA256" {
		t.Errorf("cipher %q", c)
	}
	if cn, _ := ssl.ClientCN(); cn != "thermostat-17" {
		t.Errorf("common name %q", cn)
	}
}

// A name that nobody verified must not reach a broker that would take it for proof, even if it stands in the Origin.
func TestProxyV2UnverifiedName(t *testing.T) {
	o := &relay.Origin{
		Client: addrPort("192.0.2.7:50000"), Server: addrPort("198.51.100.1:8883"),
		TLS: &relay.TLS{Version: tls.VersionTLS12, CommonName: "administrator"},
	}
	b := AppendProxy(nil, registry.ProxyV2, o)
	if bytes.Contains(b, []byte("administrator")) {
		t.Errorf("the header % x carries the name", b)
	}
	ssl, ok := sslOf(t, parseProxy(t, b))
	if !ok || !ssl.ClientSSL() || ssl.Verified() || ssl.ClientCertConn() || ssl.ClientCertSess() {
		t.Errorf("SSL TLV %+v: want TLS without a certificate", ssl)
	}
	if cn, found := ssl.ClientCN(); found {
		t.Errorf("common name %q", cn)
	}
	if v, _ := ssl.SSLVersion(); v != "TLSv1.2" {
		t.Errorf("version %q", v)
	}
}

// A proxy in front may have told the names that the client gave, and nothing of TLS: so do we.
func TestProxyV2NamesWithoutTLS(t *testing.T) {
	o := &relay.Origin{
		Client: addrPort("192.0.2.7:50000"), Server: addrPort("198.51.100.1:1883"),
		TLS: &relay.TLS{ServerName: "mqtt.example.com", ALPN: "mqtt"},
	}
	h := parseProxy(t, AppendProxy(nil, registry.ProxyV2, o))
	tlvs := tlvsOf(t, h)
	if len(tlvs) != 2 || tlvs[proxyproto.PP2_TYPE_AUTHORITY] != "mqtt.example.com" || tlvs[proxyproto.PP2_TYPE_ALPN] != "mqtt" {
		t.Errorf("TLVs %q, want AUTHORITY and ALPN", tlvs)
	}
	o.TLS.Version = 0xffff // TLS of a version that has no name
	ssl, ok := sslOf(t, parseProxy(t, AppendProxy(nil, registry.ProxyV2, o)))
	if !ok || !ssl.ClientSSL() {
		t.Errorf("SSL TLV %+v: want TLS", ssl)
	}
	if v, _ := ssl.SSLVersion(); v == "" {
		t.Error("a version without a name")
	}
}

func TestProxyV2Families(t *testing.T) {
	for _, c := range []struct {
		client, server string
		want           proxyproto.AddressFamilyAndProtocol
		src, dst       string
	}{
		{"[2001:db8::7]:5", "[2001:db8::1]:1883", proxyproto.TCPv6, "[2001:db8::7]:5", "[2001:db8::1]:1883"},
		{"192.0.2.7:5", "[2001:db8::1]:1883", proxyproto.TCPv6, "192.0.2.7:5", "[2001:db8::1]:1883"}, // net.IP prints mapped addresses so
		{"192.0.2.7:5", "", proxyproto.TCPv4, "192.0.2.7:5", "0.0.0.0:0"},
		{"[::ffff:192.0.2.7]:5", "[::ffff:192.0.2.1]:1", proxyproto.TCPv4, "192.0.2.7:5", "192.0.2.1:1"},
	} {
		// The family of a client over QUIC is STREAM too.
		for _, transport := range []string{"tcp", "quic"} {
			o := &relay.Origin{Transport: transport, Client: addrPort(c.client), Server: addrPort(c.server)}
			h := parseProxy(t, AppendProxy(nil, registry.ProxyV2, o))
			if h.TransportProtocol != c.want || h.SourceAddr.String() != c.src || h.DestinationAddr.String() != c.dst {
				t.Errorf("%s %s, %s: %v %v %v", transport, c.client, c.server, h.TransportProtocol, h.SourceAddr, h.DestinationAddr)
			}
			if len(tlvsOf(t, h)) != 0 {
				t.Errorf("%s: TLVs without TLS: %q", transport, tlvsOf(t, h))
			}
		}
	}
}

func TestProxyV2LeavesOutWhatIsTooLong(t *testing.T) {
	long := strings.Repeat("x", maxTLVText+1)
	o := &relay.Origin{
		Client: addrPort("192.0.2.7:5"), Server: addrPort("192.0.2.1:1"), UniqueID: bytes.Repeat([]byte{1}, maxUniqueID+1),
		TLS: &relay.TLS{Version: tls.VersionTLS13, ServerName: long, ALPN: "\xff", CommonName: long, Verified: true},
	}
	h := parseProxy(t, AppendProxy(nil, registry.ProxyV2, o))
	if tlvs := tlvsOf(t, h); len(tlvs) != 1 {
		t.Errorf("%d TLVs, want the SSL TLV alone", len(tlvs))
	}
	ssl, ok := sslOf(t, h)
	if cn, found := ssl.ClientCN(); !ok || found {
		t.Errorf("SSL TLV %+v, common name %q", ssl, cn)
	}
}

// largest is an Origin whose header is as long as one can get.
func largest() *relay.Origin {
	text := strings.Repeat("x", maxTLVText)
	return &relay.Origin{
		Client: addrPort("[2001:db8::7]:5"), Server: addrPort("[2001:db8::1]:1"), UniqueID: bytes.Repeat([]byte{1}, maxUniqueID),
		TLS: &relay.TLS{
			Version: tls.VersionTLS13, ServerName: text, ALPN: text, CommonName: text, Verified: true,
			Cipher: tls.CipherSuiteName(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
		},
	}
}

func TestProxyLargestFits(t *testing.T) {
	longest := 0
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		longest = max(longest, len(s.Name))
	}
	o := largest()
	o.TLS.Cipher = strings.Repeat("x", longest)
	if n := len(AppendProxy(nil, registry.ProxyV2, o)); n > MaxProxyHeader {
		t.Errorf("a header of %d bytes, MaxProxyHeader is %d", n, MaxProxyHeader)
	}
}

func TestProxyDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, MaxProxyHeader)
	for _, mode := range []registry.ProxyProtocol{registry.ProxyV1, registry.ProxyV2} {
		o := largest()
		if n := testing.AllocsPerRun(100, func() { AppendProxy(buf, mode, o) }); n != 0 {
			t.Errorf("%s: %v allocations", mode, n)
		}
	}
}

// What is appended is read back as it was meant by the library that brokers use, whatever the Origin holds.
func FuzzProxyRoundTrip(f *testing.F) {
	f.Add([]byte{192, 0, 2, 7}, []byte{192, 0, 2, 1}, uint16(5), uint16(1883), []byte("id"), true, true, uint16(tls.VersionTLS13), "sni.example", "mqtt", "TLS_AES_128_GCM_SHA256", "cn")
	f.Add([]byte(net.IPv6loopback), []byte{192, 0, 2, 1}, uint16(5), uint16(1883), []byte(nil), true, false, uint16(0), "", "", "", "cn")
	f.Add([]byte{}, []byte{}, uint16(0), uint16(0), []byte(nil), false, false, uint16(0), "", "", "", "")
	f.Fuzz(func(t *testing.T, src, dst []byte, sport, dport uint16, id []byte, secure, verified bool, version uint16, sni, alpn, cipher, cn string) {
		o := &relay.Origin{UniqueID: id}
		if a, ok := netip.AddrFromSlice(src); ok {
			o.Client = netip.AddrPortFrom(a, sport)
		}
		if a, ok := netip.AddrFromSlice(dst); ok {
			o.Server = netip.AddrPortFrom(a, dport)
		}
		if secure {
			o.TLS = &relay.TLS{Version: version, ServerName: sni, ALPN: alpn, Cipher: cipher, CommonName: cn, Verified: verified}
		}
		for _, mode := range []registry.ProxyProtocol{registry.ProxyV1, registry.ProxyV2} {
			b := AppendProxy(nil, mode, o)
			if mode == registry.ProxyV1 && len(b) > 107 { // §2.1: the longest line, its CRLF included
				t.Fatalf("a line of %d bytes", len(b))
			}
			h := parseProxy(t, b)
			if h.Command.IsLocal() != !o.Client.IsValid() {
				t.Fatalf("%s: command %v for client %v", mode, h.Command, o.Client)
			}
			if o.Client.IsValid() {
				if got := h.SourceAddr.(*net.TCPAddr).AddrPort(); unmapped(got) != unmapped(o.Client) {
					t.Fatalf("%s: source %v, want %v", mode, got, o.Client)
				}
				if got := h.DestinationAddr.(*net.TCPAddr).AddrPort(); o.Server.IsValid() && unmapped(got) != unmapped(o.Server) {
					t.Fatalf("%s: destination %v, want %v", mode, got, o.Server)
				}
			}
			if mode == registry.ProxyV1 || !o.Client.IsValid() {
				continue
			}
			tlvs := tlvsOf(t, h)
			expect := func(kind proxyproto.PP2Type, want string, limit int) {
				if len(want) > limit || limit == maxTLVText && !utf8.ValidString(want) {
					want = ""
				}
				if tlvs[kind] != want {
					t.Fatalf("TLV %#x is %q, want %q", kind, tlvs[kind], want)
				}
			}
			expect(proxyproto.PP2_TYPE_UNIQUE_ID, string(id), maxUniqueID)
			if !secure {
				continue
			}
			expect(proxyproto.PP2_TYPE_AUTHORITY, sni, maxTLVText)
			expect(proxyproto.PP2_TYPE_ALPN, alpn, maxTLVText)
			if !isASCII(cipher) {
				continue // not a cipher's name: the reader may refuse it
			}
			ssl, ok := sslOf(t, h)
			if version == 0 {
				if ok {
					t.Fatalf("SSL TLV %+v of a handshake that nobody has seen", ssl)
				}
				continue
			}
			if !ok || ssl.Verified() != verified {
				t.Fatalf("SSL TLV %+v, verified %v", ssl, verified)
			}
			name, found := ssl.ClientCN()
			if want := verified && cn != "" && len(cn) <= maxTLVText && utf8.ValidString(cn); found != want || found && name != cn {
				t.Fatalf("common name %q (%v), want %q (%v)", name, found, cn, want)
			}
		}
	})
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func isASCII(s string) bool {
	for _, c := range []byte(s) {
		if c > 127 {
			return false
		}
	}
	return true
}

func BenchmarkAppendProxy(b *testing.B) {
	o := &relay.Origin{
		Client: addrPort("192.0.2.7:50000"), Server: addrPort("198.51.100.1:8883"),
		TLS: &relay.TLS{Version: tls.VersionTLS13, ServerName: "mqtt.example.com", ALPN: "mqtt", Cipher: "TLS_AES_128_GCM_SHA256"},
	}
	plain := &relay.Origin{Client: o.Client, Server: o.Server}
	for _, c := range []struct {
		name string
		mode registry.ProxyProtocol
		o    *relay.Origin
	}{{"v1", registry.ProxyV1, plain}, {"v2", registry.ProxyV2, plain}, {"v2-tls", registry.ProxyV2, o}} {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, 0, MaxProxyHeader)
			b.ReportAllocs()
			for b.Loop() {
				AppendProxy(buf, c.mode, c.o)
			}
		})
	}
}
