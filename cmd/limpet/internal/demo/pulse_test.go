package demo

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := feel(t.Context())
		time.Sleep(time.Minute)
		if still := p.stop(); still != 0 {
			t.Errorf("a machine that runs stood still for %v", still)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := feel(ctx)
	<-p.ended
	p.worst = 3 * time.Second
	if still := p.stop(); still != p.worst {
		t.Errorf("stood still for %v, told %v", p.worst, still)
	}
}
