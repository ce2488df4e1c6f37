// Package node puts one edge together out of its configuration: stores, cache, failover, listeners and admin address.
//
//	conf, err := config.LoadEdge("edge.yaml")
//	err = node.Run(ctx, conf, node.Options{Log: log})
//
// Run starts the parts from the bottom up and ends them from the top down, so that each can use what it stands on until it has ended:
//
//	admin                     last to go: it tells that the edge leaves
//	server                    clients; drained within the grace period
//	agent      committer      probes, verdicts; writes that are still under way are flushed
//	cache      resolver
//	bus        store
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge"
	"github.com/limpet-mesh/limpet/edge/admin"
	"github.com/limpet-mesh/limpet/edge/config"
	"github.com/limpet-mesh/limpet/edge/listen"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/upstream"
	"github.com/limpet-mesh/limpet/failover"
	"github.com/limpet-mesh/limpet/registry"
)

// firstState bounds how long a starting edge waits for its first picture of the mesh before it accepts clients all the same:
// it then says that it is degraded, and heals when the store answers.
const firstState = 3 * time.Second

// Node is one edge.
type Node struct {
	conf      *config.Edge
	log       zerolog.Logger
	store     registry.Store
	bus       registry.Bus // nil = none
	cache     *registry.Cache
	committer *registry.Committer
	resolver  *upstream.Resolver
	agent     *failover.Agent
	server    *edge.Server
	admin     *admin.Server
	metrics   *prometheus.Registry
	capacity  capacity
	listeners []*listen.Listener // as in the configuration

	mu sync.Mutex // one SetState at a time
}

// Addresses are where a running edge is reached.
type Addresses struct {
	Listeners map[string]string // by listener name
	Admin     string
}

// Options are what a node gets beside its configuration. All of them may be left out.
type Options struct {
	Version string
	Log     zerolog.Logger  // the zero value is one that logs nothing
	LogLost func() uint64   // lines of Log that were dropped so far, for the metrics
	Ready   func(Addresses) // is called once clients are accepted
	// Hangups are SIGHUPs: each makes the edge read the TLS files of its listeners again. nil = none come.
	Hangups <-chan os.Signal
}

// Run runs an edge until ctx ends, and then lets its sessions go within the grace period.
func Run(ctx context.Context, conf *config.Edge, o Options) (err error) {
	n := &Node{conf: conf, log: o.Log, metrics: prometheus.NewRegistry()}
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.build(&o); err != nil {
		return err
	}
	n.warnOfFiles()
	return n.run(ctx, &o)
}

// build makes the parts; none of them runs yet.
func (n *Node) build(o *Options) error {
	c := n.conf
	var err error
	if n.capacity, err = capacityOf(c.Limits.Connections, descriptorLimit()); err != nil {
		return err
	}
	if n.capacity.advice != "" {
		n.log.Warn().Msg(n.capacity.advice)
	}
	if n.store, err = openStore(c, n.log); err != nil {
		return n.locate(storeField(c), err)
	}
	if n.bus, err = openBus(c, n.log); err != nil {
		return n.locate("store.nats", err)
	}
	n.cache = registry.NewCache(registry.CacheConfig{Store: n.store, Bus: n.bus, Logger: n.log})
	n.committer = registry.NewCommitter(registry.CommitterConfig{Store: n.store, Bus: n.bus, Cache: n.cache, Logger: n.log})
	n.resolver = upstream.NewResolver(upstream.ResolverConfig{Log: n.log})
	dialer := upstream.NewDialer(upstream.DialerConfig{Resolver: n.resolver, Log: n.log, TLSRecords: tlsRecords[c.TLSRecords]})
	if n.admin, err = admin.Listen(c.Admin.Address); err != nil {
		return n.locate("admin.address", err)
	}
	settle := time.Duration(0)
	if c.Store.None {
		settle = -1 // nobody else's word is waited for
	}
	n.agent = failover.New(failover.Config{
		Edge:  registry.Edge{ID: c.ID, Admin: n.admin.Addr().String(), Version: o.Version},
		Store: n.store, Source: n.cache, Bus: n.bus, Log: n.log, Settle: settle,
		Prober: prober{dialer, c.Mesh, c.ID},
	})
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "limpet_info", Help: "1; the labels say what runs here.",
		ConstLabels: prometheus.Labels{"mesh": c.Mesh, "edge": c.ID, "version": o.Version, "go": runtime.Version()},
	})
	info.Set(1)
	n.metrics.MustRegister(info)
	n.server, err = edge.New(edge.Config{
		ID: c.ID, Cache: n.cache, Committer: n.committer, Resolver: n.resolver, Dialer: dialer, Log: n.log,
		Metrics: edge.NewMetrics(n.metrics), LogLost: o.LogLost, Doubt: n.agent.Doubt, Loops: c.Loops, MaxConnections: n.capacity.most,
	})
	if err != nil {
		return err
	}
	registerMetrics(n)
	if err := n.listen(); err != nil {
		return err
	}
	// The epoll loops wait in raw system calls, each with a processor in its hand: leave the others two. A change stops the world, so it is made once, for
	// the most loops that there may be; who has nothing to do costs nothing.
	if procs := n.server.MostLoops() + 2; runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs)
	}
	return nil
}

var tlsRecords = map[config.TLSRecords]tls13.Policy{config.TLSRecordsStdlib: tls13.Crypto, config.TLSRecordsLimpet: tls13.Own}

func (n *Node) run(ctx context.Context, o *Options) error {
	var base, middle, top group
	failed, fail := context.WithCancel(context.Background())
	defer fail()

	// From the bottom up. Whatever ends by itself has failed.
	base.start(fail, n.resolver.Run)
	n.cache.OnState(func(*registry.State) { n.setState() })
	n.agent.OnChange(n.setState)
	n.cache.OnAffinity(n.server.AffinityChanged)
	known := make(chan struct{})
	var once sync.Once
	n.cache.OnState(func(st *registry.State) {
		if len(st.Pools) > 0 {
			once.Do(func() { close(known) })
		}
	})
	base.start(fail, n.cache.Run)
	middle.start(fail, n.committer.Run)
	middle.start(fail, n.agent.Run)
	middle.start(fail, n.tidy)
	admins := group{}
	admins.start(fail, func(ctx context.Context) error {
		return n.admin.Run(ctx, admin.Handler(admin.Config{Ready: n.readiness, Metrics: n.metrics, Clients: n.clients}))
	})
	// It is waited for at the very end: a file system that hangs shall not keep clients and records from their end in order.
	admins.start(fail, func(ctx context.Context) error { return n.heed(ctx, o.Hangups) })

	timer := time.NewTimer(firstState)
	select {
	case <-known:
	case <-timer.C:
		n.log.Warn().Str("store", n.cache.Status().Error).Msg("no picture of the mesh yet: accepting clients all the same (degraded)")
	case <-ctx.Done():
	}
	timer.Stop()
	if ctx.Err() == nil {
		top.start(fail, n.server.Run)
		n.log.Info().Str("edge", n.conf.ID).Str("mesh", n.conf.Mesh).Interface("listeners", n.addresses().Listeners).
			Str("admin", n.admin.Addr().String()).Int("most", n.capacity.most).Str("most_by", n.capacity.origin).Msg("accepting clients")
		if o.Ready != nil {
			o.Ready(n.addresses())
		}
	}

	select {
	case <-ctx.Done():
		n.log.Info().Int("sessions", n.server.Live()).Dur("grace_ms", n.conf.Shutdown.Grace).Msg("leaving")
		if err := n.server.Drain(context.Background(), n.conf.Shutdown.Grace); err != nil {
			n.log.Warn().Int("sessions", n.server.Live()).Msg("grace is over: closing the sessions that are left")
		}
	case <-failed.Done():
	}
	err := errors.Join(top.end(), middle.end(), base.end(), admins.end())
	if err == nil {
		n.log.Info().Msg("left in order")
	}
	return err
}

// group is parts that end together.
type group struct {
	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup
	mu     sync.Mutex
	err    error // of those that failed
}

// start runs a part. One that fails takes the whole edge down, in order: fail is called, and end tells the error.
func (g *group) start(fail context.CancelFunc, run func(context.Context) error) {
	if g.ctx == nil {
		g.ctx, g.cancel = context.WithCancel(context.Background())
	}
	g.wg.Go(func() {
		if err := run(g.ctx); err != nil {
			g.mu.Lock()
			g.err = errors.Join(g.err, err)
			g.mu.Unlock()
			fail()
		}
	})
}

// end ends the parts, waits for them and returns their errors.
func (g *group) end() error {
	if g.ctx == nil {
		return nil
	}
	g.cancel()
	g.wg.Wait()
	return g.err
}

// setState routes by the store's state, with this edge's own verdicts over it while the store is away.
func (n *Node) setState() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server.SetState(n.agent.Overlay(n.cache.State()))
}

func (n *Node) addresses() Addresses {
	return Addresses{Listeners: n.server.Addresses(), Admin: n.admin.Addr().String()}
}

func (n *Node) close() error {
	var errs []error
	if n.bus != nil {
		errs = append(errs, n.bus.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// prober tests brokers with the edge's own dialer.
type prober struct {
	dialer *upstream.Dialer
	mesh   string
	edge   string
}

// Probe implements failover.Prober.
func (p prober) Probe(ctx context.Context, pool string, b *registry.Broker, probe registry.Probe) error {
	if probe.Kind == registry.ProbeTCP {
		return p.dialer.ProbeTCP(ctx, b)
	}
	return p.dialer.ProbeMQTT(ctx, b, fmt.Sprintf("limpet-probe-%s-%s-%s-%s", p.mesh, p.edge, pool, b.ID))
}

// password reads a secret's file; "" = no secret.
func password(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return config.ReadSecret(path)
}
