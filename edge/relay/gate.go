package relay

import "sync"

// A Gate bounds how many handshakes compute at the same time: a crowd of newcomers shall not take the processors from the sessions that live.
// Who waits for its client's next bytes is not inside; who waits for the gate gets in in the order of coming, or finds its time over then.
type Gate struct {
	mu    sync.Mutex
	free  int             // places; below zero where the gate is narrower than those inside
	queue []chan struct{} // who waits, until it is closed
}

// NewGate returns a gate with so many places, at least one.
func NewGate(places int) *Gate { return &Gate{free: max(places, 1)} }

// Resize changes the number of places from one to another, at least one each. Who is inside stays.
func (g *Gate) Resize(from, to int) { g.let(max(to, 1) - max(from, 1)) }

func (g *Gate) enter() {
	if g == nil {
		return
	}
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	g.queue = append(g.queue, turn)
	g.mu.Unlock()
	<-turn
}

func (g *Gate) leave() {
	if g != nil {
		g.let(1)
	}
}

// let adds places, and lets in whom they are for.
func (g *Gate) let(places int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.free += places; g.free > 0 && len(g.queue) > 0; g.free-- {
		close(g.queue[0])
		g.queue = g.queue[1:]
	}
}
