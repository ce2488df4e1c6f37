package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/limpet-mesh/limpet/loadtest/near"
)

// maxState bounds a state file: thousands of processes.
const maxState = 1 << 20

// State says where the parts of a mesh are and how to start each again, as `limpet demo --state FILE` writes it.
// What else the file holds is ignored.
type State struct {
	Edges   []EdgeState   `json:"edges"`
	Brokers []BrokerState `json:"brokers"`
	Etcd    []StoreState  `json:"etcd"`
	NATS    []StoreState  `json:"nats"`
	CA      string        `json:"ca"` // PEM file of the authority that signed the edges' certificate
}

// ProcessState is a process of the mesh.
type ProcessState struct {
	PID     int    `json:"pid"`     // 0 or left out: it does not run
	Restart string `json:"restart"` // command for a POSIX shell that runs it again, in the foreground; "" = it cannot be started
}

// EdgeState is an edge; addresses are host:port.
type EdgeState struct {
	ID    string `json:"id"`
	TCP   string `json:"tcp"`
	TLS   string `json:"tls"`
	WS    string `json:"ws"`
	WSS   string `json:"wss"`
	QUIC  string `json:"quic"`
	Admin string `json:"admin"`
	ProcessState
}

// BrokerState is a broker; MQTT is host:port.
type BrokerState struct {
	ID   string `json:"id"`
	MQTT string `json:"mqtt"`
	ProcessState
}

// StoreState is one of the processes of etcd or NATS.
type StoreState struct {
	URL string `json:"url"`
	ProcessState
}

// ReadState reads a state file. Its errors are ErrState.
func ReadState(path string) (*State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if len(data) > maxState {
		return nil, fmt.Errorf("%w: %s: expected at most %d bytes", ErrState, path, maxState)
	}
	s, err := parseState(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrState, path, err)
	}
	return s, nil
}

func parseState(data []byte) (*State, error) {
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	parts := s.parts()
	if len(parts) == 0 {
		return nil, errors.New("it names no edge, broker, etcd or nats: expected what `limpet demo --state FILE` writes")
	}
	for _, p := range parts {
		if p.PID < 0 || p.PID == 1 { // kill(2) would take a negative one for a group
			return nil, fmt.Errorf("%s: expected a pid above 1, or none, found %d", p.target, p.PID)
		}
	}
	return &s, nil
}

// part is a process of the mesh and what it is called.
type part struct {
	target Target
	ProcessState
}

func (s *State) parts() []part {
	var all []part
	for _, e := range s.Edges {
		all = append(all, part{Target{Kind: Edge, Name: e.ID}, e.ProcessState})
	}
	for _, b := range s.Brokers {
		all = append(all, part{Target{Kind: Broker, Name: b.ID}, b.ProcessState})
	}
	stores := func(kind Kind, list []StoreState) {
		for i, member := range list {
			t := Target{Kind: kind}
			if len(list) > 1 {
				t.Name = strconv.Itoa(i + 1)
			}
			all = append(all, part{t, member.ProcessState})
		}
	}
	stores(Etcd, s.Etcd)
	stores(NATS, s.NATS)
	return all
}

// of lists the parts of a kind.
func (s *State) of(kind Kind) []part {
	var list []part
	for _, p := range s.parts() {
		if p.target.Kind == kind {
			list = append(list, p)
		}
	}
	return list
}

// find returns the part that a target names, which is not a random one.
func (s *State) find(t Target) (part, error) {
	list := s.of(t.Kind)
	var names []string
	for _, p := range list {
		if p.target == t || len(list) == 1 && p.target.Name == "" && t.Name == "1" {
			return p, nil
		}
		names = append(names, p.target.Name)
	}
	switch {
	case len(list) == 0:
		return part{}, fmt.Errorf("%w: %s: the state file names no %s", ErrTarget, t, t.Kind)
	case t.Name == "":
		return part{}, fmt.Errorf("%w: %s: there are %d of them: expected one of %s 1 to %d, or random %s", ErrTarget, t, len(list), t.Kind, len(list), t.Kind)
	case t.Kind == Etcd || t.Kind == NATS:
		return part{}, fmt.Errorf("%w: %s: the state file names %d of them", ErrTarget, t, len(list))
	default:
		hint := ""
		if len(t.Name) > 3 { // any two of b1, b2, b3 resemble each other
			hint = near.Meant(t.Name, names)
		}
		return part{}, fmt.Errorf("%w: %s: the state file names %s%s", ErrTarget, t, strings.Join(names, ", "), hint)
	}
}
