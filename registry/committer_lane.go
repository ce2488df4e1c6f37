package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// A lane writes the keys that hash to it, one transaction at a time.
type lane struct {
	c    *Committer
	wake chan struct{} // holds a token while there may be work

	mu     sync.Mutex
	queue  []*pending // in order of their arrival; one for each key
	byKey  map[PinRef]*pending
	closed bool

	// Owned by run.
	limit   int // writes in a transaction: fewer after the store refused one, to find the write that it refuses
	backoff time.Duration
}

// pending is a write that waits or is under way.
type pending struct {
	write Write
	done  func(Result)
	size  int
	// tried are values that this key may have by tries whose outcome is not known, of this write or of those it took the place
	// of: the record found is no conflict if it is one of them.
	tried []Affinity
}

func (p *pending) ref() PinRef { return PinRef{p.write.Pool, p.write.Key} }

func (l *lane) init(c *Committer) {
	l.c = c
	l.wake = make(chan struct{}, 1)
	l.byKey = make(map[PinRef]*pending)
	l.limit = MaxCommit
}

// add queues a write, or drops it where there is no room; !open: nobody writes or tells any more.
func (l *lane) add(p *pending) (open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if old := l.byKey[p.ref()]; old != nil {
		// In the old one's place, so that a key that is written often is written at all.
		former := *old
		*old = *p
		old.tried = former.tried
		l.c.hold(p)
		l.c.release(&former, Result{Status: Superseded})
		return true
	}
	if l.c.full(p) {
		l.c.finish(p, Result{Status: Dropped})
		return true
	}
	l.c.hold(p)
	l.byKey[p.ref()] = p
	l.queue = append(l.queue, p)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns the next group, nil if nothing waits; last: then close the lane.
func (l *lane) take(last bool) []*pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.queue) && n < l.limit {
		if size += l.queue[n].size; size > commitBytes && n > 0 {
			break
		}
		n++
	}
	if n == 0 {
		l.closed = last
		return nil
	}
	group := make([]*pending, n)
	copy(group, l.queue)
	clear(l.queue[:n])
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil // the array of a long queue goes with it
	}
	for _, p := range group {
		delete(l.byKey, p.ref())
	}
	l.c.flying.Add(int64(n))
	return group
}

// back puts writes to the front again, in order. Where a newer one of the key waits, that takes the place.
func (l *lane) back(group []*pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := make([]*pending, 0, len(group)+len(l.queue))
	for _, p := range group {
		if newer := l.byKey[p.ref()]; newer != nil {
			newer.tried = append(p.tried, newer.tried...)
			l.c.release(p, Result{Status: Superseded})
			continue
		}
		l.byKey[p.ref()] = p
		kept = append(kept, p)
	}
	l.queue = append(kept, l.queue...)
}

// run writes until life ends, or closing is closed and nothing waits. What is left then is dropped.
func (l *lane) run(life context.Context, closing <-chan struct{}) {
	last := false
	for life.Err() == nil {
		group := l.take(last)
		if group == nil {
			if last {
				return
			}
			select {
			case <-l.wake:
			case <-closing:
				last = true
			}
			continue
		}
		wait := l.commit(life, group)
		if wait == 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-life.Done():
		case <-closing:
			last, closing = true, nil // once more, now
		}
		timer.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, p := range l.queue {
		l.c.release(p, Result{Status: Dropped})
	}
	l.queue, l.byKey = nil, nil
}

// commit tries one transaction, and returns how long to wait before the next.
func (l *lane) commit(life context.Context, group []*pending) (wait time.Duration) {
	writes := make([]Write, len(group))
	for i, p := range group {
		writes[i] = p.write
	}
	ctx, cancel := context.WithTimeout(life, commitTimeout)
	results, err := l.c.conf.Store.Commit(ctx, writes)
	cancel()
	l.c.flying.Add(-int64(len(group)))
	if err == nil && len(results) != len(group) {
		err = ErrUnavailable
	}
	l.c.tried(err)
	switch {
	case err == nil:
		l.limit = min(2*l.limit, MaxCommit)
		l.backoff = 0
		var again []*pending
		for i, p := range group {
			if !l.settle(p, results[i]) {
				again = append(again, p)
			}
		}
		if again != nil {
			l.back(again)
		}
		return 0
	case errors.Is(err, ErrUnavailable):
		for _, p := range group {
			p.tried = append(p.tried, p.write.Affinity)
			p.tried = p.tried[max(0, len(p.tried)-maxTried):]
		}
		l.back(group)
		l.backoff = min(max(2*l.backoff, commitBackoffMin), commitBackoffMax)
		return 1 + rand.N(l.backoff)
	case len(group) == 1:
		l.c.conf.Logger.Warn().Err(err).Str("pool", group[0].write.Pool).Msg("an affinity was refused by the store")
		l.c.release(group[0], Result{Status: Refused})
		return 0
	default:
		l.limit = len(group) / 2
		l.back(group)
		return 0
	}
}

// maxTried bounds the values that are remembered of tries with unknown outcome: a client that flaps through an outage.
const maxTried = 4

// settle gives one write its fate, and reports whether it has one; else it is to be tried again.
func (l *lane) settle(p *pending, r Result) bool {
	w := &p.write
	if r.Status == Conflict && len(p.tried) > 0 {
		switch {
		case sameValue(r.Found, w.Affinity):
			// An earlier try of this very write has done it.
			if r.Status = Committed; w.Affinity.Present() {
				r.Revision = r.Found.Revision
			}
			r.Found = Affinity{}
		default:
			for _, a := range p.tried {
				if sameValue(r.Found, a) {
					w.Guard, p.tried = r.Found.Revision, nil
					return false
				}
			}
		}
	}
	switch r.Status {
	case Committed:
		l.advance(p.ref(), w.Guard, r.Revision, w.Affinity.Present())
		l.c.announce(w, w.Affinity, r.Revision, true)
	case Conflict:
		if r.Found.Present() {
			l.c.announce(w, r.Found, r.Found.Revision, false)
		}
	}
	l.c.release(p, r)
	return true
}

// advance moves the guard of a write that was submitted while its predecessor was under way, knowing what that knew.
func (l *lane) advance(ref PinRef, guard, revision int64, present bool) {
	if !present {
		revision = 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if newer := l.byKey[ref]; newer != nil && newer.write.Guard == guard {
		newer.write.Guard = revision
	}
}

// sameValue reports whether a record found is what a write would have made of it.
func sameValue(found, a Affinity) bool {
	if !a.Present() || !found.Present() {
		return a.Present() == found.Present()
	}
	return found.Broker == a.Broker && found.Home == a.Home && found.Writer == a.Writer && found.Reason == a.Reason &&
		found.Written.Unix() == a.Written.Unix() && found.Expires.Unix() == a.Expires.Unix()
}
