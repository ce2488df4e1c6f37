//go:build !linux

package relay

func loopModes() []mode { return nil }
