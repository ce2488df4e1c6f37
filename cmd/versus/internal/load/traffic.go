package load

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// Errors of the traffic.
var (
	ErrTraffic = errors.New("load: there is traffic already")
	ErrNobody  = errors.New("load: nobody is connected")
)

// crew is called before traffic begins: who is connected takes part.
func (l *Load) crew() error {
	if l.stop != nil || l.saturated {
		return ErrTraffic
	}
	l.held = l.held[:0]
	for _, i := range slices.Sorted(maps.Keys(l.devices)) {
		if d := l.devices[i]; d.accepted && d.party.hold {
			l.held = append(l.held, d)
		}
	}
	if len(l.held) == 0 {
		return ErrNobody
	}
	l.collect()
	l.base, l.pacer = Seen{}, nil
	return nil
}

// Traffic publishes rate messages a second, in turn by all clients, until Stop.
func (l *Load) Traffic(ctx context.Context, rate float64) error {
	if err := l.crew(); err != nil {
		return err
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.pacer = &pace.Pacer{}
	schedule := pace.Constant(rate, 0)
	l.pacing.Go(func() {
		_ = l.pacer.Run(ctx, pace.Now(), schedule, func(i int, due int64) { l.held[i%len(l.held)].send(due) })
	})
	return nil
}

// Saturate lets every client have window messages under way, until Stop: the next is sent when one has come back.
func (l *Load) Saturate(window int) error {
	if err := l.crew(); err != nil {
		return err
	}
	l.saturated = true
	l.window.Store(int64(window))
	for range window {
		for _, d := range l.held {
			d.send(pace.Now())
		}
	}
	return nil
}

// Mark returns what was seen since the last call.
func (l *Load) Mark() Seen {
	s := l.collect()
	l.base.Sent += s.Sent
	l.base.Received += s.Received
	l.base.Wrong += s.Wrong
	return s
}

// collect empties the shards.
func (l *Load) collect() Seen {
	var s Seen
	var all result.Histogram
	for i := range l.seen {
		p := &l.seen[i]
		p.mu.Lock()
		s.Sent, s.Received, s.Wrong = s.Sent+p.sent, s.Received+p.received, s.Wrong+p.wrong
		p.sent, p.received, p.wrong = 0, 0, 0
		all.Add(&p.hist)
		p.hist = result.Histogram{}
		p.mu.Unlock()
	}
	s.Latency = latencyOf(&all)
	s.Lost, s.Refused = l.lost.Load(), l.refused.Load()
	return s
}

// Stop ends the traffic, waits for what is under way, and returns what was seen in all.
func (l *Load) Stop(ctx context.Context) Seen {
	l.window.Store(0)
	l.saturated = false
	if l.stop != nil {
		l.stop()
		l.pacing.Wait()
		l.stop = nil
	}
	l.Mark()
	for until := time.Now().Add(settlement); l.base.Received+l.base.Wrong < l.base.Sent && time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond)
		l.Mark()
	}
	s := l.base
	s.Lost, s.Refused = l.lost.Load(), l.refused.Load()
	if l.pacer != nil {
		lag := l.pacer.Lag.Stats()
		s.Lag, s.Behind = lag.String(), lag.Behind()
	}
	return s
}
