package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// quicIDLength is that of our connection IDs: the shared socket tells its many connections apart by nothing else.
const quicIDLength = 8

// quicAborted is the application error of [Conn.Abort]: anything but 0, the end in order.
const quicAborted = 1

// quicSocket is one UDP socket, shared by all clients with one source address.
type quicSocket struct {
	udp       *net.UDPConn
	transport *quic.Transport
}

func (d *Dialer) quicSocket(source netip.Addr, v4 bool) (*quicSocket, error) {
	network := "udp6"
	if v4 {
		network = "udp4"
	}
	if !source.IsValid() {
		source = netip.IPv6Unspecified()
		if v4 {
			source = netip.IPv4Unspecified()
		}
	}
	d.quicMu.Lock()
	defer d.quicMu.Unlock()
	if d.quicClosed {
		return nil, quic.ErrTransportClosed
	}
	if s := d.quic[source]; s != nil {
		return s, nil
	}
	udp, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
	if err != nil {
		return nil, err
	}
	s := &quicSocket{udp, &quic.Transport{Conn: udp, ConnectionIDLength: quicIDLength}}
	d.quic[source] = s
	return s, nil
}

func (d *Dialer) closeQUIC() error {
	d.quicMu.Lock()
	defer d.quicMu.Unlock()
	d.quicClosed = true
	var all []error
	for source, s := range d.quic {
		all = append(all, s.transport.Close(), s.udp.Close())
		delete(d.quic, source)
	}
	return errors.Join(all...)
}

func (d *Dialer) dialQUIC(ctx context.Context, ep *Endpoint, source netip.Addr) (*quicConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	s, err := d.quicSocket(source, ep.Addr.Addr().Unmap().Is4())
	if err != nil {
		return nil, err
	}
	conn, err := s.transport.Dial(ctx, net.UDPAddrFromAddrPort(ep.Addr), d.tls.of(ep), &quic.Config{
		HandshakeIdleTimeout:  d.timeout(),
		MaxIdleTimeout:        d.quicIdle(),
		KeepAlivePeriod:       d.quicIdle() / 3,
		MaxIncomingStreams:    -1, // the client opens the only stream
		MaxIncomingUniStreams: -1,
	})
	if err != nil {
		return nil, err
	}
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		_ = conn.CloseWithError(quicAborted, "")
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	c := &quicConn{stream: stream, conn: conn, linger: d.linger(), resumed: conn.ConnectionState().TLS.DidResume}
	d.countHandshake(c.resumed)
	return c, nil
}

// quicConn is the one stream of a QUIC connection. While it is open QUIC acknowledges what comes, read or not.
type quicConn struct {
	stream  *quic.Stream
	conn    *quic.Conn
	linger  time.Duration
	resumed bool
	peek    [1]byte

	mu sync.Mutex // the stream's Write and Close exclude each other
}

func (c *quicConn) Wait() error {
	_, err := c.stream.Peek(c.peek[:])
	return err
}

func (c *quicConn) Read(p []byte) (int, error) { return c.stream.Read(p) }

func (c *quicConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream.Write(p)
}

func (c *quicConn) SetReadDeadline(t time.Time) error  { return c.stream.SetReadDeadline(t) }
func (c *quicConn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }
func (c *quicConn) Resumed() bool                      { return c.resumed }

// Close ends the stream, and the connection once the peer has ended it too: an earlier CONNECTION_CLOSE would drop what was not sent yet.
func (c *quicConn) Close() error {
	_ = c.stream.SetDeadline(time.Now().Add(max(c.linger, minFarewell))) // also for a Write that is stuck
	c.mu.Lock()
	err := c.stream.Close()
	c.mu.Unlock()
	if err == nil {
		c.drain()
	}
	if closeErr := c.conn.CloseWithError(0, ""); err == nil {
		err = closeErr
	}
	if quicReason(err) == ErrCancelled {
		return nil
	}
	return err
}

// drain discards what comes until the end or the deadline. It leaves Wait to the reader.
func (c *quicConn) drain() {
	b := buffer()
	defer buffers.Put(b)
	for {
		if _, err := c.stream.Read(b[:]); err != nil {
			return
		}
	}
}

func (c *quicConn) Abort() error { return c.conn.CloseWithError(quicAborted, "") }
