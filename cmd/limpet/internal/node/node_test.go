package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/tls13"
)

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

// serveMQTT is a broker that accepts everybody, and sends back what comes then.
func serveMQTT(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var buf []byte
				p := make([]byte, 1024)
				for {
					n, err := c.Read(p)
					if err != nil {
						return
					}
					buf = append(buf, p[:n]...)
					if k, err := mqtt.ParseConnect(buf, 1<<20); err == nil {
						c.Write(mqtt.AppendConnack(nil, k.Version, false, 0))
						io.Copy(c, c)
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, store, more string) *config.Edge {
	t.Helper()
	conf, err := config.LoadEdge(write(t, "edge.yaml", fmt.Sprintf(`
mesh: test
id: e1
%s
listeners: [{type: tcp, address: "127.0.0.1:0"}]
admin: {address: "127.0.0.1:0"}
shutdown: {grace: 3s}
%s`, store, more)))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// start runs a node; stop ends it and returns its error.
func start(t *testing.T, conf *config.Edge) (at Addresses, stop func() error) {
	t.Helper()
	return startWith(t, conf, Options{})
}

// startWith is start with options, whose Version and Ready are set.
func startWith(t *testing.T, conf *config.Edge, o Options) (at Addresses, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan Addresses, 1)
	ended := make(chan error, 1)
	o.Version, o.Ready = "test", func(a Addresses) { ready <- a }
	go func() { ended <- Run(ctx, conf, o) }()
	var over bool
	var result error
	stop = func() error {
		cancel()
		if !over {
			over, result = true, <-ended
		}
		return result
	}
	t.Cleanup(func() { stop() })
	select {
	case at = <-ready:
	case err := <-ended:
		t.Fatalf("the edge ended: %v", err)
	case <-time.After(patience):
		t.Fatalf("not ready within %v", patience)
	}
	return at, stop
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestWithoutAnyStore(t *testing.T) {
	mesh := write(t, "mesh.yaml", fmt.Sprintf("mesh: test\npools: [{name: default, brokers: [{id: b1, address: %q}]}]\n", serveMQTT(t)))
	at, stop := start(t, load(t, "store: none\nmesh_file: "+mesh, ""))

	c, err := net.Dial("tcp", at.Listeners["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write(mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V5, ClientID: []byte("x"), HasSessionExpiry: true, SessionExpiry: 60}))
	ack := make([]byte, 5)
	if _, err := io.ReadFull(c, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		t.Fatalf("CONNACK %x, %v", ack, err)
	}
	// Clients are served before this edge has joined the mesh.
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		if _, body := get(t, "http://"+at.Admin+"/readyz"); strings.HasPrefix(body, "ok") {
			break
		}
	}
	for _, want := range []struct {
		path string
		code int
		text []string
	}{
		{"/livez", 200, []string{"ok"}},
		{"/readyz", 200, []string{"ok"}},
		{"/readyz?verbose", 200, []string{"pools      ok        pools=1\n", "clients    ok        now=1 most=", "store      ok        none", "bus        ok        none", "default/b1 verdict=up"}},
		{"/metrics", 200, []string{
			"limpet_edge_connections 1\n", `limpet_edge_routes_total{why="placement"} 1`, `limpet_edge_closed_total{reason="broker_down"} 0`,
			`limpet_info{edge="e1",`, `limpet_broker_up{broker="b1",pool="default"} 1`, `limpet_edge_received_packets_total{from="client"} 1`,
		}},
		{"/nothing", 404, nil},
	} {
		code, body := get(t, "http://"+at.Admin+want.path)
		if code != want.code {
			t.Errorf("%s: %d %s", want.path, code, body)
		}
		for _, text := range want.text {
			if !strings.Contains(body, text) {
				t.Errorf("%s lacks %q:\n%s", want.path, text, body)
			}
		}
	}

	if err := stop(); err != nil {
		t.Errorf("end: %v", err)
	}
	// The client was told why, and the connection ended.
	rest, err := io.ReadAll(c)
	if want := mqtt.AppendDisconnect(nil, mqtt.V5, mqtt.ServerShuttingDown); string(rest) != string(want) {
		t.Errorf("last words %x, %v", rest, err)
	}
}

func TestWithoutItsStoresAnEdgeIsNotReadyButRuns(t *testing.T) {
	// Ports that refuse.
	conf := load(t, `store: {etcd: {endpoints: ["http://127.0.0.1:1"]}, nats: {urls: ["nats://127.0.0.1:1"]}}`, "")
	at, stop := start(t, conf)
	code, body := get(t, "http://"+at.Admin+"/readyz?verbose")
	if code != 503 || !strings.Contains(body, "no pool is known") || !strings.Contains(body, "store      degraded") || !strings.Contains(body, "bus        degraded  not connected") {
		t.Errorf("%d\n%s", code, body)
	}
	if code, _ := get(t, "http://"+at.Admin+"/livez"); code != 200 {
		t.Errorf("/livez: %d", code)
	}
	if err := stop(); err != nil {
		t.Errorf("end: %v", err)
	}
}

// Loops that wait in system calls keep their processors: there are two more.
func TestProcessorsBesideTheLoops(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for loops, least := range map[int]int{0: 3, 1: 3, 3: 5} {
		runtime.GOMAXPROCS(1)
		_, stop := start(t, load(t, "store: none\nmesh_file: "+write(t, "mesh.yaml", "mesh: test\npools:\n  - name: default\n    brokers: [{id: b1, address: \"127.0.0.1:1\"}]\n"), fmt.Sprintf("loops: %d", loops)))
		if n := runtime.GOMAXPROCS(0); n < least || loops > 0 && n > least {
			t.Errorf("loops: %d: %d processors, want %d", loops, n, least)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// What the file says of TLS records is what the dialer is told.
func TestTLSRecords(t *testing.T) {
	const file = "mesh: m\nid: e\nstore: none\nmesh_file: m.yaml\nlisteners: [{type: tcp}]\n"
	for text, want := range map[string]tls13.Policy{"": tls13.Crypto, "tls_records: stdlib": tls13.Crypto, "tls_records: limpet": tls13.Own} {
		conf, err := config.ParseEdge("edge.yaml", []byte(file+text))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := tlsRecords[conf.TLSRecords]; !ok || got != want {
			t.Errorf("%q: policy %d (%t), want %d", text, got, ok, want)
		}
	}
}
