package broker

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// inbound is what this broker remembers of one incarnation of a peer: how far it has received. A peer that
// reconnects sends again what was not acknowledged; what is not beyond last was published already.
type inbound struct {
	incarnation uint64

	mu   sync.Mutex
	last uint64
	conn net.Conn // the newest; older ones are closed
}

// serveLinks accepts the peers' connections until the listener closes.
func (b *Broker) serveLinks() {
	for {
		conn, err := b.linkListener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.log.Warn().Err(err).Msg("accept a link")
			if !b.pause(backoffMin) {
				return
			}
			continue
		}
		if !b.track(conn) {
			conn.Close()
			return
		}
		b.work.Go(func() {
			defer b.untrack(conn)
			if err := b.serveLink(conn); err != nil {
				b.log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("incoming link closed")
			}
		})
	}
}

// serveLink receives one peer's messages until the connection fails, and closes it.
func (b *Broker) serveLink(conn net.Conn) error {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn)
	in, peer, err := b.welcome(conn, r, w)
	if err != nil {
		return err
	}
	limit, unacked := maxFrame, 0
	for {
		if err := conn.SetReadDeadline(time.Now().Add(linkSilence)); err != nil {
			return err
		}
		kind, body, err := readFrame(r, limit)
		if err != nil {
			return err
		}
		answer := false
		switch kind {
		case frameMessage:
			if err := b.receive(in, body); err != nil {
				return err
			}
			unacked++
		case framePing:
			answer = true
		case frameRetained:
			m, err := decodeMessage(body)
			if err != nil || !m.retain {
				return errMessage
			}
			b.clock.saw(m.stamp)
			b.retained.put(m)
		case frameSynced:
			b.joined(peer)
			if err := writeFrame(w, frameSynced); err != nil {
				return err
			}
			answer = true
		default:
			return errFrame
		}
		if unacked > 0 && r.Buffered() == 0 || unacked >= ackEvery {
			answer = true
		}
		if answer {
			unacked = 0
			if err := errors.Join(writeFrame(w, frameAck, uint64Bytes(in.received())), flush(conn, w)); err != nil {
				return err
			}
		}
	}
}

// welcome answers a peer's hello with how far its messages have been received.
func (b *Broker) welcome(conn net.Conn, r *bufio.Reader, w *bufio.Writer) (*inbound, string, error) {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, "", err
	}
	kind, body, err := readFrame(r, maxGreeting)
	if err != nil {
		return nil, "", err
	}
	peer, err := decodeHello(body)
	if err != nil || kind != frameHello {
		return nil, "", errFrame
	}
	out := b.links[peer.name]
	if out == nil {
		return nil, "", fmt.Errorf("broker: a stranger calls itself %q", peer.name)
	}

	b.mu.Lock()
	in := b.inbound[peer.name]
	if in == nil || in.incarnation != peer.incarnation {
		// What an earlier incarnation left in its connection is read to its end, beside this.
		in = &inbound{incarnation: peer.incarnation}
		b.inbound[peer.name] = in
		out.poke() // it has just started, and waits for our retained messages
	}
	b.mu.Unlock()

	in.mu.Lock()
	if in.conn != nil {
		in.conn.Close()
	}
	in.conn = conn
	last := in.last
	in.mu.Unlock()

	answer := welcome{name: b.config.Name, incarnation: b.incarnation, last: last}
	if err := errors.Join(writeFrame(w, frameWelcome, answer.encode()), w.Flush()); err != nil {
		return nil, "", err
	}
	return in, peer.name, conn.SetDeadline(time.Time{})
}

// receive publishes a peer's message here, and only here, unless that has been done.
func (b *Broker) receive(in *inbound, body []byte) error {
	seq, body, err := decodeSequence(body)
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if seq <= in.last {
		return nil
	}
	in.last = seq
	m, err := decodeMessage(body)
	if err != nil { // counted as received: sent again it would be no better
		b.log.Error().Err(err).Uint64("sequence", seq).Msg("message from a peer skipped")
		return nil
	}
	if m.retain {
		b.clock.saw(m.stamp)
		b.retained.put(m)
	}
	b.deliver(m)
	return nil
}

func (in *inbound) received() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.last
}
