package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A model keeps one entry for each message and judges by asking all of them.
type model struct {
	qos, granted byte
	late         int64
	messages     []*message // of number i+1

	publisher, subscriber []span // absences
	standing              standing
	since                 uint64 // the number from which on standing holds
	life                  int64  // when the last connection that ended began
	resume                bool
	duplicated            [3]int // nothing excuses, with DUP, after a resend
	reordered, lateCount  int
	unknown               int
}

type message struct {
	acked, resent bool
	times         []int64 // of its deliveries
	standing      standing
}

func (m *model) eff() byte { return min(m.qos, m.granted) }

func (m *model) highest() uint64 {
	for i := len(m.messages); i > 0; i-- {
		if len(m.messages[i-1].times) > 0 {
			return uint64(i)
		}
	}
	return 0
}

func (m *model) turn(from uint64, to standing) {
	if m.standing == to {
		return
	}
	m.since = max(from, m.since) // what was before is history
	for i := m.since; i <= uint64(len(m.messages)); i++ {
		m.messages[i-1].standing = to
	}
	m.standing = to
}

func (m *model) mayResend() {
	for _, x := range m.messages {
		x.resent = x.resent || !x.acked
	}
}

func absent(spans []span, at int64) bool {
	return slices.ContainsFunc(spans, func(s span) bool { return s.from <= at && at < s.to })
}

func (m *model) receive(seq uint64, dup bool, sent, at int64) {
	if seq == 0 || seq > uint64(len(m.messages)) {
		m.unknown++
		return
	}
	x := m.messages[seq-1]
	highest := m.highest()
	x.times = append(x.times, at)
	if len(x.times) > 1 {
		switch {
		case dup && m.eff() == 1:
			m.duplicated[1]++
		case x.resent:
			m.duplicated[2]++
		default:
			m.duplicated[0]++
		}
		return
	}
	if seq < highest {
		m.reordered++
	}
	waited := int64(0)
	for t := sent; t < at; t++ {
		if !absent(m.publisher, t) && !absent(m.subscriber, t) {
			waited++
		}
	}
	if waited > m.late {
		m.lateCount++
	}
}

// noticed is when the first number above i+1 came.
func (m *model) noticed(i int) int64 {
	first := int64(0)
	for _, x := range m.messages[i+1:] {
		if len(x.times) > 0 && (first == 0 || x.times[0] < first) {
			first = x.times[0]
		}
	}
	return first
}

func (m *model) sessionLost() {
	m.resume = false
	if m.standing != subscribed {
		return
	}
	from, to := m.highest()+1, stranger
	if m.eff() > 0 {
		to = bereft
		for i, x := range m.messages {
			if at := m.noticed(i); x.standing == subscribed && uint64(i)+1 >= m.since && len(x.times) == 0 && at != 0 && at >= m.life {
				from = min(from, uint64(i)+1)
			}
		}
	}
	m.turn(from, to)
}

func (m *model) counts() Counts {
	c := Counts{
		Duplicated: uint64(m.duplicated[0]), DuplicatedWithDup: uint64(m.duplicated[1]), DuplicatedAfterResend: uint64(m.duplicated[2]),
		Reordered: uint64(m.reordered), Late: uint64(m.lateCount), Unknown: uint64(m.unknown),
	}
	for _, x := range m.messages {
		came := len(x.times) > 0
		c.Sent++
		if x.acked {
			c.Acked++
		}
		if came {
			c.Received++
		}
		if came && !x.acked && m.qos > 0 {
			c.ReceivedUnacked++
		}
		if x.standing == stranger || m.qos > 0 && !x.acked {
			continue
		}
		c.Expected++
		switch {
		case came:
		case x.standing == bereft:
			c.LostWithSession++
		default:
			c.Lost++
		}
	}
	return c
}

// lost lists the numbers lost, with when that was noticed.
func (m *model) lost(of standing, at int64) []string {
	var all []string
	for i, x := range m.messages {
		if len(x.times) == 0 && x.standing == of && (x.acked || m.qos == 0) {
			noticed := m.noticed(i)
			if noticed == 0 {
				noticed = at
			}
			all = append(all, fmt.Sprintf("%d@%d", i+1, noticed))
		}
	}
	return all
}

func TestAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{since: 1, qos: rapid.ByteRange(0, 2).Draw(t, "qos"), granted: rapid.ByteRange(0, 2).Draw(t, "granted"), late: 5}
		books := New(Config{Late: 5, Examples: 1 << 20, Holes: 1 << 20})
		s := books.Stream("p", "t", m.qos)
		f := s.Flow("s", m.granted)
		now := int64(1)
		sentAt := map[uint64]int64{}
		number := rapid.Uint64Range(0, 40)
		check := func(t *rapid.T) {
			r := books.Settle(now, nil)
			sum := r.Messages()
			sum.Add(r.QoS[0])
			if want := m.counts(); sum != want {
				t.Fatalf("\ngot  %+v\nwant %+v", sum, want)
			}
			for kind, want := range map[Kind][]string{Lost: m.lost(subscribed, now), LostWithSession: m.lost(bereft, now)} {
				var got []string
				for _, a := range r.Anomalies {
					for n := a.Sequence; a.Kind == kind && n <= a.To; n++ {
						got = append(got, fmt.Sprintf("%d@%d", n, a.At))
					}
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%s: got %v, want %v", kind, got, want)
				}
			}
			live := books.Live()
			if r := r.Messages(); live.Received != r.Received || live.Duplicated != r.Duplicated || live.Lost != 0 {
				t.Fatalf("live %+v, settled %+v", live, r)
			}
		}
		tick := func(t *rapid.T) { now += rapid.Int64Range(0, 4).Draw(t, "pass") }
		t.Repeat(map[string]func(*rapid.T){
			"": check,
			"send": func(t *rapid.T) {
				for range rapid.IntRange(1, 4).Draw(t, "n") {
					tick(t)
					m.messages = append(m.messages, &message{standing: m.standing})
					s.Sent(uint64(len(m.messages)))
					sentAt[uint64(len(m.messages))] = now
				}
			},
			"ack": func(t *rapid.T) {
				n := number.Draw(t, "number")
				s.Acked(n)
				if n > 0 && n <= uint64(len(m.messages)) && m.qos > 0 {
					m.messages[n-1].acked = true
				}
			},
			"ack all": func(*rapid.T) {
				for i, x := range m.messages {
					s.Acked(uint64(i) + 1)
					x.acked = m.qos > 0
				}
			},
			"receive": func(t *rapid.T) {
				tick(t)
				n, dup := number.Draw(t, "number"), rapid.Bool().Draw(t, "dup")
				sent := sentAt[n]
				if sent == 0 {
					sent = now
				}
				m.receive(n, dup, sent, now)
				f.Received(n, dup, sent, now)
			},
			"receive next": func(t *rapid.T) {
				for range rapid.IntRange(1, 4).Draw(t, "n") {
					n := m.highest() + 1
					if n > uint64(len(m.messages)) {
						return
					}
					tick(t)
					m.receive(n, false, sentAt[n], now)
					f.Received(n, false, sentAt[n], now)
				}
			},
			"subscribe": func(t *rapid.T) {
				m.turn(uint64(len(m.messages))+1, subscribed)
				f.Subscribed(s.Last() + 1)
			},
			"unsubscribe": func(*rapid.T) {
				m.resume = false
				m.turn(m.highest()+1, stranger)
				f.Unsubscribed()
			},
			"subscriber leaves": func(t *rapid.T) {
				tick(t)
				if !absent(m.subscriber, now) {
					m.subscriber = append(m.subscriber, span{now, ongoing})
					if n := len(m.subscriber); n > 1 {
						m.life = m.subscriber[n-2].to
					}
				}
				if m.eff() == 0 && m.standing == subscribed {
					m.resume = true
					m.turn(m.highest()+1, stranger)
				}
				f.Offline(now)
			},
			"subscriber returns": func(t *rapid.T) {
				tick(t)
				lost := rapid.Bool().Draw(t, "session lost")
				first := rapid.Bool().Draw(t, "told before")
				if lost && first {
					m.sessionLost()
					f.SessionLost()
				}
				if n := len(m.subscriber); n > 0 && m.subscriber[n-1].to == ongoing {
					m.subscriber[n-1].to = now
				}
				if m.resume {
					m.resume = false
					m.turn(uint64(len(m.messages))+1, subscribed)
				}
				f.Online(now)
				if lost && !first {
					m.sessionLost()
					f.SessionLost()
				}
			},
			"publisher leaves": func(t *rapid.T) {
				tick(t)
				if !absent(m.publisher, now) {
					m.publisher = append(m.publisher, span{now, ongoing})
				}
				if m.qos == 1 {
					m.mayResend()
				}
				s.Offline(now)
			},
			"publisher returns": func(t *rapid.T) {
				tick(t)
				if n := len(m.publisher); n > 0 && m.publisher[n-1].to == ongoing {
					m.publisher[n-1].to = now
				}
				s.Online(now)
				if rapid.Bool().Draw(t, "session lost") {
					if m.qos > 0 {
						m.mayResend()
					}
					s.SessionLost()
				}
			},
		})
	})
}

// TestEarlySettlingChangesNothing compares a ledger that may keep hardly any holes with one that keeps all. Nothing comes so late that
// it would be forgotten.
func TestEarlySettlingChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		tight, ample := New(Config{Holes: 24, Examples: 1 << 20, Late: -1}), New(Config{Holes: 1 << 20, Examples: 1 << 20, Late: -1})
		var streams []*Stream
		var flows []*Flow
		for _, l := range []*Ledger{tight, ample} {
			s := l.Stream("p", "t", 1)
			streams, flows = append(streams, s), append(flows, s.Flow("s", 1))
		}
		both := func(fn func(*Stream, *Flow)) {
			for i := range streams {
				fn(streams[i], flows[i])
			}
		}
		both(func(_ *Stream, f *Flow) { f.Subscribed(1) })
		online := true
		var queue []uint64
		for n := uint64(1); n <= 1000; n++ {
			lost, unacked, twice, turn := r.IntN(4) == 0, r.IntN(5) == 0, r.IntN(9) == 0, r.IntN(50) == 0
			both(func(s *Stream, _ *Flow) {
				s.Sent(n)
				if !unacked {
					s.Acked(n)
				}
			})
			if !lost {
				queue = append(queue, n)
			}
			if turn {
				online = !online
				session := online && r.IntN(3) == 0
				if session {
					queue = nil
				}
				both(func(_ *Stream, f *Flow) {
					switch {
					case !online:
						f.Offline(int64(n))
					case session:
						f.SessionLost()
						f.Online(int64(n))
						f.Subscribed(n + 1)
					default:
						f.Online(int64(n))
					}
				})
			}
			for online && len(queue) > 0 {
				if len(queue) > 1 && r.IntN(10) == 0 {
					queue[0], queue[1] = queue[1], queue[0]
				}
				both(func(_ *Stream, f *Flow) {
					f.Received(queue[0], false, 0, int64(n))
					if twice {
						f.Received(queue[0], false, 0, int64(n))
					}
				})
				queue = queue[1:]
			}
		}
		a, b := tight.Settle(1<<40, nil), ample.Settle(1<<40, nil)
		if a.QoS != b.QoS {
			t.Fatalf("\ntight %+v\nample %+v", a.Messages(), b.Messages())
		}
		if streams[0].floor == 1 {
			t.Fatal("nothing was settled early")
		}
		if n := len(flows[0].received); n > force*24 {
			t.Fatalf("%d intervals are kept", n)
		}
	})
}

func TestExamplesAreBounded(t *testing.T) {
	books := New(Config{Examples: 3, Late: time.Hour})
	s := books.Stream("p", "t", 1)
	f := s.Flow("s", 1)
	f.Subscribed(1)
	for n := uint64(1); n <= 20; n++ {
		s.Sent(n)
		s.Acked(n)
		if n%2 == 0 {
			f.Received(n, false, 0, int64(n))
			f.Received(n, false, 0, int64(n))
		}
	}
	for range 2 { // settling does not use anything up
		r := books.Settle(100, nil)
		want := []Anomaly{
			{Lost, "p", "t", 1, "s", 1, 1, 2},
			{Lost, "p", "t", 1, "s", 3, 3, 4},
			{Lost, "p", "t", 1, "s", 5, 5, 6},
			{Duplicated, "p", "t", 1, "s", 2, 2, 2},
			{Duplicated, "p", "t", 1, "s", 4, 4, 4},
			{Duplicated, "p", "t", 1, "s", 6, 6, 6},
		}
		if !slices.Equal(r.Anomalies, want) {
			t.Errorf("got  %v\nwant %v", r.Anomalies, want)
		}
		if c := r.Messages(); c.Lost != 10 || c.Duplicated != 10 {
			t.Errorf("%+v", c)
		}
	}
}
