// Package natsbus hurries facts between edges over NATS.
//
//	bus, err := natsbus.Open(natsbus.Config{URLs: urls, Mesh: "prod", Edge: "e1", Logger: log})
//	bus.Publish(registry.Message{Notice: &n})
//
// Each edge publishes under limpet.<mesh>.<edge>.{notice,health,doubt} and listens to all of its mesh. Who sent a message is what its subject says, never what its
// payload claims, so that a credential that may publish under its own subject only can speak for itself alone. What cannot be
// decoded is counted and ignored. Nothing here waits for the network: while NATS is away messages are kept up to a bound and then lost, which costs time, never
// correctness.
package natsbus

import (
	"errors"
	"fmt"
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

// TLS names the PEM files of a client.
type TLS = clienttls.Files

// Config says where a mesh's NATS is.
type Config struct {
	URLs        []string // nats://host:port or tls://host:port
	Mesh, Edge  string
	TLS         TLS
	Username    string
	Password    string
	Credentials string // a credentials file (JWT and key)
	Logger      zerolog.Logger
}

// The numbers of a bus.
const (
	pingInterval   = 2 * time.Second
	reconnectWait  = 500 * time.Millisecond
	reconnectJit   = 500 * time.Millisecond
	reconnectBytes = 1 << 20
	pendingMsgs    = 1 << 16
	pendingBytes   = 64 << 20
	maxPayload     = 256 << 10
	flushTimeout   = 500 * time.Millisecond
)

// Bus is a registry.Bus on NATS.
type Bus struct {
	conf    Config
	prefix  string
	nc      *nats.Conn
	decoder wire.Decoder
	ignored atomic.Uint64

	mu   sync.Mutex
	subs map[*nats.Subscription]struct{}
}

var _ registry.Bus = (*Bus)(nil)

// Open connects in the background: NATS need not be there yet.
func Open(c Config) (*Bus, error) {
	if len(c.URLs) == 0 {
		return nil, errors.New("natsbus: no URLs: give that of a NATS server, such as nats://127.0.0.1:4222")
	}
	if !registry.ValidName(c.Mesh) || !registry.ValidName(c.Edge) {
		return nil, fmt.Errorf("natsbus: mesh %q and edge %q must be names: [a-z0-9-]{1,63}", c.Mesh, c.Edge)
	}
	tc, err := c.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	options := []nats.Option{
		nats.Name("limpet edge " + c.Edge), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.NoEcho(),
		nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectJit, reconnectJit), nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(reconnectBytes),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.Logger.Warn().Err(err).Msg("NATS is away") }),
		nats.ReconnectHandler(func(nc *nats.Conn) { c.Logger.Info().Str("url", nc.ConnectedUrlRedacted()).Msg("NATS is back") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.Logger.Warn().Err(err).Msg("NATS") }),
	}
	if tc != nil {
		options = append(options, nats.Secure(tc))
	}
	if c.Username != "" {
		options = append(options, nats.UserInfo(c.Username, c.Password))
	}
	if c.Credentials != "" {
		options = append(options, nats.UserCredentials(c.Credentials))
	}
	nc, err := nats.Connect(strings.Join(c.URLs, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	return &Bus{conf: c, prefix: "limpet." + c.Mesh + ".", nc: nc, subs: map[*nats.Subscription]struct{}{}}, nil
}

// Publish implements registry.Bus.
func (b *Bus) Publish(m registry.Message) error {
	var kind string
	var p []byte
	switch {
	case m.Notice != nil:
		kind, p = "notice", wire.AppendNotice(nil, *m.Notice)
	case m.Health != nil:
		kind, p = "health", wire.AppendHealth(nil, *m.Health)
	case m.Doubt != nil:
		kind, p = "doubt", wire.AppendDoubt(nil, *m.Doubt)
	default:
		return errors.New("natsbus: an empty message")
	}
	if len(p) > maxPayload {
		return fmt.Errorf("natsbus: a message of %d bytes", len(p))
	}
	return b.nc.Publish(b.prefix+b.conf.Edge+"."+kind, p)
}

// Subscribe implements registry.Bus.
func (b *Bus) Subscribe(fn func(registry.Message)) (cancel func(), err error) {
	sub, err := b.nc.Subscribe(b.prefix+"*.*", func(msg *nats.Msg) {
		if m, ok := b.decode(msg.Subject, msg.Data); ok {
			fn(m)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	if err := sub.SetPendingLimits(pendingMsgs, pendingBytes); err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	b.mu.Lock()
	b.subs[sub] = struct{}{}
	b.mu.Unlock()
	return func() {
		b.mu.Lock()
		delete(b.subs, sub)
		b.mu.Unlock()
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			b.conf.Logger.Debug().Err(err).Msg("unsubscribe")
		}
	}, nil
}

func (b *Bus) decode(subject string, p []byte) (m registry.Message, ok bool) {
	edge, kind, found := strings.Cut(strings.TrimPrefix(subject, b.prefix), ".")
	if !found || !registry.ValidName(edge) || len(p) > maxPayload {
		b.ignored.Add(1)
		return m, false
	}
	if edge == b.conf.Edge {
		return m, false
	}
	m.From = edge
	var err error
	switch kind {
	case "notice":
		var n registry.Notice
		n, err = b.decoder.Notice(p)
		m.Notice = &n
	case "health":
		var h registry.Health
		h, err = b.decoder.Health(p)
		h.Edge = edge
		m.Health = &h
	case "doubt":
		var ref registry.BrokerRef
		ref, err = b.decoder.Doubt(p)
		m.Doubt = &ref
	default:
		err = errors.New("unknown kind")
	}
	if err != nil {
		b.ignored.Add(1)
		return registry.Message{}, false
	}
	return m, true
}

// Ignored counts messages that could not be read.
func (b *Bus) Ignored() uint64 { return b.ignored.Load() }

// Connected implements registry.Bus.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Close implements registry.Bus.
func (b *Bus) Close() error {
	if b.nc.IsConnected() {
		if err := b.nc.FlushTimeout(flushTimeout); err != nil {
			b.conf.Logger.Debug().Err(err).Msg("flush")
		}
	}
	b.nc.Close()
	return nil
}
