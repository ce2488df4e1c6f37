package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/edge/ws/stream"
)

// serve accepts from ln, one goroutine per connection, closes it, and waits for all of them.
func (l *Listener) serve(ctx context.Context, ln net.Listener, h Handler) {
	var conns sync.WaitGroup
	defer conns.Wait()
	defer close(l.done)
	defer func() { _ = ln.Close() }()

	accept := func() error {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		accepted := time.Now()
		place := l.queue.enter(accepted, func() { _ = conn.Close() })
		conns.Go(func() { l.welcome(ctx, conn, accepted, place, h) })
		return nil
	}
	pause := acceptPauseMin
	for l.queue.admit(ctx, l.closing) {
		switch err := accept(); {
		case err == nil:
			pause = acceptPauseMin
		case closed(l.closing):
		default:
			// Out of descriptors or memory, or a connection that was reset in the queue: all of it passes.
			if l.cfg.OnAcceptError != nil {
				l.cfg.OnAcceptError(err)
			}
			l.sleep(ctx, pause)
			pause = min(2*pause, acceptPauseMax)
		}
	}
	for ctx.Err() == nil && accept() == nil { // until Close's deadline
	}
}

// sleep lasts d, or until the listener is closed.
func (l *Listener) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-l.closing:
	}
}

// welcome takes one connection from accept to hand-over.
func (l *Listener) welcome(ctx context.Context, conn net.Conn, accepted time.Time, place *handshake, h Handler) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	o := l.origin(conn)
	deadline := accepted.Add(l.cfg.handshakeTimeout())
	_ = conn.SetDeadline(deadline) // a closed connection says so at its first Read
	s, err := l.shakeHands(conn, &o, deadline)
	evicted := l.queue.leave(place)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if cut := !stop(); cut || evicted || err != nil {
		_ = conn.Close()
		l.reject(o, err, cut, evicted)
		return
	}
	h(s, o, accepted)
}

// reject tells why a connection was not handed over.
func (l *Listener) reject(o relay.Origin, err error, cut, evicted bool) {
	if l.cfg.OnReject == nil {
		return
	}
	reason := ReasonShutdown
	switch {
	case cut:
		err = errCut
	case evicted:
		reason, err = ReasonOverload, errEvicted
	default:
		reason = reasonOf(err)
	}
	l.cfg.OnReject(o, reason, err)
}

var (
	errCut     = errors.New("listen: the listener ended")
	errEvicted = errors.New("listen: cut for a newcomer, too many handshakes in flight")
)

// shakeHands does all that precedes the first MQTT byte, and completes o.
func (l *Listener) shakeHands(conn net.Conn, o *relay.Origin, deadline time.Time) (relay.Stream, error) {
	head, err := l.head(conn, o)
	if err != nil {
		return nil, err
	}
	switch l.cfg.Transport {
	case TLS:
		return l.shakeTLS(head, o)
	case WSS:
		tc, err := l.shakeTLS(head, o)
		if err != nil {
			return nil, err
		}
		if err := l.cfg.WebSocket.accept(tc, deadline); err != nil {
			return nil, err
		}
		return stream.New(tc, ws.Server, nil), nil
	case WS:
		if err := l.cfg.WebSocket.accept(head, deadline); err != nil {
			return nil, err
		}
		if len(head.rest) > 0 {
			return nil, failed(ReasonWSUpgrade, errPipelined)
		}
		return stream.New(conn, ws.Server, nil), nil
	default:
		// Plain TCP: nothing is read before the session does, and the session itself recognises a PROXY header from a peer that
		// must not send one, as it does on drivers that accept by themselves.
		if s, ok := conn.(relay.Stream); ok && len(head.rest) == 0 {
			return s, nil
		}
		head.guard = false
		return head, nil
	}
}

// shakeTLS is the TLS handshake.
func (l *Listener) shakeTLS(conn *headConn, o *relay.Origin) (*tls.Conn, error) {
	tc := tls.Server(conn, l.certs.outer)
	if err := tc.Handshake(); err != nil {
		return nil, failed(ReasonTLSHandshake, fmt.Errorf("listen: TLS handshake: %w", err))
	}
	acknowledge(conn.Conn)
	o.TLS = tlsOrigin(tc.ConnectionState())
	return tc, nil
}

// head reads the PROXY header of a peer that must send one, and sees to it that nobody else does.
func (l *Listener) head(conn net.Conn, o *relay.Origin) (*headConn, error) {
	c := &headConn{Conn: conn}
	if c.guard = !l.Trusted(o.Peer.Addr()); c.guard {
		return c, nil
	}
	return c, c.readProxy(o)
}

// headConn is a connection whose first bytes matter to us.
type headConn struct {
	net.Conn
	rest  []byte // read behind the PROXY header, but not yet asked for
	guard bool   // the first bytes must not be a PROXY header
}

// Read is net.Conn's, with what was read ahead in front of it.
func (c *headConn) Read(p []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		if c.rest = c.rest[n:]; len(c.rest) == 0 {
			c.rest = nil
		}
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if c.guard && n > 0 {
		c.guard = false
		if LooksLikeProxy(p[:n]) {
			return 0, errProxyUntrusted
		}
	}
	return n, err
}

// CloseWrite is that of the connection below.
func (c *headConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// refuse sends msg as the last thing on c, and reads what the peer still sends, within bounds: bytes that are unread at close
// would make the kernel reset the connection, and the peer might never see msg.
func refuse(c net.Conn, deadline time.Time, msg []byte) {
	if _, err := c.Write(msg); err != nil {
		return
	}
	if closeWrite(c) != nil {
		return
	}
	if until := time.Now().Add(rejectLinger); until.Before(deadline) {
		deadline = until
	}
	if c.SetReadDeadline(deadline) == nil {
		_, _ = io.CopyN(io.Discard, c, rejectDrain)
	}
}
