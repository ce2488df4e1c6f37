package registrytest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// Faulty is a Store whose way to its server fails on request. Faults may be set and lifted at any moment, from any goroutine.
//
//	mem := registry.NewMemory()
//	store := registrytest.NewFaulty(mem.Client)
//	store.Down(true) // every call fails at once, the watches break
type Faulty struct {
	open  func() registry.Store
	inner registry.Store

	mu       sync.Mutex
	faults   faults
	changed  chan struct{} // closed when faults change
	calls    map[string]int
	sessions []*faultySession
	done     chan struct{} // closed by Close
	leads    sync.WaitGroup
}

type faults struct {
	down, frozen, deaf bool
	delay, watchDelay  time.Duration
}

// NewFaulty returns a store without faults. open is called at once, and once for every session: a session ends
// by its TTL when its own client is closed, and so it does when the way to the server is broken for long.
func NewFaulty(open func() registry.Store) *Faulty {
	return &Faulty{open: open, inner: open(), changed: make(chan struct{}), calls: make(map[string]int), done: make(chan struct{})}
}

func (f *Faulty) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.faults)
	close(f.changed)
	f.changed = make(chan struct{})
	for _, s := range f.sessions {
		s.cut(f.faults.down || f.faults.frozen)
	}
}

// Down makes every call fail at once with ErrUnavailable, also those under way, and breaks the watches: connection refused.
// A session is lost when that lasts for one SessionTTL; the store drops its registration one SessionTTL later.
func (f *Faulty) Down(down bool) { f.set(func(x *faults) { x.down = down }) }

// Freeze makes calls and watches hang, until their contexts end or it is lifted: a server that is stopped, or a network
// that swallows packets.
func (f *Faulty) Freeze(frozen bool) { f.set(func(x *faults) { x.frozen = frozen }) }

// Delay makes every answer come d later than it would. What was asked is done at once.
func (f *Faulty) Delay(d time.Duration) { f.set(func(x *faults) { x.delay = d }) }

// DelayWatch makes every batch of a watch come d later than it would.
func (f *Faulty) DelayWatch(d time.Duration) { f.set(func(x *faults) { x.watchDelay = d }) }

// LoseAnswers makes every call do what was asked and then fail with ErrUnavailable: the caller cannot know.
func (f *Faulty) LoseAnswers(lose bool) { f.set(func(x *faults) { x.deaf = lose }) }

// Calls is how often a method was called, by its name: "Get", "Commit", "Watch", "Report", …
func (f *Faulty) Calls(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *Faulty) now() (faults, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults, f.changed
}

func unavailable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", registry.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: connection refused", registry.ErrUnavailable)
}

// pass waits until the way is open.
func (f *Faulty) pass(ctx context.Context) error {
	for {
		x, changed := f.now()
		switch {
		case x.down || ctx.Err() != nil:
			return unavailable(ctx)
		case !x.frozen:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// linger waits for d on an open way.
func (f *Faulty) linger(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return f.pass(ctx)
	}
	// No timer's channel: in a bubble of synctest, the race detector of Go 1.26 does not survive two goroutines that find
	// timers due at the same moment (runtime.(*timer).maybeRunChan).
	over := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	for {
		if err := f.pass(ctx); err != nil {
			return err
		}
		_, changed := f.now()
		select {
		case <-over:
			return f.pass(ctx)
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// do carries one call there and its answer back.
func (f *Faulty) do(ctx context.Context, method string, call func() error) error {
	f.mu.Lock()
	f.calls[method]++
	f.mu.Unlock()
	if err := f.pass(ctx); err != nil {
		return err
	}
	err := call()
	x, _ := f.now()
	if lost := f.linger(ctx, x.delay); lost != nil {
		return lost
	}
	if x.deaf {
		return fmt.Errorf("%w: connection reset", registry.ErrUnavailable)
	}
	return err
}

// Watch follows the store while the way is open. A change that comes while it is frozen waits.
func (f *Faulty) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	f.mu.Lock()
	f.calls["Watch"]++
	f.mu.Unlock()
	if err := f.pass(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var broken error // written before inner ends, read after Watch has returned
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			x, changed := f.now()
			if x.down {
				broken = unavailable(ctx)
				cancel()
				return
			}
			select {
			case <-changed:
			case <-inner.Done():
				return
			}
		}
	})
	err := f.inner.Watch(inner, from, func(b registry.Batch) error {
		x, _ := f.now()
		if err := f.linger(inner, x.watchDelay); err != nil {
			return err
		}
		return fn(b)
	})
	cancel()
	watching.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case broken != nil:
		return broken
	}
	return err
}

func (f *Faulty) Get(ctx context.Context, pool, key string) (a registry.Affinity, err error) {
	err = f.do(ctx, "Get", func() (err error) { a, err = f.inner.Get(ctx, pool, key); return })
	if err != nil {
		return registry.Affinity{}, err
	}
	return a, nil
}

func (f *Faulty) Commit(ctx context.Context, ws []registry.Write) (rs []registry.Result, err error) {
	err = f.do(ctx, "Commit", func() (err error) { rs, err = f.inner.Commit(ctx, ws); return })
	if err != nil {
		return nil, err
	}
	return rs, nil
}

func (f *Faulty) PutPool(ctx context.Context, p *registry.Pool, guard int64) error {
	return f.do(ctx, "PutPool", func() error { return f.inner.PutPool(ctx, p, guard) })
}

func (f *Faulty) DeletePool(ctx context.Context, name string, guard int64) error {
	return f.do(ctx, "DeletePool", func() error { return f.inner.DeletePool(ctx, name, guard) })
}

func (f *Faulty) Prune(ctx context.Context) error {
	return f.do(ctx, "Prune", func() error { return f.inner.Prune(ctx) })
}

func (f *Faulty) SetAdmin(ctx context.Context, ref registry.BrokerRef, s registry.AdminState) error {
	return f.do(ctx, "SetAdmin", func() error { return f.inner.SetAdmin(ctx, ref, s) })
}

func (f *Faulty) SetPin(ctx context.Context, ref registry.PinRef, broker string) error {
	return f.do(ctx, "SetPin", func() error { return f.inner.SetPin(ctx, ref, broker) })
}

// Close closes the store's clients, those of its sessions included.
func (f *Faulty) Close() error {
	f.mu.Lock()
	if !isClosed(f.done) {
		close(f.done)
	}
	sessions := f.sessions
	f.mu.Unlock()
	for _, s := range sessions {
		s.cut(false)
		s.store.Close()
	}
	f.leads.Wait()
	return f.inner.Close()
}
