// Package listen is how clients come in: TCP, TLS, WebSocket, WebSocket over TLS and QUIC, each but the last with a PROXY protocol
// header in front where the peer is trusted to send one.
//
//	l, err := listen.Open(listen.Config{
//		Name: "mqtts", Transport: listen.TLS, Address: ":8883",
//		TLS: &listen.TLSConfig{Certificates: []listen.KeyPair{{Cert: "a.pem", Key: "a.key"}}},
//	})
//	...
//	err = l.Serve(ctx, func(s relay.Stream, o relay.Origin, accepted time.Time) {
//		relay.Serve(s, owner(o), limits, accepted, nil) // or hand it over and return
//	})
//
// [Open] binds the socket and loads the certificates, so that everything that can be wrong with a configuration is said at once.
// [Listener.Serve] accepts, and shakes hands in one goroutine per connection: PROXY header, then TLS, then the WebSocket upgrade,
// then (QUIC) the first stream. One deadline that starts at accept covers all of them and is meant to go on until the CONNECT, which
// is why the accept time is handed over. What is handed over is a [relay.Stream] that carries MQTT and nothing else. A failed
// handshake ends in Config.OnReject with one [Reason] out of a closed set.
//
// Where there is an epoll loop it accepts by itself, from [Listener.RawTCP]: plain TCP without our help, TLS and WebSocket through
// [Listener.Door], within the same bounds. [ParseProxy] and [WebSocket.Upgrade] do the same work as Serve on bytes alone, without I/O, as package ws does behind them.
//
// Stopping is graceful at every step: [Listener.Close] ends accepting only. Handshakes in flight go on until the deadline, and
// connections that were handed over live as long as their new owner wants. Cancelling Serve's context cuts the handshakes too.
//
// What it refuses to do: trust a PROXY header by guessing (a peer either must send one or must not), negotiate a WebSocket
// extension, fail a TCP client for the ALPN names that it offers, accept TLS below 1.2 or 0-RTT data, allocate from a length that
// a stranger claims, or read MQTT.
package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
)

var (
	// ErrConfig says that a Config contradicts itself.
	ErrConfig = errors.New("listen: configuration")
	// ErrBind says that the address cannot be listened on.
	ErrBind = errors.New("listen: cannot listen")
	// ErrCertificate says that a certificate, key or CA file cannot be used.
	ErrCertificate = errors.New("listen: certificate")
)

// Handler takes over a client whose handshakes are done. accepted is when its connection was accepted (QUIC: when its first packet
// came): the deadline that began then is the handler's to continue; no deadline is set on the stream any more.
//
// It runs on the connection's own goroutine and may stay there for the life of the session, in which case Serve waits for it, or
// give the stream to somebody else and return. It must close the stream, or see to it.
type Handler func(s relay.Stream, o relay.Origin, accepted time.Time)

// A Listener is one address that clients connect to.
type Listener struct {
	cfg   Config
	tcp   *net.TCPListener // nil for QUIC
	quic  *quicSocket      // nil but for QUIC
	certs *certificates    // nil without TLS

	queue   *handshakes
	closing chan struct{} // closed by Close: accept no more
	done    chan struct{} // closed when the socket is gone

	mu       sync.Mutex
	serving  bool // Serve has the TCP socket, and will close it
	released bool // LetGo has closed it
}

// Open binds cfg's address and loads its certificates. The error is one line that says what to do. No goroutine is started: clients
// wait in the kernel's queue (QUIC: in the socket's buffer) until Serve is called.
func Open(cfg Config) (*Listener, error) {
	l, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w [listener %q]", err, cfg.Name)
	}
	return l, nil
}

func open(cfg Config) (*Listener, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Listener{
		cfg:     cfg,
		queue:   newHandshakes(cfg.maxHandshakes(), cfg.handshakeTimeout()/evictAfter),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if cfg.secure() {
		var err error
		if l.certs, err = newCertificates(*cfg.TLS, cfg.alpn(), cfg.Transport == QUIC); err != nil {
			return nil, err
		}
		l.certs.server = tls13.NewServer(l.certs.outer, cfg.TLSRecords)
	}
	if cfg.Transport == QUIC {
		pc, err := net.ListenPacket("udp", cfg.Address)
		if err != nil {
			return nil, bindError(cfg.Address, err)
		}
		l.quic = newQUICSocket(pc.(*net.UDPConn), l.done)
		return l, nil
	}
	lc := listenConfig()
	lc.SetMultipathTCP(false) // MPTCP sockets ignore some of the options, and raw drivers expect a TCP socket
	ln, err := lc.Listen(context.Background(), "tcp", cfg.Address)
	if err != nil {
		return nil, bindError(cfg.Address, err)
	}
	l.tcp = ln.(*net.TCPListener)
	return l, nil
}

// Config is what the listener was opened with.
func (l *Listener) Config() Config { return l.cfg }

// Addr is the address that the socket is bound to: with port 0 in Config.Address, the port that was chosen.
func (l *Listener) Addr() net.Addr {
	if l.quic != nil {
		return l.quic.udp.LocalAddr()
	}
	return l.tcp.Addr()
}

// RawTCP is the listening socket, for a driver that accepts by itself; nil for QUIC. It stays the Listener's: use either it or
// Serve, and Close the Listener. On Linux the connections inherit TCP_NODELAY and keep-alive from it.
func (l *Listener) RawTCP() *net.TCPListener { return l.tcp }

// LetGo closes our own descriptor of the listening socket, once those who accept from RawTCP have theirs: as long as we have it, the
// runtime's poller is woken for every client beside them. Close must still be called.
func (l *Listener) LetGo() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !closed(l.closing) && !l.released {
		l.released = true
		_ = l.tcp.Close()
	}
}

// Trusted reports whether a connection from peer must start with a PROXY header; from all others it must not.
func (l *Listener) Trusted(peer netip.Addr) bool { return l.cfg.trusted(peer) }

// Origin is what is known of a connection at accept.
func (l *Listener) Origin(peer, local netip.AddrPort) relay.Origin {
	peer, local = unmap(peer), unmap(local)
	return relay.Origin{Listener: l.cfg.Name, Transport: l.cfg.Transport, Client: peer, Server: local, Peer: peer}
}

// Reload replaces certificates and client-certificate policy for the connections to come, all of it or, with an error, nothing.
// Session tickets stay valid, but a client certificate that the new authorities would refuse is not resumed.
func (l *Listener) Reload(c TLSConfig) error {
	if l.certs == nil {
		return fmt.Errorf("%w: transport %q has no certificates to reload [listener %q]", ErrConfig, l.cfg.Transport, l.cfg.Name)
	}
	if err := l.certs.load(c); err != nil {
		return fmt.Errorf("%w [listener %q]", err, l.cfg.Name)
	}
	return nil
}

// SetTicketKeys makes session tickets with keys[0] and accepts those of all keys, instead of keys that this process makes and
// rotates. Edges that share keys resume each other's sessions. It may be called at any time; without TLS, or without a key, it
// does nothing.
func (l *Listener) SetTicketKeys(keys [][32]byte) {
	if l.certs != nil && len(keys) > 0 {
		l.certs.outer.SetSessionTicketKeys(keys)
		l.certs.server.SetSessionTicketKeys(keys)
	}
}

// Serve accepts clients until ctx ends or Close is called, and returns when every goroutine that it started has ended: handshakes,
// and handlers that chose to stay. Cancelling ctx cuts handshakes but no connection that was handed over. It is called once.
//
// Errors of accept (out of descriptors, say) are told to Config.OnAcceptError and tried again after a pause; Serve has no error of
// its own to return but that the socket could not be served at all.
func (l *Listener) Serve(ctx context.Context, h Handler) error {
	if l.quic != nil {
		return l.serveQUIC(ctx, h)
	}
	if !l.begin() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	l.serve(ctx, l.tcp, h)
	return nil
}

// begin tells Close to leave the socket to Serve; false: there was a Close before.
func (l *Listener) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = true
	return !closed(l.closing)
}

// Close stops accepting and returns at once. A TCP socket that is being served is closed as soon as what waits in the kernel's queue
// has been accepted; a UDP socket lives on until the last QUIC connection is closed. See Done.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if closed(l.closing) {
		return nil
	}
	close(l.closing)
	switch {
	case l.quic != nil:
		l.quic.release()
		return nil
	case l.serving:
		return l.tcp.SetDeadline(time.Now().Add(acceptDrain))
	case l.released:
		close(l.done)
		return nil
	default:
		defer close(l.done)
		return l.tcp.Close()
	}
}

// Done is closed when the listener's socket is gone: after Close and, for QUIC, the end of every connection.
func (l *Listener) Done() <-chan struct{} { return l.done }

// bindError says in one line why address cannot be bound, and what to do.
func bindError(address string, err error) error {
	why := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		why = "the address is in use: stop the process that holds it or choose another port"
	case errors.Is(err, fs.ErrPermission):
		why = "permission denied: a port below 1024 needs the capability CAP_NET_BIND_SERVICE; or choose a higher one"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		why = "this host has no such address: use one of its own, or leave the host empty for all of them"
	case errors.Is(err, syscall.EAFNOSUPPORT):
		why = "this host does not speak that address family"
	default:
		// *net.OpError repeats the address; what is below it is enough.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			why = op.Err.Error()
		}
	}
	return fmt.Errorf("%w on %s: %s", ErrBind, strconv.Quote(address), why)
}

// origin is Origin for a connection of package net.
func (l *Listener) origin(c net.Conn) relay.Origin {
	return l.Origin(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
}

// addrPort is a's address, or the zero AddrPort if a has none (an in-memory connection).
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	default:
		return netip.AddrPort{}
	}
}

// unmap turns an IPv4 address that came through an IPv6 socket into itself.
func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// tlsOrigin is what a finished handshake told.
func tlsOrigin(cs tls.ConnectionState) *relay.TLS {
	t := &relay.TLS{
		Version:    cs.Version,
		ServerName: cs.ServerName,
		ALPN:       cs.NegotiatedProtocol,
		Cipher:     tls.CipherSuiteName(cs.CipherSuite),
	}
	if len(cs.VerifiedChains) > 0 {
		t.Verified = true
		t.CommonName = cs.PeerCertificates[0].Subject.CommonName
	}
	return t
}
