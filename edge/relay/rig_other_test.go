//go:build !linux

package relay

import (
	"net/netip"
	"testing"
)

// fullQueue would be a listening socket whose queue is full; elsewhere an address of TEST-NET-1 (RFC 5737) swallows as much.
func fullQueue(*testing.T) netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:1883") }
