//go:build !linux

package client

import (
	"context"
	"errors"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/wire"
)

const loopsSupported = false

// loop and conn are Linux' alone: here every client has a stream.
type (
	loop struct{}
	conn struct {
		loop   *loop
		client *Client
		fd     int32
	}
	mail struct {
		conn *conn
		open *wire.Endpoint
	}
)

func newLoop(*Engine) (*loop, error)    { return nil, errors.ErrUnsupported }
func (*loop) run(context.Context) error { return errors.ErrUnsupported }
func (*loop) free()                     {}
func (*loop) post(mail) bool            { return false }
func (*conn) flush()                    {}
func (*conn) stop()                     {}
func (*conn) expire(time.Duration)      {}
