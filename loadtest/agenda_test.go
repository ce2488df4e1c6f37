package loadtest

import (
	"context"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// note is an actor that tells when it was called.
type note struct {
	name string
	to   chan string
}

func (n *note) act(int64) { n.to <- n.name }

// TestAgenda: actors are called in the order of their times, whenever they were entered, and not before.
func TestAgenda(t *testing.T) {
	const ms = 1_000_000
	calls := make(chan string, 10)
	early := 0
	a := newAgenda(func(intended, now int64) {
		if now < intended {
			early++
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	now := pace.Now()
	for _, e := range []struct {
		at   int64
		name string
	}{{3600 * 1000, "in an hour"}, {60, "c"}, {30, "b"}, {-5, "a"}, {90, "d"}} {
		a.at(now+e.at*ms, &note{e.name, calls})
	}
	ended := make(chan struct{})
	go func() { defer close(ended); a.run(ctx) }()
	if got := <-calls + <-calls + <-calls + <-calls; got != "abcd" {
		t.Errorf("called in the order %q", got)
	}
	a.at(pace.Now()+ms, &note{"e", calls}) // wakes one that would wait for an hour
	if got := <-calls; got != "e" {
		t.Errorf("called: %s", got)
	}
	cancel()
	<-ended
	if early > 0 {
		t.Errorf("%d were called before their time", early)
	}
	a.at(now, &note{"after the end", calls})
	if len(calls) > 0 {
		t.Errorf("called: %s", <-calls)
	}
}
