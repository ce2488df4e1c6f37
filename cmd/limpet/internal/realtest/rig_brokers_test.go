package realtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// broker is a broker's process.
type broker struct {
	*proc
	id      string
	address string
}

// entry is the broker in the words of a mesh file.
func (b *broker) entry(more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("{id: %s, address: '%s'%s}", b.id, b.address, more)
}

func entries(brokers []*broker, more string) []string {
	out := make([]string, len(brokers))
	for i, b := range brokers {
		out[i] = b.entry(more)
	}
	return out
}

// demoBrokers starts n of the demo's brokers as a cluster that believes PROXY headers.
func demoBrokers(t testing.TB, dir string, n int) []*broker {
	t.Helper()
	links := make([]string, n)
	all := make([]*broker, n)
	for i := range n {
		links[i] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		all[i] = &broker{id: fmt.Sprintf("b%d", i+1), address: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	}
	for i, b := range all {
		args := []string{
			limpet, "demo-broker", "--name", b.id, "--listen", b.address, "--link-listen", links[i], "--proxy-protocol",
		}
		for j, peer := range all {
			if j != i {
				args = append(args, "--peer", peer.id+"="+links[j])
			}
		}
		b.proc = start(t, dir, b.id, nil, args...)
	}
	for _, b := range all {
		listening(t, patience, b.proc, b.address)
	}
	return all
}

// mosquitto is a standalone one that keeps its sessions on disk. It has no PROXY protocol.
type mosquitto struct {
	broker
	tls, ws string // further addresses; the first wants a client certificate
}

func mosquittos(t *testing.T, dir string, ca *pki, n int) []*mosquitto {
	t.Helper()
	path := program(t, "mosquitto", "/usr/sbin/mosquitto")
	all := make([]*mosquitto, n)
	for i := range n {
		ports := [3]int{freePort(t), freePort(t), freePort(t)}
		at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
		b := &mosquitto{broker{id: fmt.Sprintf("mosquitto-%d", i+1), address: at(0)}, at(1), at(2)}
		all[i] = b
		data := filepath.Join(dir, b.id)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		user := ""
		if os.Getuid() == 0 {
			user = "user root\n" // it may not read our directory as anybody else
		}
		conf := writeFile(t, filepath.Join(dir, b.id+".conf"), user+fmt.Sprintf(
			"allow_anonymous true\nlog_dest stderr\nlog_type all\npersistence true\npersistence_location %s/\nmax_queued_messages 0\n"+
				"listener %d 127.0.0.1\nlistener %d 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\n"+
				"listener %d 127.0.0.1\nprotocol websockets\n", data, ports[0], ports[1], ca.ca, ca.cert, ca.key, ports[2]))
		b.proc = start(t, dir, b.id, nil, path, "-c", conf)
	}
	for _, b := range all {
		for _, address := range []string{b.address, b.tls, b.ws} {
			listening(t, patience, b.proc, address)
		}
	}
	return all
}

func writeFile(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
