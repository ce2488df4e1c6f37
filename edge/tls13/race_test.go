//go:build race

package tls13

// raceEnabled: the race detector makes encryption slow and a sync.Pool forget at random.
const raceEnabled = true
