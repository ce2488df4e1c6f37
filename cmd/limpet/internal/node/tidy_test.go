package node

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var sink [][]byte

// A heap full of garbage is worth tidying, and one that has just been tidied is not.
func TestWorthTidying(t *testing.T) {
	debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range 1000 {
		sink = append(sink, make([]byte, 16<<10))
	}
	sink = nil
	if !worthTidying(heap()) {
		t.Error("16 MB of garbage are not worth it")
	}
	debug.FreeOSMemory()
	if worthTidying(heap()) {
		t.Error("still worth it once it is done")
	}
	runtime.KeepAlive(sink)
}

// A small heap may grow to heapFloor before it is collected; one of half that size and above doubles, as the runtime has it.
func TestPace(t *testing.T) {
	for live, goal := range map[uint64]uint64{
		0: heapFloor, 1 << 20: heapFloor, 8 << 20: heapFloor, 16 << 20: heapFloor,
		20 << 20: 40 << 20, 1 << 30: 2 << 30,
	} {
		grown := max(live, 1<<20)
		if got := grown + grown*uint64(pace(live))/100; got < goal-goal/50 || got > goal {
			t.Errorf("%d bytes live: GOGC %d lets it grow to %d, want %d", live, pace(live), got, goal)
		}
	}
}
