package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// minFarewell bounds writing the farewell where nobody wants to wait for the peer's.
const minFarewell = 100 * time.Millisecond

// buffers are shared by all connections for the moments in which bytes pass. A record of TLS has at most 16 KiB and a little.
var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

func buffer() *[16 << 10]byte { return buffers.Get().(*[16 << 10]byte) }

// tcpConn is plain TCP, and what lies below TLS and WebSocket.
type tcpConn struct {
	*net.TCPConn
	raw    syscall.RawConn // of TCPConn, kept: asking for it allocates
	linger time.Duration
}

// dialTCP connects and sends the prelude.
func (d *Dialer) dialTCP(ctx context.Context, ep *Endpoint, source netip.Addr) (*tcpConn, error) {
	dialer := net.Dialer{Timeout: d.timeout(), KeepAlive: -1} // MQTT has a keep-alive of its own
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		dialer.Control = controlBind
	}
	connected, err := dialer.DialContext(ctx, "tcp", ep.Addr.String()) // not DialTCP: it binds to the wildcard and a port where no source is given
	if err != nil {
		return nil, err
	}
	conn := connected.(*net.TCPConn)
	c := &tcpConn{TCPConn: conn, linger: d.linger()}
	if c.raw, err = conn.SyscallConn(); err == nil && d.HasPrelude() {
		err = d.within(ctx, conn, func() error {
			_, err := conn.Write(d.AppendPrelude(nil, addrPort(conn.LocalAddr()), ep.Addr))
			return err
		})
	}
	if err != nil {
		_ = c.Abort()
		return nil, err
	}
	return c, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (c *tcpConn) Resumed() bool { return false }

// farewell bounds all reads and writes from now on. Those who lay something over tcpConn call it before they write their own farewell.
func (c *tcpConn) farewell() { _ = c.SetDeadline(time.Now().Add(max(c.linger, minFarewell))) }

func (c *tcpConn) Close() error {
	c.farewell()
	err := c.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		err = nil // the peer is gone altogether
	}
	if err == nil && c.linger > 0 {
		c.drain()
	}
	if closeErr := c.TCPConn.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, net.ErrClosed) {
		return nil // by an earlier Close or Abort
	}
	return err
}

// drain discards what comes until the end or the deadline: a socket that is closed with bytes unread sends RST, which makes the peer drop
// what it has not read yet (RFC 2525 §2.17).
func (c *tcpConn) drain() {
	for c.Wait() == nil {
		b := buffer()
		_, err := c.Read(b[:])
		buffers.Put(b)
		if err != nil {
			return
		}
	}
}

// Abort makes close send RST: the data not sent yet are dropped (SO_LINGER of zero).
func (c *tcpConn) Abort() error {
	_ = c.SetLinger(0)
	err := c.TCPConn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
