//go:build !linux

package upstream

import "testing"

// checkTimers has nothing to read that is called the same everywhere.
func checkTimers(*testing.T, int) {}
