package relay

import "time"

// wheel is a loop's timers: a ring of buckets, each some time wide. Nothing is ever removed: an entry that comes due looks whether it still matters.
// So a deadline that moves, as most do, costs nothing, and idle sessions are in no bucket at all.
type wheel struct {
	buckets [wheelSize][]wheelEntry
	at      int64 // the bucket that is due next, counted from the epoch
	fired   int   // of its entries; then no other enters it
	first   int64 // no bucket before this one has entries
	count   int
	spare   []wheelEntry // an emptied bucket's memory
}

type wheelEntry struct {
	conn *conn
	call func() // if conn is nil
}

const (
	wheelTick = int64(50 * time.Millisecond)
	wheelSize = 512 // 25.6 s ahead; what is due later looks again then
)

// add enters e at due and returns when it will be looked at.
func (w *wheel) add(now, due int64, e wheelEntry) int64 {
	if w.count == 0 && w.fired == 0 {
		w.at = max(w.at, now/wheelTick) // it may have stood still for hours
		w.first = w.at + wheelSize
	}
	n := (due + wheelTick - 1) / wheelTick // never early
	n = min(max(n, w.at+int64(min(w.fired, 1))), w.at+wheelSize-1)
	w.first = min(w.first, n)
	b := &w.buckets[n%wheelSize]
	if *b == nil {
		*b, w.spare = w.spare, nil
	}
	*b = append(*b, e)
	w.count++
	return n * wheelTick
}

// advance gives fire what is due at now, and the time for which add entered it: so many at most, in their order. fire may add entries.
func (w *wheel) advance(now int64, most int, fire func(at int64, e wheelEntry)) {
	for w.at*wheelTick <= now {
		if w.count == 0 {
			w.at = now/wheelTick + 1
			return
		}
		b := &w.buckets[w.at%wheelSize]
		due := *b
		for ; w.fired < len(due); most-- {
			if most == 0 {
				return
			}
			e := due[w.fired]
			w.fired++
			w.count--
			fire(w.at*wheelTick, e)
		}
		*b = nil
		w.fired = 0
		w.at++
		if cap(due) > cap(w.spare) {
			clear(due)
			w.spare = due[:0]
		}
	}
}

// most is how many entries to look at before the sessions get their turn: the more, the later the wheel is. Turns may be long, and every
// session with a keep-alive is looked at once in a rotation.
func (w *wheel) most(now int64) int { return loopTimers * int(1+max(0, now/wheelTick-w.at)) }

// timeout is how long epoll_wait may wait, in ms; -1 = for ever.
func (w *wheel) timeout(now int64) int {
	if w.count == 0 {
		return -1
	}
	for w.first = max(w.first, w.at); len(w.buckets[w.first%wheelSize]) == 0; {
		w.first++
	}
	return int(max(0, w.first*wheelTick-now+int64(time.Millisecond)-1) / int64(time.Millisecond))
}
