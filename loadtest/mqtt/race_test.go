//go:build race

package mqtt

// raceEnabled: the race detector makes a sync.Pool forget at random.
const raceEnabled = true
