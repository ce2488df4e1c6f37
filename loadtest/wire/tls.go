package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxSessions bounds the tickets kept per transport: one for each server name.
const maxSessions = 1024

// tlsConfigs holds one configuration per transport and server name: a clone for each connection would be most of its memory.
type tlsConfigs struct {
	base   [len(transports)]*tls.Config
	byHost sync.Map // tlsKey → *tls.Config
}

type tlsKey struct {
	transport Transport
	host      string
}

func (t *tlsConfigs) set(cfg Config) {
	for _, kind := range Transports() {
		if !kind.Encrypted() {
			continue
		}
		base := cfg.TLS.Clone()
		if base == nil {
			base = &tls.Config{}
		}
		switch kind {
		case WSS:
			base.NextProtos = []string{"http/1.1"}
		case QUIC:
			base.NextProtos = []string{"mqtt"}
			base.MinVersion = tls.VersionTLS13 // RFC 9001 §4.2
		}
		if cfg.NoResume {
			base.ClientSessionCache = nil
		} else if base.ClientSessionCache == nil {
			base.ClientSessionCache = tls.NewLRUClientSessionCache(maxSessions)
		}
		t.base[kind] = base
	}
}

func (t *tlsConfigs) of(ep *Endpoint) *tls.Config {
	base := t.base[ep.Transport]
	if base.ServerName != "" {
		return base
	}
	key := tlsKey{ep.Transport, ep.Host}
	if cfg, ok := t.byHost.Load(key); ok {
		return cfg.(*tls.Config)
	}
	cfg := base.Clone()
	cfg.ServerName = ep.Host
	first, _ := t.byHost.LoadOrStore(key, cfg)
	return first.(*tls.Config)
}

func (d *Dialer) countHandshake(resumed bool) {
	d.handshakes.Add(1)
	if resumed {
		d.resumed.Add(1)
	}
}

// tlsConn is TLS over TCP.
type tlsConn struct {
	tcp     *tcpConn
	records records
	tls     *tls.Conn
	more    bool // the last Read filled its buffer: there may be more of the same record
	resumed bool
}

func (d *Dialer) startTLS(ctx context.Context, tcp *tcpConn, ep *Endpoint) (*tlsConn, error) {
	c := &tlsConn{tcp: tcp, records: records{tcp: tcp}}
	c.tls = tls.Client(&c.records, d.tls.of(ep))
	if err := d.within(ctx, tcp.TCPConn, c.tls.Handshake); err != nil {
		if sentinel(err) == ErrOther {
			return nil, fmt.Errorf("%w: %w", ErrTLS, err) // most errors of crypto/tls have no type
		}
		return nil, err
	}
	c.resumed = c.tls.ConnectionState().DidResume
	d.countHandshake(c.resumed)
	return c, nil
}

func (c *tlsConn) Wait() error {
	if c.more || c.records.buf != nil {
		return nil
	}
	err := c.tcp.Wait()
	c.records.waited = err == nil
	return err
}

func (c *tlsConn) Read(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	c.more = n > 0 && n == len(p)
	if err != nil && err != io.EOF && sentinel(err) == ErrOther {
		err = fmt.Errorf("%w: %w", ErrTLS, err)
	}
	return n, err
}

func (c *tlsConn) Write(p []byte) (int, error)        { return c.tls.Write(p) }
func (c *tlsConn) SetReadDeadline(t time.Time) error  { return c.tcp.SetReadDeadline(t) }
func (c *tlsConn) SetWriteDeadline(t time.Time) error { return c.tcp.SetWriteDeadline(t) }
func (c *tlsConn) Abort() error                       { return c.tcp.Abort() }
func (c *tlsConn) Resumed() bool                      { return c.resumed }

func (c *tlsConn) Close() error {
	c.tcp.farewell() // before what waits for a Write that is stuck
	err := c.tls.CloseWrite()
	if closeErr := c.tcp.Close(); err == nil || sentinel(err) == ErrCancelled {
		err = closeErr
	}
	return err
}

// recordHeader is the length of a record's header: type, version (2), length (2) (RFC 8446 §5.1).
const recordHeader = 5

// records gives crypto/tls the bytes of one record at a time, and so keeps it from reading ahead: what TLS has not decrypted yet is here,
// in a buffer of the pool, or still in the socket, where Wait sees it.
type records struct {
	tcp    *tcpConn
	buf    *[16 << 10]byte // nil while there is nothing between r and w
	r, w   int
	header int  // bytes of the current record's header given out, if body is 0
	length int  // of its body, as far as read
	body   int  // bytes of its body still to give out
	waited bool // the socket has something to read
}

func (r *records) Read(p []byte) (int, error) {
	if r.buf == nil {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := 0
	for n < len(p) && r.r < r.w {
		if r.body == 0 {
			p[n] = r.headerByte()
			n++
			if r.header == 0 && r.body == 0 {
				break // an empty record
			}
			continue
		}
		m := copy(p[n:], r.buf[r.r:min(r.w, r.r+r.body)])
		n, r.r, r.body = n+m, r.r+m, r.body-m
		if r.body == 0 {
			break
		}
	}
	if r.r == r.w {
		buffers.Put(r.buf)
		r.buf = nil
	}
	return n, nil
}

// headerByte gives out a byte of the header, and learns the length of the body from the last two.
func (r *records) headerByte() byte {
	b := r.buf[r.r]
	r.r++
	r.header++
	switch r.header {
	case recordHeader - 1:
		r.length = int(b) << 8
	case recordHeader:
		r.header, r.body = 0, r.length|int(b)
	}
	return b
}

// fill reads from the socket, and holds no buffer while it waits.
func (r *records) fill() error {
	if !r.waited {
		if err := r.tcp.Wait(); err != nil {
			return err
		}
	}
	r.waited = false
	buf := buffer()
	n, err := r.tcp.Read(buf[:])
	if n == 0 {
		buffers.Put(buf)
		return err
	}
	r.buf, r.r, r.w = buf, 0, n
	return nil
}

func (r *records) Write(p []byte) (int, error)       { return r.tcp.Write(p) }
func (r *records) Close() error                      { return r.tcp.TCPConn.Close() }
func (r *records) LocalAddr() net.Addr               { return r.tcp.LocalAddr() }
func (r *records) RemoteAddr() net.Addr              { return r.tcp.RemoteAddr() }
func (r *records) SetDeadline(t time.Time) error     { return r.tcp.SetDeadline(t) }
func (r *records) SetReadDeadline(t time.Time) error { return r.tcp.SetReadDeadline(t) }

// SetWriteDeadline leaves the deadline as it is: crypto/tls calls it only around its close_notify, for five seconds of its own choice.
func (r *records) SetWriteDeadline(time.Time) error { return nil }
