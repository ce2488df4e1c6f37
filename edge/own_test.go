package edge

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/registry"
)

func TestOwnAddresses(t *testing.T) {
	var mine netip.Addr // of an interface, if there is one beside loopback
	found, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && !ip.IsLoopback() && ip.Unmap().Is4() {
			mine = ip.Unmap()
		}
	}
	for _, c := range []struct {
		listener string
		own      []string
		others   []string
	}{
		{"127.0.0.1:1883", []string{"127.0.0.1:1883", "[::ffff:127.0.0.1]:1883", "0.0.0.0:1883"}, []string{"127.0.0.1:1884", "127.0.0.2:1883", "[::1]:1883", "192.0.2.1:1883"}},
		{"0.0.0.0:1883", []string{"127.0.0.1:1883", "127.9.9.9:1883", "0.0.0.0:1883"}, []string{"127.0.0.1:1884", "[::1]:1883", "192.0.2.1:1883"}},
		{"[::]:1883", []string{"127.0.0.1:1883", "[::1]:1883", "0.0.0.0:1883", "[::]:1883"}, []string{"[::1]:1884", "192.0.2.1:1883", "[2001:db8::1]:1883"}},
		{"[fe80::1%lo]:1883", []string{"[fe80::1%eth0]:1883"}, []string{"[fe80::2]:1883"}},
	} {
		var o ownAddresses
		if o.has(netip.MustParseAddrPort(c.own[0])) {
			t.Error("a server without listeners owns an address")
		}
		o.add(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.9:1")))
		o.add(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.listener)))
		if mine.IsValid() && c.listener[0] != 'f' && strings.Contains(c.listener, "::]") {
			c.own = append(c.own, netip.AddrPortFrom(mine, 1883).String())
		}
		for _, a := range c.own {
			if !o.has(netip.MustParseAddrPort(a)) {
				t.Errorf("listening at %s: %s is not ours", c.listener, a)
			}
		}
		for _, a := range c.others {
			if o.has(netip.MustParseAddrPort(a)) {
				t.Errorf("listening at %s: %s is ours", c.listener, a)
			}
		}
	}
	var o ownAddresses
	o.add(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1883})
	if o.has(netip.MustParseAddrPort("127.0.0.1:1883")) {
		t.Error("a QUIC listener is taken for one of TCP")
	}
}

// A broker whose address is the edge's own gets nobody: each session would be the first of a row without end.
func TestABrokerThatIsTheEdgeItself(t *testing.T) {
	for _, over := range []registry.Transport{registry.TransportTCP, registry.TransportWS} {
		m := newMesh(t, "b1")
		e := m.edge("e1")
		m.pool.Brokers = []registry.Broker{{ID: "me", Address: e.addr, Transport: over}}
		m.putPool(e.State().Pools["default"].Revision)
		eventually(t, "the broker is known", func() (bool, any) {
			p := e.State().Pools["default"]
			return p.Brokers[0].ID == "me", p
		})
		s, ack := e.connect(&mqtt.Connect{Version: mqtt.V5, ClientID: []byte("x"), CleanStart: true, KeepAlive: 60})
		if ack.Code != mqtt.ServerUnavailable {
			t.Errorf("%v: CONNACK %#x", over, ack.Code)
		}
		s.ends()
		if n := e.count("limpet_edge_accepted_total", "mqtt"); n != 1 {
			t.Errorf("%v: %v connections of one client", over, n)
		}
		if n := e.count("limpet_edge_dial_failures_total", "me", "default", "self"); n != 1 {
			t.Errorf("%v: counted %v times", over, n)
		}
		e.logged("the address of a broker is a listener of this edge", e.addr)
	}
}
