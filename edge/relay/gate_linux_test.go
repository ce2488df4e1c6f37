package relay

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// computing is a door whose handshakes compute, wait for their client, and compute again.
type computing struct {
	inside, most, begun, done atomic.Int32
}

func (*computing) Room() (time.Duration, bool) { return 0, true }
func (*computing) Enough([]byte) bool          { return true }

func (d *computing) Come(conn net.Conn, _ time.Time) func(context.Context) (Owner, []Layer, []byte) {
	return func(context.Context) (Owner, []Layer, []byte) {
		d.compute()
		d.begun.Add(1)
		p := make([]byte, 1)
		for range 2 { // what woke us, and what comes when all have begun
			if _, err := conn.Read(p); err != nil {
				return nil, nil, nil
			}
		}
		d.compute()
		d.done.Add(1)
		return nil, nil, nil
	}
}

func (d *computing) compute() {
	n := d.inside.Add(1)
	for most := d.most.Load(); n > most && !d.most.CompareAndSwap(most, n); most = d.most.Load() {
	}
	for until := time.Now().Add(time.Millisecond); time.Now().Before(until); {
	}
	d.inside.Add(-1)
}

// However many handshakes there are, no more than the gate's places compute at once; who waits for a client is in nobody's way.
func TestGate(t *testing.T) {
	t.Parallel()
	ln := mustListen(t)
	defer ln.Close()
	loop, err := NewLoop(LoopConfig{Gate: NewGate(2)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	d := new(computing)
	if _, err := loop.Open(ln, &Limits{}, d); err != nil {
		t.Fatal(err)
	}
	const clients = 20
	var all []net.Conn
	for range clients {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{1})
		all = append(all, c)
	}
	until(t, "all have begun", func() (bool, any) { n := d.begun.Load(); return n == clients, n })
	for _, c := range all {
		c.Write([]byte{2})
	}
	until(t, "all are done", func() (bool, any) { n := d.done.Load(); return n == clients, n })
	if most := d.most.Load(); most > 2 {
		t.Errorf("%d computed at once", most)
	}
}
