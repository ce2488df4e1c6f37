package broker

import (
	"fmt"
	"sync"
	"time"
)

// backlog is what a link owes its peer: messages in order, each kept until the peer has acknowledged it.
//
//	entries:   | sent, not acknowledged | not sent |
//	           first              first+sent
//
// The zero value needs limit and wake.
type backlog struct {
	limit int           // bytes
	wake  chan struct{} // capacity 1: there is something to send

	mu      sync.Mutex
	entries []entry
	first   uint64 // sequence number of entries[0]; numbers begin at 1
	sent    int
	bytes   int
	up      bool // the peer is connected
	late    bool // it let an acknowledgement time out: nobody waits for it until it is quick again
	lost    bool // entries were dropped since the peer last got the retained store
	dropped uint64
}

type entry struct {
	body []byte
	at   time.Time
	done chan struct{} // closed when the peer has it, is gone, or will not get it; nil: nobody waits
}

func newBacklog(limit int) *backlog {
	return &backlog{limit: limit, wake: make(chan struct{}, 1), first: 1}
}

// add appends a message. must is false for one that may be lost (QoS 0): that is not kept for a peer that is away
// or slow. The channel, if any, closes when the peer has published the message or went away.
func (q *backlog) add(body []byte, must bool) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !must && (!q.up || q.bytes+len(body) > q.limit/2) {
		if q.up {
			q.dropped++
		}
		return nil
	}
	q.entries = append(q.entries, entry{body: body, at: time.Now()})
	q.bytes += len(body)
	for q.bytes > q.limit && len(q.entries) > 1 {
		q.pop()
		q.dropped++
		q.lost = true
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	if !must || !q.up || q.late {
		return nil
	}
	return q.watch()
}

// watch returns the channel that closes with the newest entry. q.mu is held.
func (q *backlog) watch() <-chan struct{} {
	e := &q.entries[len(q.entries)-1]
	if e.done == nil {
		e.done = make(chan struct{})
	}
	return e.done
}

// flushed returns a channel that closes when all is acknowledged, or nil if there is nothing to wait for.
func (q *backlog) flushed() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.up || len(q.entries) == 0 {
		return nil
	}
	return q.watch()
}

// pop removes the oldest entry. q.mu is held.
func (q *backlog) pop() {
	e := q.entries[0]
	q.entries[0] = entry{}
	q.entries = q.entries[1:]
	q.first++
	q.sent = max(q.sent-1, 0)
	q.bytes -= len(e.body)
	if e.done != nil {
		close(e.done)
	}
}

// next returns the oldest message that has not been sent on this connection.
func (q *backlog) next() (seq uint64, body []byte, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sent == len(q.entries) {
		return 0, nil, false
	}
	seq, body = q.first+uint64(q.sent), q.entries[q.sent].body
	q.sent++
	return seq, body, true
}

// acknowledged removes everything up to seq.
func (q *backlog) acknowledged(seq uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := seq - q.first; seq >= q.first && i < uint64(len(q.entries)) && time.Since(q.entries[i].at) < ackWait {
		q.late = false
	}
	return q.forget(seq)
}

// forget removes everything up to seq. It may not have been sent on this connection: the peer can still be
// publishing what an earlier one left it. q.mu is held.
func (q *backlog) forget(seq uint64) error {
	if newest := q.first + uint64(len(q.entries)) - 1; seq > newest {
		return fmt.Errorf("%w: %d acknowledged of %d", errFrame, seq, newest)
	}
	for len(q.entries) > 0 && q.first <= seq {
		q.pop()
	}
	return nil
}

// connected begins a connection to a peer that has everything up to last; the rest is sent (again).
func (q *backlog) connected(last uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.forget(last); err != nil {
		return err
	}
	q.up, q.late, q.sent = true, false, 0
	return nil
}

// disconnected ends it: everything is kept, nobody waits.
func (q *backlog) disconnected() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.up, q.sent = false, 0
	for i := range q.entries {
		if done := q.entries[i].done; done != nil {
			close(done)
			q.entries[i].done = nil
		}
	}
}

func (q *backlog) markLate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.late = q.up
}

// takeLost reports whether entries were dropped since it was last asked.
func (q *backlog) takeLost() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.lost
	q.lost = false
	return lost
}

func (q *backlog) info() (up bool, kept int, dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.up, len(q.entries), q.dropped
}
