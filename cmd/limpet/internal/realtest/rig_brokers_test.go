package realtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// mosquittos starts n standalone mosquittos that keep their sessions on disk, with no PROXY protocol, since they have none.
func mosquittos(t *testing.T, dir string, n int) []*broker {
	t.Helper()
	path := program(t, "mosquitto", "/usr/sbin/mosquitto")
	all := make([]*broker, n)
	for i := range n {
		b := &broker{id: fmt.Sprintf("mosquitto-%d", i+1), address: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
		_, port, _ := strings.Cut(b.address, ":")
		all[i] = b
		data := filepath.Join(dir, b.id)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		user := ""
		if os.Getuid() == 0 {
			user = "user root\n" // it may not read our directory as anybody else
		}
		conf := writeFile(t, filepath.Join(dir, b.id+".conf"), user+
			"listener "+port+" 127.0.0.1\nallow_anonymous true\nlog_dest stderr\nlog_type all\nconnection_messages true\n"+
			"persistence true\npersistence_location "+data+"/\nmax_queued_messages 0\n")
		b.proc = start(t, dir, b.id, nil, path, "-c", conf)
	}
	for _, b := range all {
		listening(t, patience, b.proc, b.address)
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
