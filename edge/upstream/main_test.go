package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what takes milliseconds.
const patience = 10 * time.Second

// fakeDNS answers from a table that tests change.
type fakeDNS struct {
	mu    sync.Mutex
	hosts map[string][]netip.Addr
	err   error
	asked []string // every question
	// hold, if set, delays answers until it is closed or the question's context ends.
	hold chan struct{}
}

func (f *fakeDNS) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	f.asked = append(f.asked, host)
	hold := f.hold
	f.mu.Unlock()
	if network != "ip" {
		return nil, errors.New("want both families, was asked for " + network)
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	ips := f.hosts[host]
	if ips == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return ips, nil
}

func (f *fakeDNS) set(host string, ips ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hosts == nil {
		f.hosts = make(map[string][]netip.Addr)
	}
	f.hosts[host] = nil
	for _, ip := range ips {
		f.hosts[host] = append(f.hosts[host], netip.MustParseAddr(ip))
	}
}

func (f *fakeDNS) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeDNS) questions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// running starts a resolver's Run for the time of the test.
func running(t testing.TB, c ResolverConfig) *Resolver {
	t.Helper()
	r := NewResolver(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	return r
}

// newDialer returns a Dialer whose names come from dns.
func newDialer(t testing.TB, dns *fakeDNS) *Dialer {
	return NewDialer(DialerConfig{Resolver: running(t, ResolverConfig{DNS: dns}), Log: zerolog.Nop()})
}

// within returns a context that ends with the test's patience.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve accepts connections on address and hands each to handle, until the test ends; it waits for the handlers.
func serve(t testing.TB, address string, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, handle)
	return l.Addr().String()
}

func serveOn(t testing.TB, l net.Listener, handle func(net.Conn)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// closedPort returns an address on which nobody listens.
func closedPort(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func tcpBroker(address string) *registry.Broker {
	return &registry.Broker{ID: "b1", Address: address}
}
