// Package client runs very many MQTT clients in one process.
//
//	engine, _ := client.New(client.Config{Dialer: dialer})
//	go func() { ended <- engine.Run(ctx) }()
//	c := &client.Client{Handler: device}
//	err := engine.Open(c, endpoint, &mqtt.Connect{Version: mqtt.V5, ID: "c1", KeepAlive: 60}) // the outcome is told to device
//	err = c.Publish(token, topic, payload, 1, false) // once device.OnConnack was called; OnAcked brings token back
//	c.Disconnect(nil)                                // or Abort, or Abandon; then device.OnClosed
//
// How it works: a Client is a session, its connections come and go. The protocol (what a packet means, what is in flight, what is owed) is
// the same for all connections; two drivers carry its bytes. Plain TCP on Linux lives in epoll loops on raw descriptors: an idle client there has
// no goroutine, no buffer and no timer. Everything else has a goroutine per client over a wire.Conn, which holds no buffer of ours while it waits.
// What a client sends while its loop is at work on it is gathered and written once; what other goroutines send is written at once by
// them. A sweep over all clients, some times a second, keeps connections alive and notices what is overdue.
//
// What it does not do: reconnect, retry or keep statistics. It tells its caller what happened and when, and that decides.
package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Config is what an Engine is made of. Zero means the default.
type Config struct {
	Dialer *wire.Dialer

	// Loops is the number of epoll loops for plain TCP; 0 is one, which carries some 100,000 messages a second. Negative: none, plain TCP
	// has a goroutine per client as everywhere but on Linux.
	Loops int
	// DialTimeout bounds the connect of a plain connection in a loop (the Dialer has bounds of its own); 0 is wire.DefaultTimeout.
	DialTimeout time.Duration
	// ConnackTimeout bounds the time from the CONNECT to the CONNACK; 0 is 30 s.
	ConnackTimeout time.Duration
	// PingTimeout bounds the time from a PINGREQ to its PINGRESP; 0 is the client's keep-alive, but at least 5 s.
	PingTimeout time.Duration
	// Queue is how many bytes a client keeps that its socket does not take, before ErrQueueFull; 0 is 1 MiB.
	Queue int
	// MaxPacket is the size of the largest packet that a client takes; 0 is mqtt.DefaultMax.
	MaxPacket int
	// Grace is how long an abandoned connection stays half-open after its client was opened again; 0 is 10 s.
	Grace time.Duration
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// The numbers of the engine, together.
const (
	// Every client is looked at twice a second, a quarter of them at a time: a keep-alive of one second is met, and no burst of PINGREQs
	// disturbs what is measured.
	sweepEvery = 500 * time.Millisecond
	sweepParts = 4
	// The default of Config.PingTimeout is the keep-alive, but never less than this.
	minPatience = int64(5 * time.Second)
	// How long a connection that said DISCONNECT may take to close.
	partTimeout = 2 * time.Second
	// How many bytes may wait for a full socket while its client still reads.
	stopReading = 256 << 10
	// A time that does not come.
	never = math.MaxInt64
)

// Engine runs clients.
type Engine struct {
	cfg   Config
	loops []*loop
	next  atomic.Uint32 // of loops

	in, out, resent atomic.Int64 // see Traffic

	mu      sync.Mutex
	state   engineState
	streams map[*stream]struct{}
	work    sync.WaitGroup // one for each stream that runs
}

type engineState uint8

const (
	created engineState = iota
	running
	finished
)

// New makes an engine; nothing runs before Run.
func New(cfg Config) (*Engine, error) {
	if cfg.Dialer == nil {
		return nil, errors.New("client: no dialer")
	}
	cfg.DialTimeout = orDefault(cfg.DialTimeout, wire.DefaultTimeout)
	cfg.ConnackTimeout = orDefault(cfg.ConnackTimeout, 30*time.Second)
	cfg.Queue = orDefault(cfg.Queue, 1<<20)
	cfg.Grace = orDefault(cfg.Grace, 10*time.Second)
	e := &Engine{cfg: cfg, streams: map[*stream]struct{}{}}
	if loopsSupported && cfg.Loops >= 0 {
		for range max(1, cfg.Loops) {
			l, err := newLoop(e)
			if err != nil {
				for _, l := range e.loops {
					l.free()
				}
				return nil, err
			}
			e.loops = append(e.loops, l)
		}
	}
	return e, nil
}

// Traffic is what all clients exchanged so far.
type Traffic struct {
	In, Out int64 // bytes of MQTT, without those of TLS, WebSocket, QUIC and PROXY
	Resent  int64 // PUBLISH packets that were sent again
}

// Traffic may be called at any time.
func (e *Engine) Traffic() Traffic {
	return Traffic{In: e.in.Load(), Out: e.out.Load(), Resent: e.resent.Load()}
}

// Run runs the engine until ctx ends. Then it closes what is open, with a DISCONNECT and without waiting (ReasonEnd), and returns when every
// client was told. It is called once. An Engine that is never run keeps some descriptors.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.state != created {
		e.mu.Unlock()
		return ErrEnded
	}
	e.state = running
	for s := range e.streams { // opened before Run
		e.start(s)
	}
	e.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(e.loops))
	for _, l := range e.loops {
		go func() {
			defer cancel() // one that failed ends all
			errs <- l.run(ctx)
		}()
	}
	e.sweepStreams(ctx)

	e.mu.Lock()
	e.state = finished
	left := slices.Collect(maps.Keys(e.streams))
	e.mu.Unlock()
	for _, s := range left { // not under e.mu: Open holds a client's mu when it takes that
		s.end()
	}
	e.work.Wait()
	for s := range maps.Clone(e.streams) { // abandoned meanwhile
		s.bury()
	}
	var all []error
	for range e.loops {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// Open connects c to ep with con, and returns at once: its handler is told the outcome. An error means that nothing was begun: ErrOpen,
// ErrEnded, or what Connect.Check finds. con is not kept.
//
// What is in flight from earlier connections of c is kept until the CONNACK, see Handler.OnAcked; meanwhile con.Version may not change to or from MQTT 5.
func (e *Engine) Open(c *Client, ep *wire.Endpoint, con *mqtt.Connect) error {
	if err := con.Check(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil {
		return ErrOpen
	}
	if s := c.session; s != nil && s.head < len(s.flights) && (c.version == mqtt.V5) != (con.Version == mqtt.V5) {
		return fmt.Errorf("client: MQTT %v with messages of MQTT %v in flight", con.Version, c.version)
	}
	c.version, c.keepAlive, c.engine = con.Version, con.KeepAlive, e
	c.reader = mqtt.Reader{Version: con.Version, Max: e.cfg.MaxPacket}
	c.leaving.Store(false)
	c.phase = dialing
	c.begun, c.ready, c.due = 0, 0, never // until the driver comes to it
	c.out = newBuffer(64 + len(con.ID))
	c.out.b = con.Append(c.out.b)
	if old := c.left; old != nil {
		c.left = nil
		old.expire(e.cfg.Grace)
	}
	if ep.Transport == wire.TCP && len(e.loops) > 0 {
		k := &conn{loop: e.loops[e.next.Add(1)%uint32(len(e.loops))], client: c, fd: -1}
		c.link = k
		if k.loop.post(mail{conn: k, open: ep}) {
			return nil
		}
	} else {
		s := newStream(e, c, ep)
		c.link = s
		if e.adopt(s) {
			return nil
		}
	}
	c.out.release()
	c.out, c.link, c.phase = nil, nil, closed
	return ErrEnded
}

// adopt starts s, or keeps it for Run; false if the engine has ended.
func (e *Engine) adopt(s *stream) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == finished {
		return false
	}
	e.streams[s] = struct{}{}
	if e.state == running {
		e.start(s)
	}
	return true
}

func (e *Engine) start(s *stream) {
	e.work.Add(1)
	go s.run()
}
