// Package natsbus hurries facts between the edges of a mesh over NATS. It is a
// registry.Bus: it decides nothing, and every message may be lost.
//
//	bus, err := natsbus.Open(natsbus.Config{URLs: []string{"nats://127.0.0.1:4222"}, Mesh: "site-a", Edge: "edge-1"})
//	defer bus.Close()
//	cancel, err := bus.Subscribe(func(m registry.Message) { ... })
//	err = bus.Publish(registry.Message{Notice: &notice})
//
// How it works. Each edge publishes under subjects of its own,
//
//	limpet.<mesh>.<edge>.notice    a committed affinity
//	                    .health    its view of the brokers
//	                    .doubt     a broker that one dial or probe failed to reach
//
// and hears all of limpet.<mesh>.*.*. Who sent a message is what its subject
// says, never its payload: give each edge a credential that may publish to
// limpet.<mesh>.<edge>.> alone, and none can speak for another. Payloads are those
// of package wire. A message waits in a bounded queue for the network, so that
// Publish never does; while there is no server a bounded part is kept, since what
// is old is worth nothing.
//
// Open needs no server: the bus connects when there is one, and again whenever it
// was lost, for ever.
//
// It refuses payloads above 256 KiB, and ignores and counts what it cannot read
// ([Stats]).
package natsbus

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/internal/clienttls"
	"github.com/limpet-mesh/limpet/registry/internal/wire"
)

// How much waits, and for how long. A notice is 100 bytes as a rule.
const (
	maxPayload = 256 << 10 // of one message: the longest key is 64 KiB, a report on 1,000 brokers 100 KiB
	maxQueued  = 8192      // messages on their way out, or received and not yet handled
	maxBytes   = 8 << 20   // of those, in each direction
	maxKept    = 1 << 20   // bytes kept by the client while there is no server

	dialTimeout    = 2 * time.Second
	reconnectWait  = 250 * time.Millisecond
	jitter         = time.Second // so that all edges of a mesh do not come at once
	pingEvery      = 2 * time.Second
	pingsMissed    = 2
	writeTimeout   = 2 * time.Second // of a server that takes nothing: then it is as good as lost
	closingTimeout = time.Second     // for what waits, in Close
)

// TLS names the PEM files of a client.
type TLS = clienttls.Files

// Config says where a mesh's NATS is, and who we are.
type Config struct {
	URLs     []string // nats://host:port or tls://host:port, of any of the servers
	Mesh     string
	Edge     string // id of this edge
	TLS      TLS
	Username string // with Password; or Token, or Creds; or none
	Password string
	Token    string
	Creds    string // file with a user's JWT and seed
	Logger   zerolog.Logger
}

// Bus is one edge's connection to a mesh's NATS. Its methods may be called from any goroutine.
type Bus struct {
	edge   string
	prefix string // of the mesh's subjects
	log    zerolog.Logger
	nc     *nats.Conn
	sub    *nats.Subscription

	queue  chan message
	queued atomic.Int64 // bytes in queue
	quit   chan struct{}
	ctx    context.Context // ends the receiver
	cancel context.CancelFunc
	wg     sync.WaitGroup // publisher and receiver
	ended  chan struct{}  // closed when the client has

	pub    sync.RWMutex // held for reading while a message is queued
	closed bool         // guarded by pub

	subs     sync.Mutex
	handlers []*handler // guarded by subs; replaced, never changed

	urls    string                 // for people, without passwords
	trouble atomic.Pointer[string] // why the last attempt to connect failed, nil while connected

	stats struct{ sent, received, ignored, unsent atomic.Uint64 }
}

type message struct {
	subject string
	payload []byte
}

// handler is one subscription.
type handler struct {
	mu        sync.Mutex // held while fn runs
	fn        func(registry.Message)
	cancelled bool // guarded by mu
}

var _ registry.Bus = (*Bus)(nil)

// Stats counts messages since Open.
type Stats struct {
	Sent     uint64 // given to the network
	Received uint64 // of other edges, and understood
	Ignored  uint64 // not understood: of later versions, of strangers, garbage
	Unsent   uint64 // lost on their way out, because too much waited
	Dropped  uint64 // lost on their way in, because a subscriber was too slow
}

// Open connects to a mesh's NATS, which need not be there yet. It refuses a configuration that can never work. It starts
// goroutines that Close ends.
func Open(cfg Config) (*Bus, error) {
	if err := registry.CheckName("a mesh", cfg.Mesh); err != nil {
		return nil, err
	}
	if err := registry.CheckName("an edge", cfg.Edge); err != nil {
		return nil, err
	}
	b := &Bus{
		edge: cfg.Edge, prefix: "limpet." + cfg.Mesh + ".", log: cfg.Logger.With().Str("bus", "nats").Logger(),
		queue: make(chan message, maxQueued), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	opts, err := b.options(cfg)
	if err != nil {
		return nil, err
	}
	b.urls = redacted(cfg.URLs)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if b.nc, err = nats.Connect(strings.Join(cfg.URLs, ","), opts...); err != nil {
		b.cancel()
		return nil, fmt.Errorf("natsbus: connect: %w", err)
	}
	if err := b.listen(); err != nil {
		b.cancel()
		b.nc.Close()
		<-b.ended
		return nil, err
	}
	b.wg.Go(b.send)
	b.wg.Go(b.receive)
	return b, nil
}

func (b *Bus) listen() (err error) {
	if b.sub, err = b.nc.SubscribeSync(b.prefix + "*.*"); err == nil {
		err = b.sub.SetPendingLimits(maxQueued, maxBytes)
	}
	if err != nil {
		return fmt.Errorf("natsbus: subscribe: %w", err)
	}
	return nil
}

func (b *Bus) options(cfg Config) ([]nats.Option, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("natsbus: no URLs: give that of a NATS server, such as nats://127.0.0.1:4222")
	}
	for _, s := range cfg.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) || strings.Contains(s, ",") {
			return nil, fmt.Errorf("natsbus: URL %q: want nats://host:port or tls://host:port", s)
		}
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("natsbus: give both user name and password, or neither")
	}
	tlsConfig, err := cfg.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	opts := []nats.Option{
		nats.Name("limpet edge " + cfg.Edge),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a credential may be mended while we run
		nats.Timeout(dialTimeout),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(jitter, jitter),
		nats.ReconnectBufSize(maxKept),
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(pingsMissed),
		nats.FlusherTimeout(writeTimeout),
		nats.SyncQueueLen(maxQueued),
		nats.NoEcho(),
		nats.ConnectHandler(b.connected),
		nats.ReconnectHandler(b.connected),
		nats.ReconnectErrHandler(b.refused),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // else we are closing
				b.log.Warn().Err(err).Str("urls", b.urls).Msg("disconnected from NATS")
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { b.log.Warn().Err(err).Msg("NATS says") }),
		nats.ClosedHandler(func(*nats.Conn) { close(b.ended) }),
	}
	if tlsConfig != nil {
		opts = append(opts, nats.Secure(tlsConfig))
	}
	switch {
	case cfg.Username != "":
		opts = append(opts, nats.UserInfo(cfg.Username, cfg.Password))
	case cfg.Token != "":
		opts = append(opts, nats.Token(cfg.Token))
	case cfg.Creds != "":
		opts = append(opts, nats.UserCredentials(cfg.Creds))
	}
	return opts, nil
}

// The client calls these one after the other.

func (b *Bus) connected(nc *nats.Conn) {
	b.trouble.Store(nil)
	b.log.Info().Str("url", nc.ConnectedUrlRedacted()).Msg("connected")
}

// refused logs why an attempt to connect failed, once for each reason in a row.
func (b *Bus) refused(_ *nats.Conn, err error) {
	if errors.Is(err, nats.ErrNoServers) {
		return // the client's sum of its first round over the servers; the next one tells what is wrong with each
	}
	s := err.Error()
	if last := b.trouble.Swap(&s); last == nil || *last != s {
		b.log.Warn().Err(err).Str("urls", b.urls).Msg("cannot connect to NATS, will try again: start it there, or correct the address")
	}
}

// redacted is URLs for people to read.
func redacted(urls []string) string {
	all := make([]string, len(urls))
	for i, s := range urls {
		if u, err := url.Parse(s); err == nil {
			all[i] = u.Redacted()
		}
	}
	return strings.Join(all, ", ")
}

// Trouble is where the servers should be, and why the last attempt to connect failed as far as that is known; "" while connected.
func (b *Bus) Trouble() string {
	switch why := b.trouble.Load(); {
	case b.Connected():
		return ""
	case why != nil:
		return b.urls + ": " + *why
	}
	return b.urls
}

// Stats returns the counts so far.
func (b *Bus) Stats() Stats {
	s := Stats{
		Sent: b.stats.sent.Load(), Received: b.stats.received.Load(), Ignored: b.stats.ignored.Load(), Unsent: b.stats.unsent.Load(),
	}
	if n, err := b.sub.Dropped(); err == nil { // else the bus is closed
		s.Dropped = uint64(n)
	}
	return s
}

// Connected reports whether the bus reaches a server now. A server that hangs is noticed after some seconds.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

var (
	errClosed = errors.New("natsbus: closed")
	errFull   = errors.New("natsbus: too much waits for the network")
)

// Publish queues m for every other edge.
func (b *Bus) Publish(m registry.Message) error {
	kind, payload, err := encode(m)
	if err != nil {
		return err
	}
	b.pub.RLock()
	defer b.pub.RUnlock()
	if b.closed {
		return errClosed
	}
	n := int64(len(payload))
	if b.queued.Add(n) > maxBytes {
		b.queued.Add(-n)
		b.stats.unsent.Add(1)
		return errFull
	}
	select {
	case b.queue <- message{b.prefix + b.edge + "." + kind, payload}:
		return nil
	default:
		b.queued.Add(-n)
		b.stats.unsent.Add(1)
		return errFull
	}
}

// send gives what is queued to the client, which may be slow at taking it.
func (b *Bus) send() {
	for {
		select {
		case m := <-b.queue:
			b.give(m)
		case <-b.quit:
			for end := time.Now().Add(closingTimeout); time.Now().Before(end); {
				select {
				case m := <-b.queue:
					b.give(m)
				default:
					return
				}
			}
			return
		}
	}
}

func (b *Bus) give(m message) {
	b.queued.Add(-int64(len(m.payload)))
	if err := b.nc.Publish(m.subject, m.payload); err != nil {
		b.stats.unsent.Add(1) // no server, and enough is kept for when there is one
		return
	}
	b.stats.sent.Add(1)
}

// Subscribe has fn called for every message of other edges, one after the other. What a message points to is for reading.
func (b *Bus) Subscribe(fn func(registry.Message)) (cancel func(), err error) {
	b.pub.RLock()
	defer b.pub.RUnlock()
	if b.closed {
		return nil, errClosed
	}
	h := &handler{fn: fn}
	b.subs.Lock()
	defer b.subs.Unlock()
	b.handlers = append(slices.Clone(b.handlers), h)
	return func() {
		b.subs.Lock()
		b.handlers = slices.DeleteFunc(slices.Clone(b.handlers), func(o *handler) bool { return o == h })
		b.subs.Unlock()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cancelled = true
	}, nil
}

// receive hands messages to the subscribers.
func (b *Bus) receive() {
	var d wire.Decoder
	for b.ctx.Err() == nil {
		m, err := b.sub.NextMsgWithContext(b.ctx)
		switch {
		case err == nil:
			b.deliver(&d, m)
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubscription):
			return
		} // else messages were dropped, which Stats tells
	}
}

func (b *Bus) deliver(d *wire.Decoder, m *nats.Msg) {
	from, kind, ok := strings.Cut(strings.TrimPrefix(m.Subject, b.prefix), ".")
	if !ok || from == b.edge { // our own, or of another edge with our id
		return
	}
	msg, err := decode(d, from, kind, m.Data)
	if err != nil {
		b.stats.ignored.Add(1)
		return
	}
	b.stats.received.Add(1)
	b.subs.Lock()
	handlers := b.handlers
	b.subs.Unlock()
	for _, h := range handlers {
		h.call(msg)
	}
}

func (h *handler) call(m registry.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.cancelled {
		h.fn(m)
	}
}

// Close sends what waits, for a second at most, and ends the bus. No subscriber is called after it has returned.
func (b *Bus) Close() error {
	b.pub.Lock()
	done := b.closed
	b.closed = true
	b.pub.Unlock()
	if !done {
		close(b.quit)
		b.cancel()
		b.wg.Wait()
		if b.nc.IsConnected() {
			_ = b.nc.FlushTimeout(closingTimeout) // every message may be lost
		}
		b.nc.Close()
	}
	<-b.ended
	return nil
}
