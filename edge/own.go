package edge

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// localFor is how long the addresses of this machine are believed: a virtual one may come and go.
const localFor = 5 * time.Second

// ownAddresses knows where TCP connections come back to this server: a broker there would make one CONNECT thousands of sessions.
type ownAddresses struct {
	listeners atomic.Pointer[[]netip.AddrPort]
	local     atomic.Pointer[localAddresses]
}

// localAddresses are those of this machine's interfaces.
type localAddresses struct {
	addrs []netip.Addr
	until time.Time
}

// add enters a listener's address. It is called by one goroutine at a time.
func (o *ownAddresses) add(a net.Addr) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return // QUIC, which no broker is reached over
	}
	var all []netip.AddrPort
	if p := o.listeners.Load(); p != nil {
		all = *p
	}
	at := tcp.AddrPort()
	all = append(slices.Clone(all), netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()))
	o.listeners.Store(&all)
}

// has reports whether a connection to a would reach one of the listeners.
func (o *ownAddresses) has(a netip.AddrPort) bool {
	p := o.listeners.Load()
	if p == nil {
		return false
	}
	ip := a.Addr().Unmap().WithZone("")
	for _, l := range *p {
		at := l.Addr()
		switch {
		case l.Port() != a.Port():
		case at == ip:
			return true
		case at.IsUnspecified() && (at.Is6() || ip.Is4()): // of IPv6: of both (RFC 3493 §5.3)
			if o.isLocal(ip) {
				return true
			}
		case ip.IsUnspecified() && at.IsLoopback(): // which is what a connection to no address goes to
			return true
		}
	}
	return false
}

// isLocal reports whether this machine has the address.
func (o *ownAddresses) isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	now := time.Now()
	l := o.local.Load()
	if l == nil || now.After(l.until) {
		l = &localAddresses{until: now.Add(localFor)}
		found, _ := net.InterfaceAddrs() // none is no reason to keep clients from their brokers
		for _, a := range found {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					l.addrs = append(l.addrs, ip.Unmap())
				}
			}
		}
		o.local.Store(l)
	}
	return slices.Contains(l.addrs, ip)
}
