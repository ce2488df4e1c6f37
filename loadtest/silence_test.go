package loadtest

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// nowhere returns the address of a listener that takes connections and never says a word.
func nowhere(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return "tcp://" + ln.Addr().String()
}

// A run that is shorter than the usual patience says all the same that nobody got through, though nothing failed.
func TestAShortRunIntoSilence(t *testing.T) {
	t.Parallel()
	p := &Plan{Verb: "conn", Endpoints: []string{nowhere(t)}, Duration: 300 * time.Millisecond, Fleets: []Fleet{{Clients: 5, Session: Session{Clean: true}}}}
	res, err := runPlan(t, p, Options{})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no answer") || res == nil {
		t.Errorf("%v: %+v", err, res)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p.Duration = enough
	if res, err := Run(ctx, p, Options{}); err != nil || !res.Interrupted {
		t.Errorf("interrupted before it could tell: %v: %+v", err, res)
	}
}
