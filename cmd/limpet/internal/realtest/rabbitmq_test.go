package realtest

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// TestRabbitMQ is a mesh in front of a cluster whose nodes can take a session over, and that reads PROXY v2 headers.
func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "rabbitmq")
	began := time.Now()
	cluster := startRabbitMQ(t, m.dir)
	cluster.ready(t)
	t.Logf("the cluster was ready after %v", time.Since(began).Round(time.Second))
	pools := m.stores.apply(t, m.dir, m.name, poolText{"default", "sessions: replicated", entries(cluster.brokers, "proxy_protocol: v2")})
	started := time.Now()
	m.startEdges(t, "default")
	place := placementOf(pools, "default")

	t.Run("client address", func(t *testing.T) {
		for i, b := range cluster.brokers {
			id := place.keyAt(b.id, "nine")
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}, Timeout: dialTimeout}
			conn, err := d.Dial("tcp", m.edges[i].at["tcp"])
			if err != nil {
				missing(t, "this system has no 127.0.0.9: "+err.Error())
			}
			if _, err := conn.Write(appendConnect(nil, id, true)); err != nil {
				t.Fatal(err)
			}
			b.lineWith(t, patience, "accepting MQTT connection", conn.LocalAddr().String()+" ->", id)
			conn.Close()
		}
	})

	// Sessions of each node, queued for by a client of whichever node, come home by another edge and transport.
	type sleeper struct {
		id     string
		broker *broker
		had    []message
		queued []message
	}
	var sleepers []*sleeper
	t.Run("sessions", func(t *testing.T) {
		publisher, _, err := connectV3(m.edges[0], "wss", options{id: "publisher", clean: true})
		if err != nil {
			t.Fatal(err)
		}
		defer publisher.leave()
		for i, b := range cluster.brokers {
			for j, transport := range transports {
				s := &sleeper{id: place.keyAt(b.id, "sleeper-"+transport), broker: b}
				sleepers = append(sleepers, s)
				c, present, err := connectV3(m.edges[i], transport, options{id: s.id})
				if err != nil || present {
					t.Fatalf("%s: %v, Session Present %v", s.id, err, present)
				}
				if err := c.subscribe("wake/"+s.id, 1); err != nil {
					t.Fatal(err)
				}
				c.leave()
				send := func(text string, n int) {
					for k := range n {
						msg := message{"wake/" + s.id, fmt.Sprint(text, k), 1, false}
						if err := publisher.publish(msg); err != nil {
							t.Fatal(err)
						}
						s.queued = append(s.queued, msg)
					}
				}
				send("first ", 10)
				c, present, err = connectV3(m.edges[(i+1)%3], transports[(j+1)%5], options{id: s.id})
				if err != nil || !present {
					t.Fatalf("%s came back: %v, Session Present %v", s.id, err, present)
				}
				c.inbox().await(t, true, s.queued...)
				c.leave()
				s.had, s.queued = s.queued, nil
				send("second ", 3)
			}
		}
	})

	t.Run("node killed", func(t *testing.T) {
		settled := started.Add(registry.SessionTTL + 2*time.Second)
		until(t, 2*registry.SessionTTL, "the leader has settled", func() (bool, any) { return time.Now().After(settled), time.Until(settled) })
		m.awaitReady(t, patience) // and has nothing against any node
		dead := cluster.brokers[1]
		dead.kill()
		for i, s := range sleepers {
			if s.broker != dead {
				continue
			}
			var c client
			until(t, 3*patience, s.id+" has its session at another node", func() (bool, any) {
				var present bool
				var err error
				if c, present, err = connectV3(m.edges[i%3], "tcp", options{id: s.id, had: s.had}); err != nil {
					return false, err
				}
				if !present {
					t.Fatalf("%s: Session Present 0 after its node was killed", s.id)
				}
				return true, nil
			})
			c.inbox().await(t, true, s.queued...)
			c.leave()
		}
	})
}
