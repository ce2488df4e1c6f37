package realtest

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// mqttJS runs mqttjs.mjs, which has 24 sessions: three edges, four transports, two versions.
func mqttJS(t *testing.T, m *mesh) {
	node := program(t, "node")
	const script = "mqttjs.mjs"
	if _, err := os.Stat(script); err != nil { // and go test knows now that the result depends on it
		t.Fatal(err)
	}
	if _, err := os.Stat("node_modules/mqtt"); err != nil {
		missing(t, "MQTT.js is not installed (npm ci in cmd/limpet/internal/realtest, or make deps)")
	}
	type addresses map[string]string
	in := struct {
		CA    string      `json:"ca"`
		Edges []addresses `json:"edges"`
	}{CA: m.pki.ca}
	for _, e := range m.edges {
		in.Edges = append(in.Edges, addresses{"id": e.id, "tcp": e.at["tcp"], "tls": e.at["tls"], "ws": e.at["ws"], "wss": e.at["wss"]})
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := command(t, 2*time.Minute, b, node, script)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(out, 5))
	}
	if n := strings.Count(out, "home "); n != 24 {
		t.Errorf("%d sessions came home, want 24:\n%s", n, out)
	}
}
