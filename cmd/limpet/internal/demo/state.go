package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// State is what --state writes: where everything is. It is written anew whenever a process comes or goes.
type State struct {
	Edges   []EdgeState   `json:"edges"`
	Brokers []BrokerState `json:"brokers"`
	Etcd    []StoreState  `json:"etcd"`
	NATS    []StoreState  `json:"nats"`
	CA      string        `json:"ca"` // PEM file of the authority that signed the edges' certificate
}

// Process is a process of the demo.
type Process struct {
	PID     int    `json:"pid,omitempty"` // left out while it does not run: `kill 0` would hit the reader itself
	Restart string `json:"restart"`       // for a POSIX shell: runs it again, in the foreground, until the demo ends
}

// EdgeState is an edge; addresses are host:port.
type EdgeState struct {
	ID string `json:"id"`
	edgeAddresses
	Process
}

// BrokerState is a broker; MQTT is host:port.
type BrokerState struct {
	ID   string `json:"id"`
	MQTT string `json:"mqtt"`
	Process
}

// StoreState is etcd or NATS.
type StoreState struct {
	URL string `json:"url"`
	Process
}

func (c *child) state() Process { return Process{c.pid(), quote(c.command())} }

// state is how the mesh stands now.
func (m *mesh) state() State {
	s := State{
		Etcd: []StoreState{{m.etcdURL(), m.etcd.state()}},
		NATS: []StoreState{{m.natsURL(), m.nats.state()}},
		CA:   m.pki.ca,
	}
	for i, c := range m.edges {
		s.Edges = append(s.Edges, EdgeState{c.name, m.layout.edges[i], c.state()})
	}
	for i, c := range m.brokers {
		s.Brokers = append(s.Brokers, BrokerState{c.name, m.layout.brokers[i].mqtt, c.state()})
	}
	return s
}

// write writes the state in one step: who reads the file finds all of it.
func (s State) write(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("--state: %w", err)
	}
	return nil
}

// quote writes a command for a POSIX shell.
func quote(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		if w == "" || strings.Trim(w, plain) != "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,@%+"
