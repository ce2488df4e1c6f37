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

	heapFloor = 32 << 20 // bytes that a heap may have before garbage is looked for,
	gcOften   = 2        // where that was done more often than this between two looks
)

// tidy gives memory back to the system when a crowd of clients has come and it is quiet again: shaking hands leaves some 50 KB of garbage
// each, which the runtime would keep for as long as nobody allocates much, that is for ever. It also sets the pace of the garbage collector.
func (n *Node) tidy(ctx context.Context) error {
	ticker := time.NewTicker(tidyLook)
	defer ticker.Stop()
	var last uint64
	var done time.Time
	gc := collector{percent: defaultPercent, fixed: os.Getenv("GOGC") != ""}
	defer gc.set(defaultPercent)
	for quiet := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		live, idle, cycles := heap()
		gc.look(live, cycles)
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

// A collector sets the garbage collector's pace. A handshake leaves 50 KB of garbage behind, and a small heap would be looked through for each
// hundred of them: while that is so, the heap may grow to heapFloor first. Otherwise it stays small, which is kinder to the processor's caches.
type collector struct {
	percent int    // GOGC
	fixed   bool   // it is the user's choice
	cycles  uint64 // at the last look
}

// look is told how many bytes live, and how often the collector has run so far.
func (c *collector) look(live, cycles uint64) {
	ran := cycles - c.cycles
	c.cycles = cycles
	switch {
	case ran > gcOften:
		c.set(max(defaultPercent, int(heapFloor*100/max(live, 1<<20))-100))
	case ran == 0:
		c.set(defaultPercent)
	}
}

func (c *collector) set(percent int) {
	if d := percent - c.percent; !c.fixed && (d > c.percent/4 || d < -c.percent/4) { // it stops the world for a moment
		c.percent = percent
		debug.SetGCPercent(percent)
	}
}

// heap returns how many bytes were in use at the last collection, how many there are besides, and how many collections there were.
func heap() (live, idle, cycles uint64) {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	metrics.Read(samples)
	live = samples[0].Value.Uint64()
	objects, free := samples[1].Value.Uint64(), samples[2].Value.Uint64()
	return live, free + objects - min(objects, live), samples[3].Value.Uint64()
}

// worthTidying reports whether a heap holds much that is not in use.
func worthTidying(live, idle uint64) bool {
	return idle > max(tidyLeast, live/4) && live+idle < tidyMost
}
