package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Reason is why a connection was not handed over: one of a closed set, as it appears in logs and metrics.
type Reason string

// The set.
const (
	ReasonTimeout        Reason = "handshake_timeout" // the deadline passed before the handshakes were done
	ReasonClientGone     Reason = "client_gone"       // the client closed or reset the connection before they were done
	ReasonOverload       Reason = "overload"          // cut for newcomers: the bound of handshakes was reached
	ReasonShutdown       Reason = "shutdown"          // cut because the listener's context ended
	ReasonProxyHeader    Reason = "proxy_header"      // a trusted peer sent no PROXY header, or a malformed one
	ReasonProxyUntrusted Reason = "proxy_untrusted"   // a peer that may not send a PROXY header sent one
	ReasonTLSHandshake   Reason = "tls_handshake"     // no common version or cipher, no TLS at all, a refused certificate
	ReasonWSUpgrade      Reason = "ws_upgrade"        // not a WebSocket upgrade request, or a malformed one
	ReasonWSTooLarge     Reason = "ws_too_large"      // an upgrade request above the bound
	ReasonWSPath         Reason = "ws_path"           // for a path that is not served here
	ReasonWSOrigin       Reason = "ws_origin"         // from a web page that may not connect
	ReasonWSSubprotocol  Reason = "ws_subprotocol"    // offers neither mqtt nor mqttv3.1
	ReasonQUICHandshake  Reason = "quic_handshake"    // a QUIC handshake failed: ALPN is not mqtt, a refused certificate
)

// Reasons lists the set, so that counters can exist before their first event.
func Reasons() []Reason {
	return []Reason{
		ReasonTimeout, ReasonClientGone, ReasonOverload, ReasonShutdown, ReasonProxyHeader, ReasonProxyUntrusted, ReasonTLSHandshake,
		ReasonWSUpgrade, ReasonWSTooLarge, ReasonWSPath, ReasonWSOrigin, ReasonWSSubprotocol, ReasonQUICHandshake,
	}
}

// handshakeError is a failure that knows its reason.
type handshakeError struct {
	reason Reason
	err    error
}

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

func failed(r Reason, err error) error { return &handshakeError{r, err} }

// reasonOf names the cause of a failed handshake. What the network did (time-out, close) counts before the step in which it did it.
func reasonOf(err error) Reason {
	if errors.Is(err, errProxyUntrusted) {
		return ReasonProxyUntrusted
	}
	if ne, ok := errors.AsType[net.Error](err); errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || ok && ne.Timeout() {
		return ReasonTimeout
	}
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return ReasonClientGone
		}
	}
	if he, ok := errors.AsType[*handshakeError](err); ok {
		return he.reason
	}
	return ReasonClientGone
}
