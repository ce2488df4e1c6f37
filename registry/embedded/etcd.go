package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/limpet-mesh/limpet/registry/internal/zaplog"
)

// How the store is kept, all in one place.
const (
	// defaultQuota is above what 10 million affinities need (133 bytes each, and as much again for history and free pages).
	defaultQuota = 4 << 30
	// retention is how much history is kept, and so how long an edge may be away without listing anew. A listing is
	// cheap (3 s a million); history at full rate is not (4 MB/s).
	retention = "5m"
	// maxTxnOps is etcd's default; registry.MaxCommit is one less.
	maxTxnOps = 128
	// features: without checkpoints every restart starts all leases anew.
	features = "LeaseCheckpoint=true,LeaseCheckpointPersist=true"
)

// EtcdConfig says where an etcd server lives.
type EtcdConfig struct {
	Dir        string    // its data; made if it does not exist
	Name       string    // of this node; "" = limpet
	ClientAddr string    // host:port for clients; "" = 127.0.0.1:2379; port 0 = any free
	PeerAddr   string    // host:port for other nodes; "" = 127.0.0.1, any free port
	TLS        ServerTLS // for clients
	Quota      int64     // bytes, at which it takes no more writes; 0 = 4 GiB
	NoSync     bool      // never wait for the disk: a crash of the machine may lose everything; for tests
	Logger     zerolog.Logger
}

// Etcd is a running etcd server of one node.
type Etcd struct {
	srv   *embed.Etcd
	url   string
	level zap.AtomicLevel
	close sync.Once

	ctx context.Context // ends with the server, and all its clients' streams with it
	end context.CancelFunc
}

// StartEtcd starts a server and returns when it serves.
func StartEtcd(cfg EtcdConfig) (*Etcd, error) {
	e, err := startEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded: etcd: %w", err)
	}
	return e, nil
}

func startEtcd(cfg EtcdConfig) (*Etcd, error) {
	if cfg.Dir == "" {
		return nil, errors.New("a data directory is needed")
	}
	if err := cfg.TLS.check(); err != nil {
		return nil, err
	}
	scheme := "http"
	if cfg.TLS.on() {
		scheme = "https"
	}
	client, err := listenURL(scheme, cfg.ClientAddr, "127.0.0.1:2379")
	if err != nil {
		return nil, err
	}
	peer, err := listenURL("http", cfg.PeerAddr, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := unlocked(cfg.Dir); err != nil {
		return nil, err
	}

	c := embed.NewConfig()
	c.Name = cfg.Name
	if c.Name == "" {
		c.Name = "limpet"
	}
	c.Dir = cfg.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// A new store has a cluster ID of its own, though it may take the place, the name and the address of another.
	c.InitialClusterToken = rand.Text()
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = cfg.TLS.Cert, cfg.TLS.Key
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = cfg.TLS.ClientCA, cfg.TLS.ClientCA != ""
	c.QuotaBackendBytes = cfg.Quota
	if cfg.Quota <= 0 {
		c.QuotaBackendBytes = defaultQuota
	}
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	c.MaxTxnOps = maxTxnOps
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = cfg.NoSync
	if err := setFeatures(c); err != nil {
		return nil, err
	}
	e := &Etcd{level: zap.NewAtomicLevelAt(zap.WarnLevel)}
	e.ctx, e.end = context.WithCancel(context.Background())
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(e.intercept)}
	// The two messages dropped say that one node on one port is no cluster: so it is.
	log := cfg.Logger.With().Str("server", "etcd").Logger()
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zaplog.New(log, e.level,
		"Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed"))

	e.srv, err = embed.StartEtcd(c)
	if err != nil {
		e.end()
		return nil, explain(err)
	}
	ready := time.NewTimer(startTimeout)
	defer ready.Stop()
	select {
	case <-e.srv.Server.ReadyNotify():
	case err := <-e.srv.Err():
		return nil, errors.Join(err, e.Close())
	case <-ready.C:
		return nil, errors.Join(fmt.Errorf("not ready after %v: if %s belongs to a cluster, start its other nodes", startTimeout, cfg.Dir), e.Close())
	}
	e.url = scheme + "://" + e.srv.Clients[0].Addr().String()
	return e, nil
}

// setFeatures turns on what this version of etcd hides behind a gate.
func setFeatures(c *embed.Config) error {
	gate, ok := c.ServerFeatureGate.(interface{ Set(value string) error })
	if !ok {
		return errors.New("this version of etcd has no feature gates to set")
	}
	return gate.Set(features)
}

func listenURL(scheme, addr, def string) (url.URL, error) {
	if addr == "" {
		addr = def
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return url.URL{}, fmt.Errorf("address %q: want host:port", addr)
	}
	return url.URL{Scheme: scheme, Host: addr}, nil
}

// unlocked reports whether nobody has the database of dir open: etcd itself would wait for that without end.
func unlocked(dir string) error {
	file := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 500 * time.Millisecond})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("data directory %s is in use: stop the other etcd or limpet store, or choose another directory", dir)
	}
	if err != nil {
		return nil // whatever it is, etcd will meet it too and can say more about it
	}
	return db.Close()
}

// URL is where clients find the server.
func (e *Etcd) URL() string { return e.url }

// Close stops the server without waiting for its clients.
func (e *Etcd) Close() error {
	e.close.Do(func() {
		e.level.SetLevel(zap.FatalLevel) // what a server says while it is torn down frightens, and means nothing
		e.end()
		e.srv.Server.HardStop()
		e.srv.Close()
	})
	return nil
}

// intercept ends a stream (a watch, keep-alives) when the server ends. etcd itself would wait seven seconds for its client to.
func (e *Etcd) intercept(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	return handle(srv, endingStream{ss, ctx})
}

type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }
