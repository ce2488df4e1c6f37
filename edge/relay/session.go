package relay

import (
	"bytes"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Phase is where a session is in its life.
type Phase uint8

const (
	AwaitPreamble Phase = iota
	AwaitConnect
	Routing      // the owner thinks
	Dialing      // a broker is being connected to
	AwaitConnack // the CONNECT is on its way
	Relaying
	Closing // our last words are on their way to the client
	Closed
)

// Op is what a driver is asked to do.
type Op uint8

const (
	// OpWrite: write Data to Side, behind all earlier writes. What the socket does not take the driver keeps, and stops reading
	// the other side meanwhile. Data is valid until the next event.
	OpWrite Op = iota + 1
	// OpShutdown: end Side's writing direction once all earlier writes are out.
	OpShutdown
	// OpPreamble: give Data to Owner.Preamble and feed back Preamble(n, err).
	OpPreamble
	// OpRoute: ask Owner.Route and feed back Routed.
	OpRoute
	// OpDial: connect to the target that Routed brought, and feed back Dialed or DialFailed. Tick may come first: then OpDrop follows.
	OpDial
	// OpDrop: close the broker's connection at once, or give up dialing it.
	OpDrop
	// OpAccepted: Data begins with the broker's CONNACK; tell Owner.Accepted.
	OpAccepted
	// OpGoodbye: Data is the client's whole DISCONNECT; tell Owner.Goodbye.
	OpGoodbye
	// OpBrokerEnded: the broker has ended a session that it had accepted; tell Owner.BrokerEnded.
	OpBrokerEnded
	// OpFlow: feed back Flow with the bytes that are on their way to the client: in the driver's hands, and unacknowledged in the socket.
	OpFlow
	// OpUnread: feed back Unread with the number of Side's bytes that have come and have not been fed yet; what is left in the socket counts.
	OpUnread
	// OpFinish: feed back Finished once all earlier writes are out.
	OpFinish
	// OpClose: close everything now; tell Owner.Closed.
	OpClose
)

// Action is one thing to do. Actions are carried out in order, each before the next event is fed.
type Action struct {
	Op   Op
	Side Side
	Data []byte
}

// State is all that a session is, without its descriptors and without the bytes that a driver keeps for a full socket.
// Times are the driver's clock, in nanoseconds; zero = not (yet). There is one for each client that is connected, so it is small.
type State struct {
	Phase     Phase
	Version   mqtt.Version
	Reason    Reason
	Refused   byte // code of the broker's CONNACK
	Attempt   uint8
	Cause     Cause
	Beyond    bool    // the exchange with the broker has gone beyond the CONNECT: it cannot be replayed elsewhere
	Said      bool    // the client's DISCONNECT passed
	Blind     [2]bool // what this side sends is no MQTT any more: no boundaries are known
	EOF       [2]bool // this side will send no more
	Dead      [2]bool // this side can take no more either
	KeepAlive uint16  // seconds; what client and broker agreed on, 0 = none
	Scan      [2]mqtt.Scanner

	Bytes, Packets [2]uint64

	AcceptedAt, ConnectAt, DialedAt, ConnackAt int64
	Deadline                                   int64    // Tick is due; 0 = never
	Heard                                      [2]int64 // when this side's last bytes came, from the CONNACK on; the client's before: since when it can speak MQTT, 0 = AcceptedAt
	Asked                                      int64    // when the client sent a PINGREQ; what Heard says of the broker may be newer

	*Ends
}

// Ends is what only the beginning and the end of a session need. In between, most of the time, there is none.
type Ends struct {
	Held     []byte // from the client, until the CONNACK: what may have to be sent again
	First    []byte // from the broker: a first packet that is not whole
	Tail     []byte // from the client: a DISCONNECT that is not whole
	Size     int32  // of the CONNECT at the start of Held
	Charged  int32  // bytes of Limits.Held that Held takes
	Left     int    // on its way to the client when Flow told last; once the broker has ended
	LastCall int64  // of the CONNACK over all attempts; then of a client whose broker has ended
	Detail   string
}

// Session is one connection's life. It has no I/O, no clock and no lock: a driver feeds events and carries out the actions, which every
// method appends to out and returns. now is the driver's clock.
type Session struct {
	State
	limits *Limits
}

// Start begins the life of a connection that was accepted at the given time. With preamble something precedes MQTT.
func (s *Session) Start(l *Limits, accepted int64, preamble bool) {
	*s = Session{State: State{Ends: new(Ends)}, limits: l}
	s.AcceptedAt = accepted
	s.Deadline = accepted + int64(l.connectTimeout())
	if !preamble {
		s.Phase = AwaitConnect
	}
}

// Resume goes on with a session that was started elsewhere. What it holds counts here from now on, whether there is room for it or not.
func (s *Session) Resume(l *Limits, st State) {
	*s = Session{State: st, limits: l}
	if st.Ends == nil && st.Phase >= Relaying {
		return
	}
	ends := s.kept()
	s.Ends = &ends // not that of a copy of st
	if s.Charged = 0; l.Held != nil {
		s.Charged = int32(max(0, len(s.Held)-freeHeld))
		l.Held.used.Add(int64(s.Charged))
	}
}

// kept is a copy of Ends, empty if there is none.
func (s *Session) kept() Ends {
	if s.Ends == nil {
		return Ends{}
	}
	return *s.Ends
}

// keep is Ends, to be written.
func (s *Session) keep() *Ends {
	if s.Ends == nil {
		s.Ends = new(Ends)
	}
	return s.Ends
}

func (s *Session) setDetail(d string) {
	if d != "" || s.Ends != nil {
		s.keep().Detail = d
	}
}

// hold keeps what the client sent for the time until the CONNACK; false if there is no room for it.
func (s *Session) hold(p []byte) bool {
	n := int32(max(0, len(s.Held)+len(p)-freeHeld))
	if b := s.limits.Held; b != nil && n != s.Charged {
		if !b.take(int(n - s.Charged)) {
			return false
		}
		s.Charged = n
	}
	s.Held = append(s.Held, p...)
	return true
}

// letGo forgets what was kept.
func (s *Session) letGo() {
	if s.Ends == nil {
		return
	}
	s.Held, s.Size = nil, 0
	if s.Charged > 0 {
		s.limits.Held.used.Add(-int64(s.Charged))
		s.Charged = 0
	}
}

// WantRead reports whether bytes from side are welcome now. A driver that reads on all the same only costs memory.
func (s *Session) WantRead(side Side) bool {
	switch s.Phase {
	case Routing, Dialing:
		return side == Client && len(s.Held)-int(s.Size) < maxPipelined
	case Closed:
		return false
	default:
		return true
	}
}

// Received feeds bytes from side; p is not kept.
func (s *Session) Received(side Side, p []byte, now int64, out []Action) []Action {
	s.Bytes[side] += uint64(len(p))
	if c := s.limits.Counters; c != nil {
		c.Bytes[side].Add(uint64(len(p)))
	}
	switch s.Phase {
	case Relaying:
		s.Heard[side] = now
		return s.relay(side, p, now, out)
	case AwaitPreamble:
		if side != Client {
			return out
		}
		if !s.hold(p) {
			return s.cut(ReasonOverload, noRoom, out)
		}
		return append(out, Action{Op: OpPreamble, Data: s.Held})
	case AwaitConnect:
		return s.awaitConnect(p, now, out)
	case Routing, Dialing:
		if side == Client && !s.hold(p) {
			return s.refuse(ReasonOverload, noRoom, mqtt.ServerBusy, now, append(out, Action{Op: OpDrop}))
		}
		return out
	case AwaitConnack:
		if side == Client {
			s.Beyond = true
			return s.relay(Client, p, now, out)
		}
		return s.awaitConnack(p, now, out)
	default: // Closing, Closed: nobody listens any more
		return out
	}
}

// Preamble answers OpPreamble: n bytes precede MQTT, 0 = more are needed.
func (s *Session) Preamble(n int, err error, now int64, out []Action) []Action {
	switch {
	case s.Phase != AwaitPreamble:
		return out
	case err != nil:
		return s.cut(ReasonProxyMalformed, err.Error(), out)
	case n == 0 && len(s.Held) >= maxPreamble:
		return s.cut(ReasonProxyMalformed, "longer than 4 KiB", out)
	case n == 0:
		return out
	}
	s.Phase = AwaitConnect
	rest := s.Held[n:]
	s.letGo()
	if len(rest) == 0 {
		return out
	}
	return s.awaitConnect(rest, now, out)
}

// proxySignatures start PROXY protocol headers, version 1 and 2.
var proxySignatures = [2][]byte{[]byte("PROXY "), []byte("\r\n\r\n\x00\r\nQUIT\n")}

func (s *Session) awaitConnect(p []byte, now int64, out []Action) []Action {
	if !s.hold(p) {
		return s.cut(ReasonOverload, noRoom, out)
	}
	c, err := mqtt.ParseConnect(s.Held, s.limits.connectSize())
	if err == mqtt.ErrShort {
		return out
	}
	if err != nil {
		for _, sig := range proxySignatures {
			n := min(len(sig), len(s.Held))
			switch {
			case !bytes.Equal(s.Held[:n], sig[:n]):
			case n < len(sig):
				return out // it may become one
			default:
				return s.cut(ReasonProxyUntrusted, "", out)
			}
		}
		return s.malformed(err, now, out)
	}
	s.Size, s.Version, s.KeepAlive = int32(c.Size), c.Version, c.KeepAlive
	s.ConnectAt = now
	s.packets(Client, 1)
	return s.route(now, out)
}

// malformed refuses a CONNECT that is none.
func (s *Session) malformed(err error, now int64, out []Action) []Action {
	reason := ReasonMalformed
	me, ok := err.(*mqtt.Error)
	if !ok {
		return s.cut(ReasonInternal, err.Error(), out)
	}
	switch me.Kind {
	case mqtt.NotConnect:
		reason = ReasonNotConnect
	case mqtt.TooLarge:
		if me.Version == 0 && len(s.Held) < longestLevel {
			return out // the bytes that say whether the client can be told are still to come
		}
		reason = ReasonTooLarge
	case mqtt.BadProtocolName, mqtt.UnknownLevel:
		reason = ReasonVersion
	case mqtt.BadClientID:
		reason = ReasonClientID
	}
	code, ok := me.Refusal()
	if !ok {
		return s.cut(reason, err.Error(), out)
	}
	s.Version = me.Version
	return s.refuse(reason, err.Error(), code, now, out)
}

// longestLevel is where the protocol level has been read, whatever form it has: fixed header, protocol name, level.
const longestLevel = 5 + 8 + 1

func (s *Session) route(now int64, out []Action) []Action {
	s.Phase = Routing
	s.Deadline = now + int64(routeTimeout)
	if s.LastCall != 0 {
		s.Deadline = min(s.Deadline, s.LastCall)
	}
	return append(out, Action{Op: OpRoute})
}

// Connect parses the session's CONNECT anew, for Owner.Route.
func (s *Session) Connect() (mqtt.Connect, error) {
	return mqtt.ParseConnect(s.Held, s.limits.connectSize())
}

// Routed answers OpRoute.
func (s *Session) Routed(a Answer, now int64, out []Action) []Action {
	if s.Phase != Routing {
		return out
	}
	if a.Target == nil {
		reason, code := a.Reason, a.Code
		if reason == ReasonNone {
			reason = ReasonNoBroker
		}
		if code == 0 {
			code = mqtt.ServerUnavailable
		}
		return s.refuse(reason, "", code, now, out)
	}
	if s.LastCall == 0 {
		s.LastCall = now + int64(orDuration(a.Target.Timeout, defaultConnackTimeout))
	}
	s.Phase = Dialing
	s.Deadline = min(now+int64(orDuration(a.Target.DialTimeout, defaultDialTimeout)), s.LastCall)
	return append(out, Action{Op: OpDial})
}

func orDuration(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// Dialed tells that the broker is connected. The driver has prelude still to send: it goes out with the CONNECT.
func (s *Session) Dialed(prelude []byte, now int64, out []Action) []Action {
	if s.Phase != Dialing {
		return append(out, Action{Op: OpDrop})
	}
	s.Phase, s.DialedAt = AwaitConnack, now
	s.Deadline = s.LastCall
	s.EOF[Broker], s.Dead[Broker] = false, false
	first := s.Held
	if len(prelude) > 0 {
		first = append(append(make([]byte, 0, len(prelude)+len(s.Held)), prelude...), s.Held...)
	}
	out = append(out, Action{Op: OpWrite, Side: Broker, Data: first})
	if rest := s.Held[s.Size:]; len(rest) > 0 {
		// What was pipelined behind the CONNECT is on its way already: only look at it.
		s.Beyond = true
		n := len(out)
		out = s.relay(Client, rest, now, out)
		out = dropWrites(out, n)
	}
	if s.EOF[Client] {
		s.blame(Client)
		out = append(out, Action{Op: OpShutdown, Side: Broker})
	}
	return out
}

// dropWrites removes the writes from out[from:]: their bytes are on their way already.
func dropWrites(out []Action, from int) []Action {
	kept := out[:from]
	for _, a := range out[from:] {
		if a.Op != OpWrite {
			kept = append(kept, a)
		}
	}
	return kept
}

// DialFailed tells that the broker cannot be connected to.
func (s *Session) DialFailed(now int64, out []Action) []Action {
	if s.Phase != Dialing {
		return out
	}
	return s.again(CauseDial, now, out)
}

// again asks for another broker.
func (s *Session) again(c Cause, now int64, out []Action) []Action {
	s.Cause, s.First = c, nil
	if s.Attempt++; s.Attempt == maxAttempts {
		return s.refuse(ReasonDialFailed, "too many attempts", mqtt.ServerUnavailable, now, out)
	}
	return s.route(now, out)
}

// awaitConnack collects the broker's first packets: AUTH may precede the CONNACK [MQTT5 §4.12], nothing else does [MQTT-3.2.0-1].
func (s *Session) awaitConnack(p []byte, now int64, out []Action) []Action {
	held := len(s.First) > 0
	if held {
		s.First = append(s.First, p...)
		p = s.First
	}
	for len(p) > 0 {
		if t := mqtt.PacketType(p[0] >> 4); t == mqtt.AUTH && s.Version == mqtt.V5 {
			n, err := wholePacket(p)
			if err != nil {
				return s.wrongBroker(err.Error(), now, out)
			}
			if n == 0 {
				break
			}
			s.Beyond = true // the client has heard this broker
			out = append(out, Action{Op: OpWrite, Side: Client, Data: p[:n]})
			s.packets(Broker, 1)
			p = p[n:]
			continue
		}
		k, err := mqtt.ParseConnack(p, s.Version)
		if err == mqtt.ErrShort {
			break
		}
		if err != nil {
			return s.wrongBroker(err.Error(), now, out)
		}
		return s.connack(k, p, now, out)
	}
	switch {
	case len(p) > maxConnack:
		return s.wrongBroker("CONNACK too large", now, out)
	case len(p) == 0:
		s.First = nil
	case held:
		s.First = p // the actions may still need what precedes it
	default:
		s.First = append([]byte(nil), p...)
	}
	return out
}

// connack lets the broker's CONNACK, at the start of p, pass: from now on all bytes do.
func (s *Session) connack(k mqtt.Connack, p []byte, now int64, out []Action) []Action {
	s.Phase, s.ConnackAt, s.Deadline = Relaying, now, 0
	s.Refused = k.Code
	s.First = nil
	s.letGo()
	if s.Detail == "" && len(s.Tail) == 0 {
		s.Ends = nil
	}
	if k.HasServerKeepAlive { // [MQTT-3.2.2-21]
		s.KeepAlive = k.ServerKeepAlive
	}
	s.Heard = [2]int64{now, now}
	s.packets(Broker, 1)
	out = append(out, Action{Op: OpWrite, Side: Client, Data: p[:k.Size]})
	if k.Code == 0 {
		out = append(out, Action{Op: OpAccepted, Data: p[:k.Size]})
	} else {
		s.blame(Broker)
		s.Deadline = now + int64(halfCloseTimeout) // the broker closes [MQTT-3.2.2-5]; one that does not is not waited for
	}
	switch {
	case s.Dead[Client], s.Dead[Broker]:
		s.Deadline = now + int64(s.limits.linger())
	case s.EOF[Client], s.Said:
		s.blame(Client)
		s.Deadline = now + int64(halfCloseTimeout)
	case k.Code == 0:
		s.watch(now)
	}
	if p = p[k.Size:]; len(p) > 0 {
		out = s.relay(Broker, p, now, out)
	}
	return out
}

// wrongBroker refuses the client because what should be its broker speaks something else.
func (s *Session) wrongBroker(detail string, now int64, out []Action) []Action {
	return s.refuse(ReasonBrokerProtocol, detail, mqtt.ServerUnavailable, now, append(out, Action{Op: OpDrop}))
}

// toConnack is the time from accept to CONNACK.
func (s *Session) toConnack() time.Duration { return time.Duration(s.ConnackAt - s.AcceptedAt) }

// summary is what the session leaves behind; failure is the last dial's, if nobody was told of it.
func (s *Session) summary(now int64, failure error) Summary {
	sum := Summary{
		Reason: s.Reason, Detail: s.kept().Detail, Bytes: s.Bytes, Packets: s.Packets, Refused: s.Refused,
		Total: time.Duration(now - s.AcceptedAt),
	}
	for _, t := range []struct {
		at int64
		to *time.Duration
	}{{s.ConnectAt, &sum.Connect}, {s.DialedAt, &sum.Dialed}, {s.ConnackAt, &sum.Connack}} {
		if t.at != 0 {
			*t.to = time.Duration(t.at - s.AcceptedAt)
		}
	}
	if s.Reason == ReasonDialFailed {
		sum.Dial = failure
	}
	return sum
}
