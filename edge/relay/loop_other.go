//go:build !linux

package relay

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// Supported reports whether this system has the epoll driver.
const Supported = false

// Loop is the epoll driver, which this system lacks: Serve carries every session.
type Loop struct{}

var errNoEpoll = errors.New("relay: no epoll on this system")

// NewLoop fails.
func NewLoop(LoopConfig) (*Loop, error) { return nil, errNoEpoll }

// Listen fails.
func (*Loop) Listen(*net.TCPListener, *Limits, Accept) (stop func(), err error) {
	return nil, errNoEpoll
}

// Open fails.
func (*Loop) Open(*net.TCPListener, *Limits, Door) (stop func(), err error) { return nil, errNoEpoll }

// Run fails.
func (*Loop) Run(context.Context) error { return errNoEpoll }

// userTimeoutControl does nothing: what notices a dead peer here is TCP's keep-alive.
func userTimeoutControl(_, _ string, _ syscall.RawConn) error { return nil }

// unsent and waiting are not known here.
func unsent(Stream) int  { return 0 }
func waiting(Stream) int { return 0 }
