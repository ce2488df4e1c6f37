package edge

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// The numbers of a governor, together. A share is that of its time in which a loop does not wait: 1 is all.
const (
	governEvery = time.Second

	// One loop that has much to do serves a message for less than two that have little: they wake up twice as often. So another one has to wait until the
	// loops are short of time, not of rest,
	growAbove = 0.60 // on average
	growAfter = 2 * time.Second
	// and one goes when it would not be missed. What is between the two, and the time that it takes, keeps the number from going up and down.
	shrinkBelow = 0.35 // on average, with one loop less
	shrinkAfter = time.Minute

	// Loops that are further apart than this are evened out. It may not help, where few sessions are most of the load: then it is tried again after twice the time.
	apartAbove = 0.25 // between the busiest and the least busy
	apartAfter = 3 * time.Second
	apartMost  = 48 * time.Second
)

// governor decides how many loops an edge has, and which of them shall give sessions to which. What it decides follows from what it is told alone.
type governor struct {
	least, most int // loops

	high, low, apart time.Duration // for how long the loops have been short of time, too many, unlike
	patience         time.Duration // with apart; 0 = apartAfter
}

// load is what a loop has to do.
type load struct {
	share    float64
	sessions int
}

// decision is what a governor wants done.
type decision uint8

const (
	steady decision = iota
	grow            // another loop, and its part of the sessions for it
	shrink          // the least busy loop retires
	level           // sessions change loops
)

// judge is told the loops' loads over the time since it was told last.
func (g *governor) judge(elapsed time.Duration, loads []load) decision {
	if len(loads) == 0 {
		return steady
	}
	lowest, highest := loads[0].share, loads[0].share
	for _, l := range loads {
		lowest, highest = min(lowest, l.share), max(highest, l.share)
	}
	n, mean := len(loads), mean(loads)
	g.high = lasts(g.high, elapsed, n < g.most && mean > growAbove)
	g.low = lasts(g.low, elapsed, n > g.least && mean*float64(n)/float64(n-1) < shrinkBelow)
	if g.apart = lasts(g.apart, elapsed, highest-lowest > apartAbove); g.apart == 0 {
		g.patience = 0
	}
	switch {
	case g.high >= growAfter:
		g.high, g.low, g.apart = 0, 0, 0
		return grow
	case g.low >= shrinkAfter:
		g.high, g.low, g.apart = 0, 0, 0
		return shrink
	case g.apart >= max(g.patience, apartAfter):
		g.patience = min(2*max(g.patience, apartAfter), apartMost)
		g.apart = 0
		return level
	}
	return steady
}

// lasts is for how long something has been so.
func lasts(before, elapsed time.Duration, still bool) time.Duration {
	if !still {
		return 0
	}
	return before + elapsed
}

// transfer is sessions of one loop for another one.
type transfer struct{ from, to, sessions int }

// even says which loops give how many sessions to which, so that all would have the same share if all sessions of a loop were alike.
func even(loads []load) (all []transfer) {
	if len(loads) < 2 {
		return nil
	}
	order := make([]int, len(loads)) // the busiest first
	over := make([]float64, len(loads))
	for i, l := range loads {
		order[i], over[i] = i, l.share-mean(loads)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(over[b], over[a]) })
	for i, j := 0, len(order)-1; i < j; {
		from, to := order[i], order[j]
		part := min(over[from], -over[to])
		if part > 0 {
			const rounding = 1e-9
			if n := int(part/loads[from].share*float64(loads[from].sessions) + rounding); n > 0 {
				all = append(all, transfer{from, to, n})
			}
			over[from] -= part
			over[to] += part
		}
		if over[from] <= -over[to] {
			i++
		} else {
			j--
		}
	}
	return all
}

// leastBusy is the loop with the smallest share besides another one (-1: of all).
func leastBusy(loads []load, besides int) int {
	least := -1
	for i, l := range loads {
		if i != besides && (least < 0 || l.share < loads[least].share) {
			least = i
		}
	}
	return least
}

// fleet is the loops that a governor governs, by index. Only the governor changes them.
type fleet interface {
	// loads tells what the loops had to do since the last call, so long ago.
	loads(elapsed time.Duration) []load
	// grow adds a loop behind the others; false if there can be none now. mean is their share, for people.
	grow(mean float64) bool
	// shrink has a loop retire, and another one take its sessions.
	shrink(retires, heir int)
	// give moves sessions.
	give([]transfer)
}

// govern looks at the loops until ctx ends.
func (g *governor) govern(ctx context.Context, f fleet) {
	last := time.Now()
	for sleep(ctx, governEvery) {
		now := time.Now()
		elapsed := now.Sub(last)
		last = now
		loads := f.loads(elapsed)
		switch g.judge(elapsed, loads) {
		case grow:
			if f.grow(mean(loads)) {
				f.give(even(append(loads, load{})))
			}
		case shrink:
			retires := leastBusy(loads, -1)
			f.shrink(retires, leastBusy(loads, retires))
		case level:
			f.give(even(loads))
		}
	}
}

// mean is the loads' mean share.
func mean(loads []load) (m float64) {
	for _, l := range loads {
		m += l.share / float64(len(loads))
	}
	return m
}
