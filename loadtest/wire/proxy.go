package wire

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins a header of PROXY v2 (proxy-protocol.txt §2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// Bytes 13 and 14 of the header.
const (
	proxyV2Proxy = 0x21 // version 2, command PROXY
	proxyTCP4    = 0x11 // AF_INET, STREAM
	proxyTCP6    = 0x21 // AF_INET6, STREAM
)

// appendProxyV2 appends the header of a client at source that wanted destination. A header has one family: with two different ones, IPv4
// addresses are written as IPv6 does (::ffff:a.b.c.d). Zones have no place in it.
func appendProxyV2(b []byte, source, destination netip.AddrPort) []byte {
	from, to := source.Addr().Unmap(), destination.Addr().Unmap()
	b = append(b, proxySignature...)
	if from.Is4() && to.Is4() {
		from4, to4 := from.As4(), to.As4()
		b = append(b, proxyV2Proxy, proxyTCP4, 0, 2*4+2*2)
		b = append(append(b, from4[:]...), to4[:]...)
	} else {
		from6, to6 := from.As16(), to.As16()
		b = append(b, proxyV2Proxy, proxyTCP6, 0, 2*16+2*2)
		b = append(append(b, from6[:]...), to6[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}
