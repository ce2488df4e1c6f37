package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/quic-go/quic-go"
)

// The numbers of QUIC listeners, together.
const (
	// quicIdle ends a connection whose client has vanished; quicKeepAlive keeps one alive whose client merely has nothing to say,
	// and its way through NATs open, some of which forget UDP after 30 s (RFC 9308 §3.2). The client's own idle time-out counts
	// if it is shorter.
	quicIdle      = 90 * time.Second
	quicKeepAlive = 25 * time.Second
	// What a client may send ahead of what is read: bounded memory before we know it, enough for large messages once they flow.
	quicStreamWindow    = 64 << 10
	quicStreamWindowMax = 1 << 20
	quicConnWindow      = 96 << 10
	quicConnWindowMax   = 3 << 19
	// quicLinger bounds how long a closed connection waits for its last bytes to arrive. quic-go cannot tell that they have, but
	// a client that has read the end of the stream closes the connection.
	quicLinger = time.Second
	// quicRetryAt: above the bound of handshakes divided by this, clients must first prove their address (RFC 9000 §8.1.2),
	// which costs them a round trip.
	quicRetryAt = 8

	quicOK       quic.ApplicationErrorCode = 0
	quicNoStream quic.ApplicationErrorCode = 1
)

// quicSocket is a UDP socket with its QUIC transport. The listener and every connection hold it; the last to let go closes it.
type quicSocket struct {
	udp       *net.UDPConn
	transport *quic.Transport
	holders   atomic.Int64
	done      chan struct{}
}

func newQUICSocket(udp *net.UDPConn, done chan struct{}) *quicSocket {
	s := &quicSocket{udp: udp, transport: &quic.Transport{Conn: udp}, done: done}
	s.holders.Store(1)
	return s
}

func (s *quicSocket) hold() { s.holders.Add(1) }

func (s *quicSocket) release() {
	if s.holders.Add(-1) == 0 {
		_ = s.transport.Close()
		_ = s.udp.Close()
		close(s.done)
	}
}

// quicHandshake is a connection between its first packet and its acceptance.
type quicHandshake struct {
	since time.Time
	over  atomic.Bool // accepted or failed, whichever came first
	stop  func() bool
}

type quicHandshakeKey struct{}

// quicServer is one Serve of a QUIC listener.
type quicServer struct {
	l     *Listener
	owned sync.WaitGroup

	mu         sync.Mutex
	handshakes int    // begun, and neither failed nor accepted yet
	draining   bool   // begin no more
	drained    func() // called when draining and none is left
}

func (l *Listener) serveQUIC(ctx context.Context, h Handler) error {
	if closed(l.closing) {
		return nil
	}
	l.quic.hold()
	defer l.quic.release()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	accepting, endAccepting := context.WithCancel(ctx)
	defer endAccepting()
	draining, endDraining := context.WithCancel(ctx)
	defer endDraining()

	v := &quicServer{l: l, drained: endDraining}
	t := l.quic.transport
	t.ConnContext = v.begin
	t.VerifySourceAddress = func(net.Addr) bool { return v.count() > l.cfg.maxHandshakes()/quicRetryAt }
	ln, err := t.Listen(l.certs.outer, v.config())
	if err != nil {
		return fmt.Errorf("%w on %s: %w", ErrBind, l.Addr(), err)
	}
	v.owned.Go(func() {
		select {
		case <-l.closing:
			endAccepting()
		case <-accepting.Done():
		}
	})
	for l.queue.admit(accepting, l.closing) && v.accept(ctx, accepting, ln, h) {
	}
	// The socket goes on for the connections that live. quic-go's listener stays open with it, so that newcomers are refused
	// instead of left without an answer; handshakes in flight are finished, unless ctx ends.
	v.drain()
	for v.accept(ctx, draining, ln, h) {
	}
	if ctx.Err() != nil {
		_ = ln.Close()
		for v.accept(ctx, context.Background(), ln, h) { // what had finished its handshake just then
		}
	}
	endAccepting()
	v.owned.Wait()
	return nil
}

func (v *quicServer) config() *quic.Config {
	return &quic.Config{
		// quic-go gives up after twice this time, so the handshake has at most the deadline.
		HandshakeIdleTimeout:           v.l.cfg.handshakeTimeout() / 2,
		MaxIdleTimeout:                 quicIdle,
		KeepAlivePeriod:                quicKeepAlive,
		InitialStreamReceiveWindow:     quicStreamWindow,
		MaxStreamReceiveWindow:         quicStreamWindowMax,
		InitialConnectionReceiveWindow: quicConnWindow,
		MaxConnectionReceiveWindow:     quicConnWindowMax,
		MaxIncomingStreams:             1,
		MaxIncomingUniStreams:          -1,
		Allow0RTT:                      false, // replayable
	}
}

// begin is quic.Transport.ConnContext: a first packet has come.
func (v *quicServer) begin(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	v.mu.Lock()
	if v.draining {
		v.mu.Unlock()
		return nil, errCut
	}
	if v.handshakes >= v.l.cfg.maxHandshakes() {
		v.mu.Unlock()
		v.failed(info.RemoteAddr, errEvicted)
		return nil, errEvicted
	}
	v.handshakes++
	v.owned.Add(1)
	v.mu.Unlock()

	hs := &quicHandshake{since: time.Now()}
	remote := info.RemoteAddr
	hs.stop = context.AfterFunc(ctx, func() {
		defer v.owned.Done()
		if hs.over.CompareAndSwap(false, true) {
			v.failed(remote, context.Cause(ctx))
			v.end()
		}
	})
	return context.WithValue(ctx, quicHandshakeKey{}, hs), nil
}

// end counts a handshake out.
func (v *quicServer) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.handshakes--; v.draining && v.handshakes == 0 {
		v.drained()
	}
}

func (v *quicServer) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.handshakes
}

func (v *quicServer) drain() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.draining = true; v.handshakes == 0 {
		v.drained()
	}
}

// failed tells why a handshake came to nothing.
func (v *quicServer) failed(remote net.Addr, err error) {
	te, ok := errors.AsType[*quic.TransportError](err)
	refused := ok && !te.Remote && te.ErrorCode == quic.ConnectionRefused // by quic-go: it closes, or its queue is full
	cut := refused && closed(v.l.closing)
	evicted := err == errEvicted || refused && !cut
	left := ok && te.Remote && te.ErrorCode == quic.ApplicationErrorErrorCode // closed without a fault (RFC 9000 §10.2.3)
	if ok && !left {                                                          // quic-go lets these pass for net.ErrClosed too
		err = failed(ReasonQUICHandshake, errors.New(err.Error()))
	}
	o := v.l.Origin(addrPort(remote), addrPort(v.l.Addr()))
	v.l.reject(o, fmt.Errorf("listen: QUIC handshake: %w", err), cut, evicted)
}

// accept takes the next connection whose handshake is done, and waits in a goroutine for the stream that carries the session.
// It returns false when until ends or ln is closed.
func (v *quicServer) accept(ctx, until context.Context, ln *quic.Listener, h Handler) bool {
	conn, err := ln.Accept(until)
	if err != nil {
		return false
	}
	hs := conn.Context().Value(quicHandshakeKey{}).(*quicHandshake)
	if !hs.over.CompareAndSwap(false, true) {
		return true // it has failed meanwhile, and has been counted
	}
	v.owned.Go(func() { v.welcome(ctx, conn, hs, h) })
	if hs.stop() {
		v.owned.Done()
	}
	v.end()
	return true
}

// welcome takes one connection from handshake to hand-over.
func (v *quicServer) welcome(ctx context.Context, conn *quic.Conn, hs *quicHandshake, h Handler) {
	v.l.quic.hold()
	bounded, cut := context.WithDeadline(ctx, hs.since.Add(v.l.cfg.handshakeTimeout()))
	place := v.l.queue.enter(hs.since, cut)
	o := v.l.Origin(addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr()))
	o.TLS = tlsOrigin(conn.ConnectionState().TLS)
	stream, err := conn.AcceptStream(bounded)
	cut()
	if evicted := v.l.queue.leave(place); evicted || err != nil {
		_ = conn.CloseWithError(quicNoStream, "no stream")
		v.l.quic.release()
		v.l.reject(o, fmt.Errorf("listen: first QUIC stream: %w", err), ctx.Err() != nil, evicted)
		return
	}
	h(&quicStream{stream: stream, conn: conn, socket: v.l.quic}, o, hs.since)
}

// quicStream is the stream that carries a session, and the connection, which lives for nothing else.
type quicStream struct {
	stream *quic.Stream
	conn   *quic.Conn
	socket *quicSocket

	closed atomic.Bool
	write  sync.Mutex // Write and the end of the sending direction exclude each other
}

var _ relay.Stream = (*quicStream)(nil)

// Read ends with io.EOF also where the client closed the whole connection in order.
func (s *quicStream) Read(p []byte) (int, error) {
	n, err := s.stream.Read(p)
	if ae, ok := errors.AsType[*quic.ApplicationError](err); ok && ae.Remote && ae.ErrorCode == quicOK {
		err = io.EOF
	} else if err != nil && s.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

func (s *quicStream) Write(p []byte) (int, error) {
	s.write.Lock()
	defer s.write.Unlock()
	return s.stream.Write(p)
}

// CloseWrite ends the sending direction (FIN).
func (s *quicStream) CloseWrite() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.stream.Close()
}

// Close ends the stream and, once the client has closed the connection or quicLinger has passed, the connection with code 0. A
// Write in progress is cut, and the connection with it.
func (s *quicStream) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	_ = s.stream.SetReadDeadline(time.Unix(1, 0)) // ends a Read in progress
	if !s.write.TryLock() {
		s.end()
		return nil
	}
	_ = s.stream.Close()
	s.write.Unlock()
	timer := time.AfterFunc(quicLinger, s.end)
	context.AfterFunc(s.conn.Context(), func() {
		if timer.Stop() {
			s.end()
		}
	})
	return nil
}

func (s *quicStream) end() {
	_ = s.conn.CloseWithError(quicOK, "")
	s.socket.release()
}

// SetReadDeadline is the stream's.
func (s *quicStream) SetReadDeadline(t time.Time) error { return s.stream.SetReadDeadline(t) }

// SetWriteDeadline is the stream's.
func (s *quicStream) SetWriteDeadline(t time.Time) error { return s.stream.SetWriteDeadline(t) }
