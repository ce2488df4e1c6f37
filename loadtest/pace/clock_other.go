//go:build !linux

package pace

import "time"

func newAnchor() anchor {
	now := time.Now()
	return anchor{goes: now, host: now.UnixNano()}
}
