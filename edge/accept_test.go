package edge

import (
	"strings"
	"syscall"
	"testing"
)

// An edge without descriptors cannot accept for a while, ten times a second on each loop: it is said once.
func TestAcceptFailuresAreSaidOnce(t *testing.T) {
	m := newMesh(t, "b1")
	e := m.edge("e1")
	e.mu.Lock()
	ln := e.listeners[0]
	e.mu.Unlock()
	for range 100 {
		ln.limits.AcceptFailed(syscall.EMFILE)
	}
	e.connect(persistent("x"))
	e.logged("accept failed", "too many open files")
	if n := strings.Count(e.log.String(), "accept failed"); n != 1 {
		t.Errorf("%d lines:\n%s", n, e.log.String())
	}
}
