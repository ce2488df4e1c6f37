//go:build race

package client

// raceEnabled: the race detector makes a sync.Pool forget at random.
const raceEnabled = true
