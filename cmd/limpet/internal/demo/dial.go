package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
)

// transport is a way to speak MQTT with an edge, named as listeners are.
type transport string

const (
	overTCP  transport = "tcp"
	overTLS  transport = "tls"
	overWS   transport = "ws"
	overWSS  transport = "wss"
	overQUIC transport = "quic"
)

var transports = []transport{overTCP, overTLS, overWS, overWSS, overQUIC}

func (t transport) encrypted() bool { return t == overTLS || t == overWSS || t == overQUIC }

// of is where an edge listens for a transport.
func (a *edgeAddresses) of(t transport) string {
	return [...]string{a.TCP, a.TLS, a.WS, a.WSS, a.QUIC}[slices.Index(transports, t)]
}

const (
	// websocketPath is the edges' default.
	websocketPath = "/mqtt"
	// quicIdle is how soon a QUIC client knows that an edge was killed: nothing comes back from a dead one, not even a reset.
	quicIdle      = 3 * time.Second
	quicKeepAlive = time.Second
)

// dial opens a connection that carries MQTT. ctx bounds the dialling.
func dial(ctx context.Context, t transport, address string, roots *x509.CertPool) (io.ReadWriteCloser, error) {
	secure := &tls.Config{RootCAs: roots}
	switch t {
	case overTCP:
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	case overTLS:
		return (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", address)
	case overWS:
		return dialWebSocket(ctx, "ws://"+address+websocketPath, secure)
	case overWSS:
		return dialWebSocket(ctx, "wss://"+address+websocketPath, secure)
	case overQUIC:
		secure.NextProtos = []string{"mqtt"}
		return dialQUIC(ctx, address, secure)
	}
	return nil, fmt.Errorf("no transport %q", t)
}

func dialWebSocket(ctx context.Context, url string, secure *tls.Config) (io.ReadWriteCloser, error) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}}
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"mqtt"}}) // [MQTT-6.0.0-3]
	if err != nil {
		return nil, err
	}
	return &wsConn{websocket.NetConn(context.WithoutCancel(ctx), ws, websocket.MessageBinary), ws}, nil // [MQTT-6.0.0-1]
}

// wsConn is MQTT in WebSocket messages. Close does not wait for the peer's close frame.
type wsConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c *wsConn) Close() error { return c.ws.CloseNow() }

func dialQUIC(ctx context.Context, address string, secure *tls.Config) (io.ReadWriteCloser, error) {
	conn, err := quic.DialAddr(ctx, address, secure, &quic.Config{MaxIdleTimeout: quicIdle, KeepAlivePeriod: quicKeepAlive})
	if err != nil {
		return nil, err
	}
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		_ = conn.CloseWithError(0, "")
		return nil, err
	}
	return &quicConn{stream, conn}, nil
}

// quicConn is MQTT on the first stream of a QUIC connection. Close drops what was not sent yet.
type quicConn struct {
	*quic.Stream
	conn *quic.Conn
}

func (c *quicConn) Close() error { return c.conn.CloseWithError(0, "") }
