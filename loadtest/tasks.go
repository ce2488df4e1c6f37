package loadtest

import "sync/atomic"

// tasks counts what is to be done before a run is over. Unlike a sync.WaitGroup it needs nobody who waits, and may never come to its end.
type tasks struct {
	left atomic.Int64
	over chan struct{} // closed when nothing is left
}

// newTasks returns one with one task.
func newTasks() *tasks {
	t := &tasks{over: make(chan struct{})}
	t.left.Store(1)
	return t
}

func (t *tasks) add(n int) {
	if t.left.Add(int64(n)) == 0 {
		close(t.over)
	}
}

func (t *tasks) done() { t.add(-1) }
