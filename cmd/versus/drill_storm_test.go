//go:build linux

package main

import (
	"strconv"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// phase is what was seen for some time; shares are of one processor, in percent.
type phase struct {
	seen                            []load.Latency // by generator
	edge, newcomers, machine, steal float64
	stallP99, stall                 time.Duration
}

// TestDrillStorm: newcomers that make full TLS handshakes as fast as the edge takes them do not starve those who are there. Goal: p99 of their
// messages at most twice the quiet one.
func TestDrillStorm(t *testing.T) {
	beside(t)
	clients, rate := sized(20, 100), sized(100.0, 500.0) // of each listener; publishes a second, and as many echoes
	quietly, stormy := sized(time.Second, 10*time.Second), sized(2*time.Second, 20*time.Second)
	const width = 64 // handshakes under way

	s := newSite(t, urgent(), []listener{{"tcp", "tcp", ""}, {"tls", "tls", ""}}, "tls_records: limpet")
	ways := []struct{ name, scheme, to string }{{"tcp listener", "mqtt", "tcp"}, {"tls listener", "mqtts", "tls"}, {"past the edge", "mqtt", s.broker}}
	var generators []*generator
	for i, w := range ways {
		g := s.generator(w.scheme, w.to)
		g.connect(load.Connects{First: i * clients, Count: clients, Rate: 200, Hold: true})
		g.traffic(rate)
		generators = append(generators, g)
	}
	crowd := s.child("storm", nice, "storm", s.at["tls"], strconv.Itoa(width))
	stalls := watchStalls(t)
	phase := func(d time.Duration) (p phase) {
		for _, g := range generators {
			g.mark()
		}
		stalls.mark()
		begun, edge, newcomers, all := time.Now(), s.clock(s.edge), s.clock(crowd), s.usage()
		if err := pause(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		share := func(d time.Duration) float64 { return 100 * float64(d) / float64(took) }
		p.edge, p.newcomers = share(s.clock(s.edge)-edge), share(s.clock(crowd)-newcomers)
		p.machine, p.steal = share(s.usage().Sub(all).Machine), share(s.usage().Sub(all).Steal)
		for _, g := range generators {
			p.seen = append(p.seen, g.mark().Latency)
		}
		p.stallP99, p.stall = stalls.mark()
		return p
	}
	if err := pause(t.Context(), quietly/5); err != nil { // of connecting
		t.Fatal(err)
	}
	quiet := phase(quietly)
	s.ask(crowd, request{Op: "begin"}, nil)
	begun := time.Now()
	storm := phase(stormy)
	var stormed stormed
	s.ask(crowd, request{Op: "stop"}, &stormed)
	took := time.Since(begun)

	if stormed.Handshakes == 0 || stormed.Failed > 0 {
		t.Errorf("%d handshakes, %d failed: %s", stormed.Handshakes, stormed.Failed, stormed.Error)
	}
	for i, g := range generators {
		total := g.stop()
		q, w := quiet.seen[i], storm.seen[i]
		figure(t, "storm, %s: p50 quiet %s, in the storm %s; p99 %s, %s: ratio %.2f (goal 2); longest %s, %s; generator: %s",
			ways[i].name, ms(q.P50), ms(w.P50), ms(q.P99), ms(w.P99), float64(w.P99)/float64(q.P99), ms(q.Max), ms(w.Max), total.Lag)
	}
	figure(t, "storm, who slept for 1 ms was woken later by: p99 quiet %s, in the storm %s; at most %s, %s", ms(quiet.stallP99), ms(storm.stallP99), ms(quiet.stall), ms(storm.stall))
	figure(t, "storm: %d clients, %.0f messages/s; %.0f full handshakes/s, %d under way; CPU of the edge %.0f %% quiet, %.0f %% in the storm, of the newcomers %.0f %%, of the machine %.0f %%, %.0f %% "+
		"(stolen %.0f %%, %.0f %%)", 2*clients, 4*rate, float64(stormed.Handshakes)/took.Seconds(), width, quiet.edge, storm.edge, storm.newcomers, quiet.machine, storm.machine, quiet.steal, storm.steal)
	figure(t, "storm, what differs from a storm of strangers: the newcomers share the processors with the edge (nice 19; broker and generators: %q), make their ClientHello and key pair once, do not verify, and "+
		"reset the connection behind the ticket; one loop, own records, X25519, AES-128-GCM, P-256", urgent())
	m := s.metrics()
	if n := m[`limpet_edge_accepted_total{listener="tls"}`]; n < float64(stormed.Handshakes) {
		t.Errorf("the edge counts %.0f handshakes, the newcomers %d", n, stormed.Handshakes)
	}
}
