//go:build linux

package load_test

import (
	"context"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/sink"
)

// rig is a generator before one broker.
func rig(t *testing.T, p sink.Protocol, scheme string) (*load.Load, *sink.Sink) {
	t.Helper()
	s, err := sink.Listen(1, p)
	if err != nil {
		t.Fatal(err)
	}
	l, err := load.New(load.Target{URL: scheme + "://" + s.Addresses()[0], Sources: []string{"127.0.0.1", "127.0.8.1"}, Payload: 100})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	loading, stop := context.WithCancel(context.Background())
	go func() { ended <- l.Run(loading) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l, s
}

func TestLoad(t *testing.T) {
	for scheme, protocol := range map[string]sink.Protocol{"mqtt": sink.MQTT, "ws": sink.WebSocket} {
		t.Run(scheme, func(t *testing.T) {
			l, s := rig(t, protocol, scheme)
			ctx := t.Context()
			for i, present := range []int{0, 20} { // the second time they are known
				c, err := l.Connect(ctx, load.Connects{Count: 20})
				if err != nil || c.Accepted != 20 || c.Present != present || c.Failed != 0 {
					t.Fatalf("connect %d: %+v %v", i, c, err)
				}
			}
			if err := l.Traffic(ctx, 100); err == nil {
				t.Error("traffic of nobody")
			}
			if c, err := l.Connect(ctx, load.Connects{Count: 20, Rate: 2000, Hold: true}); err != nil || c.Accepted != 20 {
				t.Fatalf("%+v %v", c, err)
			}
			received := int64(0)
			waitFor := func(n int64) {
				t.Helper()
				for until := time.Now().Add(30 * time.Second); received < n; time.Sleep(5 * time.Millisecond) {
					if received += l.Mark().Received; time.Now().After(until) {
						t.Fatalf("%d of %d messages came back in time", received, n)
					}
				}
			}
			if err := l.Traffic(ctx, 2000); err != nil {
				t.Fatal(err)
			}
			waitFor(100)
			if err := l.Saturate(1); err == nil {
				t.Error("traffic twice")
			}
			paced := l.Stop(ctx)
			if err := l.Saturate(2); err != nil {
				t.Fatal(err)
			}
			waitFor(1000)
			full := l.Stop(ctx)
			for _, s := range []load.Seen{paced, full} {
				if s.Sent == 0 || s.Sent != s.Received || s.Wrong+s.Lost+s.Refused > 0 {
					t.Errorf("%+v", s)
				}
			}
			if got := s.Counts(); got.Publishes != paced.Sent+full.Sent || got.Connects != 60 || got.Faults > 0 {
				t.Errorf("%+v, and %d + %d were sent", got, paced.Sent, full.Sent)
			}
		})
	}
}

func TestRefusedConnects(t *testing.T) {
	l, err := load.New(load.Target{URL: "mqtt://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	c, err := l.Connect(ctx, load.Connects{Count: 3})
	if err != nil || c.Failed != 3 || c.Accepted != 0 || len(c.Errors) != 1 {
		t.Errorf("%+v %v", c, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
