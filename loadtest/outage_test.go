package loadtest

import (
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// A client is often cut off before the news of the fault is there: it counts for that fault all the same, and not for the one before.
func TestAnOutageIsTheLatestFaults(t *testing.T) {
	start := pace.Now()
	r := &run{rec: result.NewRecorder(result.Config{Start: start, Wall: pace.Wall(start)})}
	at := func(d time.Duration) int64 { return start + int64(d) }
	begins := func(number int, spec string, when time.Duration) {
		f, err := fault.Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.faults.note(fault.Event{Number: number, Fault: f, Begin: at(when)})
		r.rec.Fault(faultOf(fault.Event{Number: number, Fault: f, Begin: at(when)}, start))
	}
	begins(1, "at 10s restart nats", 10*time.Second)
	o := outage{begin: at(12*time.Second + time.Millisecond)}
	begins(2, "at 12s kill edge e1", 12*time.Second)
	o.over(r, at(14*time.Second))
	before := outage{begin: at(9 * time.Second)}
	before.over(r, at(11*time.Second))
	res := r.rec.Finish(at(20 * time.Second))
	told := map[string]int64{}
	for _, f := range res.Faults {
		if f.Outage != nil {
			told[f.Spec] = f.Outage.Count()
		}
	}
	if len(told) != 2 || told["at 12s kill edge e1"] != 1 || told["cut off by no fault of the run"] != 1 {
		t.Errorf("outages by fault: %v", told)
	}
}
