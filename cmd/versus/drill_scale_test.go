//go:build linux

package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// TestDrillScale: thousands of clients on one edge, messages among them and others who come and go leave nothing behind. Goal: in the second half
// of ten minutes nothing grows any more.
func TestDrillScale(t *testing.T) {
	beside(t)
	clients, rate := sized(200, 9000), sized(500.0, 10_000.0) // publishes a second, and as many echoes
	whole := lasting(t, 4*time.Second, 10*time.Minute)
	const comings, passersby = 50, 250 // a second; they come again and again

	s := newSite(t, nil, []listener{{"tcp", "tcp", ""}})
	before := s.holds()
	live, churn := s.generator("mqtt", "tcp"), s.generator("mqtt", "tcp")
	live.connect(load.Connects{Count: clients, Rate: 1000, Hold: true})
	live.traffic(rate)

	end := time.Now().Add(whole)
	came := make(chan load.Connected, 1)
	broke := make(chan error, 1)
	go func() {
		var sum load.Connected
		for time.Now().Before(end) {
			var c load.Connected
			err := churn.ask(request{Op: "connect", Connects: load.Connects{First: 1_000_000, Count: passersby, Rate: comings}}, &c)
			if err == nil && c.Accepted != passersby {
				err = fmt.Errorf("of %d who came %d connected: %v", passersby, c.Accepted, c.Errors)
			}
			if err != nil {
				broke <- err
				break
			}
			sum.Accepted += c.Accepted
		}
		came <- sum
	}()

	parts := make([][]holds, 10)
	live.mark()
	cpu := s.holds().cpu
	var p99, most time.Duration
	for i := range parts {
		part := end.Add(-whole * time.Duration(len(parts)-1-i) / time.Duration(len(parts)))
		for time.Now().Before(part) {
			if err := pause(t.Context(), min(time.Second, time.Until(part))); err != nil {
				t.Fatal(err)
			}
			parts[i] = append(parts[i], s.holds())
		}
		seen := live.mark().Latency
		p99, most = max(p99, seen.P99), max(most, seen.Max)
		used := parts[i][len(parts[i])-1].cpu - cpu
		cpu += used
		figure(t, "scale, part %d of %d (%d looks): %v, CPU %.0f ms/s; p99 %s, longest %s", i+1, len(parts), len(parts[i]), medians(parts[i]),
			float64(used/time.Millisecond)*float64(len(parts))/whole.Seconds(), ms(seen.P99), ms(seen.Max))
	}
	passed := <-came
	select {
	case err := <-broke:
		t.Error(err)
	default:
	}
	total := live.stop()
	then, now := medians(parts[len(parts)/2-1]), medians(parts[len(parts)-1]) // a runtime takes some minutes to have all it needs
	figure(t, "scale: %d clients, %.0f messages/s, %d came and went, %d a second, in %v; from the middle to the last part: RSS %+.1f %%, heap in use %+.1f %%, goroutines %+d, descriptors %+d; "+
		"p99 in the worst part %s, longest %s; generator: %s", clients, 2*rate, passed.Accepted, comings, whole, grown(then.rss, now.rss), grown(then.heap, now.heap), now.goroutines-then.goroutines,
		now.descriptors-then.descriptors, ms(p99), ms(most), total.Lag)
	if whole >= 5*time.Minute { // a part has a collection in it
		const some = 5 // percent; and what some of a second's comings and goings hold
		if grown(then.rss, now.rss) > some || grown(then.heap, now.heap) > some || now.goroutines > then.goroutines+some || now.descriptors > then.descriptors+some {
			t.Errorf("it grows: %v, then %v", then, now)
		}
	}
	live.end()
	churn.end()
	s.calm(before)
}

// grown is by how much percent.
func grown(from, to int64) float64 { return 100 * (float64(to)/float64(from) - 1) }

// medians has the median of each figure; of the heap the least, what is left behind a collection.
func medians(all []holds) (m holds) {
	of := func(f func(holds) int64) int64 {
		var list []int64
		for _, h := range all {
			list = append(list, f(h))
		}
		slices.Sort(list)
		return list[len(list)/2]
	}
	m.goroutines = int(of(func(h holds) int64 { return int64(h.goroutines) }))
	m.descriptors = int(of(func(h holds) int64 { return int64(h.descriptors) }))
	m.sessions = int(of(func(h holds) int64 { return int64(h.sessions) }))
	m.collections = int(of(func(h holds) int64 { return int64(h.collections) }))
	m.heap, m.rss = all[0].heap, of(func(h holds) int64 { return h.rss })
	for _, h := range all {
		m.heap = min(m.heap, h.heap)
	}
	return m
}
