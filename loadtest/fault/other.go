//go:build !unix

package fault

import (
	"context"
	"math/rand/v2"
)

const supported = false

type subject struct{}

func present(int) error { return ErrUnsupported }

func (r *run) do(context.Context, *Event, *rand.Rand) (string, error) { return "", ErrUnsupported }
