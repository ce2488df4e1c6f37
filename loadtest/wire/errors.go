package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/quic-go/quic-go"
)

// A reason is a sentinel error that is counted by its word.
type reason struct{ word, text string }

func (r *reason) Error() string { return "wire: " + r.text }

// Why a connection could not be made, or ended. Errors of this package, and those of the system below it, answer to them with [errors.Is]
// if they come from [Dialer.Dial]; for others see [Reason].
var (
	ErrResolve     error = &reason{"resolve", "cannot resolve"}
	ErrRefused     error = &reason{"refused", "connection refused"}
	ErrUnreachable error = &reason{"unreachable", "no route to the host"}
	ErrTimeout     error = &reason{"timeout", "timed out"}
	ErrReset       error = &reason{"reset", "reset by the peer"}
	ErrClosed      error = &reason{"closed", "closed by the peer"}
	ErrTLS         error = &reason{"tls", "TLS failed"}
	ErrUpgrade     error = &reason{"upgrade", "WebSocket upgrade failed"}
	ErrWebSocket   error = &reason{"websocket", "WebSocket protocol error"}
	ErrQUIC        error = &reason{"quic", "QUIC protocol error"}
	ErrDescriptors error = &reason{"descriptors", "out of file descriptors: raise the limit (ulimit -n) or use more worker processes"}
	ErrPorts       error = &reason{"ports", "no local port or address left: give more source addresses, or check those given"}
	ErrMemory      error = &reason{"memory", "out of memory for sockets"}
	ErrSource      error = &reason{"source", "no source address of the endpoint's family"}
	ErrCancelled   error = &reason{"cancelled", "ended by ourselves"}
	ErrOther       error = &reason{"other", "failed"}
)

var reasons = []error{
	ErrResolve, ErrRefused, ErrUnreachable, ErrTimeout, ErrReset, ErrClosed, ErrTLS, ErrUpgrade, ErrWebSocket, ErrQUIC, ErrDescriptors, ErrPorts,
	ErrMemory, ErrSource, ErrCancelled, ErrOther,
}

// Reasons returns the closed set of words that [Reason] uses.
func Reasons() []string {
	var words []string
	for _, r := range reasons {
		words = append(words, r.(*reason).word)
	}
	return words
}

// Reason is the word by which err is counted, out of [Reasons]: for errors of this package, of sockets (also a bare [syscall.Errno]), of
// TLS and of QUIC. "closed" is an end that the peer made in order, "cancelled" one that we made; "other" is everything unknown.
// It is empty for nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	return sentinel(err).(*reason).word
}

// Stage says how far a dial came.
type Stage string

// The stages of [Dialer.Dial].
const (
	StageDial      Stage = "dial"      // TCP's connect, and the PROXY header
	StageHandshake Stage = "handshake" // of TLS, WebSocket and QUIC (whose first packet is one already)
)

// Error is what [Dialer.Dial] returns.
type Error struct {
	Stage    Stage
	Endpoint *Endpoint
	Err      error
}

// Error is one line: endpoint, stage if it is not the first, cause, and advice if there is some.
func (e *Error) Error() string {
	s := e.Endpoint.String() + ": "
	if e.Stage != StageDial {
		s += string(e.Stage) + ": "
	}
	err := e.Err
	if op, ok := err.(*net.OpError); ok && op.Op != tlsRemote && op.Op != tlsLocal {
		err = op.Err // "dial tcp 10.0.0.1:50000->127.0.0.1:1883: …" repeats what is said already
	}
	s += err.Error()
	if r := sentinel(e.Err); (r == ErrDescriptors || r == ErrPorts) && !errors.Is(err, r) {
		s += " (" + r.(*reason).text + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is tells whether target is the sentinel of e's reason.
func (e *Error) Is(target error) bool { return target == sentinel(e.Err) }

// errnos are the reasons of system errors.
var errnos = []struct {
	reason error
	of     []syscall.Errno
}{
	{ErrRefused, []syscall.Errno{syscall.ECONNREFUSED}},
	{ErrReset, []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED}},
	{ErrTimeout, []syscall.Errno{syscall.ETIMEDOUT}},
	{ErrUnreachable, []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN}},
	{ErrDescriptors, []syscall.Errno{syscall.EMFILE, syscall.ENFILE}},
	{ErrPorts, []syscall.Errno{syscall.EADDRNOTAVAIL, syscall.EADDRINUSE}},
	{ErrMemory, []syscall.Errno{syscall.ENOBUFS, syscall.ENOMEM}},
}

// sentinel finds why, from the most telling kind of error to the least.
func sentinel(err error) error {
	if r, ok := errors.AsType[*reason](err); ok {
		return r
	}
	if r := quicReason(err); r != nil {
		return r // before net.ErrClosed, which QUIC's errors wrap whoever closed
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return ErrResolve
	}
	if errors.Is(err, context.Canceled) {
		return ErrCancelled
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		for _, e := range errnos {
			if slices.Contains(e.of, errno) {
				return e.reason
			}
		}
		return ErrOther
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, context.DeadlineExceeded) {
		return ErrTimeout
	}
	if isTLS(err) {
		return ErrTLS
	}
	switch {
	case errors.Is(err, net.ErrClosed):
		return ErrCancelled
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrClosed
	}
	return ErrOther
}

// The operations of [net.OpError] in which crypto/tls wraps alerts: who sent them.
const (
	tlsRemote = "remote error"
	tlsLocal  = "local error"
)

// isTLS knows the errors of crypto/tls by their types, and its alerts by the operation that they name.
func isTLS(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == tlsRemote || op.Op == tlsLocal) {
		return true
	}
	return is[tls.AlertError](err) || is[tls.RecordHeaderError](err) || is[*tls.CertificateVerificationError](err) ||
		is[x509.UnknownAuthorityError](err) || is[x509.HostnameError](err) || is[x509.CertificateInvalidError](err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// quicReason is nil for errors of others.
func quicReason(err error) error {
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		switch {
		case e.ErrorCode.IsCryptoError():
			return ErrTLS
		case e.ErrorCode == quic.ConnectionRefused:
			return ErrRefused
		}
		return ErrQUIC
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		if e.Remote {
			return ErrClosed
		}
		return ErrCancelled
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		if e.Remote {
			return ErrReset
		}
		return ErrCancelled
	}
	switch {
	case is[*quic.IdleTimeoutError](err), is[*quic.HandshakeTimeoutError](err):
		return ErrTimeout
	case is[*quic.StatelessResetError](err):
		return ErrReset
	case is[*quic.VersionNegotiationError](err):
		return ErrQUIC
	case errors.Is(err, quic.ErrTransportClosed):
		return ErrCancelled
	}
	return nil
}
