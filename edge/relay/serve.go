package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Serve runs one session over client, a connection that was accepted at the given time, until it ends; owner.Closed is its last call.
// It is the driver for what no epoll loop runs: one goroutine reads each side and writes to the other.
// ready, if not nil, is called with the session's Conn before the first event.
func Serve(client Stream, owner Owner, l *Limits, accepted time.Time, ready func(Conn)) {
	d := newDriver(client, owner)
	d.s.Start(l, d.at(accepted), false)
	if ready != nil {
		ready(d)
	}
	d.run()
}

// driver runs a session over Streams.
type driver struct {
	owner  Owner
	client Stream
	epoch  time.Time

	mu       sync.Mutex
	moved    sync.Cond // on mu: the session moved on; wakes a reader that was told to wait
	s        Session
	out      []Action // scratch
	broker   Stream
	gen      int // of the broker's connection: what an earlier one still says is ignored
	target   *Target
	failure  error              // of the last dial
	hangUp   context.CancelFunc // ends the dial under way
	dialing  bool               // there is one
	writing  [2]bool            // a goroutine writes to this side now; others leave their work in queue
	queue    [2][]job
	finish   bool // feed Finished when nobody writes any more
	timer    *time.Timer
	deadline int64
	ticks    sync.WaitGroup
	work     sync.WaitGroup

	door sync.Mutex // a leaf: never held while anything else is locked or called
	over bool       // no more work is begun
}

// job is a write, or with nil data a shutdown.
type job struct {
	side Side
	to   Stream
	gen  int
	data []byte
}

func newDriver(client Stream, owner Owner) *driver {
	d := &driver{client: client, owner: owner, epoch: time.Now()}
	d.moved.L = &d.mu
	return d
}

func (d *driver) at(t time.Time) int64 { return int64(t.Sub(d.epoch)) + 1 } // +1: zero means never
func (d *driver) now() int64           { return int64(time.Since(d.epoch)) + 1 }

func (d *driver) run() {
	d.feed(func(out []Action) []Action { return out }) // arms the timer
	d.readClient()
	d.door.Lock()
	d.over = true
	d.door.Unlock()
	d.work.Wait()
	d.mu.Lock()
	if d.timer != nil && d.timer.Stop() {
		d.ticks.Done()
	}
	d.mu.Unlock()
	d.ticks.Wait()
	d.owner.Closed(d.s.summary(d.now(), d.failure))
}

// feed gives the session an event and carries out what it asks for. Everything but writing happens under the lock, writing outside it.
func (d *driver) feed(event func(out []Action) []Action) {
	d.mu.Lock()
	mine := d.carryOut(event)
	d.mu.Unlock()
	d.write(mine)
}

func (d *driver) carryOut(event func(out []Action) []Action) []job {
	if d.s.Phase == Closed {
		return nil
	}
	var mine []job
	out := event(d.out[:0])
	for i := 0; i < len(out); i++ { // out grows while we go
		switch a := out[i]; a.Op {
		case OpWrite:
			mine = d.enqueue(mine, a.Side, a.Data)
		case OpShutdown:
			mine = d.enqueue(mine, a.Side, nil)
		case OpPreamble:
			n, err := d.owner.Preamble(a.Data)
			out = d.s.Preamble(n, err, d.now(), out)
		case OpRoute:
			q := Query{Attempt: int(d.s.Attempt), Cause: d.s.Cause, Err: d.failure}
			d.failure = nil
			c, err := d.s.Connect()
			if err != nil {
				out = d.s.cut(ReasonInternal, err.Error(), out)
				continue
			}
			q.Connect = &c
			if ans, ok := d.owner.Route(d, q); ok {
				d.target = ans.Target
				out = d.s.Routed(ans, d.now(), out)
			}
		case OpDial:
			d.dial()
		case OpDrop:
			d.drop()
		case OpAccepted:
			d.target = nil
			if k, err := mqtt.ParseConnack(a.Data, d.s.Version); err == nil {
				d.owner.Accepted(d, k, d.s.toConnack())
			}
		case OpGoodbye:
			if m, err := mqtt.ParseDisconnect(a.Data, d.s.Version); err == nil {
				d.owner.Goodbye(d, m)
			}
		case OpBrokerEnded:
			d.owner.BrokerEnded(d)
		case OpFlow:
			out = d.s.Flow(d.left(), d.now(), out)
		case OpUnread:
			out = d.s.Unread(a.Side, d.unread(a.Side), d.now(), out)
		case OpFinish:
			if d.finish = d.writing[Client] || d.writing[Broker]; !d.finish {
				out = d.s.Finished(out)
			}
		case OpClose:
			d.drop()
			d.shut(d.client)
		}
	}
	clear(out)
	d.out = out[:0]
	d.moved.Broadcast()
	d.arm()
	return mine
}

// enqueue gives a write to the goroutine that writes to side already, or else to ours.
func (d *driver) enqueue(mine []job, side Side, data []byte) []job {
	j := job{side: side, to: d.client, gen: d.gen, data: data}
	if side == Broker {
		j.to = d.broker
	}
	if j.to == nil || d.s.Dead[side] {
		return mine
	}
	if d.writing[side] && !owns(mine, side) {
		if data != nil {
			j.data = append([]byte{}, data...)
		}
		d.queue[side] = append(d.queue[side], j)
		return mine
	}
	d.writing[side] = true
	return append(mine, j)
}

func owns(mine []job, side Side) bool {
	for _, j := range mine {
		if j.side == side {
			return true
		}
	}
	return false
}

// left is what is on its way to the client, as far as we know it. Called with the lock held.
func (d *driver) left() int {
	n := unsent(d.client)
	if d.writing[Client] {
		n++
	}
	for _, j := range d.queue[Client] {
		n += 1 + len(j.data)
	}
	return n
}

// unread is what side has sent and we have not read, as far as we know it. Called with the lock held.
func (d *driver) unread(side Side) int {
	switch {
	case d.writing[side.Other()]: // who reads this side may be busy with that
		return 1
	case side == Client:
		return waiting(d.client)
	}
	return waiting(d.broker)
}

// write carries out jobs and then whatever was queued behind them.
func (d *driver) write(jobs []job) {
	if len(jobs) == 0 {
		return
	}
	var mine [2]bool
	finished := false
	for _, j := range jobs {
		mine[j.side] = true
		d.do(j)
	}
	for _, side := range [2]Side{Client, Broker} {
		for mine[side] {
			d.mu.Lock()
			queued := d.queue[side]
			d.queue[side] = nil
			if len(queued) == 0 {
				d.writing[side] = false
				mine[side] = false
			}
			finished = d.finish && !d.writing[Client] && !d.writing[Broker]
			d.moved.Broadcast()
			d.mu.Unlock()
			for _, j := range queued {
				d.do(j)
			}
		}
	}
	if finished {
		d.feed(d.s.Finished)
	}
}

func (d *driver) do(j job) {
	var err error
	if j.data == nil {
		err = j.to.CloseWrite()
	} else {
		_, err = j.to.Write(j.data)
	}
	if err != nil {
		d.feed(func(out []Action) []Action {
			if j.side == Broker && j.gen != d.gen {
				return out
			}
			return d.s.Unwritable(j.side, err.Error(), d.now(), out)
		})
	}
}

func (d *driver) failed(side Side, gen int, err error) {
	d.feed(func(out []Action) []Action {
		if side == Broker && gen != d.gen {
			return out
		}
		reason := ReasonNone
		var te TransportError
		if errors.As(err, &te) {
			reason = ReasonTransport
		}
		return d.s.Failed(side, reason, err.Error(), d.now(), out)
	})
}

// TransportError is implemented by errors of Streams that mean: the peer broke the transport's rules.
type TransportError interface {
	error
	Transport() string // which one: "ws", "tls", "quic"
}

func (d *driver) readClient() {
	d.read(Client, d.client, 0)
	// The session may outlive the client's last byte: the broker's bytes, and our timer, end it.
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.s.Phase != Closed {
		d.moved.Wait()
	}
}

// Read buffers: a small one while little comes, a large one while much does.
const (
	smallRead = 4 << 10
	largeRead = 32 << 10
)

var (
	smallBufs = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}
	largeBufs = sync.Pool{New: func() any { b := make([]byte, largeRead); return &b }}
)

func (d *driver) read(side Side, from Stream, gen int) {
	pool := &smallBufs
	buf := pool.Get().(*[]byte)
	defer func() { pool.Put(buf) }()
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			p := (*buf)[:n]
			d.feed(func(out []Action) []Action {
				if side == Broker && gen != d.gen {
					return out
				}
				return d.s.Received(side, p, d.now(), out)
			})
		}
		if err != nil {
			if err == io.EOF {
				d.feed(func(out []Action) []Action {
					if side == Broker && gen != d.gen {
						return out
					}
					return d.s.Ended(side, d.now(), out)
				})
			} else {
				d.failed(side, gen, err)
			}
			return
		}
		if next := poolFor(n, pool); next != pool {
			pool.Put(buf)
			pool = next
			buf = pool.Get().(*[]byte)
		}
		if !d.mayRead(side, gen) {
			return
		}
	}
}

// mayRead waits until bytes from side are welcome; false if they never will be again. They are not while what was read last still waits
// for another goroutine to write it: a side that is full holds the other one back.
func (d *driver) mayRead(side Side, gen int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.s.Phase != Closed && (side == Client || gen == d.gen) {
		if d.s.WantRead(side) && len(d.queue[side.Other()]) == 0 {
			return true
		}
		d.moved.Wait()
	}
	return false
}

func poolFor(n int, pool *sync.Pool) *sync.Pool {
	switch {
	case n == smallRead:
		return &largeBufs
	case n < smallRead:
		return &smallBufs
	}
	return pool
}

// dial connects to d.target in a goroutine, which then reads the broker. Called with the lock held.
func (d *driver) dial() {
	ctx, cancel := context.WithCancel(context.Background())
	d.hangUp, d.dialing = cancel, true
	d.gen++
	d.failure = nil
	gen, target := d.gen, d.target
	d.work.Go(func() {
		defer cancel()
		broker, err := connect(ctx, target)
		d.mu.Lock()
		if d.gen != gen || d.s.Phase != Dialing {
			d.mu.Unlock()
			if err == nil {
				broker.Close()
			}
			return
		}
		d.dialing = false
		if err != nil {
			mine := d.carryOut(func(out []Action) []Action {
				d.failure = err
				return d.s.DialFailed(d.now(), out)
			})
			d.mu.Unlock()
			d.write(mine)
			return
		}
		d.broker = broker
		mine := d.carryOut(func(out []Action) []Action { return d.s.Dialed(target.Prelude, d.now(), out) })
		d.mu.Unlock()
		d.write(mine)
		d.read(Broker, broker, gen)
	})
}

// connect reaches the target by its own Dial, or by plain TCP.
func connect(ctx context.Context, t *Target) (Stream, error) {
	by := time.Now().Add(orDuration(t.DialTimeout, defaultDialTimeout))
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	if t.Dial != nil {
		return t.Dial(ctx)
	}
	return connectTCP(ctx, t.Addrs, by)
}

var errNoAddress = errors.New("relay: target without an address")

// connectTCP tries the addresses in order, each for an equal share of the time that is left: one that swallows everything does not keep the
// others from being tried.
func connectTCP(ctx context.Context, addrs []netip.AddrPort, by time.Time) (Stream, error) {
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount},
		Control:         userTimeoutControl,
	}
	err := errNoAddress
	for i, addr := range addrs {
		dialer.Deadline = time.Now().Add(share(time.Until(by), len(addrs)-i))
		var c net.Conn
		if c, err = dialer.DialContext(ctx, "tcp", addr.String()); err == nil {
			return c.(*net.TCPConn), nil
		}
	}
	return nil, err
}

// share is one address's part of the time that is left for n of them.
func share(left time.Duration, n int) time.Duration { return left / time.Duration(n) }

// drop ends the broker's connection or the dial under way. Called with the lock held.
func (d *driver) drop() {
	d.gen++
	if d.dialing {
		d.hangUp()
		d.dialing, d.failure = false, errDialTimeout
	}
	if d.broker != nil {
		d.shut(d.broker)
		d.broker = nil
	}
}

// shut closes a stream aside: TLS and WebSocket may wait a moment for a peer that does not read. Called with the lock held.
func (d *driver) shut(st Stream) {
	d.work.Go(func() { st.Close() })
}

// arm sets the timer to the session's deadline. Called with the lock held.
func (d *driver) arm() {
	if d.s.Deadline == d.deadline {
		return
	}
	if d.timer != nil && d.timer.Stop() {
		d.ticks.Done()
	}
	d.deadline, d.timer = d.s.Deadline, nil
	if d.deadline != 0 {
		d.ticks.Add(1)
		due := d.deadline
		d.timer = time.AfterFunc(time.Duration(due-d.now()), func() { d.tick(due) })
	}
}

func (d *driver) tick(due int64) {
	defer d.ticks.Done()
	d.feed(func(out []Action) []Action {
		if d.deadline != due { // it was moved while we waited for the lock
			return out
		}
		d.deadline, d.timer = 0, nil
		return d.s.Tick(max(d.now(), due), out)
	})
}

// later runs fn in a goroutine of the session's own, unless it is over. Those who call Answer and Stop must not wait for a socket, and may
// hold a lock that the owner takes when it is called with ours.
func (d *driver) later(fn func()) {
	d.door.Lock()
	defer d.door.Unlock()
	if !d.over {
		d.work.Go(fn)
	}
}

// Answer implements Conn.
func (d *driver) Answer(a Answer) { d.later(func() { d.answer(a) }) }

func (d *driver) answer(a Answer) {
	d.feed(func(out []Action) []Action {
		if d.s.Phase == Routing {
			d.target = a.Target
		}
		return d.s.Routed(a, d.now(), out)
	})
}

// Stop implements Conn. A client that does not read is given the time of our last words to do so.
func (d *driver) Stop(r Reason) {
	d.later(func() {
		d.client.SetWriteDeadline(time.Now().Add(d.s.limits.linger()))
		d.feed(func(out []Action) []Action { return d.s.Stop(r, d.now(), out) })
	})
}
