//go:build race

package tls13

// raceEnabled: the race detector makes encryption slow, and allocates.
const raceEnabled = true
