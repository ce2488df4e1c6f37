package registry

import (
	"bytes"
	"errors"
	"sync"
)

// busBacklog bounds the messages that one MemoryBus endpoint has not delivered yet; beyond it new ones are lost.
const busBacklog = 65536

// ErrBusClosed is returned by the methods of a Bus after its Close.
var ErrBusClosed = errors.New("registry: bus closed")

// Valid reports whether exactly one kind of message is set.
func (m Message) Valid() bool {
	n := 0
	for _, set := range []bool{m.Notice != nil, m.Health != nil, m.Doubt != nil} {
		if set {
			n++
		}
	}
	return n == 1
}

var errMessage = errors.New("registry: a message must be of exactly one kind")

// MemoryBus is the hub of a bus in this process: Bus gives each edge its end of it.
type MemoryBus struct {
	mu   sync.RWMutex
	ends map[*memoryBusEnd]struct{}
}

// NewMemoryBus returns a hub without ends.
func NewMemoryBus() *MemoryBus { return &MemoryBus{ends: make(map[*memoryBusEnd]struct{})} }

// Bus returns an end of the bus for an edge. It has a goroutine only while it has messages to deliver; Close waits for that.
func (h *MemoryBus) Bus(edge string) Bus {
	e := &memoryBusEnd{hub: h, edge: edge, subs: make(map[*func(Message)]struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends[e] = struct{}{}
	return e
}

type memoryBusEnd struct {
	hub  *MemoryBus
	edge string

	delivery sync.Mutex // held while subscribers are called, and to change subs
	subs     map[*func(Message)]struct{}

	mu      sync.Mutex
	backlog []Message
	busy    bool // deliver is running
	closed  bool
	running sync.WaitGroup
}

func (e *memoryBusEnd) Publish(m Message) error {
	if !m.Valid() {
		return errMessage
	}
	if !e.Connected() {
		return ErrBusClosed
	}
	m = m.clone()
	m.From = e.edge
	e.hub.mu.RLock()
	defer e.hub.mu.RUnlock()
	for other := range e.hub.ends {
		if other.edge != e.edge {
			other.post(m)
		}
	}
	return nil
}

// clone gives the receivers a message that the sender cannot change any more.
func (m Message) clone() Message {
	switch {
	case m.Notice != nil:
		n := *m.Notice
		n.Affinity.Extra = bytes.Clone(n.Affinity.Extra)
		m.Notice = &n
	case m.Health != nil:
		h := cloneHealth(*m.Health)
		m.Health = &h
	case m.Doubt != nil:
		d := *m.Doubt
		m.Doubt = &d
	}
	return m
}

// post queues a message for delivery.
func (e *memoryBusEnd) post(m Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.backlog) >= busBacklog {
		return
	}
	e.backlog = append(e.backlog, m)
	if !e.busy {
		e.busy = true
		e.running.Add(1)
		go e.deliver()
	}
}

// deliver calls the subscribers until nothing is left to deliver.
func (e *memoryBusEnd) deliver() {
	defer e.running.Done()
	for {
		e.mu.Lock()
		batch := e.backlog
		e.backlog = nil
		if e.busy = len(batch) > 0; !e.busy {
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		for _, m := range batch {
			e.delivery.Lock()
			for fn := range e.subs {
				(*fn)(m)
			}
			e.delivery.Unlock()
		}
	}
}

func (e *memoryBusEnd) Subscribe(fn func(Message)) (cancel func(), err error) {
	if !e.Connected() {
		return nil, ErrBusClosed
	}
	sub := &fn
	e.delivery.Lock()
	defer e.delivery.Unlock()
	e.subs[sub] = struct{}{}
	return func() {
		e.delivery.Lock()
		defer e.delivery.Unlock()
		delete(e.subs, sub)
	}, nil
}

// Connected reports whether the end is open: there is no server to lose.
func (e *memoryBusEnd) Connected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.closed
}

func (e *memoryBusEnd) Close() error {
	e.hub.mu.Lock()
	delete(e.hub.ends, e)
	e.hub.mu.Unlock()
	e.mu.Lock()
	e.closed = true
	e.backlog = nil
	e.mu.Unlock()
	e.running.Wait()
	e.delivery.Lock()
	defer e.delivery.Unlock()
	clear(e.subs)
	return nil
}
