// Package etcdstore keeps a mesh's facts in etcd. It is the registry.Store that
// decides.
//
//	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{"http://127.0.0.1:2379"}, Mesh: "site-a"})
//	defer store.Close()
//	session, err := store.Join(ctx, registry.Edge{ID: "edge-1"})
//	err = store.Watch(ctx, 0, func(b registry.Batch) error { ... })
//
// How it works. All keys stand in keys.go, all values in package wire. Every
// write is a transaction that compares revisions, so nobody overwrites what he
// has not seen; a batch of affinities is one transaction of many small ones,
// each of which succeeds or fails by itself (commit.go). Affinities hang on
// bucket leases, a few for all clients of an edge, never kept alive (buckets.go,
// leases.go). A watch lists at one revision and follows from there on a stream
// of its own, and breaks as soon as etcd is silent, so that its reader knows
// (watch.go). An edge's registration, its reports and the election key hang on
// its session's lease (session.go, election.go).
//
// Open needs no etcd: every call says registry.ErrUnavailable until there is
// one. etcd 3.5.8 or later is supported; from 3.7 on listings are streamed.
//
// It refuses a store that demands a newer limpet ([ErrSchema]), and an edge id
// that another live edge has ([ErrEdgeInUse]). What it cannot read (keys of
// others under its prefix, values of later versions, garbage) it ignores and
// counts ([Store.Ignored]).
package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/clienttls"
)

// How etcd is reached.
const (
	defaultDialTimeout = 5 * time.Second
	// A connection on which nothing moves is pinged after 10 s, the shortest that gRPC allows. A watch notices much
	// earlier that etcd is silent.
	pingEvery   = 10 * time.Second
	pingTimeout = 3 * time.Second
	// Redialing starts at once and never waits long: gRPC's own limit of two minutes would be an edge's blindness.
	redialFirst = 100 * time.Millisecond
	redialMost  = 3 * time.Second
	// maxAnswer bounds one answer of the server: 10,000 keys are 2 MB as a rule, but a stranger's key may have 64 KiB.
	maxAnswer = 128 << 20
)

// ErrSchema is returned by the calls that would use a store whose min_version is above this program's.
var ErrSchema = errors.New("etcdstore: the store needs a newer limpet: upgrade this one")

// ErrEdgeInUse is returned by Join where another live edge has the same id.
var ErrEdgeInUse = errors.New("etcdstore: edge id in use: give each edge of the mesh an id of its own")

// TLS names the PEM files of a client.
type TLS = clienttls.Files

// Config says where a mesh's etcd is.
type Config struct {
	Endpoints   []string // http://host:port or https://host:port, of any of the cluster's members
	Mesh        string
	TLS         TLS    // for https endpoints
	Username    string // etcd's own authentication; "" = none
	Password    string
	DialTimeout time.Duration // for one attempt to connect; 0 = 5 s
	Logger      zerolog.Logger
}

// Store is a client of one mesh's etcd. Its methods may be called from any goroutine.
type Store struct {
	cfg  Config
	tls  *tls.Config
	keys keyspace
	log  zerolog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // sessions

	cli     atomic.Pointer[clientv3.Client]
	dialing chan struct{} // holds one token while a client is made

	reach   reach
	leases  leases
	written atomic.Bool // the schema is there, and we may write
	ignored atomic.Uint64
	told    atomic.Int64 // Unix seconds of the last time that the log did so

	pageSize int64 // and noStream, for an etcd that cannot stream its listings: set before use
	noStream bool

	mu    sync.Mutex
	known identity // of the store that was last watched; guarded by mu, as are the next
	// another is the store that took its place, once a reader has been told so (ErrReset) and until one lists it.
	another identity
	closed  bool
	lives   map[string][]clientv3.LeaseID // of an edge's sessions here that were lost, until it joins again
}

var _ registry.Store = (*Store)(nil)

// Open returns a client of a mesh's etcd, which need not be there yet. It refuses a configuration that can never work.
// It starts gRPC's own goroutines; Close ends them.
func Open(cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("etcdstore: no endpoints: give the URL of an etcd server, such as http://127.0.0.1:2379")
	}
	if err := registry.CheckName("a mesh", cfg.Mesh); err != nil {
		return nil, err
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("etcdstore: give both user name and password, or neither")
	}
	tlsConfig, err := cfg.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("etcdstore: %w", err)
	}
	for _, e := range cfg.Endpoints {
		scheme, host, ok := strings.Cut(e, "://")
		switch {
		case !ok || host == "" || scheme != "http" && scheme != "https":
			return nil, fmt.Errorf("etcdstore: endpoint %q: want http://host:port or https://host:port", e)
		case scheme == "http" && tlsConfig != nil:
			return nil, fmt.Errorf("etcdstore: endpoint %q is plain text, but TLS files are given: want https://%s", e, host)
		case scheme == "https" && !strings.HasPrefix(cfg.Endpoints[0], "https"):
			return nil, fmt.Errorf("etcdstore: endpoint %q: all endpoints want the same scheme", e)
		case scheme == "https" && tlsConfig == nil:
			tlsConfig = new(tls.Config) // the system's authorities
		}
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = defaultDialTimeout
	}
	s := &Store{
		cfg: cfg, tls: tlsConfig, keys: newKeyspace(cfg.Mesh), log: cfg.Logger.With().Str("store", "etcd").Logger(),
		dialing: make(chan struct{}, 1), lives: make(map[string][]clientv3.LeaseID), pageSize: pageSize,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.reach.endpoints = strings.Join(cfg.Endpoints, ", ")
	s.leases.grant, s.leases.granting = s.grant, make(chan struct{}, 1)
	if cfg.Username == "" {
		if _, err := s.dial(s.ctx); err != nil {
			return nil, err
		}
	} // with a name and a password, making a client asks etcd for a token: the first call that finds it does
	return s, nil
}

// client returns the connection to etcd, which may not be up.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("%w: etcdstore: closed", registry.ErrUnavailable)
	}
	if c := s.cli.Load(); c != nil {
		return c, nil
	}
	select {
	case s.dialing <- struct{}{}:
		defer func() { <-s.dialing }()
	case <-ctx.Done():
		return nil, unavailable("connect", ctx.Err())
	case <-s.ctx.Done():
		return nil, unavailable("connect", errors.New("closed"))
	}
	if c := s.cli.Load(); c != nil {
		return c, nil
	}
	return s.dial(ctx)
}

func (s *Store) dial(ctx context.Context) (*clientv3.Client, error) {
	timeout := s.cfg.DialTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Until(end), time.Millisecond))
	}
	options := append(s.reach.options(), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: redialFirst, Multiplier: 1.6, Jitter: 0.3, MaxDelay: redialMost},
		MinConnectTimeout: s.cfg.DialTimeout,
	}))
	if s.tls != nil && s.tls.ServerName != "" {
		options = append(options, grpc.WithTransportCredentials(named{credentials.NewTLS(s.tls), s.tls.ServerName}))
	}
	c, err := clientv3.New(clientv3.Config{
		Context:              s.ctx,
		Endpoints:            s.cfg.Endpoints,
		TLS:                  s.tls,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		DialTimeout:          timeout,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,
		MaxCallRecvMsgSize:   maxAnswer,
		Logger:               zap.NewNop(), // what fails is returned to the caller, who can tell what it means
		DialOptions:          options,
	})
	if err != nil {
		return nil, s.reach.failure("connect", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return nil, unavailable("connect", errors.New("closed"))
	}
	s.cli.Store(c)
	return c, nil
}

// named are credentials that verify one name. The etcd client would verify each endpoint's host, whatever is configured.
type named struct {
	credentials.TransportCredentials
	name string
}

func (n named) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return n.TransportCredentials.ClientHandshake(ctx, n.name, conn)
}

func (n named) Clone() credentials.TransportCredentials {
	return named{n.TransportCredentials.Clone(), n.name}
}

// Ignored is how many keys and values were read under the mesh's prefix that no limpet of this version could have written.
func (s *Store) Ignored() uint64 { return s.ignored.Load() }

// Close ends all that the store started, and waits for it. Sessions that are still open end by their TTL.
func (s *Store) Close() error {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	c := s.cli.Swap(nil)
	s.mu.Unlock()
	s.wg.Wait()
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("etcdstore: close: %w", err)
	}
	return nil
}

// start runs fn on a goroutine that Close waits for, unless the store is closed.
func (s *Store) start(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(fn)
	return true
}
