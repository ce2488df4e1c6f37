package liar

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// An end is one side of a session. Both directions write to it: what the other side said, and the liar's own acknowledgements.
type end struct {
	conn net.Conn
	mu   sync.Mutex
}

// stuck is how long a peer may refuse to read.
const stuck = 30 * time.Second

func (e *end) write(p packet) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.conn.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
		return err
	}
	_, err := e.conn.Write(p)
	return err
}

// A session is one client's connection to one broker.
type session struct {
	liar           *Liar
	version        mqtt.Version
	client, broker end

	// Owned by fromBroker.
	held  *publication // is to change places with the next of its topic and QoS
	until time.Time    // or to go alone

	mu      sync.Mutex
	copies  map[uint16]bool // packet IDs of copies, which the broker knows nothing about
	dropped map[uint16]bool // packet IDs of dropped PUBLISHes of QoS 2, whose PUBREL is still to come
}

func (s *session) note(of map[uint16]bool, id uint16, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		of[id] = true
	} else {
		delete(of, id)
	}
}

func (s *session) is(of map[uint16]bool, id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return of[id]
}

// fromClient passes on what the client says, except what it says about copies.
func (s *session) fromClient(ctx context.Context, in *bufio.Reader) {
	var buf []byte
	for {
		p, err := readPacket(in, buf)
		if err != nil || s.liar.wait(ctx) != nil {
			return
		}
		buf = p
		switch p.kind() {
		case mqtt.PUBACK, mqtt.PUBCOMP:
			if s.is(s.copies, p.id()) {
				s.note(s.copies, p.id(), false)
				continue
			}
		case mqtt.PUBREC:
			if s.is(s.copies, p.id()) {
				err = s.client.write(mqtt.AppendAck(nil, s.version, mqtt.PUBREL, p.id(), 0))
				if err != nil {
					return
				}
				continue
			}
		}
		if s.broker.write(p) != nil {
			return
		}
	}
}

// fromBroker passes on what the broker says, or something else.
func (s *session) fromBroker(ctx context.Context, in *bufio.Reader) {
	var buf []byte
	for {
		if err := s.await(in); err != nil {
			return
		}
		p, err := readPacket(in, buf)
		if err != nil || s.liar.wait(ctx) != nil {
			return
		}
		buf = p
		switch p.kind() {
		case mqtt.PUBLISH:
			var x publication
			if x, err = p.publication(); err == nil {
				err = s.publish(ctx, x)
			}
		case mqtt.PUBREL:
			if s.is(s.dropped, p.id()) {
				s.note(s.dropped, p.id(), false)
				err = s.broker.write(mqtt.AppendAck(nil, s.version, mqtt.PUBCOMP, p.id(), 0))
			} else {
				err = s.client.write(p)
			}
		default:
			err = s.client.write(p)
		}
		if err != nil {
			return
		}
	}
}

// await returns when the broker begins a packet. A PUBLISH that is held for too long goes its way meanwhile.
func (s *session) await(in *bufio.Reader) error {
	if s.held == nil {
		return nil
	}
	if err := s.broker.conn.SetReadDeadline(s.until); err != nil {
		return err
	}
	_, err := in.Peek(1)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = s.release()
	}
	if err != nil {
		return err
	}
	return s.broker.conn.SetReadDeadline(time.Time{})
}

// release lets the held PUBLISH go.
func (s *session) release() error {
	x := s.held
	s.held = nil
	return s.client.write(x.packet)
}

// publish deals with one PUBLISH on its way to the subscriber.
func (s *session) publish(ctx context.Context, x publication) error {
	l := s.liar
	if x.dup || x.retain || !strings.HasPrefix(string(x.topic), l.cfg.Topics) {
		return s.client.write(x.packet)
	}
	if s.held != nil && x.qos == s.held.qos && bytes.Equal(x.topic, s.held.topic) {
		l.publishes.Add(1)
		l.swapped.Add(1)
		if err := s.client.write(x.packet); err != nil {
			return err
		}
		return s.release()
	}
	lies, n := l.lies.Load(), l.publishes.Add(1)
	switch {
	case due(lies.Drop, n):
		l.dropped.Add(1)
		return s.drop(x)
	case due(lies.Duplicate, n):
		l.duplicated.Add(1)
		return s.duplicate(x)
	case due(lies.Swap, n) && s.held == nil:
		c := x.clone()
		s.held, s.until = &c, time.Now().Add(l.hold)
		return nil
	case due(lies.Stall, n):
		l.stalled.Add(1)
		t := time.NewTimer(lies.StallFor)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.client.write(x.packet)
}

// drop acknowledges in the subscriber's name (§4.3.2, §4.3.3).
func (s *session) drop(x publication) error {
	switch x.qos {
	case 1:
		return s.broker.write(mqtt.AppendAck(nil, s.version, mqtt.PUBACK, x.id(), 0))
	case 2:
		s.note(s.dropped, x.id(), true)
		return s.broker.write(mqtt.AppendAck(nil, s.version, mqtt.PUBREC, x.id(), 0))
	}
	return nil
}

// duplicate sends a PUBLISH and a copy of it under another packet ID: half of the IDs away from the original's, where a broker that counts
// up is not soon.
func (s *session) duplicate(x publication) error {
	if err := s.client.write(x.packet); err != nil {
		return err
	}
	if x.qos > 0 {
		id := x.id() ^ 0x8000
		for id == 0 || s.is(s.copies, id) {
			id++
		}
		s.note(s.copies, id, true)
		x.setID(id)
	}
	return s.client.write(x.packet)
}
