//go:build race

package wire

// raceEnabled: the race detector makes sync.Pool forget at random.
const raceEnabled = true
