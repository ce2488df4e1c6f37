package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// stream is the driver for everything but plain TCP on Linux: a goroutine that dials and reads, and another one whenever there is something to write.
type stream struct {
	engine *Engine
	client *Client
	ep     *wire.Endpoint
	part   uint32 // in which part of a sweep
	ctx    context.Context
	cancel context.CancelFunc
	room   chan struct{} // has a token when the queue became shorter, or the client is leaving
	write  func()        // s.writeOut, bound once

	// Guarded by the client's mu.
	conn    wire.Conn
	writing bool
	writers sync.WaitGroup // waited for without mu
	failed  *Cause         // found by the sweep

	until atomic.Int64 // abandoned: when to close; 0: not abandoned
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// readers holds what streams read into: a stream that waits holds none.
var readers = sync.Pool{New: func() any { return &reading{buf: make([]byte, 32<<10)} }}

type reading struct {
	buf    []byte
	packet mqtt.Packet
}

func newStream(e *Engine, c *Client, ep *wire.Endpoint) *stream {
	s := &stream{engine: e, client: c, ep: ep, part: e.next.Add(1) % sweepParts, room: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.write = s.writeOut
	return s
}

// run is the goroutine of a connection, from the dial to OnClosed.
func (s *stream) run() {
	defer s.engine.work.Done()
	c := s.client
	c.dials(never) // the Dialer bounds it; one that is leaving has cancelled it

	conn, cause := s.dial()
	if conn == nil {
		s.engine.forget(s)
		s.cancel()
		c.ended(pace.Now(), cause)
		return
	}
	cause = s.serve(conn)
	s.cancel()
	c.mu.Lock()
	why := ""
	if c.leaving.Load() {
		why = c.why
	}
	if s.failed != nil {
		cause = *s.failed
	}
	if why == ReasonAbandon {
		s.until.Store(never)
		c.left = s
	}
	c.mu.Unlock()

	switch {
	case why == ReasonAbandon:
		c.ended(pace.Now(), cause)
		s.writers.Wait()
		return
	case why == ReasonDisconnect || why == ReasonEnd || cause.Reason == ReasonDisconnected || cause.Reason == ReasonRefusal: // in order
		c.ended(pace.Now(), cause)
		s.writers.Wait()
		_ = conn.Close()
	default:
		_ = conn.Abort()
		c.ended(pace.Now(), cause)
		s.writers.Wait()
	}
	s.engine.forget(s)
}

// dial returns a connection, or nil and the cause.
func (s *stream) dial() (wire.Conn, Cause) {
	conn, err := s.engine.cfg.Dialer.Dial(s.ctx, s.ep)
	if err != nil {
		cause := Cause{Stage: StageDial, Reason: wire.Reason(err), Err: err}
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Stage == wire.StageHandshake {
			cause.Stage = StageHandshake
		}
		return nil, cause
	}
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving.Load() { // it ended while the handshakes did
		_ = conn.Abort()
		return nil, Cause{}
	}
	s.conn = conn
	c.greets()
	s.flush()
	return conn, Cause{}
}

// serve reads until the connection ends.
func (s *stream) serve(conn wire.Conn) Cause {
	c := s.client
	for {
		if err := conn.Wait(); err != nil {
			return *c.cause(wire.Reason(err), err)
		}
		r := readers.Get().(*reading)
		n, err := conn.Read(r.buf)
		var over *Cause
		if n > 0 {
			at := pace.Now()
			c.begin()
			over = c.input(r.buf[:n], at, &r.packet)
			c.finish()
		}
		readers.Put(r)
		if over != nil {
			return *over
		}
		if err != nil {
			return *c.cause(wire.Reason(err), err)
		}
		for s.full() { // a server that does not read is not read
			<-s.room
		}
	}
}

func (s *stream) full() bool {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out != nil && len(c.out.b) > stopReading && s.writing && !c.leaving.Load()
}

func (s *stream) flush() {
	if !s.writing && s.conn != nil {
		s.writing = true
		s.writers.Add(1) // run has not come to wait for it: this is its client's link yet
		go s.write()
	}
}

// writeOut writes the client's queue until it is empty, and then closes a connection that said DISCONNECT.
func (s *stream) writeOut() {
	defer s.writers.Done()
	c := s.client
	c.mu.Lock()
	var err error
	for err == nil && c.link == s && c.out != nil {
		b := c.out
		c.out = nil
		s.roomier()
		c.mu.Unlock()
		var n int
		n, err = s.conn.Write(b.b)
		s.engine.out.Add(int64(n))
		b.release()
		c.mu.Lock()
	}
	if err != nil && s.failed == nil { // told by the one who knows why: the reader finds a connection that was closed here
		s.failed = c.cause(wire.Reason(err), err)
	}
	part := c.link == s && c.leaving.Load() && (c.why == ReasonDisconnect || c.why == ReasonEnd)
	if !part {
		s.writing = false // where it stays, nobody writes after DISCONNECT
	}
	abandoned := c.leaving.Load() && c.why == ReasonAbandon // cut, but not to be closed
	c.mu.Unlock()
	switch {
	case abandoned:
	case err != nil:
		_ = s.conn.Abort() // the reader is told
	case part:
		_ = s.conn.Close()
	}
	s.roomier() // for a reader that saw this still at work
}

func (s *stream) roomier() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

func (s *stream) stop() {
	switch {
	case s.conn == nil:
		s.cancel()
	case s.client.why == ReasonAbort:
		_ = s.conn.Abort()
	case s.client.why == ReasonAbandon:
		_ = s.conn.SetReadDeadline(longAgo)
		_ = s.conn.SetWriteDeadline(longAgo)
	default:
		_ = s.conn.SetWriteDeadline(time.Now().Add(partTimeout))
		s.flush()
	}
	s.roomier()
}

// end is what the engine's end does to a stream.
func (s *stream) end() {
	if s.until.Load() != 0 {
		s.bury()
		return
	}
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == s && c.leave(ReasonEnd) {
		c.sayDisconnect(nil)
		s.stop()
	}
}

func (s *stream) expire(grace time.Duration) { s.until.Store(pace.Now() + int64(grace)) }

// bury closes an abandoned connection.
func (s *stream) bury() {
	s.engine.forget(s)
	_ = s.conn.Abort()
}

func (e *Engine) forget(s *stream) {
	e.mu.Lock()
	delete(e.streams, s)
	e.mu.Unlock()
}

// sweepStreams keeps the streams' times until ctx ends.
func (e *Engine) sweepStreams(ctx context.Context) {
	tick := time.NewTicker(sweepEvery / sweepParts)
	defer tick.Stop()
	var some []*stream
	for part := uint32(0); ; part = (part + 1) % sweepParts {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.mu.Lock()
		for s := range e.streams {
			if s.part == part {
				some = append(some, s)
			}
		}
		e.mu.Unlock()
		now := pace.Now()
		for _, s := range some {
			s.sweep(now)
		}
		clear(some)
		some = some[:0]
	}
}

func (s *stream) sweep(now int64) {
	if until := s.until.Load(); until != 0 {
		if now >= until {
			s.bury()
		}
		return
	}
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != s {
		return
	}
	if cause := c.overdue(now); cause != nil {
		s.failed = cause
		_ = s.conn.Abort()
	}
}
