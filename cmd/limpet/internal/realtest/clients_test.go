package realtest

import (
	"fmt"
	"strings"
	"testing"
)

// TestClients is one mesh for all that other people's clients do, with the demo's brokers, which read PROXY v2 headers.
func TestClients(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "clients")
	brokers := demoBrokers(t, m.dir, 3)
	m.stores.apply(t, m.dir, m.name, poolText{"default", "", entries(brokers, "proxy_protocol: v2")})
	m.startEdges(t, "default")

	t.Run("paho.golang", func(t *testing.T) {
		t.Parallel()
		everywhere(t, m, crowd{prefix: "v5", connect: connectV5, listeners: transports})
	})
	t.Run("paho.mqtt.golang", func(t *testing.T) {
		t.Parallel()
		everywhere(t, m, crowd{prefix: "v3", connect: connectV3, listeners: transports})
	})
	t.Run("mosquitto_pub and mosquitto_sub", func(t *testing.T) {
		t.Parallel()
		mosquittoClients(t, m)
	})
	t.Run("MQTT.js", func(t *testing.T) {
		t.Parallel()
		mqttJS(t, m)
	})
	t.Run("PROXY v2", func(t *testing.T) {
		t.Parallel()
		brokersSeeAddresses(t, m)
	})
}

// crowd says who comes home, by which listeners.
type crowd struct {
	prefix    string
	connect   library
	listeners []string
	name      func(string) string // makes the client IDs, if not nil
	large     int                 // bytes of the largest message; 0 = a megabyte
}

// everywhere lets a session begin at each listener of each edge, and come home by another listener of another edge.
func everywhere(t *testing.T, m *mesh, c crowd) {
	if c.name == nil {
		c.name = func(s string) string { return s }
	}
	if c.large == 0 {
		c.large = 1 << 20
	}
	for i, e := range m.edges {
		for j, listener := range c.listeners {
			t.Run(e.id+" "+listener, func(t *testing.T) {
				h := &homecoming{
					crowd: c, id: fmt.Sprintf("%s-%s-%s", c.prefix, e.id, listener),
					first:  door{e, listener},
					second: door{m.edges[(i+1)%len(m.edges)], c.listeners[(j+1)%len(c.listeners)]},
					third:  door{m.edges[(i+2)%len(m.edges)], c.listeners[(j+2)%len(c.listeners)]},
				}
				h.run(t)
			})
		}
	}
}

// door is a listener of an edge.
type door struct {
	edge     *edgeProc
	listener string
}

func (d door) String() string { return d.edge.id + "/" + d.listener }

// homecoming is a session's story: subscribe, receive, go offline, come back elsewhere.
type homecoming struct {
	crowd
	id                   string
	first, second, third door // of the subscriber, of the publisher, of the subscriber that comes back
}

func (h *homecoming) open(t *testing.T, d door, o options, wantSession bool) client {
	t.Helper()
	c, present, err := h.connect(d.edge, d.listener, o)
	if err != nil {
		t.Fatalf("%s at %s: %v", o.id, d, err)
	}
	if present != wantSession {
		t.Fatalf("%s at %s: Session Present %v, want %v", o.id, d, present, wantSession)
	}
	t.Cleanup(c.leave)
	return c
}

func (h *homecoming) run(t *testing.T) {
	topic := "real/" + h.id
	kept := message{topic + "/kept", "still here", 1, true}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	publisher := h.open(t, h.second, options{id: h.name(h.id + "-pub"), clean: true}, false)
	must(publisher.publish(kept))

	// Live, the retained message first.
	subscriber := h.open(t, h.first, options{id: h.name(h.id)}, false)
	must(subscriber.subscribe(topic+"/#", 2))
	text := "at most once, at least once, exactly once: "
	live := []message{
		kept,
		{topic + "/live", text + "0", 0, false},
		{topic + "/live", text + "1", 1, false},
		{topic + "/live", text + "2", 2, false},
		{topic + "/large", strings.Repeat("0123456789abcdef", h.large/16), 1, false},
	}
	for _, m := range live[1:] {
		must(publisher.publish(m))
	}
	subscriber.inbox().await(t, false, live...)

	// Offline: queued where the session is. Back by another door: all of it, in order, without subscribing again.
	subscriber.leave()
	var queued []message
	for i := range 10 {
		queued = append(queued, message{topic + "/queued", fmt.Sprint(i), byte(1 + i%2), false})
		must(publisher.publish(queued[i]))
	}
	subscriber = h.open(t, h.third, options{id: h.name(h.id), had: live}, true)
	subscriber.inbox().await(t, true, queued...)

	// A Will, of a client that is gone without a word.
	will := message{topic + "/will", "gone", 1, false}
	mortal := h.open(t, h.first, options{id: h.name(h.id + "-will"), clean: true, will: &will}, false)
	mortal.drop()
	subscriber.inbox().await(t, true, append(queued, will)...)
	must(publisher.publish(message{topic: kept.topic, qos: 1, retained: true})) // cleared
}
