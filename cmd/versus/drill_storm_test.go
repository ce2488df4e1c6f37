//go:build linux

package main

import (
	"strconv"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/gauge"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// TestDrillStorm: newcomers that make full TLS handshakes as fast as the edge takes them do not starve those who are there. Goal: p99 of their
// messages at most twice the quiet one.
func TestDrillStorm(t *testing.T) {
	clients, rate := sized(20, 100), sized(100.0, 500.0) // of each listener; publishes a second, and as many echoes
	quietly, stormy := sized(time.Second, 10*time.Second), sized(2*time.Second, 20*time.Second)
	const width = 64 // handshakes under way

	s := newSite(t, []listener{{"tcp", "tcp", ""}, {"tls", "tls", ""}}, "tls_records: limpet")
	lists := []struct{ scheme, listener string }{{"mqtt", "tcp"}, {"mqtts", "tls"}}
	var generators []*generator
	for i, l := range lists {
		g := s.generator(l.scheme, l.listener)
		g.connect(load.Connects{First: i * clients, Count: clients, Rate: 200, Hold: true})
		g.traffic(rate)
		generators = append(generators, g)
	}
	crowd := s.child("storm", nice, "storm", s.at["tls"], strconv.Itoa(width))
	stalls := watchStalls(t)
	var stormed stormed
	phase := func(d time.Duration) (seen []load.Seen, stall time.Duration, cpu [2]float64) {
		clock := func(p *process) time.Duration {
			used, err := gauge.Clock(p.pid())
			if err != nil {
				t.Fatal(err)
			}
			return used
		}
		for _, g := range generators {
			g.mark()
		}
		stalls.mark()
		begun, edge, newcomers := time.Now(), clock(s.edge), clock(crowd)
		if err := pause(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		cpu = [2]float64{float64(clock(s.edge)-edge) / float64(took), float64(clock(crowd)-newcomers) / float64(took)}
		for _, g := range generators {
			seen = append(seen, g.mark())
		}
		return seen, stalls.mark(), cpu
	}
	if err := pause(t.Context(), quietly/5); err != nil { // of connecting
		t.Fatal(err)
	}
	quiet, quietStall, quietCPU := phase(quietly)
	s.ask(crowd, request{Op: "begin"}, nil)
	begun := time.Now()
	storm, stormStall, stormCPU := phase(stormy)
	s.ask(crowd, request{Op: "stop"}, &stormed)
	took := time.Since(begun)

	if stormed.Handshakes == 0 || stormed.Failed > 0 {
		t.Errorf("%d handshakes, %d failed: %s", stormed.Handshakes, stormed.Failed, stormed.Error)
	}
	for i, g := range generators {
		total := g.stop()
		q, w := quiet[i].Latency, storm[i].Latency
		figure(t, "storm, %s listener: p50 quiet %s, in the storm %s; p99 %s, %s: ratio %.2f (goal 2); longest %s, %s; generator: %s",
			lists[i].listener, ms(q.P50), ms(w.P50), ms(q.P99), ms(w.P99), float64(w.P99)/float64(q.P99), ms(q.Max), ms(w.Max), total.Lag)
	}
	figure(t, "storm: %d clients, %.0f messages/s; %.0f full handshakes/s, %d under way; CPU of the edge %.0f %% quiet, %.0f %% in the storm, of the newcomers %.0f %%; "+
		"the machine's own longest stall %s, %s", 2*clients, 4*rate, float64(stormed.Handshakes)/took.Seconds(), width, 100*quietCPU[0], 100*stormCPU[0], 100*stormCPU[1], ms(quietStall), ms(stormStall))
	figure(t, "storm, what differs from a storm of strangers: the newcomers share the processors with the edge (nice 19), make their ClientHello and key pair once, do not verify, and "+
		"reset the connection behind the ticket; one loop, own records, X25519, AES-128-GCM, P-256")
	m := s.metrics()
	if n := m[`limpet_edge_accepted_total{listener="tls"}`]; n < float64(stormed.Handshakes) {
		t.Errorf("the edge counts %.0f handshakes, the newcomers %d", n, stormed.Handshakes)
	}
}
