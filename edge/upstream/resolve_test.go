package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/registry"
)

func addrPorts(s ...string) (addrs []netip.AddrPort) {
	for _, a := range s {
		addrs = append(addrs, netip.MustParseAddrPort(a))
	}
	return addrs
}

func TestLookupLiteral(t *testing.T) {
	r := NewResolver(ResolverConfig{}) // literals need no Run
	for address, want := range map[string]string{
		"127.0.0.1:1883":            "127.0.0.1:1883",
		"[::1]:1883":                "[::1]:1883",
		"[::ffff:192.0.2.1]:1883":   "192.0.2.1:1883",
		"[fe80::1%eth0]:1883":       "[fe80::1%eth0]:1883",
		"[2001:db8:0:0:0:0:0:1]:65": "[2001:db8::1]:65",
	} {
		for range 2 { // parsed, then remembered
			got, ok := r.Lookup(tcpBroker(address))
			if !ok || !slices.Equal(got, addrPorts(want)) {
				t.Errorf("%s: %v, %v; want %s", address, got, ok, want)
			}
		}
	}
	b := tcpBroker("127.0.0.1:1883")
	if n := testing.AllocsPerRun(100, func() { r.Lookup(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestResolveMalformed(t *testing.T) {
	r := NewResolver(ResolverConfig{})
	for _, address := range []string{"", "broker", "broker:", ":1883", "broker:0", "broker:65536", "broker:mqtt", "::1:1883", "[::1]", "127.0.0.1:0", "127.0.0.1:-1"} {
		b := tcpBroker(address)
		if got, ok := r.Lookup(b); ok {
			t.Errorf("Lookup %q: %v", address, got)
		}
		_, err := r.Resolve(t.Context(), b)
		if !errors.Is(err, ErrConfig) || Reason(err) != ReasonConfig || !strings.Contains(err.Error(), fmt.Sprintf("%q", address)) {
			t.Errorf("Resolve %q: %v (reason %s); want ErrConfig that names the address", address, err, Reason(err))
		}
	}
	if n := r.Stats().Names; n != 0 {
		t.Errorf("%d malformed addresses are kept", n)
	}
}

// startRun runs r inside a synctest bubble, which ends with stop.
func startRun(r *Resolver) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestResolveThenLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("mq.example", "2001:db8::1", "::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		b := tcpBroker("mq.example:1883")
		if got, ok := r.Lookup(b); ok {
			t.Fatalf("Lookup before any answer: %v", got)
		}
		got, err := r.Resolve(t.Context(), b)
		want := addrPorts("[2001:db8::1]:1883", "192.0.2.1:1883", "192.0.2.2:1883")
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("Resolve: %v, %v; want %v", got, err, want)
		}
		if got, ok := r.Lookup(b); !ok || !slices.Equal(got, want) {
			t.Fatalf("Lookup: %v, %v", got, ok)
		}
		if n := testing.AllocsPerRun(100, func() { r.Lookup(b) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		if n := dns.questions(); n != 1 {
			t.Errorf("%d questions, want 1", n)
		}
	})
}

func TestResolveSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{hold: make(chan struct{})}
		dns.set("mq.example", "192.0.2.1")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		b := tcpBroker("mq.example:1883")

		// The first one gives up; the question goes on for the others.
		ctx, giveUp := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, err := r.Resolve(ctx, b)
			first <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got, err := r.Resolve(t.Context(), b); err != nil || len(got) != 1 {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		synctest.Wait()
		giveUp()
		if err := <-first; !errors.Is(err, context.Canceled) || Reason(err) != ReasonCanceled {
			t.Errorf("the one that gave up: %v (reason %s)", err, Reason(err))
		}
		close(dns.hold)
		wg.Wait()
		if n := dns.questions(); n != 1 {
			t.Errorf("%d questions, want 1", n)
		}
	})
}

func TestResolveDeadlineIsNotTheQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{hold: make(chan struct{})}
		dns.set("mq.example", "192.0.2.1")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		b := tcpBroker("mq.example:1883")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := r.Resolve(ctx, b)
		if !errors.Is(err, context.DeadlineExceeded) || Reason(err) != ReasonDNS {
			t.Fatalf("%v (reason %s); want a deadline, by DNS", err, Reason(err))
		}
		// A slow name server answers 5 s later: nobody waits, and yet the answer is kept.
		time.Sleep(5 * time.Second)
		close(dns.hold)
		synctest.Wait()
		if got, ok := r.Lookup(b); !ok {
			t.Errorf("Lookup after the late answer: %v, %v", got, ok)
		}
	})
}

func TestResolverRefreshesAndServesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		dns := &fakeDNS{}
		dns.set("mq.example", "192.0.2.1")
		r := NewResolver(ResolverConfig{DNS: dns, Log: zerolog.New(&log)})
		defer startRun(r)()
		b := tcpBroker("mq.example:1883")
		if _, err := r.Resolve(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		expect := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got, ok := r.Lookup(b); !ok || !slices.Equal(got, addrPorts(want...)) {
				t.Fatalf("%s: %v, %v; want %v", when, got, ok, want)
			}
		}
		// The longest wait is 1.2 × the refresh.
		const refresh = 37 * time.Second

		dns.set("mq.example", "192.0.2.2")
		expect("before the refresh", "192.0.2.1:1883")
		time.Sleep(refresh)
		expect("after it", "192.0.2.2:1883")

		dns.fail(errors.New("server misbehaving"))
		for range 100 { // an hour
			time.Sleep(refresh)
			expect("while DNS is away", "192.0.2.2:1883")
		}
		if s := r.Stats(); s.Stale != 1 || s.Failures < 100 || s.Lookups != s.Failures+2 {
			t.Errorf("stats %+v", s)
		}
		if n := strings.Count(log.String(), "not resolved"); n != 1 {
			t.Errorf("an outage was logged %d times, want once:\n%s", n, log.String())
		}

		dns.set("mq.example", "192.0.2.3", "192.0.2.4")
		dns.fail(nil)
		time.Sleep(refresh)
		expect("DNS is back", "192.0.2.3:1883", "192.0.2.4:1883")
		if s := r.Stats(); s.Stale != 0 {
			t.Errorf("stats %+v", s)
		}

		dns.set("mq.example", "192.0.2.4", "192.0.2.3")
		time.Sleep(refresh)
		expect("another order is no other answer", "192.0.2.3:1883", "192.0.2.4:1883")
	})
}

func TestResolverJitters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		var brokers []*registry.Broker
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		const names = 100
		for i := range names {
			host := fmt.Sprintf("mq%d.example", i)
			dns.set(host, "192.0.2.1")
			b := tcpBroker(host + ":1883")
			brokers = append(brokers, b)
			if _, err := r.Resolve(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		// All were resolved at one instant. Second by second: none before 24 s, all by 36 s, never a fifth of them in one second.
		before := dns.questions()
		for second := 1; second <= 37; second++ {
			time.Sleep(time.Second)
			synctest.Wait()
			now := dns.questions()
			if second < 24 && now > names {
				t.Fatalf("a refresh after %d s", second)
			}
			if now-before > names/5 {
				t.Errorf("%d look-ups in one second", now-before)
			}
			before = now
		}
		if before < 2*names {
			t.Errorf("%d look-ups after 37 s, want every name refreshed (%d)", before, 2*names)
		}
		for _, b := range brokers {
			if _, ok := r.Lookup(b); !ok {
				t.Errorf("%s is gone", b.Address)
			}
		}
	})
}

func TestResolverDropsIdleNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("used.example", "192.0.2.1")
		dns.set("idle.example", "192.0.2.2")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		used, idle, literal := tcpBroker("used.example:1"), tcpBroker("idle.example:1"), tcpBroker("127.0.0.1:1")
		r.Lookup(literal)
		for _, b := range []*registry.Broker{used, idle} {
			if _, err := r.Resolve(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.Stats().Names; n != 3 {
			t.Fatalf("%d names, want 3", n)
		}
		for range 20 {
			time.Sleep(30 * time.Second)
			r.Lookup(used)
		}
		synctest.Wait()
		if n := r.Stats().Names; n != 1 {
			t.Errorf("%d names after 10 minutes, want the used one", n)
		}
		if _, ok := r.Lookup(used); !ok {
			t.Error("the used name is gone")
		}
		if _, ok := r.Lookup(idle); ok {
			t.Error("the idle name is still there")
		}
		// And it comes back when it is wanted again.
		if got, err := r.Resolve(t.Context(), idle); err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestResolveFailureIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		b := tcpBroker("nowhere.example:1883")
		for range 10 {
			_, err := r.Resolve(t.Context(), b)
			if !errors.Is(err, ErrDNS) || Reason(err) != ReasonDNS || !strings.Contains(err.Error(), "nowhere.example") {
				t.Fatalf("%v (reason %s)", err, Reason(err))
			}
		}
		if n := dns.questions(); n != 1 {
			t.Errorf("%d questions within one second, want 1", n)
		}
		time.Sleep(time.Second)
		dns.set("nowhere.example", "192.0.2.1")
		if got, err := r.Resolve(t.Context(), b); err != nil || len(got) != 1 {
			t.Errorf("a second later: %v, %v", got, err)
		}
	})
}

func TestDoubtHastens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("mq.example", "192.0.2.1")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		b := tcpBroker("mq.example:1883")
		r.Doubt(b) // of a name that nobody asked for: nothing
		if _, err := r.Resolve(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(doubtHold)
		dns.set("mq.example", "192.0.2.2") // the pod was moved
		for range 10 {
			r.Doubt(b)
			synctest.Wait()
		}
		if got, _ := r.Lookup(b); !slices.Equal(got, addrPorts("192.0.2.2:1883")) {
			t.Errorf("after a doubt: %v", got)
		}
		if n := dns.questions(); n != 2 {
			t.Errorf("%d questions, want 2: doubts within a second count once", n)
		}
	})
}

func TestResolverBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		set := make(map[string]*name, maxNames)
		for i := range maxNames {
			set[fmt.Sprint(i)] = &name{due: time.Now().Add(time.Hour)}
		}
		r.names.Store(&set)
		if _, err := r.Resolve(t.Context(), tcpBroker("one-more.example:1883")); !errors.Is(err, ErrDNS) {
			t.Errorf("a name beyond the bound: %v", err)
		}
		if got, ok := r.Lookup(tcpBroker("127.0.0.1:1883")); !ok || len(got) != 1 {
			t.Errorf("a literal beyond the bound: %v, %v", got, ok)
		}
		if n := r.Stats().Names; n != maxNames {
			t.Errorf("%d names, want %d", n, maxNames)
		}
	})
}

func TestAnswersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		var ips []string
		for i := range 200 {
			ips = append(ips, fmt.Sprintf("192.0.2.%d", i))
		}
		dns.set("many.example", ips...)
		dns.set("none.example")
		dns.hosts["none.example"] = []netip.Addr{}
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		if got, err := r.Resolve(t.Context(), tcpBroker("many.example:1")); err != nil || len(got) != maxAddrs {
			t.Errorf("%d addresses, %v; want %d", len(got), err, maxAddrs)
		}
		if got, err := r.Resolve(t.Context(), tcpBroker("none.example:1")); !errors.Is(err, ErrDNS) {
			t.Errorf("an empty answer: %v, %v", got, err)
		}
	})
}

func TestResolveAfterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{hold: make(chan struct{})}
		r := NewResolver(ResolverConfig{DNS: dns})
		stop := startRun(r)
		waiting := make(chan error, 1)
		go func() {
			_, err := r.Resolve(t.Context(), tcpBroker("waiting.example:1"))
			waiting <- err
		}()
		synctest.Wait()
		stop() // a question is in flight
		if err := <-waiting; !errors.Is(err, ErrDNS) {
			t.Errorf("the one that waited: %v", err)
		}
		if _, err := r.Resolve(t.Context(), tcpBroker("late.example:1")); !errors.Is(err, ErrDNS) {
			t.Errorf("one that came later: %v", err)
		}
	})
}

func TestResolveLocalhost(t *testing.T) {
	r := running(t, ResolverConfig{}) // the system's resolver
	got, err := r.Resolve(within(t, patience), tcpBroker("localhost:1883"))
	if err != nil || len(got) == 0 || !got[0].Addr().IsLoopback() || got[0].Port() != 1883 {
		t.Errorf("%v, %v", got, err)
	}
}

func BenchmarkLookup(b *testing.B) {
	dns := &fakeDNS{}
	dns.set("mq.example", "192.0.2.1", "2001:db8::1")
	r := running(b, ResolverConfig{DNS: dns})
	for _, address := range []string{"127.0.0.1:1883", "mq.example:1883"} {
		broker := tcpBroker(address)
		if _, err := r.Resolve(within(b, patience), broker); err != nil {
			b.Fatal(err)
		}
		b.Run(address, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, ok := r.Lookup(broker); !ok {
						b.Error("not found")
						return
					}
				}
			})
		})
	}
}

// Addresses that are refused are left out; a broker that has no others is an error that says so, whether its address is a name or not.
func TestRefusedAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{}
		dns.set("both", "192.0.2.1", "192.0.2.2")
		dns.set("own", "192.0.2.1")
		r := NewResolver(ResolverConfig{DNS: dns})
		defer startRun(r)()
		r.Refuse(func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("192.0.2.1:1883") })
		for address, want := range map[string][]netip.AddrPort{
			"192.0.2.1:1883": nil,
			"192.0.2.1:1884": addrPorts("192.0.2.1:1884"),
			"both:1883":      addrPorts("192.0.2.2:1883"),
			"own:1883":       nil,
		} {
			b := tcpBroker(address)
			for range 2 { // asked for, and remembered
				got, err := r.Resolve(t.Context(), b)
				if !slices.Equal(got, want) || want == nil && (!errors.Is(err, ErrSelf) || Reason(err) != ReasonSelf || !strings.Contains(err.Error(), address)) {
					t.Errorf("Resolve %s: %v, %v", address, got, err)
				}
				if got, ok := r.Lookup(b); ok != (want != nil) || !slices.Equal(got, want) {
					t.Errorf("Lookup %s: %v, %v", address, got, ok)
				}
			}
		}
	})
}
