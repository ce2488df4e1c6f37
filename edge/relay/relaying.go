package relay

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Counters add up what sessions receive, by side.
type Counters struct {
	Bytes, Packets [2]atomic.Uint64
}

func (s *Session) packets(side Side, n int) {
	s.Packets[side] += uint64(n)
	if c := s.limits.Counters; c != nil && n > 0 {
		c.Packets[side].Add(uint64(n))
	}
}

// relay passes p from side to the other, and follows the packets in it.
func (s *Session) relay(side Side, p []byte, now int64, out []Action) []Action {
	if s.Dead[side.Other()] {
		return out
	}
	out = append(out, Action{Op: OpWrite, Side: side.Other(), Data: p})
	if s.Blind[side] {
		return out
	}
	var stop uint16
	if side == Client {
		stop = 1<<mqtt.DISCONNECT | 1<<mqtt.PINGREQ
	}
	scan := &s.Scan[side]
	for len(p) > 0 {
		within := p
		if side == Client && s.leaving() {
			within = p[:min(len(p), int(scan.Remaining()))] // the DISCONNECT, and nothing that is behind it
		}
		n, ended, err := scan.Skip(within, stop)
		s.packets(side, ended)
		if err != nil {
			// No MQTT. It is the broker's to refuse: we pass on what we do not understand, and know no boundaries any more.
			s.Blind[side] = true
			break
		}
		switch {
		case side == Broker:
		case !s.Said && (s.leaving() || scan.AtHeader() && scan.Type() == mqtt.DISCONNECT):
			out = s.goodbye(p[:n], out)
		case scan.AtHeader() && scan.Type() == mqtt.PINGREQ:
			s.asked(now)
		}
		p = p[n:]
	}
	return out
}

// leaving reports whether a DISCONNECT of the client's has come in part.
func (s *Session) leaving() bool { return s.Ends != nil && len(s.Tail) > 0 }

// goodbye collects the client's DISCONNECT [MQTT5 §3.14]; p ends with its fixed header, or is (part of) its body.
func (s *Session) goodbye(p []byte, out []Action) []Action {
	scan := &s.Scan[Client]
	s.keep()
	if len(s.Tail) == 0 {
		s.Tail = append(s.Tail, byte(mqtt.DISCONNECT)<<4|scan.Flags())
		s.Tail = binary.AppendUvarint(s.Tail, uint64(scan.Remaining())) // MQTT's variable byte integer is the same encoding [MQTT5 §1.5.5]
	} else {
		s.Tail = append(s.Tail, p...)
	}
	switch {
	case scan.Boundary():
		out = append(out, Action{Op: OpGoodbye, Data: s.Tail})
		s.Said, s.Tail = true, nil
	case len(s.Tail)+int(scan.Remaining()) > maxGoodbye:
		s.Said, s.Tail = true, nil
	}
	return out
}

// Ended tells that side has closed its writing direction.
func (s *Session) Ended(side Side, now int64, out []Action) []Action {
	if s.EOF[side] {
		return out
	}
	s.EOF[side] = true
	switch s.Phase {
	case AwaitPreamble, AwaitConnect:
		s.blame(Client)
		return s.cut(s.Reason, s.kept().Detail, out)
	case Routing, Dialing:
		if len(s.Held) > int(s.Size) && !s.Dead[Client] {
			return out // it said all that it had to say, without waiting: the broker shall hear it
		}
		// A client that is gone before its CONNECT went out leaves no trace at any broker.
		s.blame(Client)
		return s.cut(s.Reason, s.kept().Detail, append(out, Action{Op: OpDrop}))
	case AwaitConnack:
		if side == Client {
			s.blame(Client)
			return append(out, Action{Op: OpShutdown, Side: Broker})
		}
		return s.brokerSilent(now, out)
	case Relaying:
		if side == Broker && s.Refused == 0 {
			out = append(out, Action{Op: OpBrokerEnded})
		}
		if s.EOF[side.Other()] {
			s.Phase = Closing
			s.Deadline = now + int64(halfCloseTimeout)
			return append(out, Action{Op: OpFinish}) // the close ends both directions
		}
		s.blame(side)
		s.Deadline = now + int64(halfCloseTimeout)
		if s.Dead[side] {
			s.hurry(now)
		}
		out = append(out, Action{Op: OpShutdown, Side: side.Other()})
		if side == Client {
			return out
		}
		// There is no session any more. What the broker said still gets to the client, which closes then: it has that long after the last
		// byte that moved.
		s.keep().LastCall = now + int64(halfCloseTimeout)
		s.hurry(now)
		return append(out, Action{Op: OpFlow})
	case Closing:
		if side == Client {
			return s.cut(s.Reason, s.kept().Detail, out)
		}
	}
	return out
}

// Flow answers OpFlow: so many bytes are on their way to the client.
func (s *Session) Flow(left int, now int64, out []Action) []Action {
	ends := s.keep()
	moved := left > 0 && left != ends.Left
	ends.Left = left
	switch {
	case s.Phase != Relaying || s.Deadline != 0: // the first look
		return out
	case moved:
		s.Deadline = min(now+int64(s.limits.linger()), ends.LastCall)
		return out
	}
	s.blame(Broker)
	return s.cut(s.Reason, s.kept().Detail, out)
}

// Failed tells that side's connection is broken in both directions: a reset, or the transport's error in detail.
func (s *Session) Failed(side Side, reason Reason, detail string, now int64, out []Action) []Action {
	if s.Phase == Closed || s.Dead[side] && s.EOF[side] {
		return out
	}
	s.unwatch()
	s.Dead[side] = true
	if s.Phase == Closing {
		return s.lostOne(side, out)
	}
	if !s.EOF[side] {
		if s.Reason == ReasonNone && (side == Client || s.Phase == Relaying) {
			s.blame(side)
			if s.setDetail(detail); reason != ReasonNone {
				s.Reason = reason
			}
		}
		out = s.Ended(side, now, out)
	}
	if s.Phase == Relaying || s.Phase == AwaitConnack {
		// What is on its way to the other side still gets there, but nothing that it says can be delivered.
		s.hurry(now)
	}
	return out
}

// Unwritable tells that side takes no more bytes. Those that it sent before may still be unread, a DISCONNECT among them: its end is told by
// Ended or Failed.
func (s *Session) Unwritable(side Side, detail string, now int64, out []Action) []Action {
	if s.Phase == Closed || s.Dead[side] {
		return out
	}
	s.unwatch()
	s.Dead[side] = true
	switch s.Phase {
	case Closing:
		return s.lostOne(side, out)
	case AwaitConnack, Relaying:
		if s.Reason == ReasonNone && (side == Client || s.Phase == Relaying) {
			s.setDetail(detail)
		}
		s.hurry(now)
	}
	return out
}

// lostOne deals with a side that breaks while the session closes: there is one less to wait for.
func (s *Session) lostOne(side Side, out []Action) []Action {
	if side == Client && !s.EOF[Client] {
		return s.cut(s.Reason, s.kept().Detail, out)
	}
	return append(out, Action{Op: OpFinish})
}

// hurry gives the session no longer than our last words would have.
func (s *Session) hurry(now int64) {
	if by := now + int64(s.limits.linger()); s.Deadline == 0 || s.Deadline > by {
		s.Deadline = by
	}
}

// blame settles the reason when one side ends an established session.
func (s *Session) blame(side Side) {
	switch {
	case s.Reason != ReasonNone:
	case side == Broker && s.Refused != 0:
		s.Reason = ReasonBrokerRefused
	case side == Client && s.Said, side == Broker && s.Said:
		s.Reason = ReasonClientDisconnect
	case side == Client:
		s.Reason = ReasonClientClosed
	default:
		s.Reason = ReasonBrokerClosed
	}
}

// brokerSilent deals with a broker that closed before it said anything whole.
func (s *Session) brokerSilent(now int64, out []Action) []Action {
	if s.EOF[Client] {
		return s.cut(s.Reason, s.kept().Detail, out)
	}
	if s.Beyond || s.First != nil {
		return s.refuse(ReasonBrokerClosed, "before its CONNACK", mqtt.ServerUnavailable, now, append(out, Action{Op: OpDrop}))
	}
	return s.again(CauseClosed, now, append(out, Action{Op: OpDrop}))
}

// Finished answers OpFinish.
func (s *Session) Finished(out []Action) []Action {
	if s.Phase != Closing {
		return out
	}
	return s.cut(s.Reason, s.kept().Detail, out)
}

// Tick tells that Deadline has passed.
func (s *Session) Tick(now int64, out []Action) []Action {
	if s.Deadline == 0 || now < s.Deadline {
		return out
	}
	switch s.Phase {
	case AwaitPreamble, AwaitConnect:
		return s.cut(ReasonConnectTimeout, "", out)
	case Routing:
		return s.refuse(ReasonNoBroker, "no answer in time", mqtt.ServerUnavailable, now, out)
	case Dialing:
		out = append(out, Action{Op: OpDrop})
		if now >= s.LastCall {
			return s.refuse(ReasonDialFailed, "", mqtt.ServerUnavailable, now, out)
		}
		return s.again(CauseDial, now, out)
	case AwaitConnack:
		switch {
		case s.Dead[Client]:
			s.blame(Client)
			return s.cut(s.Reason, s.kept().Detail, out)
		case s.Dead[Broker]:
			return s.brokerSilent(now, out)
		}
		return s.refuse(ReasonConnackTimeout, "", mqtt.ServerUnavailable, now, append(out, Action{Op: OpDrop}))
	case Relaying:
		if s.watching() {
			return s.look(now, out)
		}
		if s.EOF[Broker] && !s.Dead[Client] && now < s.kept().LastCall {
			s.Deadline = 0 // Flow sets another, or ends the session
			return append(out, Action{Op: OpFlow})
		}
		s.blame(s.silent())
		return s.cut(s.Reason, s.kept().Detail, out)
	default:
		return s.cut(s.Reason, s.kept().Detail, out)
	}
}

// silent is the side whose end the session's is, where a deadline comes before either end was told.
func (s *Session) silent() Side {
	if s.Dead[Broker] && !s.Dead[Client] {
		return Broker
	}
	return Client
}

// Stop ends the session for our own reason. The broker is cut without DISCONNECT, so that the client's Will is published as it would have been
// without us [MQTT-3.1.2-8]. The client is told why where its protocol has words for it, and where we stand between two packets.
func (s *Session) Stop(r Reason, now int64, out []Action) []Action {
	if s.Said && (s.Phase == AwaitConnack || s.Phase == Relaying) {
		// The client leaves by itself. The broker shall hear its DISCONNECT, which may be on its way, or it would publish the Will.
		s.unwatch()
		s.blame(Client)
		s.hurry(now)
		return out
	}
	switch s.Phase {
	case AwaitPreamble, AwaitConnect:
		return s.cut(r, "", out)
	case Routing, Dialing, AwaitConnack:
		return s.refuse(r, "", r.connackCode(), now, append(out, Action{Op: OpDrop}))
	case Relaying:
		var word []byte
		if s.Scan[Broker].Boundary() && !s.Blind[Broker] && !s.Said {
			word = mqtt.AppendDisconnect(nil, s.Version, r.disconnectCode())
		}
		return s.lastWords(r, "", word, now, append(out, Action{Op: OpDrop}))
	}
	return out
}

// refuse answers the client's CONNECT with a CONNACK of ours, where the protocol has one, and closes.
func (s *Session) refuse(r Reason, detail string, code byte, now int64, out []Action) []Action {
	return s.lastWords(r, detail, mqtt.AppendConnack(nil, s.Version, false, code), now, out)
}

// lastWords sends word to the client and closes after the client has, or has had time to, read it: a close with unread bytes in our receive
// buffer would be a reset that destroys what is on its way (RFC 1122 §4.2.2.13).
func (s *Session) lastWords(r Reason, detail string, word []byte, now int64, out []Action) []Action {
	s.Reason = r
	s.setDetail(detail)
	if s.Dead[Client] {
		return s.cut(r, detail, out)
	}
	s.Phase = Closing
	s.Deadline = now + int64(s.limits.linger())
	s.forget()
	if len(word) > 0 {
		out = append(out, Action{Op: OpWrite, Side: Client, Data: word})
	}
	out = append(out, Action{Op: OpShutdown, Side: Client})
	if s.EOF[Client] {
		out = append(out, Action{Op: OpFinish})
	}
	return out
}

// cut ends the session at once.
func (s *Session) cut(r Reason, detail string, out []Action) []Action {
	if s.Phase == Closed {
		return out
	}
	s.Phase, s.Reason, s.Deadline = Closed, r, 0
	s.setDetail(detail)
	s.forget()
	return append(out, Action{Op: OpClose})
}

// forget lets go of all that is kept for later.
func (s *Session) forget() {
	if s.letGo(); s.Ends != nil {
		s.First, s.Tail = nil, nil
	}
}

// wholePacket is the length of the packet at the start of p, or 0 if it is not all there.
func wholePacket(p []byte) (int, error) {
	var scan mqtt.Scanner
	for n := 0; n < len(p); {
		m, ev, err := scan.Step(p[n:])
		if err != nil {
			return 0, err
		}
		if n += m; ev&mqtt.End != 0 {
			return n, nil
		}
	}
	return 0, nil
}
