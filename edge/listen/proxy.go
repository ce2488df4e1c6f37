package listen

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/limpet-mesh/limpet/edge/relay"
	proxyproto "github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// The PROXY protocol: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, "the specification" below.

// MaxProxyHeader bounds a PROXY header, of whatever version, in bytes. Version 1 has a bound of its own, 107 (§2.1); version 2
// could claim 65,551 (§2.2), but nobody needs more than this.
const MaxProxyHeader = 4 << 10

const (
	maxProxyV1     = 107
	proxyV2Fixed   = 16 // signature, version and command, family, length
	signatureV1    = "PROXY "
	signatureV2    = "\r\n\r\n\x00\r\nQUIT\n"
	maxUniqueID    = 128 // §2.2.5
	tlvHeader      = 3   // type and length
	addressesIPv4  = 12
	addressesIPv6  = 36
	addressesUnix  = 216
	familyMask     = 0xf0
	familyIPv4     = 0x10
	familyIPv6     = 0x20
	familyUnix     = 0x30
	proxyV2Version = 0x20 // the upper half of the byte behind the signature
	proxyV2Local   = 0x20 // that byte, of the command LOCAL
	proxyV2Proxy   = 0x21 // and of the command PROXY
	familyUnspec   = 0x00 // the byte behind it: AF_UNSPEC, UNSPEC
)

var (
	// ErrShort says that more bytes are needed to tell.
	ErrShort = errors.New("listen: more bytes are needed")
	// ErrProxy says that the bytes are no PROXY header, or a malformed one.
	ErrProxy = errors.New("listen: PROXY header")

	errProxyUntrusted = errors.New("listen: PROXY header from an address that is not trusted to send one")
)

// A ProxyHeader is what a PROXY header says.
type ProxyHeader struct {
	Version int // 1 or 2
	// Local means that the header names no client: the proxy's own connection (a health check), or one whose addresses it
	// does not know or that are not IP addresses. The socket's own addresses count (§2.2, LOCAL and AF_UNSPEC; §2.1, UNKNOWN).
	Local bool
	// Source is the client, Destination the address it connected to; IPv4 addresses are never mapped into IPv6.
	Source, Destination netip.AddrPort
	UniqueID            []byte // PP2_TYPE_UNIQUE_ID; nil if absent
	ALPN                string // PP2_TYPE_ALPN
	Authority           string // PP2_TYPE_AUTHORITY: the SNI that the client sent
	// TLS is PP2_TYPE_SSL, with ALPN and Authority: what the proxy's handshake with the client told. nil if the client came
	// without TLS. The common name is set only if the proxy verified the client's certificate. The version is never 0.
	TLS *relay.TLS
}

// Apply puts what h says into o, for a peer that is trusted. What o knows of TLS from a handshake of our own comes later and wins.
//
// PP2_TYPE_ALPN and PP2_TYPE_AUTHORITY may come without PP2_TYPE_SSL (§2.2.1, §2.2.2: a proxy that speaks of the host alone, say).
// Then they are o.TLS with version 0: names that the client gave, of a handshake that nobody vouches for.
func (h *ProxyHeader) Apply(o *relay.Origin) {
	o.UniqueID = h.UniqueID
	o.TLS = h.TLS
	if o.TLS == nil && (h.ALPN != "" || h.Authority != "") {
		o.TLS = &relay.TLS{ServerName: h.Authority, ALPN: h.ALPN}
	}
	if !h.Local {
		o.Client, o.Server = h.Source, h.Destination
	}
}

// LooksLikeProxy reports whether b starts with the signature of a PROXY header, of either version. No MQTT packet, TLS record or
// HTTP request does.
func LooksLikeProxy(b []byte) bool {
	return bytes.HasPrefix(b, []byte(signatureV1)) || bytes.HasPrefix(b, []byte(signatureV2))
}

// ParseProxy reads the PROXY header at the start of b and returns its length in bytes. ErrShort: b is the beginning of one, come
// again with more. Any other error wraps ErrProxy and is final: b does not start with a header, or with a malformed or overlong
// one. h shares no memory with b.
func ParseProxy(b []byte) (n int, h ProxyHeader, err error) {
	n, err = proxyLength(b)
	if err != nil {
		return 0, h, err
	}
	raw, err := readProxyHeader(known(b[:n]))
	if err != nil {
		return 0, h, fmt.Errorf("%w: %w", ErrProxy, err)
	}
	h = ProxyHeader{Version: int(raw.Version), Local: raw.Command.IsLocal()}
	h.Source, h.Destination = proxyAddr(raw.SourceAddr), proxyAddr(raw.DestinationAddr)
	if h.Local || !h.Source.IsValid() || !h.Destination.IsValid() { // LOCAL, UNKNOWN, or AF_UNIX
		h.Local, h.Source, h.Destination = true, netip.AddrPort{}, netip.AddrPort{}
	}
	if raw.Version == 2 && b[proxyV2Fixed-4] != proxyV2Local { // LOCAL: what follows must be discarded (§2.2)
		if err := h.readTLVs(b[:n], raw); err != nil {
			return 0, ProxyHeader{}, fmt.Errorf("%w: %w", ErrProxy, err)
		}
	}
	return n, h, nil
}

// proxyLength finds where the header at the start of b ends, from its first bytes alone.
func proxyLength(b []byte) (int, error) {
	switch {
	case len(b) == 0:
		return 0, ErrShort
	case b[0] == signatureV1[0]:
		if n := min(len(b), len(signatureV1)); string(b[:n]) != signatureV1[:n] {
			return 0, fmt.Errorf("%w: missing", ErrProxy)
		}
		line := b[:min(len(b), maxProxyV1)]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(line) == maxProxyV1 {
			return 0, fmt.Errorf("%w: version 1 line longer than %d bytes", ErrProxy, maxProxyV1)
		}
		return 0, ErrShort
	case b[0] == signatureV2[0]:
		if n := min(len(b), len(signatureV2)); string(b[:n]) != signatureV2[:n] {
			return 0, fmt.Errorf("%w: missing", ErrProxy)
		}
		if len(b) > len(signatureV2) && b[len(signatureV2)]&0xf0 != proxyV2Version {
			return 0, fmt.Errorf("%w: unknown version %d", ErrProxy, b[len(signatureV2)]>>4)
		}
		if len(b) < proxyV2Fixed {
			return 0, ErrShort
		}
		n := proxyV2Fixed + int(binary.BigEndian.Uint16(b[proxyV2Fixed-2:]))
		if n > MaxProxyHeader {
			return 0, fmt.Errorf("%w: claims %d bytes, %d is the bound", ErrProxy, n, MaxProxyHeader)
		}
		if len(b) < n {
			return 0, ErrShort
		}
		return n, nil
	default:
		return 0, fmt.Errorf("%w: missing", ErrProxy)
	}
}

// proxyReaders are large enough for a version 1 line, which the parser wants to see at once.
var proxyReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 256) }}

// readProxyHeader parses b, which is a whole header.
func readProxyHeader(b []byte) (*proxyproto.Header, error) {
	r := proxyReaders.Get().(*bufio.Reader)
	defer func() {
		r.Reset(nil)
		proxyReaders.Put(r)
	}()
	r.Reset(bytes.NewReader(b))
	h, err := proxyproto.Read(r)
	if err != nil {
		return nil, err
	}
	// The parser must have ended where we expected it to, or the next layer would start in the wrong place.
	if _, err := r.ReadByte(); err != io.EOF {
		return nil, proxyproto.ErrInvalidLength
	}
	return h, nil
}

// known is b as the parser takes it. "The receiver is free to accept" a client of AF_UNSPEC "and use the real endpoint addresses"
// (§2.2), as it is to reject it, which the parser does. Without addresses it differs from LOCAL in nothing but the command.
func known(b []byte) []byte {
	if b[0] != signatureV2[0] || b[proxyV2Fixed-4] != proxyV2Proxy || b[proxyV2Fixed-3] != familyUnspec {
		return b
	}
	b = bytes.Clone(b)
	b[proxyV2Fixed-4] = proxyV2Local
	return b
}

// proxyAddr is a's address; the zero AddrPort for none and for Unix sockets.
func proxyAddr(a net.Addr) netip.AddrPort { return unmap(addrPort(a)) }

// readTLVs takes what we use of the vector behind the addresses of b, a whole header of version 2 (§2.2).
func (h *ProxyHeader) readTLVs(b []byte, raw *proxyproto.Header) error {
	if err := checkCRC(b); err != nil {
		return err
	}
	tlvs, err := raw.TLVs()
	if err != nil {
		return err
	}
	var ssl *tlvparse.PP2SSL
	for _, t := range tlvs {
		switch t.Type {
		case proxyproto.PP2_TYPE_ALPN:
			h.ALPN = string(t.Value)
		case proxyproto.PP2_TYPE_AUTHORITY:
			h.Authority = string(t.Value)
		case proxyproto.PP2_TYPE_UNIQUE_ID:
			if len(t.Value) > maxUniqueID {
				return fmt.Errorf("unique id of %d bytes, %d is the bound (§2.2.5)", len(t.Value), maxUniqueID)
			}
			h.UniqueID = t.Value
		case proxyproto.PP2_TYPE_SSL:
			s, err := tlvparse.SSL(t)
			if err != nil {
				return fmt.Errorf("TLV SSL: %w", err)
			}
			ssl = &s
		}
	}
	if ssl == nil || !ssl.ClientSSL() {
		return nil
	}
	h.TLS = &relay.TLS{Version: foreignTLS, ServerName: h.Authority, ALPN: h.ALPN}
	if name, ok := ssl.SSLVersion(); ok && tlsVersions[name] != 0 {
		h.TLS.Version = tlsVersions[name]
	}
	h.TLS.Cipher, _ = ssl.SSLCipher()
	// §2.2.6: verify is zero if a certificate was presented and verified; OpenSSL's X509_V_OK, which proxies put there, is zero
	// without a certificate too.
	if ssl.Verified() && (ssl.ClientCertConn() || ssl.ClientCertSess()) {
		h.TLS.Verified = true
		h.TLS.CommonName, _ = ssl.ClientCN()
	}
	return nil
}

// tlsVersions are the names that proxies (OpenSSL's SSL_get_version) give to versions.
var tlsVersions = map[string]uint16{
	"TLSv1": tls.VersionTLS10, "TLSv1.0": tls.VersionTLS10, "TLSv1.1": tls.VersionTLS11,
	"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13,
}

// foreignTLS is the version of a connection with TLS whose proxy gives it a name that is not among tlsVersions: not 0, which
// means that there was none. Nobody has the number (RFC 8446 §4.2.1, RFC 8701).
const foreignTLS = 0xffff

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkCRC verifies PP2_TYPE_CRC32C, if it is there: the checksum of the header with the checksum's own bytes zero (§2.2.3).
func checkCRC(b []byte) error {
	skip := proxyV2Fixed
	switch b[13] & familyMask {
	case familyIPv4:
		skip += addressesIPv4
	case familyIPv6:
		skip += addressesIPv6
	case familyUnix:
		skip += addressesUnix
	}
	for at := skip; at+tlvHeader <= len(b); {
		size := int(binary.BigEndian.Uint16(b[at+1:]))
		value := at + tlvHeader
		if proxyproto.PP2Type(b[at]) != proxyproto.PP2_TYPE_CRC32C {
			at = value + size
			continue
		}
		if size != 4 || value+4 > len(b) {
			return errors.New("malformed checksum")
		}
		zeroed := slices.Clone(b)
		clear(zeroed[value : value+4])
		if crc32.Checksum(zeroed, castagnoli) != binary.BigEndian.Uint32(b[value:]) {
			return errors.New("checksum does not match")
		}
		return nil
	}
	return nil
}

var proxyBuffers = sync.Pool{New: func() any { b := make([]byte, MaxProxyHeader); return &b }}

// readProxy reads the header that a trusted peer must send, and keeps what came behind it for Read.
func (c *headConn) readProxy(o *relay.Origin) error {
	buf := proxyBuffers.Get().(*[]byte)
	defer proxyBuffers.Put(buf)
	b := (*buf)[:0]
	for {
		n, readErr := c.Conn.Read((*buf)[len(b):])
		b = (*buf)[:len(b)+n]
		end, h, err := ParseProxy(b)
		switch {
		case err == nil:
			h.Apply(o)
			c.rest = bytes.Clone(b[end:])
			return nil
		case err != ErrShort:
			return failed(ReasonProxyHeader, err)
		case readErr != nil:
			return failed(ReasonProxyHeader, fmt.Errorf("listen: reading the PROXY header: %w", readErr))
		}
	}
}
