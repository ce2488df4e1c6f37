package realtest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
)

// transports are those of an edge's five listeners.
var transports = []string{"tcp", "tls", "ws", "wss", "quic"}

const dialTimeout = 10 * time.Second

// clientTLS is what a client of ours checks an edge's certificate with.
func (e *edgeProc) clientTLS() *tls.Config {
	return &tls.Config{RootCAs: e.pki.roots, ServerName: "127.0.0.1"}
}

// dial connects to a listener of the edge. MQTT's bytes go over what it returns as they are.
func (e *edgeProc) dial(transport string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	address := e.at[transport]
	switch transport {
	case "tls":
		d := tls.Dialer{Config: e.clientTLS()}
		return d.DialContext(ctx, "tcp", address)
	case "ws", "wss":
		var tcp net.Conn
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: e.clientTLS(),
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				var d net.Dialer
				conn, err := d.DialContext(ctx, network, address)
				tcp = conn
				return conn, err
			},
		}}
		ws, resp, err := websocket.Dial(ctx, transport+"://"+address+"/mqtt", &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"mqtt"}})
		if err != nil {
			return nil, err
		}
		if resp.Body != nil {
			resp.Body.Close()
		}
		ws.SetReadLimit(-1)
		return wsConn{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), tcp}, nil
	case "quic":
		return dialQUIC(ctx, address, e.clientTLS())
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// wsConn is a WebSocket as a net.Conn that knows its addresses.
type wsConn struct {
	net.Conn
	tcp net.Conn
}

func (c wsConn) LocalAddr() net.Addr  { return c.tcp.LocalAddr() }
func (c wsConn) RemoteAddr() net.Addr { return c.tcp.RemoteAddr() }

// Close cuts the connection: the closing handshake of WebSocket would wait for the peer.
func (c wsConn) Close() error {
	c.tcp.Close()
	return c.Conn.Close()
}

// quicConn is the first stream of a QUIC connection, as a net.Conn.
type quicConn struct {
	*quic.Stream
	conn *quic.Conn
	once sync.Once
}

func dialQUIC(ctx context.Context, address string, conf *tls.Config) (net.Conn, error) {
	conf.NextProtos = []string{"mqtt"}
	// A peer that was killed says nothing: it is missed after MaxIdleTimeout.
	conn, err := quic.DialAddr(ctx, address, conf, &quic.Config{KeepAlivePeriod: 500 * time.Millisecond, MaxIdleTimeout: 3 * time.Second})
	if err != nil {
		return nil, err
	}
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		conn.CloseWithError(0, "")
		return nil, err
	}
	return &quicConn{Stream: s, conn: conn}, nil
}

func (c *quicConn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *quicConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// Close ends the stream, and the connection once the peer has ended it too: what is written last would be lost with it.
func (c *quicConn) Close() error {
	c.once.Do(func() {
		c.Stream.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, c.Stream)
		c.conn.CloseWithError(0, "")
	})
	return nil
}
