package edge

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// An edge without descriptors cannot accept for a while, ten times a second on each loop: it is said once that this begins, however long it
// lasts, and once that it is over.
func TestAcceptFailuresAreSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lines{}
		s := &Server{log: zerolog.New(log)}
		s.ctx, s.stop = context.WithCancel(t.Context())
		ln := &listener{srv: s, name: "mqtt"}
		fail := func(lasting time.Duration) {
			var loops sync.WaitGroup
			for range 3 {
				loops.Go(func() {
					for end := time.Now().Add(lasting); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
						ln.acceptFailed(syscall.EMFILE)
					}
				})
			}
			loops.Wait()
		}
		said := func(when string, failed, works int) {
			t.Helper()
			synctest.Wait()
			text := log.String()
			if f, w := strings.Count(text, "accept failed"), strings.Count(text, "accept works again"); f != failed || w != works {
				t.Fatalf("%s: said %d times that it fails and %d times that it works, want %d and %d:\n%s", when, f, w, failed, works, text)
			}
		}
		fail(time.Hour)
		said("after an hour", 1, 0)
		time.Sleep(acceptCalm / 2)
		said("a moment later", 1, 0)
		fail(time.Second)
		said("when it was not over", 1, 0)
		time.Sleep(acceptCalm)
		said("when it is over", 1, 1)
		if text := log.String(); !strings.Contains(text, `"level":"warn","error":"too many open files","listener":"mqtt"`) || !strings.Contains(text, `"level":"info","listener":"mqtt","failed_ms":36`) {
			t.Errorf("said:\n%s", text)
		}
		time.Sleep(time.Hour)
		said("an hour later", 1, 1)

		fail(time.Second)
		said("the next time", 2, 1)
		time.Sleep(acceptCalm)
		said("after the next time", 2, 2)

		fail(time.Second)
		ln.mu.Lock()
		ln.closed = true
		ln.mu.Unlock()
		time.Sleep(acceptCalm)
		said("a listener that was closed meanwhile", 3, 2)
		fail(time.Second)
		s.stop() // nobody waits any longer: the bubble ends
		s.tasks.Wait()
		said("at the end", 4, 2)
	})
}

// A loop's failures reach the log, and nobody else.
func TestAcceptFailuresAreToldOf(t *testing.T) {
	e := newMesh(t, "b1").edge("e1")
	e.mu.Lock()
	ln := e.listeners[0]
	e.mu.Unlock()
	ln.limits.AcceptFailed(syscall.EMFILE)
	e.logged("accept failed", "too many open files")
	e.connect(persistent("x"))
}
