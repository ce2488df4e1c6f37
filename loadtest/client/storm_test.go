package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// witness is a Handler that holds the engine to its word for one client: one call at a time, OnClosed once for each Open and last, every
// token once. It opens its client again whenever that is closed, until it is told to stop.
type witness struct {
	t       testing.TB
	engine  *Engine
	eps     []*wire.Endpoint
	client  Client
	id      string
	inside  atomic.Int32
	stopped *atomic.Bool
	wg      *sync.WaitGroup

	mu     sync.Mutex
	rand   *rand.Rand
	open   bool
	lives  int
	token  uint64
	tokens map[uint64]bool // taken, and not told yet
}

// enter checks that no other call is running.
func (w *witness) enter() func() {
	if w.inside.Add(1) != 1 {
		w.t.Errorf("%s: two calls at once", w.id)
	}
	return func() { w.inside.Add(-1) }
}

// call is enter for what may only come between Open and OnClosed.
func (w *witness) call(what string) func() {
	leave := w.enter()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		w.t.Errorf("%s: %s while closed", w.id, what)
	}
	return leave
}

func (w *witness) OnConnack(*Client, int64, *mqtt.Connack) {
	defer w.call("OnConnack")()
	w.act()
}

func (w *witness) OnPublish(*Client, int64, *mqtt.Publish) {
	defer w.call("OnPublish")()
	w.act()
}

func (w *witness) OnAcked(_ *Client, _ int64, token uint64, _ byte) {
	defer w.call("OnAcked")()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.tokens[token] {
		w.t.Errorf("%s: token %d told twice, or never taken", w.id, token)
	}
	delete(w.tokens, token)
}

func (w *witness) OnClosed(*Client, int64, Cause) {
	defer w.call("OnClosed")()
	w.mu.Lock()
	w.open = false
	w.mu.Unlock()
	w.reopen()
	w.wg.Done()
}

// reopen begins the next life, unless all is over.
func (w *witness) reopen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped.Load() {
		return
	}
	w.lives++
	w.wg.Add(1)
	w.open = true
	ep := w.eps[w.rand.IntN(len(w.eps))]
	if err := w.engine.Open(&w.client, ep, &mqtt.Connect{Version: mqtt.V5, ID: w.id, Expiry: 100}); err != nil {
		if !errors.Is(err, ErrEnded) {
			w.t.Error(err)
		}
		w.open = false
		w.wg.Done()
	}
}

// act does one thing out of all that a client can do.
func (w *witness) act() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch n := w.rand.IntN(100); {
	case n < 80:
		w.token++
		qos := byte(n % 3)
		if qos > 0 {
			w.tokens[w.token] = true
		}
		if w.client.Publish(w.token, []byte("t"), make([]byte, w.rand.IntN(3000)), qos, false) != nil {
			delete(w.tokens, w.token)
		}
	case n < 90:
		w.token++
		w.tokens[w.token] = true
		if w.client.Subscribe(w.token, "t", 1) != nil {
			delete(w.tokens, w.token)
		}
	case n < 93:
		w.client.Disconnect(nil)
	case n < 96:
		w.client.Abort()
	case n < 99:
		w.client.Abandon()
	}
}

// TestStorm: clients of all drivers do everything at random from several goroutines and from their handlers, on brokers that close now and
// then, and the engine ends in the middle of it.
func TestStorm(t *testing.T) {
	for _, d := range drivers[:2] {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			m := startMirror(t)
			e, stop := startEngine(t, Config{Dialer: newDialer(t, wire.Config{}), Loops: d.loops * 2, Grace: time.Millisecond})
			var stopped atomic.Bool
			var lives sync.WaitGroup
			all := make([]*witness, 50)
			eps := []*wire.Endpoint{{Addr: m.addr()}, {Addr: m.addr()}, {Addr: m.addr()}, {Addr: refusing(t)}}
			if d.loops > 0 {
				// Some of the lives of a client that was in a loop are streams.
				eps = append(eps, &wire.Endpoint{Transport: wire.WS, Addr: m.addr(), Host: "mirror", Path: "/mqtt"})
			}
			for i := range all {
				w := &witness{
					t: t, engine: e, eps: eps, id: fmt.Sprint("c", i), stopped: &stopped, wg: &lives,
					rand: rand.New(rand.NewPCG(uint64(i), 7)), tokens: map[uint64]bool{},
				}
				w.client.Handler = w
				all[i] = w
				w.reopen()
			}
			var actors sync.WaitGroup
			for n := range 4 {
				actors.Go(func() {
					r := rand.New(rand.NewPCG(uint64(n), 8))
					for range 5000 {
						all[r.IntN(len(all))].act()
					}
				})
			}
			actors.Go(func() { // the broker's part
				r := rand.New(rand.NewPCG(9, 9))
				for range 200 {
					m.mu.Lock()
					for c := range m.conns {
						if r.IntN(2) == 0 {
							reset(c)
						} else {
							c.Close()
						}
						break
					}
					m.mu.Unlock()
					time.Sleep(100 * time.Microsecond) // no wait for anything: the pace of the faults
				}
			})
			actors.Wait()
			stop() // the clients keep opening until it refuses
			stopped.Store(true)
			lives.Wait()
			n := 0
			for _, w := range all {
				n += w.lives
				if got := w.client.Inflight(); got != len(w.tokens) {
					t.Errorf("%s: %d in flight, %d tokens not told", w.id, got, len(w.tokens))
				}
			}
			if n < 2*len(all) {
				t.Errorf("only %d lives", n)
			}
			t.Logf("%d lives", n)
		})
	}
}

// TestNotOverdueBeforeItsTurn: a client that waits to be dialed, as the last of very many, has all its time yet.
func TestNotOverdueBeforeItsTurn(t *testing.T) {
	for _, d := range drivers[:2] {
		e, err := New(Config{Dialer: newDialer(t, wire.Config{}), Loops: d.loops})
		if err != nil {
			t.Fatal(err)
		}
		told := make(recorder, 10)
		c := &Client{Handler: told}
		if err := e.Open(c, &wire.Endpoint{Addr: refusing(t)}, &mqtt.Connect{Version: mqtt.V5}); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		cause := c.overdue(pace.Now() + int64(time.Hour))
		c.mu.Unlock()
		if cause != nil {
			t.Errorf("%s: %v", d.name, cause)
		}
		ctx, cancel := context.WithCancel(context.Background()) // Run begins with what was opened before it
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		told.expect(t, "closed dial: refused")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
