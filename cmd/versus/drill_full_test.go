//go:build linux

package main

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// TestDrillFull: a crowd that fills the edge and then says nothing shuts nobody out: once its members have had a tenth of the time for a
// CONNECT, one of them goes for each client that comes, over any transport. Clients who are there never do.
func TestDrillFull(t *testing.T) {
	beside(t)
	room, most, timeout := 100, sized(200, 9000), 30*time.Second
	stranger, err := newNewcomer()
	if err != nil {
		t.Fatal(err)
	}
	for _, crowd := range []struct {
		name, listener string
		prepare        func(net.Conn) (func(int) []byte, error)
	}{
		{"before CONNECT", "tcp", nil},
		{"before CONNECT inside TLS", "tls", func(c net.Conn) (func(int) []byte, error) {
			_ = c.SetDeadline(time.Now().Add(patience))
			out, err := stranger.shakeHands(c)
			return func(int) []byte { return out.seal(recordApplication, []byte{0x10}) }, err
		}},
	} {
		t.Run(crowd.name, func(t *testing.T) {
			beside(t)
			s := newSite(t, urgent(), []listener{{"tcp", "tcp", ""}, {"tls", "tls", ""}, {"ws", "ws", ""}, {"wss", "wss", ""}},
				"tls_records: limpet", fmt.Sprintf("limits: {connect_timeout: %v, connections: %d}", timeout, most))
			live := s.generator("mqtt", "tcp")
			live.connect(load.Connects{Count: 50, Rate: 200, Hold: true})
			live.traffic(100)
			before, ended := s.holds(), s.ends()
			live.mark()
			c := s.crowd(crowd.listener, most-50, each([]byte{0x10}), crowd.prepare)
			until(t, patience, "the edge is full", func() (bool, any) { h := s.holds(); return h.sessions == most, h })
			if err := pause(t.Context(), timeout/10); err != nil {
				t.Fatal(err)
			}
			quiet := live.mark().Latency
			said, served := "", 0
			for i, transport := range []struct{ scheme, listener string }{{"mqtt", "tcp"}, {"mqtts", "tls"}, {"ws", "ws"}, {"wss", "wss"}} {
				g := s.generator(transport.scheme, transport.listener)
				got := g.connect(load.Connects{First: 1000 * (i + 1), Count: room / 4, Rate: 50, Hold: true})
				said += fmt.Sprintf(" %s %s", transport.listener, ms(got.Connack.P99))
				served += got.Accepted
				defer g.end()
			}
			seen := live.mark().Latency
			live.stop()
			made := s.ends()["overload"] - ended["overload"]
			if took := time.Since(c.all[0].came); made != float64(served) && took < timeout {
				t.Errorf("%v sessions have made room for %d clients within %v; all that ended: %v", made, served, took, s.ends())
			}
			figure(t, "full, %s: %d sockets beside 50 clients; %d newcomers in the place of %v of them; CONNACK p99:%s; p99 of live clients %s, quiet %s", crowd.name, len(c.all), served, made, said, ms(seen.P99), ms(quiet.P99))
			c.close()
			until(t, patience, "the crowd is gone", func() (bool, any) { h := s.holds(); return h.sessions == before.sessions+served, h })
		})
	}
}
