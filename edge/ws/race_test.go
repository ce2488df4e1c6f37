//go:build race

package ws

// raceEnabled: the race detector makes a sync.Pool forget at random.
const raceEnabled = true
