//go:build !linux

package pace

import "time"

func sleeper(bool) (sleep func(time.Duration), done func()) { return nil, func() {} }
