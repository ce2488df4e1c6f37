package listen

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// handshakes bounds what is in flight between accept and hand-over.
//
// While there is room everybody comes in at once. At the bound, newcomers wait in the kernel's queue until somebody is done, or
// until the oldest has been at it for patience and is cut. So a crowd of honest clients is served in order, and a crowd of silent
// ones, which would hold every place until the deadline, makes room.
type handshakes struct {
	max      int
	patience time.Duration
	freed    chan struct{} // a token: somebody has left since admit last looked

	mu     sync.Mutex
	flying list.List // of *handshake, oldest first
}

// A handshake is one place.
type handshake struct {
	since   time.Time
	cut     func()        // makes the handshake fail soon
	element *list.Element // nil once it has left; guarded by handshakes.mu
	evicted bool          // guarded by handshakes.mu
}

func newHandshakes(limit int, patience time.Duration) *handshakes {
	return &handshakes{max: limit, patience: patience, freed: make(chan struct{}, 1)}
}

// admit waits for a place. It returns false when ctx ends or stop is closed first.
func (q *handshakes) admit(ctx context.Context, stop <-chan struct{}) bool {
	for ctx.Err() == nil && !closed(stop) {
		wait, ok := q.room()
		if ok {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-q.freed:
		case <-ctx.Done():
		case <-stop:
		}
		timer.Stop()
	}
	return false
}

// room reports whether there is a place, having made one if it may; else how long until it may.
func (q *handshakes) room() (wait time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.flying.Len() < q.max {
		return 0, true
	}
	oldest := q.flying.Front().Value.(*handshake)
	if age := time.Since(oldest.since); age < q.patience {
		return q.patience - age, false
	}
	oldest.evicted = true
	q.remove(oldest)
	oldest.cut()
	return 0, true
}

// enter takes a place. cut must not block.
func (q *handshakes) enter(since time.Time, cut func()) *handshake {
	h := &handshake{since: since, cut: cut}
	q.mu.Lock()
	h.element = q.flying.PushBack(h)
	q.mu.Unlock()
	return h
}

// leave gives the place back, and reports whether it had been taken away.
func (q *handshakes) leave(h *handshake) (evicted bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.remove(h)
	return h.evicted
}

func (q *handshakes) remove(h *handshake) {
	if h.element == nil {
		return
	}
	q.flying.Remove(h.element)
	h.element = nil
	select {
	case q.freed <- struct{}{}:
	default:
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
