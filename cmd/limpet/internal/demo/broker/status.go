package broker

import (
	"slices"
	"strings"
)

// SessionStatus is what a broker has of one client ID.
type SessionStatus struct {
	Client    string `json:"client"`
	Connected bool   `json:"connected"`
	Remote    string `json:"remote,omitempty"` // the client's address, as a PROXY header told it if there was one
	Connects  int    `json:"connects"`         // accepted so far
	Queued    int    `json:"queued"`           // messages it has not acknowledged
	Dropped   uint64 `json:"dropped"`          // messages that found the session full
}

// PeerStatus is what a broker knows of its link to a peer.
type PeerStatus struct {
	Name    string `json:"name"`
	Up      bool   `json:"up"`
	Kept    int    `json:"kept"`    // messages that it has not acknowledged
	Dropped uint64 `json:"dropped"` // messages that it will not get
}

// Sessions lists the sessions here, connected or not, by client ID.
func (b *Broker) Sessions() []SessionStatus {
	b.mu.Lock()
	sessions := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		sessions = append(sessions, s)
	}
	b.mu.Unlock()
	out := make([]SessionStatus, len(sessions))
	for i, s := range sessions {
		out[i] = b.sessionStatus(s)
	}
	slices.SortFunc(out, func(x, y SessionStatus) int { return strings.Compare(x.Client, y.Client) })
	return out
}

func (b *Broker) sessionStatus(s *session) SessionStatus {
	status := SessionStatus{Client: s.id}
	status.Connected, status.Queued, status.Dropped = s.info()
	b.mu.Lock()
	defer b.mu.Unlock()
	status.Connects = b.connects[s.id]
	if c := b.owners[s.id]; status.Connected && c != nil && c.client != nil {
		status.Remote = c.client.Net.Remote
	}
	return status
}

// Connects is how many connections of a client ID have been accepted, whether a session is left of them or not. It
// is counted for the first 2^20 client IDs.
func (b *Broker) Connects(client string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects[client]
}

// Peers lists the links to the peers, by name.
func (b *Broker) Peers() []PeerStatus {
	out := make([]PeerStatus, 0, len(b.links))
	for _, l := range b.links {
		out = append(out, l.status())
	}
	slices.SortFunc(out, func(x, y PeerStatus) int { return strings.Compare(x.Name, y.Name) })
	return out
}
