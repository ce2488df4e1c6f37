package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// link sends this broker's messages to one peer, over connections that it dials.
type link struct {
	self     hello
	peer     string
	address  string
	log      zerolog.Logger
	retained *retainedStore
	backlog  *backlog

	poked  chan struct{}    // capacity 1: the peer has just started, dial now
	away   func()           // called when an attempt fails: nobody need wait for this peer
	report func(PeerStatus) // called when the link comes up or goes down

	synced uint64 // incarnation of the peer that has had our retained store; owned by run and what it waits for
}

// run keeps the link up until ctx ends. It returns after all that it started has ended.
func (l *link) run(ctx context.Context) {
	for delay := backoffMin; ctx.Err() == nil; delay = min(2*delay, backoffMax) {
		up, err := l.connect(ctx)
		if up {
			delay = backoffMin
			status := l.status()
			l.log.Info().Err(err).Int("kept", status.Kept).Msg("link down")
			l.report(status)
		} else {
			l.log.Debug().Err(err).Msg("peer not reached")
			l.away()
		}
		select {
		case <-ctx.Done():
		case <-l.poked:
			delay = backoffMin
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
	}
}

// connect dials the peer, greets it and sends until the connection fails. up tells whether it got that far.
func (l *link) connect(ctx context.Context) (up bool, err error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", l.address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	r, w := bufio.NewReader(conn), bufio.NewWriterSize(conn, 64<<10)
	peer, err := l.greet(conn, r, w)
	if err != nil {
		return false, err
	}
	if err := l.backlog.connected(peer.last); err != nil {
		return false, err
	}
	defer l.backlog.disconnected()
	status := l.status()
	l.log.Info().Int("kept", status.Kept).Msg("link up")
	l.report(status)

	stale := l.synced != peer.incarnation // it has not had our retained store
	var readErr error
	var reading sync.WaitGroup
	ended := make(chan struct{})
	reading.Go(func() {
		readErr = l.receiveAcks(conn, r, peer.incarnation)
		close(ended)
	})
	writeErr := l.send(ctx, conn, w, stale, ended)
	conn.Close()
	reading.Wait()
	return true, errors.Join(writeErr, readErr)
}

func (l *link) greet(conn net.Conn, r *bufio.Reader, w *bufio.Writer) (welcome, error) {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return welcome{}, err
	}
	if err := errors.Join(writeFrame(w, frameHello, l.self.encode()), w.Flush()); err != nil {
		return welcome{}, err
	}
	kind, body, err := readFrame(r, maxGreeting)
	if err != nil {
		return welcome{}, err
	}
	peer, err := decodeWelcome(body)
	if err != nil || kind != frameWelcome {
		return welcome{}, errFrame
	}
	if peer.name != l.peer {
		return welcome{}, fmt.Errorf("broker: at %s is %q, not %q", l.address, peer.name, l.peer)
	}
	return peer, conn.SetDeadline(time.Time{})
}

// send writes the retained store if the peer lacks it, then the backlog, until the connection fails.
func (l *link) send(ctx context.Context, conn net.Conn, w *bufio.Writer, stale bool, ended <-chan struct{}) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	if stale {
		if err := l.sendRetained(conn, w); err != nil {
			return err
		}
	}
	for {
		if err := l.sendBacklog(conn, w); err != nil {
			return err
		}
		if l.backlog.takeLost() { // what was dropped may have been retained
			if err := l.sendRetained(conn, w); err != nil {
				return err
			}
		}
		if err := flush(conn, w); err != nil {
			return err
		}
		select {
		case <-l.backlog.wake:
		case <-ping.C:
			if err := writeFrame(w, framePing); err != nil {
				return err
			}
		case <-ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *link) sendBacklog(conn net.Conn, w *bufio.Writer) error {
	for {
		seq, body, ok := l.backlog.next()
		if !ok {
			return nil
		}
		if err := conn.SetWriteDeadline(time.Now().Add(linkWrite)); err != nil {
			return err
		}
		if err := writeFrame(w, frameMessage, uint64Bytes(seq), body); err != nil {
			return err
		}
	}
}

func (l *link) sendRetained(conn net.Conn, w *bufio.Writer) error {
	for _, m := range l.retained.shared() {
		if err := conn.SetWriteDeadline(time.Now().Add(linkWrite)); err != nil {
			return err
		}
		if err := writeFrame(w, frameRetained, m.encode(nil)); err != nil {
			return err
		}
	}
	if err := writeFrame(w, frameSynced); err != nil {
		return err
	}
	return flush(conn, w)
}

func flush(conn net.Conn, w *bufio.Writer) error {
	if err := conn.SetWriteDeadline(time.Now().Add(linkWrite)); err != nil {
		return err
	}
	return w.Flush()
}

// receiveAcks reads what the peer answers until the connection fails, and closes it then.
func (l *link) receiveAcks(conn net.Conn, r *bufio.Reader, incarnation uint64) error {
	defer conn.Close()
	for {
		if err := conn.SetReadDeadline(time.Now().Add(linkSilence)); err != nil {
			return err
		}
		kind, body, err := readFrame(r, maxGreeting)
		if err != nil {
			return err
		}
		switch kind {
		case frameAck:
			seq, _, err := decodeSequence(body)
			if err != nil {
				return err
			}
			if err := l.backlog.acknowledged(seq); err != nil {
				return err
			}
		case frameSynced:
			l.synced = incarnation
		default:
			return errFrame
		}
	}
}

// poke makes a link that is down dial at once.
func (l *link) poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

func (l *link) status() PeerStatus {
	s := PeerStatus{Name: l.peer}
	s.Up, s.Kept, s.Dropped = l.backlog.info()
	return s
}
