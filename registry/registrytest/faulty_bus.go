package registrytest

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// FaultyBus is a Bus that loses, delays and doubles what it is told to deliver, by a seed: one seed, one fate.
type FaultyBus struct {
	inner registry.Bus

	mu       sync.Mutex
	rnd      *rand.Rand
	down     bool
	loss     float64
	doubling float64
	min, max time.Duration
	late     sync.WaitGroup
	closed   bool
}

// NewFaultyBus returns a bus without faults.
func NewFaultyBus(b registry.Bus, seed uint64) *FaultyBus {
	return &FaultyBus{inner: b, rnd: rand.New(rand.NewPCG(seed, 0))}
}

// Down loses everything, both ways, and the bus is not Connected.
func (f *FaultyBus) Down(down bool) { f.set(func() { f.down = down }) }

// Lose loses that share of the messages that arrive.
func (f *FaultyBus) Lose(share float64) { f.set(func() { f.loss = share }) }

// Double delivers that share of the messages twice.
func (f *FaultyBus) Double(share float64) { f.set(func() { f.doubling = share }) }

// Delay makes messages arrive later, each by a time between min and max of its own: they change their order.
func (f *FaultyBus) Delay(min, max time.Duration) { f.set(func() { f.min, f.max = min, max }) }

func (f *FaultyBus) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// fate is when the copies of one message arrive.
func (f *FaultyBus) fate() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.closed || f.rnd.Float64() < f.loss {
		return nil
	}
	copies := 1
	if f.rnd.Float64() < f.doubling {
		copies = 2
	}
	at := make([]time.Duration, copies)
	for i := range at {
		if at[i] = f.min; f.max > f.min {
			at[i] += time.Duration(f.rnd.Int64N(int64(f.max - f.min)))
		}
	}
	f.late.Add(copies)
	return at
}

func (f *FaultyBus) Publish(m registry.Message) error {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	if down && m.Valid() {
		return nil // lost on the way
	}
	return f.inner.Publish(m)
}

func (f *FaultyBus) Subscribe(fn func(registry.Message)) (cancel func(), err error) {
	var delivery sync.Mutex
	cancelled := false
	deliver := func(m registry.Message) {
		defer f.late.Done()
		delivery.Lock()
		defer delivery.Unlock()
		if !cancelled {
			fn(m)
		}
	}
	stop, err := f.inner.Subscribe(func(m registry.Message) {
		for _, d := range f.fate() {
			if d == 0 {
				deliver(m)
			} else {
				time.AfterFunc(d, func() { deliver(m) })
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return func() {
		stop()
		delivery.Lock()
		defer delivery.Unlock()
		cancelled = true
	}, nil
}

func (f *FaultyBus) Connected() bool {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	return !down && f.inner.Connected()
}

// Close waits for the messages that are under way; they are still delivered.
func (f *FaultyBus) Close() error {
	f.set(func() { f.closed = true })
	err := f.inner.Close()
	f.late.Wait()
	return err
}
