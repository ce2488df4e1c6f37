package config

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/limpet-mesh/limpet/registry"
)

// checkSelf finds brokers whose address is one of the edge's own listeners: clients would be sent from the edge to itself for ever. It sees what the
// files say; names, and the other addresses of the machine, are compared when the edge dials.
func (e *Edge) checkSelf(m *Mesh) (errs []error) {
	for i, l := range e.Listeners {
		if l.Type == QUIC { // over which no broker is reached
			continue
		}
		for _, p := range m.Pools {
			for _, b := range p.Brokers {
				if reaches(&b, l.Address) {
					errs = append(errs, e.Errorf(fmt.Sprintf("listeners[%d].address", i), "expected another address than that of a broker (%s in pool %s of %s), found %s",
						b.ID, p.Name, m.at.name(), l.Address))
				}
			}
		}
	}
	return errs
}

// reaches reports whether a connection to b certainly reaches a listener of the same machine.
func reaches(b *registry.Broker, listener string) bool {
	if !overlap(b.Address, listener) {
		return false
	}
	host, _, _ := net.SplitHostPort(listener)
	if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
		return true
	}
	// Every address of the machine: of which we know those.
	host, _, _ = net.SplitHostPort(b.Address)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}
