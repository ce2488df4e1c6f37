package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of [Config].
const (
	DefaultTimeout  = 10 * time.Second
	DefaultLinger   = time.Second
	DefaultQUICIdle = 30 * time.Second // as quic-go's
)

// Config is static: it is not changed after [New].
type Config struct {
	// TLS is for all encrypted transports: roots, client certificate, InsecureSkipVerify. An empty ServerName means the endpoint's host.
	// NextProtos is offered over TLS only: WSS offers http/1.1, QUIC mqtt. A ClientSessionCache given here is used for all transports.
	// Nil trusts the system's roots.
	TLS *tls.Config

	// NoResume makes every TLS handshake a full one. Otherwise the clients of one server name and transport share its newest ticket, so
	// nearly all handshakes after the first resume, wherever the servers accept it.
	NoResume bool

	// Sources are the local addresses to connect from, in turn for each family; none: the system chooses. One address has some
	// 28,000 ports to each endpoint (Linux' ip_local_port_range).
	Sources []netip.Addr

	// Proxy sends a PROXY v2 header first, as a balancer in front would: the connection's own addresses, or as the client's address
	// one of ProxyFrom, in turn. QUIC carries none: the protocol is for streams.
	Proxy     bool
	ProxyFrom []netip.Addr

	// Timeout bounds each stage of a dial: connect, TLS's handshake, WebSocket's upgrade; of QUIC the whole. 0 is DefaultTimeout.
	Timeout time.Duration

	// Linger bounds how long [Conn.Close] writes its farewell and waits for the peer's; 0 is DefaultLinger, negative does not wait.
	Linger time.Duration

	// QUICIdle is after how much silence a QUIC peer is given up (a killed one sends no reset); QUIC's own pings go three times as often.
	// 0 is DefaultQUICIdle. The peer's own limit counts too.
	QUICIdle time.Duration
}

// Stats counts what a [Dialer] did.
type Stats struct {
	Handshakes uint64 // of TLS, also within QUIC, that succeeded
	Resumed    uint64 // those of them that resumed a session
}

// Dialer connects. It may be used by many goroutines.
type Dialer struct {
	cfg       Config
	sources   rotation
	proxyFrom rotation
	tls       tlsConfigs

	handshakes, resumed atomic.Uint64

	quicMu     sync.Mutex
	quicClosed bool
	quic       map[netip.Addr]*quicSocket // by source
}

// New checks cfg; no socket is opened yet.
func New(cfg Config) (*Dialer, error) {
	for _, a := range append(cfg.Sources[:len(cfg.Sources):len(cfg.Sources)], cfg.ProxyFrom...) {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("wire: %v is no address that a client can have", a)
		}
	}
	if len(cfg.ProxyFrom) > 0 && !cfg.Proxy {
		return nil, errors.New("wire: addresses for the PROXY header, but no such header asked for")
	}
	d := &Dialer{cfg: cfg, quic: map[netip.Addr]*quicSocket{}}
	d.sources.set(cfg.Sources)
	d.proxyFrom.set(cfg.ProxyFrom)
	d.tls.set(cfg)
	return d, nil
}

func (d *Dialer) timeout() time.Duration { return orDefault(d.cfg.Timeout, DefaultTimeout) }
func (d *Dialer) linger() time.Duration  { return max(0, orDefault(d.cfg.Linger, DefaultLinger)) }
func (d *Dialer) quicIdle() time.Duration {
	return orDefault(d.cfg.QUICIdle, DefaultQUICIdle)
}

func orDefault(v, def time.Duration) time.Duration {
	if v == 0 {
		return def
	}
	return v
}

// Stats returns the counts so far.
func (d *Dialer) Stats() Stats {
	return Stats{Handshakes: d.handshakes.Load(), Resumed: d.resumed.Load()}
}

// Close closes the UDP sockets, and so every QUIC connection, and waits for what served them. Other connections live on.
func (d *Dialer) Close() error { return d.closeQUIC() }

// Dial connects to ep and shakes hands. Every stage is bounded by [Config].Timeout, all of them by ctx. The error is an [*Error].
func (d *Dialer) Dial(ctx context.Context, ep *Endpoint) (Conn, error) {
	conn, stage, err := d.dial(ctx, ep)
	if err != nil {
		return nil, &Error{Stage: stage, Endpoint: ep, Err: err}
	}
	return conn, nil
}

func (d *Dialer) dial(ctx context.Context, ep *Endpoint) (Conn, Stage, error) {
	source, err := d.Source(ep.Addr.Addr())
	if err != nil {
		return nil, StageDial, err
	}
	if ep.Transport == QUIC {
		c, err := d.dialQUIC(ctx, ep, source)
		if err != nil {
			return nil, StageHandshake, err
		}
		return c, "", nil
	}
	tcp, err := d.dialTCP(ctx, ep, source)
	if err != nil {
		return nil, StageDial, err
	}
	conn, err := d.shakeHands(ctx, tcp, ep)
	if err != nil {
		_ = tcp.Abort()
		return nil, StageHandshake, err
	}
	return conn, "", nil
}

// shakeHands lays over tcp what ep's transport needs. On an error the caller closes tcp.
func (d *Dialer) shakeHands(ctx context.Context, tcp *tcpConn, ep *Endpoint) (Conn, error) {
	var conn Conn = tcp
	if ep.Transport.Encrypted() {
		c, err := d.startTLS(ctx, tcp, ep)
		if err != nil {
			return nil, err
		}
		conn = c
	}
	if ep.Transport == WS || ep.Transport == WSS {
		return d.upgrade(ctx, tcp, conn, ep)
	}
	return conn, nil
}

// within runs fn, bounded by ctx and [Config].Timeout by way of c's deadline, which it clears if fn succeeds.
func (d *Dialer) within(ctx context.Context, c *net.TCPConn, fn func() error) error {
	if err := c.SetDeadline(time.Now().Add(d.timeout())); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })
	err := fn()
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// Source returns the local address for the next connection to remote: the zero Addr if the system is to choose, [ErrSource] if
// [Config].Sources has none of remote's family.
func (d *Dialer) Source(remote netip.Addr) (netip.Addr, error) {
	a, ok := d.sources.next(remote.Unmap().Is4())
	if !ok && len(d.cfg.Sources) > 0 {
		return netip.Addr{}, fmt.Errorf("%w: %v", ErrSource, remote)
	}
	return a, nil
}

// AppendPrelude appends to b what a connection from local to remote sends before all else: the PROXY v2 header if [Config].Proxy asks for
// it, otherwise nothing.
func (d *Dialer) AppendPrelude(b []byte, local, remote netip.AddrPort) []byte {
	if !d.cfg.Proxy {
		return b
	}
	if from, ok := d.proxyFrom.next(remote.Addr().Unmap().Is4()); ok {
		local = netip.AddrPortFrom(from, local.Port())
	} else if from, ok := d.proxyFrom.next(!remote.Addr().Unmap().Is4()); ok {
		local = netip.AddrPortFrom(from, local.Port())
	}
	return appendProxyV2(b, local, remote)
}

// HasPrelude tells whether AppendPrelude appends anything.
func (d *Dialer) HasPrelude() bool { return d.cfg.Proxy }

// rotation gives out addresses in turn, each family by itself.
type rotation struct {
	families [2]struct {
		all []netip.Addr
		n   atomic.Uint64
	}
}

func (r *rotation) set(all []netip.Addr) {
	for _, a := range all {
		a = a.Unmap()
		f := &r.families[family(a.Is4())]
		f.all = append(f.all, a)
	}
}

func (r *rotation) next(v4 bool) (netip.Addr, bool) {
	f := &r.families[family(v4)]
	if len(f.all) == 0 {
		return netip.Addr{}, false
	}
	return f.all[(f.n.Add(1)-1)%uint64(len(f.all))], true
}

func family(v4 bool) int {
	if v4 {
		return 0
	}
	return 1
}
