// Package upstream is how an edge reaches a broker: over TCP, TLS, WebSocket
// or WebSocket over TLS, with or without a PROXY protocol header in front.
//
//	resolver := upstream.NewResolver(upstream.ResolverConfig{Log: log})
//	go resolver.Run(ctx)
//	dialer := upstream.NewDialer(upstream.DialerConfig{Resolver: resolver, Log: log})
//
//	header := upstream.AppendProxy(nil, broker.Proxy, origin)
//	stream, err := dialer.Dial(ctx, broker, header)
//	if err != nil {
//		count(upstream.Reason(err)) // "refused", "timeout", "tls", …
//	}
//
// [Resolver] turns a broker's address into socket addresses without ever
// blocking: names are looked up in the background, kept fresh while they are
// in use, and kept stale while DNS is away. A driver that opens its own
// sockets needs only that and [AppendProxy]; everybody else calls
// [Dialer.Dial], which tries every address in turn and returns a
// [relay.Stream] that carries MQTT and nothing else. [Dialer.Join] is Dial for
// a loop: after the handshakes it returns the TCP connection, and the layers
// that go on with TLS and WebSocket.
//
// The PROXY header travels with the first bytes that are written, in one
// segment: the client's CONNECT over TCP, the ClientHello over TLS, the
// upgrade request over WebSocket. [Dialer.ProbeTCP] and [Dialer.ProbeMQTT] ask
// whether a broker is there.
//
// What it refuses to do: choose a broker (package router), judge one from a
// failed dial (package failover; [Refused] and [Reason] only say what
// happened), verify less of a certificate than its name and chain, negotiate a
// WebSocket extension, or hold more than one frame of a stream.
package upstream

import (
	"errors"
	"time"
)

var (
	// ErrConfig says that a broker's configuration cannot be used on this edge: a malformed address, an unreadable certificate.
	ErrConfig = errors.New("upstream: configuration")
	// ErrSelf says that a broker's address leads back to where the connection would come from (Resolver.Refuse).
	ErrSelf = errors.New("upstream: the address is one of our own listeners")
	// ErrDNS says that a broker's name has no address.
	ErrDNS = errors.New("upstream: name resolution")
	// ErrTLS says that the TLS handshake failed.
	ErrTLS = errors.New("upstream: tls handshake")
	// ErrWebSocket says that the upgrade to WebSocket failed. Broken rules afterwards are errors of package ws.
	ErrWebSocket = errors.New("upstream: websocket")
	// ErrConnack says that a probe's CONNECT was not answered by CONNACK.
	ErrConnack = errors.New("upstream: no CONNACK")
)

// The timers of every connection to a broker, also for drivers that open their own sockets. A peer that vanished is noticed
// after KeepAliveIdle + KeepAliveCount × KeepAliveInterval when nothing is in flight, and after UserTimeout when something is.
const (
	KeepAliveIdle     = 15 * time.Second
	KeepAliveInterval = 15 * time.Second
	KeepAliveCount    = 3
	// UserTimeout is TCP_USER_TIMEOUT (Linux). It also bounds how long a broker that is alive may read nothing while there
	// is something to read: Linux counts a closed window too. So it must outlast the pauses of a busy broker, and it
	// equals the keep-alive's sum, because Linux lets it override KeepAliveCount.
	UserTimeout = 60 * time.Second
)
