package client

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Loops of several engines share the processors: one of them must stay for all other goroutines, or what the loops wait for never comes.
func TestLoopsOfAllEnginesLeaveAProcessor(t *testing.T) {
	d, err := wire.New(wire.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(context.Background())
	before := int(loopsRunning.Load())
	ended := make(chan error)
	n := runtime.GOMAXPROCS(0)
	for range n {
		e, err := New(Config{Dialer: d, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- e.Run(ctx) }()
	}
	for end := time.Now().Add(10 * time.Second); int(loopsRunning.Load()) != before+n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d loops, want %d", loopsRunning.Load(), before+n)
		}
	}
	var l loop
	if l.mayWaitRaw(); l.raw {
		t.Errorf("%d loops may keep %d processors", loopsRunning.Load(), n)
	}
	cancel()
	for range n {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got := int(loopsRunning.Load()); got != before {
		t.Errorf("%d loops are left, there were %d", got, before)
	}
}
