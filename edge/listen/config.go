package listen

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"

	"github.com/limpet-mesh/limpet/edge/tls13"
)

// The transports.
const (
	TCP  = "tcp"  // MQTT on TCP
	TLS  = "tls"  // on TLS
	WS   = "ws"   // in WebSocket messages [MQTT §6.0]
	WSS  = "wss"  // in WebSocket messages on TLS
	QUIC = "quic" // on the first bidirectional stream of a QUIC connection
)

// Config describes one listener.
type Config struct {
	// Name appears in every Origin and in errors.
	Name string
	// Transport is one of the constants above.
	Transport string
	// Address is host:port. An empty host means all addresses of both families; port 0 lets the system choose. A host name is
	// resolved once and bound at its first address.
	Address string
	// ProxyFrom names the peers whose connections start with a PROXY protocol header, version 1 or 2. It is required from them and
	// forbidden for everybody else: the protocol must not be guessed (its specification, §2). Not for QUIC.
	ProxyFrom []netip.Prefix
	// TLS is required for TLS, WSS and QUIC, and forbidden for the others.
	TLS *TLSConfig
	// WebSocket matters for WS and WSS.
	WebSocket WebSocket
	// TLSRecords says who goes on with TLS after the handshake where a loop does it (Door): crypto/tls, or records of our own.
	TLSRecords tls13.Policy
	// HandshakeTimeout is the one deadline for all that precedes the first MQTT byte, from accept. 0 = 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds the handshakes in flight; 0 = 4096. When it is reached accepting waits, at most until the oldest is
	// evictAfter of the deadline old, which is then cut: silent peers cannot keep others out.
	MaxHandshakes int

	// OnReject, if not nil, is told of every connection that failed before it was handed over. o holds what was known by then.
	// It may be called by several goroutines at a time and must not block.
	OnReject func(o relay.Origin, r Reason, err error)
	// OnAcceptError, if not nil, is told of every failed accept. Accepting goes on after a pause.
	OnAcceptError func(err error)
}

// The numbers, together.
const (
	defaultHandshakeTimeout = 10 * time.Second
	// defaultMaxHandshakes × some 12 KiB (a stack and a TLS connection that waits for its ClientHello) = 48 MiB; × 31 KiB where
	// all have shaken hands and dally with the HTTP request inside = 124 MiB.
	defaultMaxHandshakes = 4096
	// evictAfter: a handshake that is older than the deadline divided by this may be cut for a newcomer. An honest client needs
	// milliseconds, or a round trip or two; a crowd of honest ones after an outage is served in order, since 4096 handshakes
	// take two cores less than that.
	evictAfter = 3

	// acceptDrain is how long a closing listener still accepts: clients whose connection stands, but waits in the kernel's queue,
	// would else be reset.
	acceptDrain = 20 * time.Millisecond

	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second

	// keepAliveIdle + keepAliveCount × keepAliveInterval = 3 min until a client that vanished is noticed. The client's own
	// keep-alive usually ends it sooner; this is for clients without, and rare enough not to keep a phone's radio awake.
	keepAliveIdle     = 2 * time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 4
	// userTimeout is TCP_USER_TIMEOUT (Linux): the same for a client that vanished while bytes were on their way to it. Linux
	// counts a closed window too, so it also bounds how long a client may read nothing.
	userTimeout = 3 * time.Minute

	// maxUpgrade bounds a WebSocket upgrade request: browsers send 1 KiB, with cookies 2 to 4.
	maxUpgrade = 8 << 10

	// rejectLinger and rejectDrain bound how long and how much of the peer's further bytes are read after a refusal was sent, so
	// that closing the socket does not reset the connection and take the refusal with it.
	rejectLinger = time.Second
	rejectDrain  = 64 << 10
)

func (c *Config) handshakeTimeout() time.Duration {
	if c.HandshakeTimeout > 0 {
		return c.HandshakeTimeout
	}
	return defaultHandshakeTimeout
}

func (c *Config) maxHandshakes() int {
	if c.MaxHandshakes > 0 {
		return c.MaxHandshakes
	}
	return defaultMaxHandshakes
}

// secure reports whether the transport needs certificates.
func (c *Config) secure() bool {
	return c.Transport == TLS || c.Transport == WSS || c.Transport == QUIC
}

// alpn is what the listener speaks, for clients that ask.
func (c *Config) alpn() []string {
	switch c.Transport {
	case WSS:
		return []string{"http/1.1"}
	case QUIC:
		return []string{"mqtt"}
	default:
		return []string{"mqtt", "x-amzn-mqtt-ca"} // the second is what AWS IoT devices offer on port 443
	}
}

func (c *Config) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)
	}
	switch c.Transport {
	case TCP, TLS, WS, WSS, QUIC:
	default:
		return bad("transport %q is none of tcp, tls, ws, wss, quic", c.Transport)
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return bad("address %q is not host:port (an IPv6 address needs brackets)", c.Address)
	}
	switch {
	case c.secure() && c.TLS == nil:
		return bad("transport %q needs a certificate", c.Transport)
	case !c.secure() && c.TLS != nil:
		return bad("transport %q takes no certificate: did you mean %q?", c.Transport, map[string]string{TCP: TLS, WS: WSS}[c.Transport])
	case c.Transport == QUIC && len(c.ProxyFrom) > 0:
		return bad("the PROXY protocol does not apply to QUIC")
	case c.HandshakeTimeout < 0:
		return bad("negative handshake timeout %v", c.HandshakeTimeout)
	case c.MaxHandshakes < 0:
		return bad("negative bound of handshakes %d", c.MaxHandshakes)
	}
	prefixes := make([]netip.Prefix, len(c.ProxyFrom))
	for i, p := range c.ProxyFrom {
		if !p.IsValid() {
			return bad("trusted PROXY source %d is not a valid prefix", i+1)
		}
		prefixes[i] = unmapPrefix(p)
	}
	c.ProxyFrom = prefixes
	if c.Transport == WS || c.Transport == WSS {
		c.WebSocket.Origins = slices.Clone(c.WebSocket.Origins)
		if err := c.WebSocket.validate(); err != nil {
			return bad("%v", err)
		}
	}
	return nil
}

// trusted matches peer, which may be an IPv4 address in IPv6 clothes or carry a zone, against ProxyFrom.
func (c *Config) trusted(peer netip.Addr) bool {
	peer = peer.Unmap().WithZone("")
	return slices.ContainsFunc(c.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// unmapPrefix turns ::ffff:a.b.c.d/96+n into a.b.c.d/n, because addresses are compared without their IPv6 clothes.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	}
	return p.Masked()
}

// WebSocket is what an upgrade request must match.
type WebSocket struct {
	// Path is compared byte by byte with the request's path, without its query. "" = "/mqtt".
	Path string
	// Origins are the web pages that may connect, as browsers name them: "https://app.example.com", with a port where it is not
	// the scheme's own; "https://*.example.com" means every name below; "*" means every page. Without any, a page may connect
	// if it was served by the host name that the request is for, at whatever port. Requests without an Origin do not come from
	// a page and always pass; "null" (a sandboxed or local page) passes only where it is listed, or with "*".
	Origins []string
}

func (w *WebSocket) path() string {
	if w.Path != "" {
		return w.Path
	}
	return "/mqtt"
}

func (w *WebSocket) validate() error {
	if p := w.path(); p[0] != '/' || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '?' || r == '#' }) {
		return fmt.Errorf("WebSocket path %q must start with / and contain no space, query or fragment", w.Path)
	}
	for i, o := range w.Origins {
		if o == "*" || o == "null" {
			continue
		}
		scheme, host, ok := splitOrigin(o)
		if !ok {
			return fmt.Errorf("WebSocket origin %q must be like https://app.example.com, https://*.example.com or *", o)
		}
		w.Origins[i] = scheme + "://" + host
	}
	return nil
}
