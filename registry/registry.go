// Package registry holds what a mesh knows: its pools and brokers, who is
// alive, and which broker each key belongs to.
//
// It is vocabulary first. The types here say what a fact is, [Store] says how
// facts are kept (etcd decides: package etcdstore) and [Bus] how they hurry
// (NATS: package natsbus). [Memory] and [MemoryBus] implement both in one
// process, and package registrytest holds the contract that every
// implementation passes. [Cache] is an edge's copy of all of it, and
// [Committer] writes affinities behind the clients' backs.
//
//	store, hub := registry.NewMemory(), registry.NewMemoryBus()
//	cache := registry.NewCache(registry.CacheConfig{Store: store, Bus: hub.Bus("edge-1")})
//	go cache.Run(ctx)
//	rec, source := cache.Resolve(ctx, "default", "thermostat-17")
//	if !rec.Present() {
//		// new: place it; or not known in time (source says which): place it all the same
//	}
//
// What it refuses to do: choose a broker (package router), judge health
// (package failover), or touch a client's bytes (package edge).
package registry

import (
	"errors"
	"time"
)

// ErrUnavailable is returned (wrapped) by a Store that cannot be reached now.
var ErrUnavailable = errors.New("registry: store unavailable")

// ErrConflict is returned by guarded writes of pools, admin states and pins whose guard no longer holds.
var ErrConflict = errors.New("registry: changed meanwhile")

// ErrNotLeader is returned by a Leadership's writes once the election key is no longer this edge's.
var ErrNotLeader = errors.New("registry: not the leader")

// ErrSessionLost is returned by the methods of a Session whose lease is gone: join again.
var ErrSessionLost = errors.New("registry: session lost")

// ErrCompacted is returned by Store.Watch when the history after the revision it was asked for is gone: list anew.
var ErrCompacted = errors.New("registry: revision compacted")

// ErrReset is returned by Store.Watch when the store is not the one that was watched before
// (another cluster ID, or revisions that went back: a restored backup): list anew.
var ErrReset = errors.New("registry: store was reset")

// MaxNameLen bounds names of meshes, pools, edges and brokers, in bytes.
const MaxNameLen = 63

// ValidName reports whether s can name a mesh, pool, edge or broker: [a-z0-9-]{1,63}.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxNameLen {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// A Pool is a set of brokers that serve the same clients, and the rules for them.
// Zero fields mean the default that the field names; use the accessors of defaults.go to read them.
type Pool struct {
	Name    string
	Brokers []Broker // in order of ID; IDs are unique

	Policy      Policy        // "" = PolicyHash
	Sessions    Sessions      // "" = SessionsLocal
	RehomeAfter time.Duration // from down to lost; 0 = 2 s for SessionsReplicated, 60 s for SessionsLocal
	TTL         time.Duration // how long a record of an MQTT 3 session outlives its connection; 0 = 168 h
	MaxTTL      time.Duration // caps the expiry of a record ("never" included); 0 = 720 h
	Failback    Failback      // "" = FailbackStay
	// ConnectTimeout bounds CONNECT to CONNACK over all brokers tried; 0 = 10 s.
	ConnectTimeout time.Duration
	// DialTimeout bounds one broker's dial; 0 = 3 s.
	DialTimeout time.Duration
	Probe       Probe

	Revision int64 // mod revision of the stored pool; 0 = not stored
}

// A Broker is one MQTT server of a pool.
type Broker struct {
	ID        string
	Address   string    // host:port; the host may be a DNS name, an IPv4 or a bracketed IPv6 address
	Weight    int       // share of new keys, relative to the pool's other brokers; 0 = 1; at most 1000
	Transport Transport // "" = TransportTCP; TransportTCP, TransportTLS, TransportWS, TransportWSS
	Proxy     ProxyProtocol
	Path      string // WebSocket request path; "" = /mqtt
	TLS       BrokerTLS
}

// BrokerTLS says how an edge meets a broker over TLS. File names are those of the edge's machine.
type BrokerTLS struct {
	CA         string // PEM file of authorities; "" = the system's
	Cert, Key  string // PEM files of the edge's client certificate; "" = none
	ServerName string // the name verified, and sent as SNI; "" = the host of Address
}

// A Probe says how a pool's brokers are tested.
type Probe struct {
	Kind     ProbeKind     // "" = ProbeMQTT
	Interval time.Duration // 0 = 2 s
	Timeout  time.Duration // 0 = 2 s
	Rise     int           // consecutive successes from down to up; 0 = 2
	Fall     int           // consecutive failures from up to down; 0 = 3
}

// Closed sets. The empty string is each set's default.
type (
	Policy        string
	Sessions      string
	Failback      string
	Transport     string
	ProxyProtocol string
	ProbeKind     string
	AdminState    string
	BrokerState   string
)

const (
	PolicyHash Policy = "hash" // weighted rendezvous hashing of the key

	SessionsLocal      Sessions = "local"      // a session lives on one broker and is away while that is down
	SessionsReplicated Sessions = "replicated" // the brokers are a cluster whose nodes can take a session over

	FailbackStay Failback = "stay" // a key that was re-placed stays when its first home returns

	TransportTCP Transport = "tcp"
	TransportTLS Transport = "tls"
	TransportWS  Transport = "ws"
	TransportWSS Transport = "wss"

	ProxyNone ProxyProtocol = "" // also "none" in configuration
	ProxyV1   ProxyProtocol = "v1"
	ProxyV2   ProxyProtocol = "v2"

	ProbeTCP  ProbeKind = "tcp"  // a connection is accepted
	ProbeMQTT ProbeKind = "mqtt" // CONNECT is answered by CONNACK, whatever its code
	ProbeNone ProbeKind = "none" // never probed: up unless dials say otherwise

	AdminReady    AdminState = "ready"
	AdminDraining AdminState = "draining" // serves the keys it has, gets no new ones
	AdminOut      AdminState = "out"      // serves nobody
	// AdminUnknown is that of a broker whose stored state does not read, where none that did was ever seen. It serves as
	// AdminDraining does, since it may be anything, and nothing is done on a guess. It is never stored.
	AdminUnknown AdminState = "unknown"

	BrokerUp   BrokerState = "up"   // also the state of a broker without a verdict
	BrokerDown BrokerState = "down" // closed at every edge; recorded keys wait for it
	BrokerLost BrokerState = "lost" // down for longer than rehome_after: recorded keys are re-placed
)

// BrokerRef names a broker of a mesh.
type BrokerRef struct{ Pool, Broker string }

// Admin is what an operator decided about a broker.
type Admin struct {
	State    AdminState
	Revision int64 // mod revision
}

// Verdict is what the leader decided about a broker's health.
type Verdict struct {
	State    BrokerState
	Since    time.Time // when State began, by the leader's clock
	Reason   string    // for people: "2 of 3 edges: connection refused"
	Revision int64     // mod revision; not part of the value
}

// Edge is a live edge's registration. It stands on the edge's session lease.
type Edge struct {
	ID      string
	Admin   string // host:port of its admin API; "" = none
	Version string
	Started time.Time
	Leaving bool // it leaves in order: its reports no longer count
}

// Health is one edge's view of the brokers. Written on change only.
type Health struct {
	Edge string
	Seq  uint64 // grows with every report of this life of the edge; a smaller one is stale
	// Brokers lists those that were ever judged by this edge; a broker that is absent was not reported.
	Brokers map[BrokerRef]Report
}

// Report is one edge's judgement of one broker.
type Report struct {
	Up     bool
	Since  time.Time
	Reason string // of the last failure, "" when up
}

// Affinity is the recorded fact "this key belongs to this broker".
// The zero value is no affinity.
type Affinity struct {
	Broker  string
	Home    string    // where the key was placed first; differs from Broker after a re-placement
	Writer  string    // id of the edge that wrote it
	Written time.Time // by the writer's clock, to the second
	// Expires is when the record may go although nobody deleted it: never before its session does (ARCHITECTURE, promise 6).
	Expires time.Time
	Reason  string // why Broker: "placement", "rehomed", "assigned", "pin", "moved"

	Revision int64  // mod revision; not part of the value. 0 = not stored
	Extra    []byte // unknown fields of the stored value, kept as they were
}

// Present reports whether a names a broker.
func (a Affinity) Present() bool { return a.Broker != "" }

// Fact is a revision that a decision was based on; a guarded write fails when it has changed.
type Fact struct {
	Kind     Kind   // KindPool, KindAdmin or KindVerdict
	Pool     string // the pool itself (KindPool), or the broker's
	Name     string // the broker; "" for KindPool
	Revision int64  // 0 = absent
}

// Kind tells what a Change or a Fact is about.
type Kind uint8

const (
	KindAffinity Kind = iota + 1 // Change.PoolName, Name = key, Affinity
	KindPool                     // Change.Name, Pool
	KindAdmin                    // Change.PoolName, Name = broker
	KindVerdict                  // Change.PoolName, Name = broker
	KindPin                      // Change.PoolName, Name = key, Broker
	KindEdge                     // Change.Name = edge
	KindHealth                   // Change.Name = edge
	KindLeader                   // Change.Name = edge that leads; deleted: the edge that leads no longer, or "" if not known
	KindPrune                    // no fields: Store.Prune was called
)

// Change is one key's new value (or its end) in the store. Only the field of its Kind is set;
// the revisions inside it (of an Affinity, a Pool, an Admin, a Verdict) are set too and equal Revision.
// A deleted one has Kind, PoolName, Name and Revision (of the deletion), and no value.
type Change struct {
	Kind     Kind
	PoolName string // for KindAffinity, KindAdmin, KindVerdict, KindPin
	Name     string // key, pool, broker or edge
	Deleted  bool
	Revision int64
	// Unreadable says where the value is and why it does not read: there is one, and what was known before stands. Only of what an
	// operator or the leader wrote (KindPool, KindAdmin, KindVerdict, KindPin).
	Unreadable string

	Affinity Affinity
	Pool     *Pool
	Admin    Admin
	Verdict  Verdict
	Broker   string // KindPin
	Edge     Edge
	Health   Health
}

// State is everything that routing and judging use, except affinities, as of one revision.
// It is immutable once published; Apply makes the next one.
type State struct {
	Revision int64 // at which something of it last changed
	Pools    map[string]*Pool
	Admin    map[BrokerRef]Admin
	Verdicts map[BrokerRef]Verdict
	Pins     map[PinRef]string // to broker ID
	Edges    map[string]Edge
	Health   map[string]Health // by edge
	Leader   string            // edge id, "" = none known

	// Unreadable is what is stored and does not read. The maps above have the last value that did, at the revision of the one that
	// does not; where this edge has seen none, no pool and no pin, AdminUnknown, and a Verdict without a State.
	Unreadable map[Subject]Unreadable
	// Former are those of Pools that this store does not have: a store that it replaced did, and an empty store is no reason to close
	// anybody. Their Revision is 0, as is that of their Admin. They stand until the store says something about the pool, or
	// Store.Prune is called.
	Former map[string]bool
}

// Unreadable is a stored value that this program cannot make sense of.
type Unreadable struct {
	Revision int64 // mod revision: the guard to replace it with
	Reason   string
}

// Subject names what a Change is about.
type Subject struct {
	Kind       Kind
	Pool, Name string // Change.PoolName, Change.Name
}

// PinRef names a key of a pool.
type PinRef struct{ Pool, Key string }
