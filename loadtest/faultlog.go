package loadtest

import (
	"context"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// faultLog knows which fault clients suffer from.
type faultLog struct {
	own bool // this process does them, and tells of them
	mu  sync.Mutex
	all []fault.Event // the last state of each, by number
}

// listen hears of faults that another process does.
func (r *run) listen(ctx context.Context, events <-chan fault.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			r.fault(e)
		}
	}
}

// fault notes that a fault begins, or is over.
func (r *run) fault(e fault.Event) {
	r.faults.note(e)
	if r.faults.own {
		r.rec.Fault(faultOf(e, r.start))
	}
	if r.verify != nil {
		r.verify.fault(e)
	}
}

// faultOf is a fault as results show it, in a run that started at a stamp.
func faultOf(e fault.Event, start int64) result.Fault {
	f := result.Fault{Number: e.Number, Spec: e.Fault.String(), Begin: max(e.Begin-start, 0), Outcome: e.Outcome}
	if e.End != 0 {
		f.End = e.End - start
	}
	if e.Failed {
		f.Error, f.Outcome = e.Outcome, ""
	}
	return f
}

func (l *faultLog) note(e fault.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.all) < e.Number {
		l.all = append(l.all, fault.Event{})
	}
	l.all[e.Number-1] = e
}

// blame returns the last fault that had begun at a stamp, and not longer than a minute before.
func (l *faultLog) blame(at int64) (fault.Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last fault.Event
	for _, e := range l.all {
		if e.Begin != 0 && e.Begin <= at && e.Begin >= last.Begin {
			last = e
		}
	}
	return last, last.Begin != 0 && at-last.Begin < int64(time.Minute)
}
