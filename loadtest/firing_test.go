package loadtest

import (
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// TestABurstIsNoDelay: what is intended for one instant begins one by one, and that is no fault of the generator's; a pause is.
func TestABurstIsNoDelay(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, c := range []struct {
		name   string
		events [][2]int64 // intended, begun; ms
		late   int64
	}{
		{"a burst that takes 100 ms", [][2]int64{{1, 1}, {1, 9}, {1, 18}, {1, 27}, {1, 36}, {1, 45}, {1, 54}, {1, 63}, {1, 72}, {1, 81}, {1, 90}, {1, 100}}, 0},
		{"a burst that begins late", [][2]int64{{1, 21}, {1, 22}, {1, 23}}, 1},
		{"a burst with a pause", [][2]int64{{1, 1}, {1, 2}, {1, 52}, {1, 53}}, 1},
		{"a schedule that is not kept", [][2]int64{{1, 1}, {2, 51}, {3, 52}, {4, 53}}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run{rec: result.NewRecorder(result.Config{})}
			on := r.pace()
			for _, e := range c.events {
				on.fired(e[0]*ms, e[1]*ms)
			}
			if got := r.rec.Finish(int64(time.Second)).Generator.Late; got != c.late {
				t.Errorf("%d events are late, want %d", got, c.late)
			}
		})
	}
}
