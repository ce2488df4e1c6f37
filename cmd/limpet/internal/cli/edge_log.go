package cli

import (
	"bytes"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/config"
)

// The numbers of a log's queue.
const (
	// maxLogQueue bounds the lines that wait for the log's reader, in bytes: some 2,000.
	maxLogQueue = 1 << 20
	// flushTimeout bounds the wait for the log's reader at the end.
	flushTimeout = 2 * time.Second
)

// A logQueue is a writer that waits for nobody. One goroutine of its own writes the lines out; what does not fit into the queue is dropped, and
// counted. So a log whose reader has stalled, or is gone, costs its lines, not the clients.
//
// (zerolog's diode has the same purpose. It bounds lines rather than bytes, drops the oldest, and its Close waits for the reader for ever.)
type logQueue struct {
	to   io.Writer
	tell func(lost uint64) // writes a line about lines that were lost past the queue; called by the goroutine
	lost atomic.Uint64     // all that were

	mu      sync.Mutex
	some    sync.Cond // there are lines, or no more will come
	waiting []byte
	over    bool
	ended   chan struct{}
}

// startLogQueue starts a queue in front of w, which close ends.
func startLogQueue(w io.Writer, tell func(lost uint64)) *logQueue {
	q := &logQueue{to: w, tell: tell, ended: make(chan struct{})}
	q.some.L = &q.mu
	go q.run()
	return q
}

// Write queues p, which is one line or more, or drops it. It never fails.
func (q *logQueue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting)+len(p) > maxLogQueue {
		q.lost.Add(lines(p))
		return len(p), nil
	}
	q.waiting = append(q.waiting, p...)
	q.some.Signal()
	return len(p), nil
}

func lines(p []byte) uint64 { return uint64(bytes.Count(p, []byte{'\n'})) }

// run writes the lines out until close is called and none is left.
func (q *logQueue) run() {
	defer close(q.ended)
	var spare []byte
	told := uint64(0)
	for {
		q.mu.Lock()
		for len(q.waiting) == 0 && !q.over {
			q.some.Wait()
		}
		batch := q.waiting
		q.waiting = spare[:0]
		q.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		n, err := q.to.Write(batch)
		if err != nil {
			q.lost.Add(lines(batch[n:])) // its reader is gone, or its disk full: the next line may find another one
		} else if lost := q.lost.Load(); lost > told {
			q.tell(lost - told)
			told = lost
		}
		if spare = batch; cap(spare) > 64<<10 {
			spare = nil // of a rush
		}
	}
}

// close waits until the lines are out, but no longer than flushTimeout. A reader that has stalled may keep the goroutine for ever.
func (q *logQueue) close() {
	q.mu.Lock()
	q.over = true
	q.some.Signal()
	q.mu.Unlock()
	timer := time.NewTimer(flushTimeout)
	defer timer.Stop()
	select {
	case <-q.ended:
	case <-timer.C:
	}
}

// openLog starts the queue of a log that is written to w as the configuration says.
func openLog(c config.Log, w io.Writer) (zerolog.Logger, *logQueue) {
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil || c.Level == "" {
		level = zerolog.InfoLevel
	}
	logger := func(to io.Writer) zerolog.Logger {
		if c.Format == "console" {
			f, ok := w.(*os.File)
			to = zerolog.ConsoleWriter{Out: to, NoColor: !ok || !isatty.IsTerminal(f.Fd())}
		}
		return zerolog.New(to).Level(level).With().Timestamp().Logger()
	}
	direct := logger(w)
	q := startLogQueue(w, func(lost uint64) {
		direct.Warn().Uint64("lines", lost).Int("queue_bytes", maxLogQueue).Msg("lines of this log are lost: its reader did not take them in time")
	})
	return logger(q), q
}
