package node

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The numbers of tidying.
const (
	tidyLook  = time.Second
	tidyQuiet = 1                // looks in a row without a new client
	tidyLeast = 2 << 20          // bytes that are worth it
	tidyMost  = 256 << 20        // a larger heap is left to the runtime's own pace: to give much back at once would be felt
	tidyEvery = 30 * time.Second // at the most

	heapFloor = 32 << 20 // bytes that a heap may have before garbage is looked for
)

// tidy gives memory back to the system when a crowd of clients has come and it is quiet again: shaking hands leaves some 50 KB of garbage
// each, which the runtime would keep for as long as nobody allocates much, that is for ever. It also sets the pace of the garbage collector.
func (n *Node) tidy(ctx context.Context) error {
	ticker := time.NewTicker(tidyLook)
	defer ticker.Stop()
	var last uint64
	var done time.Time
	percent := defaultPercent
	if os.Getenv("GOGC") == "" {
		defer func() { debug.SetGCPercent(defaultPercent) }()
	}
	for quiet := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		live, idle := heap()
		if want := pace(live); os.Getenv("GOGC") == "" && (want > percent+percent/4 || want < percent-percent/4) {
			percent = want
			debug.SetGCPercent(percent)
		}
		turns := n.server.Turns()
		if quiet++; turns != last {
			last, quiet = turns, 0
		}
		if quiet == tidyQuiet && time.Since(done) >= tidyEvery && worthTidying(live, idle) {
			debug.FreeOSMemory()
			done = time.Now()
		}
	}
}

// defaultPercent is the runtime's GOGC.
const defaultPercent = 100

// pace returns the GOGC for a heap with so many live bytes. A handshake leaves 50 KB of garbage behind, and a small heap would be looked
// through for each hundred of them; up to heapFloor that is not worth its price.
func pace(live uint64) int {
	return max(defaultPercent, int(heapFloor*100/max(live, 1<<20))-100)
}

// heap returns how many bytes were in use at the last collection, and how many it has besides.
func heap() (live, idle uint64) {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	live = samples[0].Value.Uint64()
	return live, samples[1].Value.Uint64() + samples[2].Value.Uint64() - min(live, samples[1].Value.Uint64())
}

// worthTidying reports whether a heap holds much that is not in use.
func worthTidying(live, idle uint64) bool { return idle > max(tidyLeast, live/4) && live+idle < tidyMost }
