package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// smallRest is up to what length the piece of a record that is not whole has memory of its own size; a longer one gets a buffer of the loop's.
const (
	smallRest = 1 << 10
	largeRest = 20 << 10 // a TLS record of the largest size (RFC 8446 §5.2, RFC 5246 §6.2.3)
	maxPieces = 64
	// maxOwed is how much of the layers' own replies may wait for a side that does not read, until what it sends is not read either: one that
	// pings without end would have them pile up.
	maxOwed = 4 << 10
)

// unwrap opens what came from side's socket, and feeds the session what was in it.
func (c *conn) unwrap(side Side, raw []byte) {
	l, w := c.loop, c.wrap[side]
	payload, rest, err := w.open(raw)
	l.keepRest(w, rest) // raw is the loop's
	if err != nil {
		w.ended = true
	}
	if word := w.reply(&l.scratch); len(word) > 0 && c.fd[side] >= 0 && !c.s.Dead[side] {
		errno := c.write(side, word)
		if c.pend[side] != nil {
			w.owed += len(word)
		}
		if errno != 0 {
			c.feed(func(out []Action) []Action { return c.s.Unwritable(side, errno.Error(), l.now, out) })
		}
	}
	if len(payload) > 0 && !c.closed {
		c.carryOut(c.s.Received(side, payload, l.now, l.out[:0]))
	}
	if err == nil || c.wrap[side] != w {
		return
	}
	c.unwrapped(side, err)
	if w.mute() {
		c.feed(func(out []Action) []Action { return c.s.Unwritable(side, "", l.now, out) })
	}
}

// over tells the session that side's socket has come to its end.
func (c *conn) over(side Side) {
	w := c.wrap[side]
	switch {
	case w == nil:
		c.unwrapped(side, io.EOF)
	case !w.ended:
		w.ended = true
		c.unwrapped(side, w.eof())
	}
}

// unwrapped tells the session that nothing more comes from side.
func (c *conn) unwrapped(side Side, err error) {
	c.feed(func(out []Action) []Action {
		if err == io.EOF {
			return c.s.Ended(side, c.loop.now, out)
		}
		return c.s.Failed(side, ReasonTransport, err.Error(), c.loop.now, out)
	})
}

// keepRest keeps the piece that is not whole until more comes.
func (l *Loop) keepRest(w *wrap, rest []byte) {
	switch {
	case len(rest) == 0:
		if cap(w.rest) == largeRest && len(l.pieces) < maxPieces {
			l.pieces = append(l.pieces, w.rest[:0])
		}
		w.rest = nil
		return
	case len(rest) > smallRest && cap(w.rest) < largeRest && len(rest) <= largeRest:
		if n := len(l.pieces); n > 0 {
			w.rest, l.pieces = l.pieces[n-1], l.pieces[:n-1]
		} else {
			w.rest = make([]byte, 0, largeRest)
		}
	}
	w.rest = append(w.rest[:0], rest...)
}

// shutdown ends side's writing direction; nothing waits to be written.
func (c *conn) shutdown(side Side) {
	if c.fd[side] < 0 {
		return
	}
	w := c.wrap[side]
	if w == nil {
		shutWrite(c.sock(side))
		return
	}
	if last := w.end(&c.loop.scratch, false); !c.s.Dead[side] {
		c.write(side, last) // a socket that is broken will say so
	}
}

// join has a goroutine connect to the target's broker and shake hands.
func (c *conn) join() {
	l, target := c.loop, c.way.target
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.s.Deadline-l.now))
	l.gen++
	gen := l.gen
	c.gen[Broker], c.dialing, c.way.hangUp = gen, true, cancel
	c.way.joins++
	l.work.Go(func() {
		defer cancel()
		w, err := target.Join(ctx)
		if !l.send(mail{call: func() { c.joined(gen, w, err) }}) && err == nil {
			w.discard()
		}
	})
}

// discard ends a connection that nobody wants any more.
func (w Wrapped) discard() {
	wipe(w.Layers...)
	w.Conn.Close()
}

// joined goes on with the connection that join made.
func (c *conn) joined(gen int32, w Wrapped, err error) {
	if c.way != nil {
		c.way.joins--
		c.settle()
	}
	if c.closed || c.gen[Broker] != gen || c.way.hangUp == nil {
		if err == nil {
			w.discard()
		}
		return
	}
	c.way.hangUp()
	c.way.hangUp, c.dialing, c.gen[Broker] = nil, false, 0
	if err == nil {
		var fd int
		if fd, err = detach(w.Conn); err == nil {
			c.fd[Broker] = int32(fd)
			c.wrap[Broker] = newWrap(w.Layers, c.loop.shared)
			c.readable[Broker], c.ended[Broker] = true, false
			if err = c.watch(Broker, true); err != nil {
				c.close(Broker)
			}
		} else {
			wipe(w.Layers...)
		}
	}
	c.way.failure = err
	c.feed(func(out []Action) []Action {
		if err != nil {
			return c.s.DialFailed(c.loop.now, out)
		}
		return c.s.Dialed(nil, c.loop.now, out)
	})
	if err == nil {
		c.behind(Broker, w.Rest)
	}
	c.read()
}

// behind opens what was read behind side's handshakes.
func (c *conn) behind(side Side, rest []byte) {
	for w := c.wrap[side]; len(rest) > 0 && w != nil && w == c.wrap[side] && !w.ended; {
		raw := c.loop.buf
		kept := copy(raw, w.rest)
		n := copy(raw[kept:], rest)
		rest = rest[n:]
		c.unwrap(side, raw[:kept+n])
	}
}

// detach takes the socket out of a net.Conn.
func detach(nc *net.TCPConn) (fd int, err error) {
	defer nc.Close()
	raw, err := nc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("relay: detach: %w", err)
	}
	if e := raw.Control(func(sock uintptr) { fd, err = unix.FcntlInt(sock, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		err = e
	}
	if err != nil {
		return -1, os.NewSyscallError("dup", err)
	}
	return fd, nil
}

// tickShared tells what the layers share the time, once a second, until it holds nothing any more.
func (l *Loop) tickShared() {
	l.ticking = true
	l.wheel.add(l.now, l.now+int64(time.Second), wheelEntry{call: func() {
		if l.ticking = false; l.shared.Tick() > 0 {
			l.tickShared()
		}
	}})
}
