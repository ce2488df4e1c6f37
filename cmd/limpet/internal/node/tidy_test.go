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
	if !worthTidying() {
		t.Error("16 MB of garbage are not worth it")
	}
	debug.FreeOSMemory()
	if worthTidying() {
		t.Error("still worth it once it is done")
	}
	runtime.KeepAlive(sink)
}
