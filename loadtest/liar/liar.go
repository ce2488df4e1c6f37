package liar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrConfig is what Listen refuses with.
var ErrConfig = errors.New("liar: bad configuration")

// Config of a Liar.
type Config struct {
	Addr    string   // to listen on; "" = 127.0.0.1 and any free port
	Brokers []string // host:port

	// Clients and Topics are prefixes: it never leads other clients astray, and lies about no other topic. "" is a prefix of all.
	Clients string
	Topics  string
}

// Lies are what to lie about, and how often: one in so many, 0 = never, 1 = always. PUBLISHes are counted on their way to subscribers, over
// all connections; each is lied about in one way at most, the first that is due in the order of the fields.
type Lies struct {
	Astray    int // reconnects that go to another broker than the client met last
	Drop      int // PUBLISHes that never arrive
	Duplicate int // PUBLISHes that arrive twice, without DUP
	Swap      int // PUBLISHes that arrive behind the next one of their topic and QoS, if that comes within 3 s
	Stall     int // PUBLISHes before which the connection stands still, towards the subscriber, for StallFor
	StallFor  time.Duration
}

// Told is how many lies were told.
type Told struct {
	Connects   int64 // accepted, with a CONNECT
	Astray     int64
	Publishes  int64 // that could have been lied about
	Dropped    int64
	Duplicated int64
	Swapped    int64
	Stalled    int64
}

// swapWithin is how long a PUBLISH is held for its neighbour to come. Then it goes its way, and no lie was told.
const swapWithin = 3 * time.Second

// A Liar is a proxy. See Listen.
type Liar struct {
	cfg      Config
	listener net.Listener
	hold     time.Duration
	lies     atomic.Pointer[Lies]

	connects, astray, publishes, dropped, duplicated, swapped, stalled atomic.Int64

	mu         sync.Mutex
	met        map[string]int // client ID → index of the broker that it met last
	reconnects int
	next       int           // broker for the next new client
	paused     chan struct{} // closed at the end of a pause; nil if there is none
}

// Listen opens the port. Nothing is accepted before Run, which also closes it.
func Listen(cfg Config) (*Liar, error) {
	if len(cfg.Brokers) == 0 {
		return nil, fmt.Errorf("%w: no brokers", ErrConfig)
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("liar: %w", err)
	}
	l := &Liar{cfg: cfg, listener: listener, hold: swapWithin, met: map[string]int{}}
	l.lies.Store(&Lies{})
	return l, nil
}

// Addr is where clients connect to, as host:port.
func (l *Liar) Addr() string { return l.listener.Addr().String() }

// Set changes what is lied about from now on.
func (l *Liar) Set(lies Lies) { l.lies.Store(&lies) }

// Told returns what was lied so far.
func (l *Liar) Told() Told {
	return Told{
		Connects: l.connects.Load(), Astray: l.astray.Load(), Publishes: l.publishes.Load(), Dropped: l.dropped.Load(),
		Duplicated: l.duplicated.Load(), Swapped: l.swapped.Load(), Stalled: l.stalled.Load(),
	}
}

// Pause holds up every packet on every connection, and every new one, until resume is called.
func (l *Liar) Pause() (resume func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused == nil {
		l.paused = make(chan struct{})
	}
	pause := l.paused
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.paused == pause {
			close(pause)
			l.paused = nil
		}
	}
}

// wait returns when there is no pause.
func (l *Liar) wait(ctx context.Context) error {
	l.mu.Lock()
	pause := l.paused
	l.mu.Unlock()
	if pause == nil {
		return ctx.Err()
	}
	select {
	case <-pause:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run accepts and relays until ctx is done. All connections are closed when it returns.
func (l *Liar) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.listener.Close() })
	defer stop()
	for {
		c, err := l.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return context.Cause(ctx)
		}
		if err != nil {
			_ = l.listener.Close()
			return fmt.Errorf("liar: %w", err)
		}
		all.Go(func() { l.serve(ctx, c) })
	}
}

// serve relays one connection.
func (l *Liar) serve(ctx context.Context, client net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	defer func() { _ = client.Close() }()

	in := bufio.NewReader(client)
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second)) // for the CONNECT; a socket that is closed fails below
	connect, err := readPacket(in, nil)
	if err != nil {
		return
	}
	version, id, err := connect.connect()
	if err != nil || l.wait(ctx) != nil {
		return
	}
	_ = client.SetReadDeadline(time.Time{})
	l.connects.Add(1)
	var d net.Dialer
	broker, err := d.DialContext(ctx, "tcp", l.cfg.Brokers[l.choose(id)])
	if err != nil {
		return
	}
	defer func() { _ = broker.Close() }()
	defer context.AfterFunc(ctx, func() { _ = broker.Close() })()

	s := &session{liar: l, version: version, client: end{conn: client}, broker: end{conn: broker}, copies: map[uint16]bool{}, dropped: map[uint16]bool{}}
	if s.broker.write(connect) != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		defer cancel() // one side's end is the other's
		s.fromClient(ctx, in)
	})
	both.Go(func() {
		defer cancel()
		s.fromBroker(ctx, bufio.NewReader(broker))
	})
	both.Wait()
}

// choose picks the broker of a connect: the one met last, unless it is time to lie.
func (l *Liar) choose(id string) int {
	lies := l.lies.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	last, known := l.met[id]
	if !known || id == "" { // an ID that the broker is to invent comes only once
		last = l.next % len(l.cfg.Brokers)
		l.next++
	} else if strings.HasPrefix(id, l.cfg.Clients) && len(l.cfg.Brokers) > 1 {
		l.reconnects++
		if due(lies.Astray, int64(l.reconnects)) {
			last = (last + 1) % len(l.cfg.Brokers)
			l.astray.Add(1)
		}
	}
	l.met[id] = last
	return last
}

// due reports whether one in every is due at the n-th, counted from 1.
func due(every int, n int64) bool { return every > 0 && n%int64(every) == 0 }
