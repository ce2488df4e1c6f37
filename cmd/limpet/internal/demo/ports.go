package demo

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
)

// Where the demo listens.
const (
	loopback = "127.0.0.1"
	edges    = 3
	brokers  = 3

	// Shifted ports, and those of stores and brokers, are taken from here: below the ports that systems give to outgoing
	// connections (32768 and up on Linux, 49152 elsewhere), so that a process that was killed finds its own free again.
	portFirst = 20_000
	portEnd   = 32_000
	// portAttempts bounds the search for free ones.
	portAttempts = 100

	// claimPort is taken, over UDP, by the demo that may use the standard ports: a second one started in the same moment
	// must not find them free. Nothing is sent or read there.
	claimPort = "9883"
)

// standard are the ports of an edge, in the order of edgeAddresses.
var standard = [...]int{1883, 8883, 8083, 8084, 14567, 9883}

// edgeAddresses are where one edge listens, each host:port.
type edgeAddresses struct {
	TCP   string `json:"tcp"`
	TLS   string `json:"tls"`
	WS    string `json:"ws"`
	WSS   string `json:"wss"`
	QUIC  string `json:"quic"` // UDP
	Admin string `json:"admin"`
}

func newEdgeAddresses(host string, ports [len(standard)]int) edgeAddresses {
	at := func(i int) string { return net.JoinHostPort(host, strconv.Itoa(ports[i])) }
	return edgeAddresses{at(0), at(1), at(2), at(3), at(4), at(5)}
}

// reservation holds addresses until the processes that they are for are about to start.
type reservation []io.Closer

func (r *reservation) release() {
	for _, c := range *r {
		_ = c.Close()
	}
	*r = nil
}

// tcp and udp take an address.
func (r *reservation) tcp(address string) error {
	l, err := net.Listen("tcp", address)
	if err == nil {
		*r = append(*r, l)
	}
	return err
}

func (r *reservation) udp(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err == nil {
		*r = append(*r, c)
	}
	return err
}

// edge takes all addresses of one edge, or none.
func (r *reservation) edge(a edgeAddresses) error {
	var mine reservation
	err := mine.udp(a.QUIC)
	for _, address := range []string{a.TCP, a.TLS, a.WS, a.WSS, a.Admin} {
		if err == nil {
			err = mine.tcp(address)
		}
	}
	if err != nil {
		mine.release()
		return err
	}
	*r = append(*r, mine...)
	return nil
}

// block takes n ports in a row on 127.0.0.1, for TCP and UDP.
func (r *reservation) block(n int) ([]int, error) {
	var last error
	for range portAttempts {
		first := portFirst + rand.N(portEnd-portFirst-n)
		ports, mine := make([]int, n), reservation{}
		last = nil
		for i := range ports {
			ports[i] = first + i
			address := net.JoinHostPort(loopback, strconv.Itoa(ports[i]))
			if last = errors.Join(mine.tcp(address), mine.udp(address)); last != nil {
				break
			}
		}
		if last == nil {
			*r = append(*r, mine...)
			return ports, nil
		}
		mine.release()
	}
	return nil, fmt.Errorf("no %d free ports in a row between %d and %d on %s: %w", n, portFirst, portEnd, loopback, last)
}

// layout is all that the demo listens on.
type layout struct {
	edges   [edges]edgeAddresses
	shifted []error // by edge: why it has other than the standard addresses; nil = it has them
	brokers [brokers]struct{ mqtt, link string }
	etcd    string
	peer    string // etcd's other address, which nobody uses
	nats    string

	servers reservation // of stores and brokers
	fronts  reservation // of edges
	claim   reservation // of the standard ports, for the demo's life
}

// errAsked is why edges are shifted when the user wants it.
var errAsked = errors.New("--shifted")

// newLayout chooses addresses and reserves them.
func newLayout(shift bool) (*layout, error) {
	l := &layout{shifted: make([]error, edges)}
	var taken error
	if shift {
		taken = errAsked
	} else if err := l.claim.udp(net.JoinHostPort(loopback, claimPort)); err != nil {
		taken = errors.New("another demo has the standard ports")
	}
	if err := l.place(taken); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// place fills the layout. taken, if not nil, is why the standard ports are not for us.
func (l *layout) place(taken error) error {
	for i := range l.edges {
		l.shifted[i] = taken
		if taken == nil {
			l.edges[i] = newEdgeAddresses(fmt.Sprintf("127.0.0.%d", i+1), standard)
			l.shifted[i] = l.fronts.edge(l.edges[i])
		}
		if l.shifted[i] == nil {
			continue
		}
		ports, err := l.fronts.block(len(standard))
		if err != nil {
			return err
		}
		l.edges[i] = newEdgeAddresses(loopback, [len(standard)]int(ports))
	}
	ports, err := l.servers.block(2*brokers + 3)
	if err != nil {
		return err
	}
	next := func() string {
		address := net.JoinHostPort(loopback, strconv.Itoa(ports[0]))
		ports = ports[1:]
		return address
	}
	for i := range l.brokers {
		l.brokers[i].mqtt = next()
	}
	for i := range l.brokers {
		l.brokers[i].link = next()
	}
	l.etcd, l.peer, l.nats = next(), next(), next()
	return nil
}

func (l *layout) release() {
	l.servers.release()
	l.fronts.release()
	l.claim.release()
}
