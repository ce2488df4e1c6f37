// Package wire carries MQTT bytes to a broker or an edge over TCP, TLS, WebSocket, WebSocket over TLS, and QUIC, for very many clients in
// one process. It knows no MQTT.
//
//	targets, _ := wire.ParseAll([]string{"mqtt://edge.example:1883", "wss://10.0.0.7/mqtt"}, wire.TCP)
//	endpoints, _ := wire.Resolve(ctx, "ip", targets...)           // a name gives all its addresses
//	chooser := wire.RoundRobin(endpoints)                         // or wire.Random(endpoints, seed)
//	dialer, _ := wire.New(wire.Config{TLS: &tls.Config{RootCAs: pool}})
//	defer dialer.Close()
//	conn, err := dialer.Dial(ctx, chooser.Next())                 // all handshakes are done
//	if err != nil { count(wire.Reason(err)) }                     // one word of a closed set
//	for conn.Wait() == nil { buf := pool.Get(); n, err := conn.Read(buf); … }
//
// An idle connection costs what the library below needs and no buffer of ours: [Conn.Wait] holds none, a WebSocket is unframed in the
// caller's buffer, and the records of TLS pass through a shared pool. A client that drives plain TCP by itself (an epoll loop) takes from
// the [Dialer] only what it needs for that: [Dialer.Source], [Bind], [Dialer.AppendPrelude], and [Reason] for its errors.
//
// One Dialer is for one process: its TLS tickets are shared by all its clients, and so is one UDP socket per source address.
//
// It does not retry, it does not pool connections, it does not speak HTTP/2, WebSocket compression, QUIC's 0-RTT or several streams, and it
// refuses a server that breaks RFC 6455: a load test that is kind to a wrong answer hides it.
package wire

import (
	"fmt"
	"strings"
	"time"
)

// Transport is what carries the bytes of MQTT.
type Transport uint8

// The transports. The zero value is TCP.
const (
	TCP Transport = iota
	TLS
	WS   // WebSocket, RFC 6455, subprotocol "mqtt" [MQTT-6.0.0-3]
	WSS  // WebSocket over TLS
	QUIC // one bidirectional stream, ALPN "mqtt"
)

// transports says of each its name, the other schemes that mean it, and its port.
var transports = [...]struct {
	name    string
	schemes []string
	port    uint16
}{
	TCP:  {"tcp", []string{"tcp", "mqtt"}, 1883},
	TLS:  {"tls", []string{"tls", "mqtts", "ssl"}, 8883},
	WS:   {"ws", []string{"ws"}, 80},
	WSS:  {"wss", []string{"wss"}, 443},
	QUIC: {"quic", []string{"quic"}, 14567},
}

// Transports returns all of them.
func Transports() []Transport { return []Transport{TCP, TLS, WS, WSS, QUIC} }

func (t Transport) String() string {
	if int(t) >= len(transports) {
		return fmt.Sprintf("transport(%d)", uint8(t))
	}
	return transports[t].name
}

// Port is where servers listen by custom: 1883, 8883, 80, 443, and 14567 (UDP).
func (t Transport) Port() uint16 { return transports[t].port }

// Encrypted tells whether t needs a TLS configuration.
func (t Transport) Encrypted() bool { return t == TLS || t == WSS || t == QUIC }

// ParseTransport reads a transport's name or a scheme that means it: "tcp", "mqtt", "tls", "mqtts", "ssl", "ws", "wss", "quic".
func ParseTransport(s string) (Transport, error) {
	for t, kind := range transports {
		for _, scheme := range kind.schemes {
			if strings.EqualFold(s, scheme) {
				return Transport(t), nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no transport %q: tcp (mqtt), tls (mqtts, ssl), ws, wss or quic", ErrTarget, s)
}

// Conn carries a stream of MQTT. One goroutine may read (Wait, Read) while others write; Close and Abort may be called at any time, also
// twice, and end what blocks.
type Conn interface {
	// Wait blocks until Read has something to tell, and holds no buffer meanwhile. It may return early: a Read after it can still block.
	// An error is one that Read would return.
	Wait() error

	// Read reads what came, at most len(p) bytes. The end that the peer made in order is [io.EOF]; for other ends see [Reason].
	Read(p []byte) (int, error)

	// Write writes all of p, or returns an error, after which the connection is of no use.
	Write(p []byte) (int, error)

	// SetReadDeadline bounds Wait and Read, SetWriteDeadline bounds Write; the zero time means no bound. A Write that was cut short by its
	// deadline leaves the connection of no use.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error

	// Close ends in order: the WebSocket close frame, TLS's close_notify, FIN; then it discards what the peer still sends, until the peer's
	// own end or [Config].Linger, so that no reset overtakes what was written last. It returns an error if the end could not be written.
	Close() error

	// Abort ends at once: RST for all but QUIC (nothing of WebSocket or TLS is said before), an immediate CONNECTION_CLOSE with
	// application error 1 for QUIC.
	Abort() error

	// Resumed tells whether the TLS handshake resumed an earlier session.
	Resumed() bool
}
