package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// meshName and poolName are in etcd's keys: /limpet/demo/affinity/default/CLIENT.
const (
	meshName = "demo"
	poolName = "default"
)

// meshFile writes what `limpet apply` puts into etcd. The pool is probed more often than by default, so that a broker that
// is back serves within a second.
func meshFile(dir string, l *layout) (string, error) {
	var y strings.Builder
	fmt.Fprintf(&y, "mesh: %s\npools:\n  - name: %s\n    rehome_after: 2s\n    probe: {type: mqtt, interval: 500ms}\n    brokers:\n", meshName, poolName)
	for i, b := range l.brokers {
		fmt.Fprintf(&y, "      - {id: %s, address: %q, proxy_protocol: v2}\n", brokerName(i), b.mqtt)
	}
	return writeFile(dir, "mesh.yaml", y.String())
}

// edgeFile writes the configuration of one edge.
func edgeFile(dir string, l *layout, p *pki, i int) (string, error) {
	var y strings.Builder
	fmt.Fprintf(&y, "mesh: %s\nid: %s\nstore:\n  etcd: {endpoints: [%q]}\n  nats: {urls: [%q]}\nlisteners:\n",
		meshName, edgeName(i), "http://"+l.etcd, "nats://"+l.nats)
	for _, t := range transports {
		fmt.Fprintf(&y, "  - type: %s\n    address: %q\n", t, l.edges[i].of(t))
		if t.encrypted() {
			// Quoted as YAML's double-quoted strings are, whatever the directory's name.
			fmt.Fprintf(&y, "    tls: {certificates: [{cert: %s, key: %s}]}\n", strconv.Quote(p.cert), strconv.Quote(p.key))
		}
	}
	fmt.Fprintf(&y, "admin: {address: %q}\nshutdown: {grace: 2s}\n", l.edges[i].Admin)
	return writeFile(dir, edgeName(i)+".yaml", y.String())
}

func writeFile(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func edgeName(i int) string   { return fmt.Sprintf("e%d", i+1) }
func brokerName(i int) string { return fmt.Sprintf("b%d", i+1) }
