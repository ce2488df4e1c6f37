//go:build !linux

package relay

func wrappedKinds() []rigKind { return nil }
