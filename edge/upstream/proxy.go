package upstream

import (
	"crypto/tls"
	"encoding/binary"
	"net/netip"
	"strconv"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
)

// The PROXY protocol, as https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt has it.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n" // §2.2

	proxyLocal   = 0x20 // version 2, command LOCAL
	proxyProxy   = 0x21 // version 2, command PROXY
	familyUnspec = 0x00
	familyTCP4   = 0x11 // AF_INET, STREAM
	familyTCP6   = 0x21 // AF_INET6, STREAM

	tlvALPN       = 0x01 // PP2_TYPE_ALPN
	tlvAuthority  = 0x02 // PP2_TYPE_AUTHORITY
	tlvUniqueID   = 0x05 // PP2_TYPE_UNIQUE_ID
	tlvSSL        = 0x20 // PP2_TYPE_SSL
	tlvSSLVersion = 0x21 // PP2_SUBTYPE_SSL_VERSION
	tlvSSLCN      = 0x22 // PP2_SUBTYPE_SSL_CN
	tlvSSLCipher  = 0x23 // PP2_SUBTYPE_SSL_CIPHER

	clientSSL      = 0x01 // PP2_CLIENT_SSL: the client came over TLS
	clientCertConn = 0x02 // PP2_CLIENT_CERT_CONN: it showed a certificate over this connection
	clientCertSess = 0x04 // PP2_CLIENT_CERT_SESS: or at least once over this TLS session

	// maxTLVText bounds ALPN and SNI, which TLS itself bounds to 255 bytes, and a common name, which X.520 bounds to 64
	// characters. What is longer is left out rather than cut: half a name is another name.
	maxTLVText  = 256
	maxUniqueID = 128 // §2.2.5

	// MaxProxyHeader is no less than the longest header that AppendProxy makes, in bytes.
	MaxProxyHeader = 16 + 36 + 3*(3+maxTLVText) + 3 + maxUniqueID + 8 + 2*(3+32)
)

// AppendProxy appends the PROXY protocol header that introduces o's client to a broker, in the version that mode names;
// nothing for registry.ProxyNone. A nil o is a connection of our own.
//
// Version 1 is one line with the addresses; a mixed pair of families becomes a TCP6 line with the IPv4 address mapped, and a
// client whose address is unknown (or a nil o) is UNKNOWN. Version 2 has the command PROXY, or LOCAL where version 1 says UNKNOWN, and the
// type-length-values ALPN, AUTHORITY (the SNI), UNIQUE_ID and SSL (flags, version, cipher; the common name only if the
// client's certificate was verified). There is no SSL where the version of o.TLS is 0: names without a handshake that anybody vouches for. The transport is STREAM for clients over QUIC too: what the broker reads is a stream,
// and receivers take DGRAM to mean that it is none.
//
// It does not allocate where dst has MaxProxyHeader bytes of room.
func AppendProxy(dst []byte, mode registry.ProxyProtocol, o *relay.Origin) []byte {
	switch mode {
	case registry.ProxyV1:
		return appendProxyV1(dst, o)
	case registry.ProxyV2:
		return appendProxyV2(dst, o)
	}
	return dst
}

// endpoints returns the pair of addresses to announce, both of one family. The destination of a client that is known is
// never worth losing the client: where it is unknown it becomes the unspecified address.
func endpoints(o *relay.Origin) (src, dst netip.AddrPort, ok bool) {
	if o == nil || !o.Client.IsValid() {
		return src, dst, false
	}
	s := o.Client.Addr().Unmap().WithZone("") // neither version has room for a zone
	d := o.Server.Addr().Unmap().WithZone("")
	switch {
	case !d.IsValid() && s.Is4():
		d = netip.IPv4Unspecified()
	case !d.IsValid():
		d = netip.IPv6Unspecified()
	case s.Is4() != d.Is4():
		s, d = netip.AddrFrom16(s.As16()), netip.AddrFrom16(d.As16())
	}
	return netip.AddrPortFrom(s, o.Client.Port()), netip.AddrPortFrom(d, o.Server.Port()), true
}

// appendProxyV1 writes §2.1.
func appendProxyV1(dst []byte, o *relay.Origin) []byte {
	from, to, ok := endpoints(o)
	if !ok {
		return append(dst, "PROXY UNKNOWN\r\n"...)
	}
	if from.Addr().Is4() {
		dst = append(dst, "PROXY TCP4 "...)
	} else {
		dst = append(dst, "PROXY TCP6 "...)
	}
	dst = appendAddrV1(dst, from.Addr())
	dst = append(dst, ' ')
	dst = appendAddrV1(dst, to.Addr())
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(from.Port()), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(to.Port()), 10)
	return append(dst, '\r', '\n')
}

// appendAddrV1 writes an address in the grammar of §2.1, which knows no dots in IPv6.
func appendAddrV1(dst []byte, a netip.Addr) []byte {
	if !a.Is4In6() {
		return a.AppendTo(dst)
	}
	b := a.As16()
	dst = append(dst, "::ffff:"...)
	dst = strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[12:])), 16)
	dst = append(dst, ':')
	return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[14:])), 16)
}

// appendProxyV2 writes §2.2.
func appendProxyV2(dst []byte, o *relay.Origin) []byte {
	dst = append(dst, proxySignature...)
	from, to, ok := endpoints(o)
	if !ok {
		return append(dst, proxyLocal, familyUnspec, 0, 0)
	}
	family := byte(familyTCP6)
	if from.Addr().Is4() {
		family = familyTCP4
	}
	dst = append(dst, proxyProxy, family)
	dst, mark := openLength(dst)
	dst = appendAddrV2(dst, from.Addr())
	dst = appendAddrV2(dst, to.Addr())
	dst = binary.BigEndian.AppendUint16(dst, from.Port())
	dst = binary.BigEndian.AppendUint16(dst, to.Port())
	if t := o.TLS; t != nil {
		dst = appendText(dst, tlvALPN, t.ALPN)
		dst = appendText(dst, tlvAuthority, t.ServerName)
	}
	if n := len(o.UniqueID); n > 0 && n <= maxUniqueID {
		dst = append(dst, tlvUniqueID, 0, byte(n))
		dst = append(dst, o.UniqueID...)
	}
	if o.TLS != nil && o.TLS.Version != 0 {
		dst = appendSSL(dst, o.TLS)
	}
	return closeLength(dst, mark)
}

func appendAddrV2(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(dst, b[:]...)
	}
	b := a.As16()
	return append(dst, b[:]...)
}

// appendSSL writes pp2_tlv_ssl, §2.2.6.
func appendSSL(dst []byte, t *relay.TLS) []byte {
	dst = append(dst, tlvSSL)
	dst, mark := openLength(dst)
	if t.Verified {
		dst = append(dst, clientSSL|clientCertConn|clientCertSess, 0, 0, 0, 0)
	} else {
		dst = append(dst, clientSSL, 0, 0, 0, 1) // verify is zero only for a certificate that was verified
	}
	dst = appendText(dst, tlvSSLVersion, sslVersion(t.Version))
	if t.Verified { // never a name that only the client vouches for
		dst = appendText(dst, tlvSSLCN, t.CommonName)
	}
	dst = appendText(dst, tlvSSLCipher, t.Cipher)
	return closeLength(dst, mark)
}

// sslVersion names a TLS version as OpenSSL does, whose names receivers expect. It must have some name (§2.2.6).
func sslVersion(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "TLSv1.3"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS10:
		return "TLSv1"
	}
	return tls.VersionName(v)
}

// appendText writes one TLV, or nothing for a text that is empty, too long or not UTF-8.
func appendText(dst []byte, kind byte, s string) []byte {
	if len(s) == 0 || len(s) > maxTLVText || !utf8.ValidString(s) {
		return dst
	}
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// openLength leaves room for a 16-bit length that closeLength fills in.
func openLength(dst []byte) ([]byte, int) {
	dst = append(dst, 0, 0)
	return dst, len(dst)
}

func closeLength(dst []byte, mark int) []byte {
	binary.BigEndian.PutUint16(dst[mark-2:], uint16(len(dst)-mark))
	return dst
}
