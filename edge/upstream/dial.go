package upstream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/edge/ws/stream"
	"github.com/limpet-mesh/limpet/registry"
)

// DefaultPath is the WebSocket request path of a broker that names none.
const DefaultPath = "/mqtt"

// A Dialer connects to brokers over every transport. Its methods may be called from any goroutine.
type Dialer struct {
	resolver *Resolver
	tls      tlsConfigs
	records  tls13.Policy
	connect  func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
}

// DialerConfig configures a Dialer.
type DialerConfig struct {
	Resolver *Resolver // where addresses come from
	Log      zerolog.Logger
	// TLSRecords says who goes on after the TLS handshakes of Join. The zero value is crypto/tls.
	TLSRecords tls13.Policy
}

// NewDialer returns a Dialer. It starts nothing.
func NewDialer(c DialerConfig) *Dialer {
	return &Dialer{resolver: c.Resolver, tls: tlsConfigs{log: c.Log}, records: c.TLSRecords, connect: connectTCP}
}

// layers is what a broker's configuration puts on top of TCP, checked before the first packet.
type layers struct {
	tls *tls.Config // nil without TLS
	url *url.URL    // nil without WebSocket
}

// Dial connects to b and brings the connection to the point where MQTT can flow: TLS with b's chain and name verified, then
// the WebSocket upgrade, where b has them. It tries the addresses of b's name one after the other, beginning
// anywhere, and gives each an equal share of what is left until ctx's deadline (registry.DefaultDialTimeout where ctx has none).
//
// header, if any, is the PROXY header for this client. It is copied, and leaves in one segment with the first bytes that are
// written: over plain TCP with the stream's first Write (or by CloseWrite), else with the handshake, before TLS.
//
// In TLS 1.3 a broker judges the client certificate after the handshake: its refusal is the stream's first Read error.
// Reason and Refused tell errors apart.
func (d *Dialer) Dial(ctx context.Context, b *registry.Broker, header []byte) (relay.Stream, error) {
	return dial(ctx, d, b, always(header), layers.stream)
}

// dialOwn is Dial for a connection that no client asked for. Its PROXY header, if b wants one, announces the connection's own addresses:
// the command LOCAL, which version 2 has for just this, crashes the connection in RabbitMQ as late as 3.12.0 (its issue 8654).
func (d *Dialer) dialOwn(ctx context.Context, b *registry.Broker) (relay.Stream, error) {
	return dial(ctx, d, b, func(conn net.Conn) []byte { return AppendProxy(nil, b.Proxy, ownOrigin(conn)) }, layers.stream)
}

// always is a header that does not depend on the connection.
func always(header []byte) func(net.Conn) []byte { return func(net.Conn) []byte { return header } }

// ownOrigin is the origin of a connection of our own; nil where it has no TCP addresses.
func ownOrigin(conn net.Conn) *relay.Origin {
	from, okFrom := conn.LocalAddr().(*net.TCPAddr)
	to, okTo := conn.RemoteAddr().(*net.TCPAddr)
	if !okFrom || !okTo {
		return nil
	}
	return &relay.Origin{Client: from.AddrPort(), Server: to.AddrPort()}
}

// dial is Dial with a header that is made when there is a connection to make it of, for whatever apply makes of the connection by handshakes.
func dial[T any](ctx context.Context, d *Dialer, b *registry.Broker, header func(net.Conn) []byte, apply func(layers, net.Conn) (T, error)) (made T, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, registry.DefaultDialTimeout)
		defer cancel()
	}
	on, err := d.layers(b)
	if err != nil {
		return made, err
	}
	addrs, err := d.resolver.Resolve(ctx, b)
	if err != nil {
		return made, err
	}
	failed := &dialError{broker: b.ID}
	first := rand.IntN(len(addrs))
	for i := range addrs {
		addr := addrs[(first+i)%len(addrs)]
		made, err := attempt(ctx, d, on, addr, len(addrs)-i, header, apply)
		if err == nil {
			return made, nil
		}
		failed.attempts = append(failed.attempts, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil && len(failed.attempts) < len(addrs) {
		failed.attempts = append(failed.attempts, fmt.Errorf("no time left for the other addresses: %w", ctx.Err()))
	}
	d.resolver.Doubt(b)
	return made, failed
}

// attempt tries one address with its share of the time: left addresses, this one included, have not been tried.
func attempt[T any](ctx context.Context, d *Dialer, on layers, addr netip.AddrPort, left int, header func(net.Conn) []byte, apply func(layers, net.Conn) (T, error)) (made T, err error) {
	end, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
	defer cancel()
	conn, err := d.connect(ctx, addr)
	if err != nil {
		return made, err
	}
	if prefix := header(conn); len(prefix) > 0 {
		conn = &prefixed{Conn: conn, prefix: bytes.Clone(prefix)}
	}
	err = on.shake(ctx, conn, func() (err error) {
		made, err = apply(on, conn)
		return err
	})
	if err != nil {
		conn.Close()
		var none T
		return none, err
	}
	return made, nil
}

// shake has apply shake hands over conn, for as long as ctx lasts.
func (on layers) shake(ctx context.Context, conn net.Conn, apply func() error) error {
	if on.tls == nil && on.url == nil {
		return apply()
	}
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return err
	}
	inTime := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := apply()
	if !inTime() { // the deadline of conn is, or is about to be, in the past
		err = interrupted(ctx, err)
	}
	if err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// interrupted adds to err that ctx has ended, which may be what caused it.
func interrupted(ctx context.Context, err error) error {
	switch {
	case ctx.Err() == nil:
		return err
	case err == nil:
		return ctx.Err()
	}
	return fmt.Errorf("%w (%w)", err, ctx.Err())
}

// stream makes a Stream of a connection: TLS, then WebSocket, where the broker has them.
func (on layers) stream(conn net.Conn) (relay.Stream, error) {
	if on.tls != nil {
		tc := tls.Client(conn, on.tls)
		if err := tc.Handshake(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTLS, err)
		}
		conn = tc
	}
	if on.url == nil {
		return conn.(relay.Stream), nil
	}
	early, err := upgrade(conn, on.url)
	if err != nil {
		return nil, err
	}
	return stream.New(conn, ws.Client, early), nil
}

// layers checks b's configuration.
func (d *Dialer) layers(b *registry.Broker) (on layers, err error) {
	host, port, err := splitAddress(b.Address)
	if err != nil {
		return on, err
	}
	over := b.Over()
	secure := over == registry.TransportTLS || over == registry.TransportWSS
	if secure {
		host = cmp.Or(b.TLS.ServerName, host)
		if on.tls, err = d.tls.get(b, host); err != nil {
			return on, err
		}
	}
	switch over {
	case registry.TransportTCP, registry.TransportTLS:
		return on, nil
	case registry.TransportWS, registry.TransportWSS:
		on.url, err = upgradeURL(host, port, secure, cmp.Or(b.Path, DefaultPath))
		return on, err
	}
	return on, fmt.Errorf("%w: broker transport %q: want tcp, tls, ws or wss", ErrConfig, over)
}

// upgradeURL says what the upgrade request asks for. host is the name that TLS verifies, where there is TLS,
// so that a proxy in front of the broker sees one name.
func upgradeURL(host string, port uint16, secure bool, path string) (*url.URL, error) {
	u, err := url.ParseRequestURI(path)
	if err != nil || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%w: broker path %q: want a path that begins with a slash", ErrConfig, path)
	}
	if strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return nil, fmt.Errorf("%w: broker host %q: want no blanks and control characters", ErrConfig, host)
	}
	u.Scheme, u.Host = "ws", host
	usual := uint16(80)
	if secure {
		u.Scheme, usual = "wss", 443
	}
	if strings.Contains(host, ":") {
		host, _, _ = strings.Cut(host, "%") // a zone means nothing to the other host
		u.Host = "[" + host + "]"
	}
	if port != usual {
		u.Host += ":" + strconv.Itoa(int(port))
	}
	return u, nil
}

// connectTCP opens a TCP connection. TCP_NODELAY is Go's default.
// (net.Dialer.DialTCP would take addr as it is, but binds a local port before the destination is known, which makes
// ephemeral ports run out at 28,000 connections instead of 28,000 for each broker.)
func connectTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: KeepAliveIdle, Interval: KeepAliveInterval, Count: KeepAliveCount,
		},
		Control: setUserTimeout,
	}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		err = oe.Err // the caller names the address
	}
	return conn, err
}

// prefixed is a connection whose first bytes are given: they leave in one system call with the first Write.
// Writing methods are called from one goroutine, as with every Stream.
type prefixed struct {
	net.Conn
	prefix []byte
}

// Write sends what is left of the prefix, then p.
func (c *prefixed) Write(p []byte) (int, error) {
	if len(c.prefix) == 0 {
		return c.Conn.Write(p)
	}
	want := len(c.prefix)
	buffers := net.Buffers{c.prefix, p}
	sent, err := buffers.WriteTo(c.Conn) // writev on TCP
	c.prefix = c.prefix[min(int(sent), want):]
	return max(0, int(sent)-want), err
}

// CloseWrite sends the prefix if nothing else did, then ends the writing direction.
func (c *prefixed) CloseWrite() error {
	if _, err := c.Write(nil); err != nil {
		return err
	}
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}
