package loadtest

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// An actor is somebody who wants to act at a time.
type actor interface {
	// act is called on the agenda's goroutine, which all share: it must not block. at is the time that was asked for.
	act(at int64)
}

// agenda calls actors when their time has come. One goroutine serves all: a client that waits costs an entry.
type agenda struct {
	lag func(intended, now int64)

	mu   sync.Mutex
	due  entries
	wake chan struct{} // has room for one: the earliest entry is another one now
}

type entry struct {
	at  int64
	who actor
}

type entries []entry

func (e entries) Len() int           { return len(e) }
func (e entries) Less(i, j int) bool { return e[i].at < e[j].at }
func (e entries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *entries) Push(x any)        { *e = append(*e, x.(entry)) }

func (e *entries) Pop() any {
	last := (*e)[len(*e)-1]
	(*e)[len(*e)-1] = entry{}
	*e = (*e)[:len(*e)-1]
	return last
}

func newAgenda(lag func(intended, now int64)) *agenda {
	return &agenda{lag: lag, wake: make(chan struct{}, 1)}
}

// at has who called at a stamp; at once if that has passed. After Run has ended nobody is called any more.
func (a *agenda) at(stamp int64, who actor) {
	a.mu.Lock()
	heap.Push(&a.due, entry{stamp, who})
	first := a.due[0].at == stamp
	a.mu.Unlock()
	if first {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// run calls actors until ctx ends.
func (a *agenda) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		for {
			a.mu.Lock()
			if len(a.due) == 0 {
				a.mu.Unlock()
				break
			}
			now := pace.Now()
			if next := a.due[0].at; next > now {
				a.mu.Unlock()
				wait = time.Duration(next - now)
				break
			}
			e := heap.Pop(&a.due).(entry)
			a.mu.Unlock()
			if ctx.Err() != nil {
				return
			}
			a.lag(e.at, now)
			e.who.act(e.at)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
	}
}
