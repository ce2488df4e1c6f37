package upstream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/limpet-mesh/limpet/edge/ws"
)

// The closed set of reasons why a broker was not reached, as they appear in logs and metrics.
const (
	ReasonRefused     = "refused"     // the host answers, but nobody listens on the port
	ReasonTimeout     = "timeout"     // no answer in time, at any stage
	ReasonUnreachable = "unreachable" // the network has no way there
	ReasonReset       = "reset"       // the connection was cut
	ReasonDNS         = "dns"         // the name has no address
	ReasonTLS         = "tls"         // the TLS handshake failed
	ReasonWebSocket   = "ws"          // the upgrade failed, or a frame was malformed
	ReasonMQTT        = "mqtt"        // a probe's CONNECT was not answered by CONNACK
	ReasonLocal       = "local"       // this edge is out of descriptors, ports or memory: no word about the broker
	ReasonConfig      = "config"      // the broker's configuration cannot be used here: no word about the broker
	ReasonSelf        = "self"        // the address is a listener of this edge
	ReasonCanceled    = "canceled"    // the caller gave up: no word about the broker
	ReasonOther       = "other"
)

// Reasons lists the set, so that counters can exist before their first event.
func Reasons() []string {
	return []string{
		ReasonRefused, ReasonTimeout, ReasonUnreachable, ReasonReset, ReasonDNS, ReasonTLS,
		ReasonWebSocket, ReasonMQTT, ReasonLocal, ReasonConfig, ReasonSelf, ReasonCanceled, ReasonOther,
	}
}

// Refused reports whether err says that the broker's host answers while its port is closed. For a name with several
// addresses every one that this edge has a route to must have refused. It takes bare errnos of a driver's own sockets too.
func Refused(err error) bool { return err != nil && Reason(err) == ReasonRefused }

// Reason names the cause of an error of Dial, Resolve, a probe, a stream, or a socket: one of Reasons, "" for nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if d, ok := errors.AsType[*dialError](err); ok {
		return d.reason()
	}
	switch {
	case errors.Is(err, ErrConfig):
		return ReasonConfig
	case errors.Is(err, ErrSelf):
		return ReasonSelf
	case errors.Is(err, context.Canceled):
		return ReasonCanceled
	case errors.Is(err, ErrDNS):
		return ReasonDNS
	case timedOut(err):
		return ReasonTimeout
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		switch errno {
		case syscall.ECONNREFUSED:
			return ReasonRefused
		case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EAFNOSUPPORT:
			return ReasonUnreachable
		case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
			syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EACCES, syscall.EPERM:
			return ReasonLocal
		}
	}
	switch {
	case errors.Is(err, ErrTLS):
		return ReasonTLS
	case errors.Is(err, ErrWebSocket), isFrames(err):
		return ReasonWebSocket
	case errors.Is(err, ErrConnack):
		return ReasonMQTT
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return ReasonReset
	}
	return ReasonOther
}

// isFrames reports whether err is about frames: a broken rule, or a close frame that tells of a failure.
func isFrames(err error) bool {
	_, broken := errors.AsType[*ws.Error](err)
	_, closed := errors.AsType[ws.CloseError](err)
	return broken || closed
}

func timedOut(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout() // ETIMEDOUT among them
}

// dialError is what every address of a broker answered.
type dialError struct {
	broker   string
	attempts []error
}

func (e *dialError) Error() string {
	var s strings.Builder
	s.WriteString("broker " + e.broker)
	separator := ": "
	for _, err := range e.attempts {
		s.WriteString(separator + err.Error())
		separator = "; "
	}
	return s.String()
}

func (e *dialError) Unwrap() []error { return e.attempts }

// reason weighs the attempts: the last word that is not a refusal counts, so that a broker has refused only where every
// address did. Addresses that this edge has no way to say nothing unless there is nothing else.
func (e *dialError) reason() string {
	var word, refused, away string
	for _, err := range e.attempts {
		switch r := Reason(err); {
		case r == ReasonRefused:
			refused = r
		case noWay(err):
			away = r
		default:
			word = r
		}
	}
	return cmp.Or(word, refused, away, ReasonOther)
}

// noWay reports that this machine has no route for the address: typically IPv6 where there is only IPv4.
func noWay(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}
