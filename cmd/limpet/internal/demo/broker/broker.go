// Package broker is the MQTT broker of `limpet demo`: MQTT 3.1, 3.1.1 and 5 by mochi-mqtt, made into a small honest
// cluster, in memory.
//
//	b, err := broker.Start(broker.Config{
//		Name:       "b1",
//		Listen:     "127.0.0.1:21883",
//		LinkListen: "127.0.0.1:22001",
//		Peers:      map[string]string{"b2": "127.0.0.1:22002", "b3": "127.0.0.1:22003"},
//	})
//	// clients come to b.Addr()
//	err = b.Close()
//
// # Cluster
//
// A subscriber and a publisher on different brokers find each other: every message, wills included, goes to every
// peer, over one TCP link per peer and direction. A message is numbered, kept until the peer has acknowledged that
// it is published there, and sent again after a break; the peer publishes each number once. PUBACK and PUBREC are
// sent once the connected peers have acknowledged, so that a broker killed right after has not lost the message for
// subscribers elsewhere. They wait for at most a second, and not for peers that are away or do not answer: their
// messages are kept, up to 64 MiB each, then the oldest is dropped, counted and logged. QoS 0 without
// retain is not kept for a peer that is away. What came from a peer is not passed on: the peers are a full mesh.
//
// Retained messages are the same everywhere: the one published last wins, and clearing one is such a publication. A
// broker that starts gets its peers' before it accepts clients, if they answer within two seconds.
//
// Sessions, with subscriptions and queued messages, stay at the broker that has them, which is why clients must come
// home to it. A shared subscription is shared at each broker: its members at every broker together get
// a message once per broker. Topics under $SYS are each broker's own:
//
//	$SYS/broker/name               the broker's name
//	$SYS/broker/sessions/CLIENT    SessionStatus as JSON, at each connect and disconnect
//	$SYS/broker/peers/PEER         PeerStatus as JSON, whenever a link comes up or goes down
//	$SYS/broker/uptime, clients/connected, clients/total, messages/received, messages/sent, retained
//
// # What mochi does, and what not
//
// mochi parses, answers, watches the keep-alive and indexes subscriptions. Delivery is this package's (session), and
// so is the peace between connections of one client ID (Broker.enter): with mochi 2.7.9 alone, queued messages come
// back out of order and two CONNECTs at once can both stay. One fault of its index remains: x/+/# does not match x/y,
// as it should (MQTT 5 §4.7.1.2).
//
// # Bounds
//
// A packet has 32 MiB at most, a session 100,000 messages and 64 MiB. The number of sessions, subscriptions and
// retained messages is not bounded, nobody is authenticated, and nothing is on disk: a killed broker
// loses its sessions. It is for demonstrations and tests, on loopback.
package broker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"slices"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	proxyproto "github.com/pires/go-proxyproto"
	"github.com/rs/zerolog"
)

// Config says who a broker is and where.
type Config struct {
	Name       string            // [a-z0-9-]{1,63}, unique in the cluster
	Listen     string            // host:port for MQTT over TCP
	LinkListen string            // host:port for the peers' links; needed where there are peers
	Peers      map[string]string // names of the others and their link addresses

	// ProxyProtocol honors a PROXY protocol header, v1 or v2, before CONNECT. It is optional, and from
	// loopback addresses only; a connection from elsewhere that has one is closed.
	ProxyProtocol bool
	// Standalone shares nothing: LinkListen and Peers are ignored.
	Standalone bool

	Logger zerolog.Logger
}

// ErrConfig is what a Config that makes no sense is refused with.
var ErrConfig = errors.New("broker: bad configuration")

var validName = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

func (c *Config) check() error {
	if c.Standalone {
		c.LinkListen, c.Peers = "", nil
	}
	for _, name := range append(slices.Sorted(maps.Keys(c.Peers)), c.Name) {
		if !validName.MatchString(name) {
			return fmt.Errorf("%w: name %q is not [a-z0-9-]{1,63}", ErrConfig, name)
		}
	}
	switch _, self := c.Peers[c.Name]; {
	case self:
		return fmt.Errorf("%w: %q is its own peer", ErrConfig, c.Name)
	case c.Listen == "":
		return fmt.Errorf("%w: no address to listen on", ErrConfig)
	case len(c.Peers) > 0 && c.LinkListen == "":
		return fmt.Errorf("%w: peers, but no address for their links", ErrConfig)
	}
	return nil
}

// Broker is one running broker.
type Broker struct {
	config      Config
	log         zerolog.Logger
	incarnation uint64 // tells this run of the broker from others of its name
	started     time.Time

	server       *mqtt.Server
	listener     *listener
	linkListener net.Listener // nil: none
	links        map[string]*link
	retained     retainedStore
	clock        clock

	done    context.Context // canceled when Close has come to the links
	cancel  context.CancelFunc
	clients sync.WaitGroup // client connections
	work    sync.WaitGroup // everything else

	mu       sync.Mutex
	closing  bool
	conns    map[net.Conn]struct{}
	sessions map[string]*session    // by client ID
	owners   map[string]*conn       // the connection that has a client ID; see enter
	connects map[string]int         // connections accepted, by client ID
	wills    map[string]delayedWill // by client ID
	inbound  map[string]*inbound    // by peer
	awaited  map[string]chan struct{}
}

// Start starts a broker. It returns once clients are accepted, which is after the peers that answer have sent their
// retained messages. Close stops it.
func Start(config Config) (*Broker, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	clients, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("broker: listen for clients: %w", err)
	}
	var links net.Listener
	if config.LinkListen != "" {
		if links, err = net.Listen("tcp", config.LinkListen); err != nil {
			clients.Close()
			return nil, fmt.Errorf("broker: listen for peers: %w", err)
		}
	}
	return start(config, clients, links)
}

func start(config Config, clients, links net.Listener) (*Broker, error) {
	b := newBroker(config, clients, links)
	if err := errors.Join(b.server.AddHook(&hook{b: b}, nil), b.server.AddListener(b.listener)); err != nil {
		return nil, b.abort(err)
	}
	b.sys("broker/name", []byte(config.Name))
	b.work.Go(b.upkeep)
	if links != nil {
		b.work.Go(b.serveLinks)
	}
	for _, l := range b.links {
		b.work.Go(func() { l.run(b.done) })
	}
	b.join()
	if err := b.server.Serve(); err != nil {
		return nil, b.abort(err)
	}
	b.log.Info().Str("address", b.Addr().String()).Msg("broker ready")
	return b, nil
}

func newBroker(config Config, clients, links net.Listener) *Broker {
	b := &Broker{
		config:       config,
		log:          config.Logger.With().Str("broker", config.Name).Logger(),
		incarnation:  incarnation(),
		started:      time.Now(),
		linkListener: links,
		links:        make(map[string]*link),
		conns:        make(map[net.Conn]struct{}),
		sessions:     make(map[string]*session),
		owners:       make(map[string]*conn),
		connects:     make(map[string]int),
		wills:        make(map[string]delayedWill),
		inbound:      make(map[string]*inbound),
		awaited:      make(map[string]chan struct{}),
	}
	b.done, b.cancel = context.WithCancel(context.Background())
	b.server = mqtt.New(options())
	if config.ProxyProtocol {
		clients = &proxyproto.Listener{
			Listener:          clients,
			ConnPolicy:        proxyproto.MustPolicyFromRanges([]string{"127.0.0.0/8", "::1/128"}, proxyproto.USE, proxyproto.REJECT),
			ReadHeaderTimeout: proxyTimeout,
		}
	}
	b.listener = &listener{b: b, Listener: clients, served: make(chan struct{})}
	for peer, address := range config.Peers {
		b.awaited[peer] = make(chan struct{})
		b.links[peer] = &link{
			self:     hello{name: config.Name, incarnation: b.incarnation},
			peer:     peer,
			address:  address,
			log:      b.log.With().Str("peer", peer).Logger(),
			retained: &b.retained,
			backlog:  newBacklog(backlogBytes),
			poked:    make(chan struct{}, 1),
			away:     func() { b.joined(peer) },
			report:   b.reportPeer,
		}
	}
	return b
}

// options are mochi's. The limits on what it queues for clients, beyond which it loses messages silently, do not
// matter here: it queues nothing.
func options() *mqtt.Options {
	capabilities := mqtt.NewDefaultServerCapabilities() // sessions last as long as the client says, or for ever
	capabilities.MaximumPacketSize = maxPacket
	capabilities.MaximumMessageExpiryInterval = 0 // no limit
	capabilities.ReceiveMaximum = 65535           // else it closes MQTT 3 clients, which cannot know, beyond 1,024 QoS 2 messages
	capabilities.MaximumInflight = 65535          // the Receive Maximum of a client is cut to this
	capabilities.MaximumClientWritesPending = 1
	capabilities.Compatibilities.NoInheritedPropertiesOnAck = true // PUBACK need not echo the user properties
	return &mqtt.Options{
		Capabilities:           capabilities,
		Logger:                 slog.New(slog.DiscardHandler), // every lost connection is a warning to it
		SysTopicResendInterval: int64(100 * 365 * 24 * time.Hour / time.Second),
	}
}

func incarnation() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// join waits for the peers' retained messages: of each peer until they are here or it turns out to be away.
func (b *Broker) join() {
	timeout := time.NewTimer(joinTimeout)
	defer timeout.Stop()
	for peer := range b.links {
		b.mu.Lock()
		wait := b.awaited[peer]
		b.mu.Unlock()
		if wait == nil {
			continue
		}
		select {
		case <-wait:
		case <-timeout.C:
			b.log.Warn().Str("peer", peer).Msg("starting without the peers' retained messages")
			return
		}
	}
}

// joined: a peer need not be waited for any more.
func (b *Broker) joined(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if wait := b.awaited[peer]; wait != nil {
		close(wait)
		delete(b.awaited, peer)
	}
}

// upkeep does what is due now and then.
func (b *Broker) upkeep() {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	var reported time.Time
	for now := time.Now(); ; {
		b.publishDueWills(now)
		if now.Sub(reported) >= sysEvery {
			b.reportFigures(now, b.retained.prune(now))
			reported = now
		}
		select {
		case now = <-tick.C:
		case <-b.done.Done():
			return
		}
	}
}

// Name is the broker's name.
func (b *Broker) Name() string { return b.config.Name }

// Addr is where clients connect.
func (b *Broker) Addr() net.Addr { return b.listener.Addr() }

// LinkAddr is where peers connect, nil where there is no such place.
func (b *Broker) LinkAddr() net.Addr {
	if b.linkListener == nil {
		return nil
	}
	return b.linkListener.Addr()
}

// Close ends the connections, MQTT 5 clients being told why (0x8B), publishes the wills that this makes due, lets
// the connected peers acknowledge for at most a second, and stops. It returns after all that was started has ended.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return nil
	}
	b.closing = true
	conns := slices.Collect(maps.Keys(b.conns))
	b.mu.Unlock()

	err := b.listener.Listener.Close()
	for _, nc := range conns {
		if c, ok := nc.(*conn); ok {
			b.clients.Go(func() { b.kick(c, packets.ErrServerShuttingDown) })
		}
	}
	<-b.listener.served
	b.clients.Wait()

	b.publishDueWills(time.Unix(1<<40, 0)) // the sessions end: all are due
	var sent []published
	for _, l := range b.links {
		if done := l.backlog.flushed(); done != nil {
			sent = append(sent, published{l, done})
		}
	}
	b.awaitPeers(sent)

	b.cancel()
	if b.linkListener != nil {
		err = errors.Join(err, b.linkListener.Close())
	}
	for _, nc := range conns {
		_ = nc.Close() // most are closed
	}
	b.work.Wait()
	return errors.Join(err, b.server.Close())
}

// abort stops a broker that mochi did not begin to serve.
func (b *Broker) abort(err error) error {
	close(b.listener.served)
	return errors.Join(err, b.Close())
}

// track notes a connection that Close must end, unless Close has begun.
func (b *Broker) track(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closing {
		b.conns[c] = struct{}{}
	}
	return !b.closing
}

func (b *Broker) untrack(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// pause waits before something is tried again; false means that it is too late for that.
func (b *Broker) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-b.done.Done():
		return false
	}
}
