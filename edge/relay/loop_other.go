//go:build !linux

package relay

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// Supported reports whether this system has the epoll driver.
const Supported = false

// Loop is the epoll driver, which this system lacks: Serve carries every session.
type Loop struct{}

var errNoEpoll = errors.New("relay: no epoll on this system")

// NewLoop fails.
func NewLoop(LoopConfig) (*Loop, error) { return nil, errNoEpoll }

// Listen fails.
func (*Loop) Listen(syscall.Conn, *Limits, Accept) (stop func(), err error) {
	return nil, errNoEpoll
}

// Open fails.
func (*Loop) Open(syscall.Conn, *Limits, Door) (stop func(), err error) { return nil, errNoEpoll }

// Run fails.
func (*Loop) Run(context.Context) error { return errNoEpoll }

// Busy is nothing.
func (*Loop) Busy() time.Duration { return 0 }

// Sessions are none.
func (*Loop) Sessions() int { return 0 }

// MakeRoom does nothing.
func (*Loop) MakeRoom() {}

// Give does nothing.
func (*Loop) Give(*Loop, int) {}

// Retire does nothing.
func (*Loop) Retire(*Loop) {}

// Socket is a listening socket for loops.
type Socket struct{}

// NewSocket fails.
func NewSocket(syscall.Conn) (*Socket, error) { return nil, errNoEpoll }

// SyscallConn fails.
func (*Socket) SyscallConn() (syscall.RawConn, error) { return nil, errNoEpoll }

// Close does nothing.
func (*Socket) Close() {}

// userTimeoutControl does nothing: what notices a dead peer here is TCP's keep-alive.
func userTimeoutControl(_, _ string, _ syscall.RawConn) error { return nil }

// unsent and waiting are not known here.
func unsent(Stream) int  { return 0 }
func waiting(Stream) int { return 0 }
