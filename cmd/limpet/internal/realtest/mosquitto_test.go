package realtest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// TestMosquitto is a mesh in front of standalone mosquittos, which read no PROXY header and share nothing.
func TestMosquitto(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "mosquitto")
	brokers := mosquittos(t, m.dir, m.pki, 2)
	one := brokers[0]
	const options = "rehome_after: 60s"
	files := fmt.Sprintf("tls: {ca: '%s', cert: '%s', key: '%s'}", m.pki.ca, m.pki.cert, m.pki.key)
	pools := m.stores.apply(t, m.dir, m.name,
		poolText{"default", options, []string{one.entry(""), brokers[1].entry("")}},
		// The first of them by other ways.
		poolText{"over-tls", options, []string{(&broker{id: one.id, address: one.tls}).entry("transport: tls, " + files)}},
		poolText{"over-ws", options, []string{(&broker{id: one.id, address: one.ws}).entry("transport: ws, path: /mqtt")}})
	began := time.Now()
	m.startEdges(t, "default", "over-tls", "over-ws")
	place := placementOf(pools, "default")
	// Who wants to talk to each other must be on one broker.
	name := func(s string) string { return place.keyAt(one.id, s) }

	t.Run("clients", func(t *testing.T) {
		t.Run("paho.golang", func(t *testing.T) {
			t.Parallel()
			everywhere(t, m, crowd{prefix: "v5", connect: connectV5, listeners: transports, name: name})
		})
		t.Run("paho.mqtt.golang", func(t *testing.T) {
			t.Parallel()
			everywhere(t, m, crowd{prefix: "v3", connect: connectV3, listeners: transports, name: name})
		})
		for _, pool := range []string{"over-tls", "over-ws"} {
			t.Run(pool, func(t *testing.T) {
				t.Parallel()
				// Mosquitto 2.0 stalls at a megabyte over WebSocket, without an edge too.
				everywhere(t, m, crowd{prefix: pool, connect: connectV5, listeners: []string{pool}, large: 16 << 10})
			})
		}
		for _, version := range []string{"mqttv31", "mqttv311", "mqttv50"} {
			t.Run("bridge "+version, func(t *testing.T) {
				t.Parallel()
				bridge(t, m, one, version, name)
			})
		}
	})

	settled := began.Add(registry.SessionTTL + 2*time.Second)
	until(t, 2*registry.SessionTTL, "the leader has settled", func() (bool, any) { return time.Now().After(settled), time.Until(settled) })
	t.Run("broker restarts", func(t *testing.T) { brokerRestarts(t, m, one, place) })
}

// bridge connects a mosquitto of its own with an edge, as a site's broker would be. In MQTT 3 its CONNECT has level bit 0x80.
func bridge(t *testing.T, m *mesh, upstream *mosquitto, version string, name func(string) string) {
	id, port := name("bridge-"+version), freePort(t)
	dir := t.TempDir()
	conf := writeFile(t, filepath.Join(dir, "bridge.conf"), fmt.Sprintf(
		"listener %d 127.0.0.1\nallow_anonymous true\nlog_dest stderr\nlog_type all\npersistence false\n"+
			"connection up\naddress %s\nbridge_protocol_version %s\nremote_clientid %s\nnotifications false\ncleansession false\nrestart_timeout 1\n"+
			"topic out/%s/# out 1\ntopic in/%s/# in 1\n", port, m.edges[0].at["tcp"], version, id, version, version))
	local := start(t, dir, "bridge", nil, program(t, "mosquitto", "/usr/sbin/mosquitto"), "-c", conf)
	site := &edgeProc{at: map[string]string{"tcp": fmt.Sprintf("127.0.0.1:%d", port)}, pki: m.pki}
	listening(t, patience, local, site.at["tcp"])
	line := upstream.lineWith(t, patience, "as "+id+" ")
	if isBridge := strings.Contains(line, "New bridge connected"); isBridge != (version != "mqttv50") {
		t.Errorf("the broker says %q", line)
	}
	if version != "mqttv50" { // of which mosquitto 2.0 asks for no session that outlives the connection
		awaitRecords(t, m.store, "default", map[string]string{id: upstream.id})
	}

	// From the site to a client behind another edge, and back.
	far, _, err := connectV5(m.edges[1], "wss", options{id: name("far-" + version), clean: true})
	if err != nil {
		t.Fatal(err)
	}
	defer far.leave()
	near, _, err := connectV3(site, "tcp", options{id: "near", clean: true})
	if err != nil {
		t.Fatal(err)
	}
	defer near.leave()
	if err := far.subscribe("out/#", 1); err != nil {
		t.Fatal(err)
	}
	if err := near.subscribe("in/#", 1); err != nil {
		t.Fatal(err)
	}
	up, down := message{"out/" + version + "/x", "up", 1, false}, message{"in/" + version + "/x", "down", 1, false}
	if err := near.publish(up); err != nil {
		t.Fatal(err)
	}
	if err := far.publish(down); err != nil {
		t.Fatal(err)
	}
	near.inbox().await(t, false, down)
	until(t, patience, "the message from the site", func() (bool, any) {
		got := far.inbox().messages() // of all bridges that are tested now
		for _, m := range got {
			if m == up {
				return true, nil
			}
		}
		return false, got
	})
}

// brokerRestarts ends a broker in order and starts it again before rehome_after is over: its clients wait for it, and find all that was
// theirs.
func brokerRestarts(t *testing.T, m *mesh, one *mosquitto, place placement) {
	fleet := newFleet(t)
	var victims, others []*device
	for i := range 40 {
		d := fleet.add(fmt.Sprintf("restart-%d", i), transports[i%5], m.edges[i%3], m.edges[(i+1)%3], m.edges[(i+2)%3])
		if place.of(d.id) == one.id {
			victims = append(victims, d)
		} else {
			others = append(others, d)
		}
	}
	fleet.awaitUp(t, patience, "all devices connected", everyone)
	home := map[string]string{}
	for _, d := range fleet.devices {
		home[d.id] = place.of(d.id)
	}
	sleeper := place.keyAt(one.id, "sleeper")
	home[sleeper] = one.id
	c, _, err := connectV5(m.edges[0], "tls", options{id: sleeper})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.subscribe("wake/#", 1); err != nil {
		t.Fatal(err)
	}
	c.leave()
	p, _, err := connectV3(m.edges[1], "tcp", options{id: place.keyAt(one.id, "waker"), clean: true})
	if err != nil {
		t.Fatal(err)
	}
	var queued []message
	for i := range 10 {
		queued = append(queued, message{"wake/up", fmt.Sprint(i), 1, false})
		if err := p.publish(queued[i]); err != nil {
			t.Fatal(err)
		}
	}
	p.leave()
	awaitRecords(t, m.store, "default", home)

	at := time.Now()
	if err := one.terminate(t); err != nil {
		t.Fatalf("mosquitto: %v", err)
	}
	slowest(t, victims, "down", at)
	for _, e := range m.edges {
		e.awaitCheck(t, 2*patience, "broker", one.id, "verdict=down")
		if _, _, err := connectV5(e, "ws", options{id: sleeper}); err == nil || !strings.Contains(err.Error(), "CONNACK 0x88") {
			t.Errorf("%s: a client whose session is away was answered with %v, want reason 0x88", e.id, err)
		}
		// Who has nothing to wait for is served.
		c, _, err := rawConnect(e.at["tcp"], place.keyAt(one.id, "stranger-"+e.id), true, patience)
		if err != nil {
			t.Error(err)
		}
		hangUp(c)
	}

	one.start(t)
	listening(t, patience, one.proc, one.address)
	served := time.Now()
	fleet.awaitUp(t, 2*patience, "all devices are back", everyone)
	t.Logf("%d clients of a broker that was away for %v are back %v after it", len(victims), served.Sub(at).Round(time.Millisecond),
		time.Since(served).Round(time.Millisecond))
	for _, d := range victims {
		if e, _ := d.first("up", at); !e.present {
			t.Errorf("%s is back without its session: %v", d.id, e)
		}
	}
	untouched(t, others, at)
	c, present, err := connectV5(m.edges[2], "quic", options{id: sleeper})
	if err != nil || !present {
		t.Fatalf("the sleeper: %v, Session Present %v", err, present)
	}
	defer c.leave()
	c.inbox().await(t, true, queued...)
	m.awaitReady(t, 2*patience)
	awaitRecords(t, m.store, "default", home)
}
