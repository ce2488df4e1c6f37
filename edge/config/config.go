// Package config reads the two files that people write: an edge's static
// configuration and a mesh's pools.
//
//	edge, err := config.LoadEdge("edge.yaml")
//	if err != nil {
//		fmt.Fprintln(os.Stderr, err) // edge.yaml:7:11: listeners[1].type: expected one of tcp, tls, …
//		os.Exit(1)
//	}
//	for _, err := range edge.CheckFiles() { … } // certificates, keys, passwords
//
// A file becomes a tree whose every node knows its line and column (yaml.go). A value is such a node with its field path, and has one reader per
// kind of value: name, duration, size, address (value.go). What a file may hold
// is written once, as tables from field name to reader (edge.go, mesh.go); the
// hints for misspelt names come from the same tables. Readers never stop at a
// mistake: all mistakes of a file are reported together, in order of position.
//
// It refuses what would surprise: unknown and repeated fields, anchors,
// aliases, tags, more than one document, files above [MaxFile]. It opens no
// socket, and no file but the one it is given; CheckFiles looks at the others.
package config

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// MaxFile bounds a configuration file, in bytes: about 10,000 brokers.
const MaxFile = 1 << 20

// Edge is the static configuration of one edge. Fields that the file leaves out have their default,
// file names are absolute or relative to the working directory.
type Edge struct {
	Mesh       string
	ID         string // default: the host's name, made valid
	Store      Store
	MeshFile   string // the pools; set if and only if Store.None
	Listeners  []Listener
	TLSRecords TLSRecords
	Limits     Limits
	Loops      int // epoll loops; 0 = as many as their load wants
	Admin      Admin
	Log        Log
	Shutdown   Shutdown

	at *index
}

// Store says where the mesh's facts are kept.
type Store struct {
	None bool  // no store at all: the pools are those of Edge.MeshFile
	Etcd *Etcd // set unless None
	NATS *NATS // nil: no bus; changes arrive by the store's watch alone
}

// Etcd says how etcd is reached.
type Etcd struct {
	Endpoints    []string // URLs with a port, all http or all https
	Username     string
	PasswordFile string
	TLS          *ClientTLS // nil: the system's authorities, no client certificate
}

// NATS says how NATS is reached.
type NATS struct {
	URLs         []string // nats://host:port or tls://host:port
	Username     string
	PasswordFile string
	Credentials  string // a NATS credentials file (JWT and key)
	TLS          *ClientTLS
}

// ClientTLS holds the files of a TLS client.
type ClientTLS struct {
	CA        string // "" = the system's authorities
	Cert, Key string // "" = no client certificate
}

// ListenerType is the transport of a listener.
type ListenerType string

// The transports, and the ports that they have unless the address names another.
const (
	TCP  ListenerType = "tcp"  // 1883
	TLS  ListenerType = "tls"  // 8883
	WS   ListenerType = "ws"   // 8083
	WSS  ListenerType = "wss"  // 8084
	QUIC ListenerType = "quic" // 14567
)

var listenerTypes = []ListenerType{TCP, TLS, WS, WSS, QUIC}

// Port is the default port of the transport.
func (t ListenerType) Port() int {
	return map[ListenerType]int{TCP: 1883, TLS: 8883, WS: 8083, WSS: 8084, QUIC: 14567}[t]
}

// Encrypted reports whether the transport has TLS.
func (t ListenerType) Encrypted() bool { return t == TLS || t == WSS || t == QUIC }

// WebSocket reports whether the transport carries MQTT in WebSocket messages.
func (t ListenerType) WebSocket() bool { return t == WS || t == WSS }

// Listener is one address that clients reach.
type Listener struct {
	Name          string // unique in the edge; default: the type
	Type          ListenerType
	Address       string // host:port; an empty host is every address of the machine, port 0 any free port
	Pool          string // default: "default"
	ProxyProtocol ProxyProtocol
	TLS           *ServerTLS // set if and only if the type is encrypted
	WebSocket     *WebSocket // set if and only if the type is ws or wss
}

// ProxyProtocol says from whom a PROXY header is expected.
type ProxyProtocol struct {
	From []netip.Prefix // empty: from nobody
}

// ServerTLS is how a listener meets its clients over TLS.
type ServerTLS struct {
	Certificates []Certificate // at least one; chosen by SNI, else the first
	MinVersion   uint16        // tls.VersionTLS12 (default) or tls.VersionTLS13
	ClientCA     string        // PEM file; set unless ClientAuth is none
	ClientAuth   ClientAuth
}

// Certificate is a pair of PEM files.
type Certificate struct{ Cert, Key string }

// ClientAuth says whether clients show certificates.
type ClientAuth string

const (
	ClientAuthNone    ClientAuth = "none"
	ClientAuthRequest ClientAuth = "request" // asked for; verified if shown
	ClientAuthRequire ClientAuth = "require" // a verified certificate or no connection
)

// TLSRecords says whose code goes on with a TLS 1.3 connection after its handshake, which is crypto/tls's always. It is for clients
// and brokers whose sessions live in the loops.
type TLSRecords string

const (
	TLSRecordsStdlib TLSRecords = "stdlib" // crypto/tls (default)
	TLSRecordsLimpet TLSRecords = "limpet" // our own record layer; TLS 1.2 and FIPS 140-3 mode stay with crypto/tls
)

// WebSocket is how a listener upgrades requests.
type WebSocket struct {
	Path    string   // of the request; default "/mqtt"
	Origins []string // scheme://[*.]host[:port] in lower case, "*" or "null"; empty: only pages of the host that the request is for
}

// Limits are the bounds against strangers.
type Limits struct {
	ConnectSize    int           // bytes of a CONNECT packet; default 128 KiB
	ConnectTimeout time.Duration // from accept to the whole CONNECT; default 10 s
	Connections    int           // at the same time; 0 = what the descriptor limit allows
	Handshakes     int           // connections that have not sent their CONNECT; default 4096
	KeepAlive      float64       // how many times its Keep Alive a client may be silent; default 1.5, below 0 = nobody watches
}

// Admin is the address of the admin API, health endpoints and metrics.
type Admin struct {
	Address string // host:port, the host a loopback address
}

// Log says what is logged.
type Log struct {
	Level  string // trace, debug, info (default), warn, error
	Format string // json (default), console
}

// Shutdown says how an edge ends.
type Shutdown struct {
	Grace time.Duration // for sessions to end after SIGTERM; default 10 s
}

// Defaults of an edge.
const (
	DefaultConnectSize    = 128 << 10 // the longest legal client ID, user name and password fit, with room for a Will's topic
	DefaultConnectTimeout = 10 * time.Second
	DefaultHandshakes     = 4096
	DefaultKeepAlive      = 1.5 // what every client is granted [MQTT-3.1.2-24 | 3.1.2-22]: less is not allowed
	DefaultAdminAddress   = "127.0.0.1:9883"
	DefaultGrace          = 10 * time.Second
	DefaultPool           = "default"
	DefaultWebSocketPath  = "/mqtt"
)

// Mesh is the dynamic configuration of a mesh: what `limpet apply` writes.
type Mesh struct {
	Name  string
	Pools []registry.Pool // in order of name, their brokers in order of ID

	at *index
}

// LoadEdge reads an edge's configuration. Mistakes in the file are [Errors].
func LoadEdge(path string) (*Edge, error) { return load(path, ParseEdge) }

// LoadMesh reads a mesh's pools. Mistakes in the file are [Errors].
func LoadMesh(path string) (*Mesh, error) { return load(path, ParseMesh) }

func load[T any](path string, parse func(string, []byte) (T, error)) (T, error) {
	data, err := ReadFile(path)
	if err != nil {
		var zero T
		return zero, err
	}
	return parse(path, data)
}

// ReadFile returns a file's content, at most one byte more than [MaxFile] of it.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return data, nil
}
