package node

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var sink [][]byte

// A heap full of garbage is worth tidying, and one that has just been tidied is not.
func TestWorthTidying(t *testing.T) {
	worth := func() bool {
		live, idle, _ := heap()
		return worthTidying(live, idle)
	}
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range 1000 {
		sink = append(sink, make([]byte, 16<<10))
	}
	sink = nil
	if !worth() {
		t.Error("16 MB of garbage are not worth it")
	}
	debug.FreeOSMemory()
	if worth() {
		t.Error("still worth it once it is done")
	}
	runtime.KeepAlive(sink)
}

// A small heap that is collected often may grow to heapFloor first; one of half that size and above doubles, as the runtime has it. When the collector
// rests, it is as before.
func TestCollector(t *testing.T) {
	defer debug.SetGCPercent(defaultPercent)
	for live, goal := range map[uint64]uint64{
		0: heapFloor, 1 << 20: heapFloor, 8 << 20: heapFloor, 20 << 20: 40 << 20, 1 << 30: 2 << 30,
	} {
		c := collector{percent: defaultPercent}
		cycles := uint64(gcOften)
		if c.look(live, cycles); c.percent != defaultPercent {
			t.Errorf("GOGC %d, and the collector runs seldom", c.percent)
		}
		cycles += gcOften + 1
		c.look(live, cycles)
		grown := max(live, 1<<20)
		if got := grown + grown*uint64(c.percent)/100; got < goal-goal/50 || got > goal {
			t.Errorf("%d bytes live: GOGC %d lets it grow to %d, want %d", live, c.percent, got, goal)
		}
		if set := debug.SetGCPercent(c.percent); set != c.percent {
			t.Errorf("GOGC is %d, not %d", set, c.percent)
		}
		before := c.percent
		if c.look(live, cycles+1); c.percent != before {
			t.Errorf("GOGC goes from %d to %d while the collector still runs", before, c.percent)
		}
		if c.look(live, cycles+1); c.percent != defaultPercent {
			t.Errorf("GOGC stays at %d", c.percent)
		}
	}
	c := collector{percent: 50, fixed: true}
	if c.look(1<<20, 100); c.percent != 50 {
		t.Error("the user's choice is overruled")
	}
}
