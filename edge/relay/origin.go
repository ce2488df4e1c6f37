package relay

import (
	"io"
	"net/netip"
	"time"
)

// Origin is what is known of a client before its first MQTT byte.
type Origin struct {
	Listener  string         // name of the listener that accepted it
	Transport string         // "tcp", "tls", "ws", "wss" or "quic"
	Client    netip.AddrPort // the client's address: the PROXY header's source if one was trusted, else Peer
	Server    netip.AddrPort // the address that the client connected to: likewise
	Peer      netip.AddrPort // the other end of the socket
	UniqueID  []byte         // PP2_TYPE_UNIQUE_ID of a trusted PROXY header, else nil
	TLS       *TLS           // nil without TLS
}

// TLS is what a TLS (or QUIC) handshake told.
type TLS struct {
	Version    uint16 // tls.VersionTLS12, tls.VersionTLS13
	ServerName string // SNI
	ALPN       string
	Cipher     string
	// CommonName is the client certificate's subject CN, only if the certificate was verified; "" otherwise.
	CommonName string
	Verified   bool // a client certificate was presented and verified
}

// A Stream is a byte stream that carries one MQTT connection: TCP, TLS, the payload of WebSocket messages, or a QUIC stream.
// Read and the writing methods may be called from two goroutines, Close from any. net.TCPConn and tls.Conn are Streams.
type Stream interface {
	io.ReadWriteCloser
	// CloseWrite ends the writing direction in the way that the transport has (FIN, close_notify, close frame);
	// the peer's bytes still arrive.
	CloseWrite() error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}
