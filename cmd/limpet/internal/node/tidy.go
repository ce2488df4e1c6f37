package node

import (
	"context"
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
)

// tidy gives memory back to the system when a crowd of clients has come and it is quiet again: shaking hands leaves some 50 KB of garbage
// each, which the runtime would keep for as long as nobody allocates much, that is for ever.
func (n *Node) tidy(ctx context.Context) error {
	ticker := time.NewTicker(tidyLook)
	defer ticker.Stop()
	var last uint64
	var done time.Time
	for quiet := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		turns := n.server.Turns()
		if quiet++; turns != last {
			last, quiet = turns, 0
		}
		if quiet == tidyQuiet && time.Since(done) >= tidyEvery && worthTidying() {
			debug.FreeOSMemory()
			done = time.Now()
		}
	}
}

// worthTidying reports whether the heap holds much that is not in use.
func worthTidying() bool {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	live, objects, free := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()
	idle := free + objects - min(objects, live)
	return idle > max(tidyLeast, live/4) && objects+free < tidyMost
}
