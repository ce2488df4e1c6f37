package loadtest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// feeder publishes numbered streams. It stays connected, and comes back when it is cut off; what waited then is published afterwards.
type feeder struct {
	client.Client
	group   *group
	number  int
	name    string
	id      string
	way     *way
	rand    *rand.Rand
	streams []*stream

	lock
	session  bool // the broker should know us
	up       int64
	out      int64 // since when it tries to connect; 0: it is connected
	intended int64
	sent     int64
	attempt  int
	backlog  []owed
	flights  []delivery // by token
	free     []uint32
	flying   int
}

// owed is a message that waits to be published.
type owed struct {
	stream   *stream
	intended int64
}

// delivery is one that waits to be acknowledged.
type delivery struct {
	owed
	sequence uint64
	sent     int64
}

func newFeeder(g *group, number int, name string, w *way) *feeder {
	r := g.v.run
	f := &feeder{
		group: g, number: number, name: name, way: w,
		id:   fmt.Sprintf("limpet-feeder-%08x-%s-%d-%d", r.id, g.name, r.share.Index, number),
		rand: r.rand(1<<60 | uint64(r.share.number(number))<<1 | uint64(len(g.name))),
	}
	f.Handler, f.Resend = f, true
	return f
}

// act connects: at first, and after the connection was lost.
func (f *feeder) act(at int64) {
	r := f.group.v.run
	f.Lock()
	f.intended, f.sent = at, pace.Now()
	now := f.sent
	if f.out == 0 {
		f.out = now
	}
	f.Unlock()
	con := mqtt.Connect{Version: mqtt.V311, ID: f.id, KeepAlive: 30}
	f.way.started(now)
	if err := r.engine.Open(&f.Client, f.way.next(), &con); err != nil {
		f.way.notOpened(now, err)
	}
}

// OnConnack implements client.Handler.
func (f *feeder) OnConnack(_ *client.Client, at int64, a *mqtt.Connack) {
	f.Lock()
	defer f.Unlock()
	f.way.accepted(&f.Client, f.intended, f.sent, at, a)
	f.up, f.out = at, 0
	for _, s := range f.streams {
		if f.session && !a.SessionPresent {
			s.SessionLost()
		}
		s.Online(at)
	}
	f.session = true
	f.flush()
}

// publish has the feeder publish the next message of a stream, now or when it can.
func (f *feeder) publish(s *stream, intended int64) {
	f.Lock()
	defer f.Unlock()
	f.flush() // what had no room before goes first
	o := owed{s, intended}
	if len(f.backlog) > 0 || !f.send(o) {
		if len(f.backlog) >= maxBacklog {
			f.group.v.run.rec.Error("queue", pace.Now())
			return
		}
		f.backlog = append(f.backlog, o)
	}
}

func (f *feeder) flush() {
	for len(f.backlog) > 0 && f.send(f.backlog[0]) {
		f.backlog = f.backlog[1:]
	}
	if len(f.backlog) == 0 {
		f.backlog = nil
	}
}

// send publishes; false: not now.
func (f *feeder) send(o owed) bool {
	if f.up == 0 {
		return false
	}
	v := f.group.v
	r := v.run
	now := pace.Now()
	sequence := o.stream.sequence + 1
	payload := v.payloads.get()
	defer v.payloads.put(payload)
	h := header{run: r.id, from: uint32(f.number), sequence: sequence, intended: o.intended, sent: now}
	h.put(*payload)
	token := f.take(delivery{o, sequence, now})
	o.stream.Sent(sequence) // it may arrive before Publish returns
	err := f.Publish(token, o.stream.topic, *payload, o.stream.qos, false)
	if err != nil {
		f.give(token)
		if err != client.ErrNotConnected && err != client.ErrInflight && err != client.ErrQueueFull {
			r.rec.Error("publish", now)
			return true // it will never go
		}
		return false
	}
	o.stream.sequence = sequence
	r.rec.Count(result.Publishes, now, 1)
	if o.stream.qos == 0 {
		f.give(token)
	}
	return true
}

func (f *feeder) take(d delivery) uint64 {
	f.flying++
	if n := len(f.free); n > 0 {
		t := f.free[n-1]
		f.free = f.free[:n-1]
		f.flights[t] = d
		return uint64(t)
	}
	f.flights = append(f.flights, d)
	return uint64(len(f.flights) - 1)
}

func (f *feeder) give(token uint64) delivery {
	f.flying--
	f.free = append(f.free, uint32(token))
	return f.flights[token]
}

// OnAcked implements client.Handler.
func (f *feeder) OnAcked(_ *client.Client, at int64, token uint64, code byte) {
	r := f.group.v.run
	f.Lock()
	defer f.Unlock()
	d := f.give(token)
	if code < 0x80 {
		d.stream.Acked(d.sequence)
		r.rec.Puback.Record(d.intended, d.sent, at)
		r.rec.Count(result.Acked, at, 1)
	} else if code != client.CodeDropped {
		r.rec.Error("publish", at)
	}
	f.flush()
}

// OnPublish implements client.Handler: nobody publishes to feeders.
func (f *feeder) OnPublish(*client.Client, int64, *mqtt.Publish) {}

// OnClosed implements client.Handler.
func (f *feeder) OnClosed(_ *client.Client, at int64, cause client.Cause) {
	f.Lock()
	defer f.Unlock()
	up := f.up
	f.up = 0
	if up != 0 {
		for _, s := range f.streams {
			s.Offline(at)
		}
	}
	f.way.ended(at, &cause, up != 0)
	if cause.Own() {
		return
	}
	if up != 0 {
		f.attempt = f.group.v.retry.After(f.attempt, time.Duration(at-up))
	} else {
		f.attempt++
	}
	if wait := f.group.v.retry.Delay(f.attempt, f.rand); wait != pace.Never {
		f.group.v.run.agenda.at(at+int64(wait), f)
	}
}

// idle reports whether everything is published and acknowledged, or cannot be for too long to be waited for.
func (f *feeder) idle() bool {
	f.Lock()
	defer f.Unlock()
	f.flush()
	return f.flying == 0 && len(f.backlog) == 0 || f.out != 0 && pace.Now()-f.out > int64(strandedAfter)
}
