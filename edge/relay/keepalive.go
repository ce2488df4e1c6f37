package relay

import (
	"math"
	"time"
)

// DefaultKeepAlive is how many times its Keep Alive a client may be silent: what the standard has every server grant
// [MQTT-3.1.2-24 | 3.1.2-22].
const DefaultKeepAlive = 1.5

// A session that is being relayed is looked at when one of its sides may have been silent for too long, not when bytes pass: these only leave
// the time in Heard. The looks are on whole seconds of the driver's clock, so that those of thousands of sessions fall together.
const watchStep = int64(time.Second)

// patience is how long the client may be silent; 0 = for ever.
func (s *Session) patience() int64 {
	factor := s.limits.KeepAlive
	if factor == 0 {
		factor = DefaultKeepAlive
	}
	return int64(math.Max(0, factor*float64(s.KeepAlive)*float64(time.Second)))
}

// brokerPatience is how long the broker may be silent after a PINGREQ, which it has to answer [MQTT-3.12.4-1]. A client gives up by itself after
// some time of its own; this is for those that do not, and never sooner than TCP would give up a broker that takes no bytes: one that stands
// still for a moment shall not lose its sessions.
func brokerPatience(patience int64) int64 { return max(patience, int64(userTimeout)) }

// watching reports whether Deadline is the watch's: nothing has happened that ends the session.
func (s *Session) watching() bool {
	return s.Phase == Relaying && s.Reason == ReasonNone && !s.Dead[Client] && !s.Dead[Broker]
}

// unwatch ends the watch: Deadline is somebody else's.
func (s *Session) unwatch() {
	if s.watching() {
		s.Deadline = 0
	}
}

// asked notes a PINGREQ of the client's. Of several without an answer the first counts.
func (s *Session) asked(now int64) {
	if s.Asked <= s.Heard[Broker] {
		s.Asked = now
	}
}

// due is when side will have been silent for too long; 0 = never.
func (s *Session) due(side Side, patience int64) int64 {
	switch {
	case patience == 0:
		return 0
	case side == Client:
		return s.Heard[Client] + patience
	case s.Asked > s.Heard[Broker]:
		return s.Asked + brokerPatience(patience)
	}
	return 0
}

// watch sets the time of the next look.
func (s *Session) watch(now int64) {
	patience := s.patience()
	s.Deadline = s.due(Client, patience)
	if by := s.due(Broker, patience); by != 0 && by < s.Deadline {
		s.Deadline = by
	}
	if s.Deadline != 0 {
		s.Deadline = (max(s.Deadline, now+1) + watchStep - 1) / watchStep * watchStep
	}
}

// look is Tick for the watch. Who seems silent may have sent what nobody has read: this process may have stood still, or the other side may take
// nothing.
func (s *Session) look(now int64, out []Action) []Action {
	patience := s.patience()
	for _, side := range [2]Side{Client, Broker} {
		if by := s.due(side, patience); by != 0 && by <= now {
			return append(out, Action{Op: OpUnread, Side: side})
		}
	}
	s.watch(now)
	return out
}

// Unread answers OpUnread: so many bytes of side's have come that the session has not been fed.
func (s *Session) Unread(side Side, n int, now int64, out []Action) []Action {
	by := s.due(side, s.patience())
	switch {
	case !s.watching() || by == 0 || by > now:
		return out
	case n > 0:
		s.Heard[side] = now
		return s.look(now, out)
	case side == Client:
		return s.Stop(ReasonKeepAlive, now, out)
	}
	return s.Stop(ReasonBrokerTimeout, now, out)
}
