package tls13

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// An Error is an alert that ended a connection (RFC 8446 §6.2).
type Error struct {
	Alert  tls.AlertError
	Remote bool   // the peer sent it; else Reply holds it for the peer
	Why    string // what the peer did; empty if Remote
}

func (e *Error) Error() string {
	if e.Remote {
		return fmt.Sprintf("tls13: the peer sent an alert: %v", e.Alert)
	}
	return fmt.Sprintf("tls13: %s: %v", e.Why, e.Alert)
}

// Unwrap gives the alert, for [errors.As].
func (e *Error) Unwrap() error { return e.Alert }

// Transport names the layer whose rules were broken.
func (e *Error) Transport() string { return "tls" }

// Sentinels.
var (
	// ErrClosed is what Open returns once it has returned another error.
	ErrClosed = errors.New("tls13: reading has ended")
	// ErrState says that bytes are no state that AppendState wrote.
	ErrState = errors.New("tls13: not a state of a connection")
	// ErrSuite says that a cipher suite is none of TLS 1.3's three, or that a secret has not its length.
	ErrSuite = errors.New("tls13: unsupported cipher suite or secret")
)

// Alerts that are sent or looked at (RFC 8446 §6, appendix B.2).
const (
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertIllegalParameter  = 47
	alertDecodeError       = 50
	alertProtocolVersion   = 70
	alertInternalError     = 80
	alertUserCanceled      = 90
)
