package peer

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/edge/config"
)

var programs = Programs{"limpet": "limpet", "before": "/old/limpet", "haproxy": "haproxy", "nginx": "nginx", "floor": "cc"}

func TestParse(t *testing.T) {
	for name, want := range map[string]Peer{
		"limpet":      {Kind: Limpet, Program: "limpet", Threads: 1},
		"before-2":    {Kind: Limpet, Program: "/old/limpet", Threads: 2},
		"haproxy-12":  {Kind: HAProxy, Program: "haproxy", Threads: 12},
		"nginx":       {Kind: NGINX, Program: "nginx", Threads: 1},
		"direct":      {Kind: Direct, Threads: 1},
		"floor":       {Kind: Floor, Program: "cc", Threads: 1},
		"floor-2":     {},
		"limpet:x=1:": {},
		"squid":       {},
		"haproxy:x=1": {},
		"limpet-0":    {},
	} {
		got, err := Parse(name, programs)
		if want.Kind == "" {
			if err == nil {
				t.Errorf("%s: expected an error", name)
			}
			continue
		}
		if err != nil || got.Kind != want.Kind || got.Program != want.Program || got.Threads != want.Threads || got.Name != name {
			t.Errorf("%s: %+v %v, want %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"limpet": "haproxy", "before-2": "haproxy-2", "nginx": "haproxy", "haproxy-2": "haproxy-2"} {
		if p, err := Parse(name, programs); err != nil || p.Reference() != want {
			t.Errorf("%s: %q %v, want %q", name, p.Reference(), err, want)
		}
	}
}

func setup(m Mode, dir string) Setup {
	return Setup{
		Mode: m, Dir: dir, Listen: "127.0.0.1:18831", Admin: "127.0.0.1:18832", Brokers: []string{"127.0.0.1:18833", "127.0.0.1:18834"}, Cert: "/tmp/cert.pem", Clients: 1000,
	}
}

func TestLimpetsConfigurations(t *testing.T) {
	p, err := Parse("limpet-2:tls.min_version=1.3", programs)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range Modes {
		files, argv := p.Configure(setup(m, "/tmp/x"))
		edge, err := config.ParseEdge("edge.yaml", []byte(files["edge.yaml"]))
		if err != nil || edge.Loops != 2 || argv[len(argv)-1] != "/tmp/x/edge.yaml" || len(edge.Listeners) != 1 || string(edge.Listeners[0].Type) != strings.Replace(string(m), "plain", "tcp", 1) {
			t.Errorf("%s: %v\n%s", m, err, files["edge.yaml"])
			continue
		}
		if m.Encrypted() && edge.Listeners[0].TLS.MinVersion != 0x0304 {
			t.Errorf("%s: the setting did not reach the listener:\n%s", m, files["edge.yaml"])
		}
		mesh, err := config.ParseMesh("mesh.yaml", []byte(files["mesh.yaml"]))
		if err != nil {
			t.Errorf("%s: %v\n%s", m, err, files["mesh.yaml"])
			continue
		}
		for _, err := range edge.CheckMesh(mesh) {
			t.Errorf("%s: %v", m, err)
		}
	}
}

// TestTheOthersConfigurations lets HAProxy and NGINX read what is written for them, where they are installed: plain and WebSocket, since there is no
// certificate. Elsewhere it only sees that there is something.
func TestTheOthersConfigurations(t *testing.T) {
	check := map[Kind][]string{HAProxy: {"-c", "-q"}, NGINX: {"-t", "-q"}}
	for _, name := range []string{"haproxy-2", "nginx"} {
		p, err := Parse(name, programs)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range Modes {
			dir := t.TempDir()
			files, argv := p.Configure(setup(m, dir))
			if len(files) != 1 || len(argv) < 3 {
				t.Fatalf("%s, %s: %v %v", name, m, files, argv)
			}
			if p.Missing() != "" || m.Encrypted() || os.Getuid() != 0 {
				continue
			}
			for file, text := range files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command(argv[0], append(argv[1:], check[p.Kind]...)...).CombinedOutput(); err != nil {
				t.Errorf("%s, %s: %v\n%s", name, m, err, out)
			}
		}
	}
}
