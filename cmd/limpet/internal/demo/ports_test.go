package demo

import (
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// addressesOf lists every address of a layout, UDP ones marked.
func addressesOf(l *layout) []string {
	var all []string
	for _, e := range l.edges {
		all = append(all, e.TCP, e.TLS, e.WS, e.WSS, e.Admin, "udp "+e.QUIC)
	}
	for _, b := range l.brokers {
		all = append(all, b.mqtt, b.link)
	}
	return append(all, l.etcd, l.peer, l.nats)
}

// canBind reports whether an address is free.
func canBind(address string) error {
	var r reservation
	defer r.release()
	if udp, ok := strings.CutPrefix(address, "udp "); ok {
		return r.udp(udp)
	}
	return r.tcp(address)
}

func TestLayoutIsReservedUntilItIsReleased(t *testing.T) {
	l, err := newLayout(true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.release()
	seen := map[string]bool{}
	for _, a := range addressesOf(l) {
		if seen[a] {
			t.Errorf("%s is given out twice", a)
		}
		seen[a] = true
		host, port, err := net.SplitHostPort(strings.TrimPrefix(a, "udp "))
		if n, _ := strconv.Atoi(port); err != nil || host != loopback || n < portFirst || n >= portEnd {
			t.Errorf("%s: want a port of %s from %d to %d", a, loopback, portFirst, portEnd-1)
		}
		if canBind(a) == nil {
			t.Errorf("%s can be taken by somebody else", a)
		}
	}
	for i, why := range l.shifted {
		if why == nil {
			t.Errorf("edge %d has the standard ports, though none was to", i)
		}
	}
	l.release()
	for a := range seen {
		if err := canBind(a); err != nil {
			t.Errorf("after release: %v", err)
		}
	}
}

// Of two demos at most one gets the standard ports, also while neither listens yet.
func TestStandardPortsAreClaimed(t *testing.T) {
	first, err := newLayout(false)
	if err != nil {
		t.Fatal(err)
	}
	defer first.release()
	first.fronts.release()
	second, err := newLayout(false)
	if err != nil {
		t.Fatal(err)
	}
	defer second.release()
	for i, why := range second.shifted {
		if why == nil {
			t.Errorf("edge %d of the second demo is at %s", i, second.edges[i].TCP)
		}
	}
}

// An edge whose addresses are not all free gets none of them.
func TestEdgeAddressesAreASet(t *testing.T) {
	var r reservation
	defer r.release()
	ports, err := r.block(len(standard))
	if err != nil {
		t.Fatal(err)
	}
	a := newEdgeAddresses(loopback, [len(standard)]int(ports))
	r.release()
	for _, taken := range []string{a.Admin, "udp " + a.QUIC} {
		var other, mine reservation
		if udp, ok := strings.CutPrefix(taken, "udp "); ok {
			err = other.udp(udp)
		} else {
			err = other.tcp(taken)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := mine.edge(a); err == nil || len(mine) > 0 {
			t.Errorf("%s is taken: got %d addresses, %v", taken, len(mine), err)
		}
		if err := canBind(a.TCP); err != nil {
			t.Errorf("%s is taken: %v was not given back", taken, err)
		}
		other.release()
	}
	if err := r.edge(a); err != nil {
		t.Error(err)
	}
}

func TestEdgeAddressesByTransport(t *testing.T) {
	a := newEdgeAddresses("127.0.0.2", standard)
	got := map[transport]string{}
	for _, over := range transports {
		got[over] = a.of(over)
	}
	want := map[transport]string{
		"tcp": "127.0.0.2:1883", "tls": "127.0.0.2:8883", "ws": "127.0.0.2:8083", "wss": "127.0.0.2:8084", "quic": "127.0.0.2:14567",
	}
	if !reflect.DeepEqual(got, want) || a.Admin != "127.0.0.2:9883" {
		t.Errorf("%v, admin %s", got, a.Admin)
	}
}
