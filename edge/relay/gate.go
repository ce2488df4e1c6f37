package relay

// A Gate bounds how many handshakes compute at the same time: a crowd of newcomers shall not take the processors from the sessions that live.
// Who waits for its client's next bytes is not inside; who waits for the gate gets in in the order of coming, or finds its time over then.
type Gate struct{ places chan struct{} }

// NewGate returns a gate with so many places, at least one.
func NewGate(places int) *Gate { return &Gate{make(chan struct{}, max(places, 1))} }

func (g *Gate) enter() {
	if g != nil {
		g.places <- struct{}{}
	}
}

func (g *Gate) leave() {
	if g != nil {
		<-g.places
	}
}
