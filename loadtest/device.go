package loadtest

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// maxBacklog is how many messages of a client wait for its connection, or for room in its window; more are errors.
const maxBacklog = 10_000

// device is one client of a fleet.
type device struct {
	client.Client
	fleet *fleet
	local int32 // in fleet.devices

	mu       sync.Mutex
	session  bool  // the broker should know us
	listens  bool  // and our subscriptions
	ready    bool  // connected, and subscribed if that is its task
	busy     bool  // opened, and not told yet that it is closed
	again    int64 // intended time of the connect that is to follow that; 0: none
	waits    int32 // SUBACKs
	attempt  int32
	intended int64 // of the connect
	sent     int64
	up       int64 // since when it is connected; 0: it is not
	outage   outage
	sender   *sender // of one that publishes
}

// outage is what a client suffers, from its loss to its first acknowledged publish.
type outage struct {
	storm string // the run itself cut the client off: what that is called
	begin int64  // of the storm, or of the loss; 0: all is well
}

// sender is what a client needs to publish.
type sender struct {
	topic    []byte
	sequence uint64
	backlog  []int64  // intended times that wait
	flights  []flight // by token
	free     []uint32
}

// flight is a message whose acknowledgement is awaited.
type flight struct{ intended, sent int64 }

// act is a reconnect by the retry profile.
func (d *device) act(at int64) {
	d.mu.Lock()
	busy := d.busy
	d.mu.Unlock()
	if !busy { // a storm may have been quicker
		d.connect(at)
	}
}

// connect opens a connection that was intended for a stamp, at once, or when the one before it has closed.
func (d *device) connect(intended int64) {
	r := d.fleet.run
	d.mu.Lock()
	if d.busy {
		d.again = intended
		d.mu.Unlock()
		return
	}
	d.busy, d.again = true, 0
	d.intended, d.sent = intended, pace.Now()
	number := d.fleet.number0(int(d.local))
	con := d.fleet.speech.connect(number, d.fleet.id(int(d.local)))
	now := d.sent
	d.mu.Unlock()
	w := r.ways[0]
	w.started(now)
	if err := r.engine.Open(&d.Client, w.next(), &con); err != nil {
		w.notOpened(now, err)
		d.mu.Lock()
		d.busy = false
		d.mu.Unlock()
	}
}

// cut drops the connection abruptly, to be called back: what the client suffers counts from begin.
func (d *device) cut(storm string, begin int64) {
	d.mu.Lock()
	d.outage, d.ready = outage{storm: storm, begin: begin}, false
	d.mu.Unlock()
	d.Abort()
}

// OnConnack implements client.Handler.
func (d *device) OnConnack(_ *client.Client, at int64, a *mqtt.Connack) {
	r := d.fleet.run
	d.mu.Lock()
	defer d.mu.Unlock()
	r.ways[0].accepted(&d.Client, d.intended, d.sent, at, a)
	d.again = 0 // it is there
	d.up, d.session = at, d.fleet.speech.lasts()
	if a.SessionPresent && d.listens || len(d.fleet.spec.Subscribe) == 0 {
		d.open()
		return
	}
	number := d.fleet.number0(int(d.local))
	id := d.fleet.id(int(d.local))
	d.listens = true
	for i, s := range d.fleet.spec.Subscribe {
		r.rec.Count(result.Subscribes, at, 1)
		if err := d.Subscribe(tokenSubscribe|uint64(i), expand(s.Filter, number, id), s.QoS); err != nil {
			r.rec.Error("subscribe", at)
			d.listens = false
			continue
		}
		d.waits++
	}
	d.sent = at // of the SUBSCRIBE
}

// Tokens: what is acknowledged is a flight, unless it says otherwise.
const (
	tokenSubscribe = 1 << 62
	tokenProbe     = 1 << 61
)

// open begins what the client is there for, now that it can.
func (d *device) open() {
	d.ready = true
	if d.outage.begin != 0 && d.sender == nil {
		d.probe()
	}
	d.flush()
}

// probe publishes something that nobody awaits, to learn when the broker takes messages again.
func (d *device) probe() {
	if err := d.Publish(tokenProbe, []byte("limpet/probe/"+d.fleet.id(int(d.local))), nil, 1, false); err != nil {
		d.outage = outage{}
	}
}

// publish has the client publish what was intended for a stamp.
func (d *device) publish(intended int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready {
		d.flush() // what had no room before goes first
	}
	if !d.ready || len(d.sender.backlog) > 0 || !d.send(intended) {
		d.wait(intended)
	}
}

// wait keeps a message for later. Its latency counts from the time for which it was intended.
func (d *device) wait(intended int64) {
	if len(d.sender.backlog) >= maxBacklog {
		d.fleet.run.rec.Error("queue", pace.Now())
		return
	}
	d.sender.backlog = append(d.sender.backlog, intended)
}

// flush sends what waits.
func (d *device) flush() {
	s := d.sender
	if s == nil {
		return
	}
	for len(s.backlog) > 0 && d.send(s.backlog[0]) {
		s.backlog = s.backlog[1:]
	}
	if len(s.backlog) == 0 {
		s.backlog = nil
	}
}

// send publishes; false: not now.
func (d *device) send(intended int64) bool {
	s, p, r := d.sender, d.fleet.spec.Publish, d.fleet.run
	now := pace.Now()
	token := uint64(0)
	if p.QoS > 0 {
		token = s.take(flight{intended, now})
	}
	payload := d.fleet.payloads.get()
	defer d.fleet.payloads.put(payload)
	if len(*payload) >= HeaderSize {
		h := header{run: r.id, from: d.fleet.base | uint32(d.local), sequence: s.sequence + 1, intended: intended, sent: now}
		h.put(*payload)
	}
	err := d.Publish(token, s.topic, *payload, p.QoS, p.Retain)
	switch err {
	case nil:
		s.sequence++
		r.rec.Count(result.Publishes, now, 1)
		return true
	case client.ErrNotConnected, client.ErrInflight, client.ErrQueueFull:
		if p.QoS > 0 {
			s.give(token)
		}
		return false
	default:
		if p.QoS > 0 {
			s.give(token)
		}
		r.rec.Error("publish", now)
		return true // it will never go
	}
}

// take keeps a flight and returns its token.
func (s *sender) take(f flight) uint64 {
	if n := len(s.free); n > 0 {
		t := s.free[n-1]
		s.free = s.free[:n-1]
		s.flights[t] = f
		return uint64(t)
	}
	s.flights = append(s.flights, f)
	return uint64(len(s.flights) - 1)
}

// give gives a token back, and returns what it stood for.
func (s *sender) give(token uint64) flight {
	s.free = append(s.free, uint32(token))
	return s.flights[token]
}

// OnAcked implements client.Handler.
func (d *device) OnAcked(_ *client.Client, at int64, token uint64, code byte) {
	r := d.fleet.run
	d.mu.Lock()
	defer d.mu.Unlock()
	if token&tokenSubscribe != 0 {
		if d.waits--; code < 0x80 {
			r.rec.Suback.Record(d.sent, d.sent, at)
			r.rec.Count(result.Subscribed, at, 1)
		} else {
			d.listens = false
			if code != client.CodeDropped {
				r.rec.Error("subscribe", at)
			}
		}
		if d.waits <= 0 && d.up != 0 {
			d.open()
		}
		return
	}
	if code < 0x80 && d.outage.begin != 0 {
		d.outage.over(r, at)
	}
	if token&tokenProbe != 0 {
		return
	}
	f := d.sender.give(token)
	switch {
	case code < 0x80:
		r.rec.Puback.Record(f.intended, f.sent, at)
		r.rec.Count(result.Acked, at, 1)
	default:
		r.rec.Error("publish", at)
	}
	d.flush()
}

// over tells how long it lasted, and for which fault: only now, since at the moment of the loss the news of the fault may still be under way.
func (o *outage) over(r *run, at int64) {
	number, name, begin := 0, o.storm, o.begin
	if name == "" {
		name = "cut off by no fault of the run"
		if f, ok := r.faults.blame(o.begin); ok {
			number, name, begin = f.Number, f.Fault.String(), f.Begin
		}
	}
	r.rec.Outage(number, name, begin, at)
	*o = outage{}
}

// OnPublish implements client.Handler.
func (d *device) OnPublish(_ *client.Client, at int64, p *mqtt.Publish) {
	r := d.fleet.run
	r.hear(at)
	r.rec.Count(result.Receives, at, 1)
	if p.Dup {
		r.rec.Count(result.ReceivesDup, at, 1)
	}
	if h, ok := readHeader(p.Payload, r.id); ok && !p.Retain {
		r.rec.E2E.Record(h.intended, h.sent, at)
	}
}

// OnClosed implements client.Handler.
func (d *device) OnClosed(_ *client.Client, at int64, cause client.Cause) {
	if again := d.closed(at, &cause); again != 0 {
		d.connect(again)
	}
}

// closed takes notice of the end of a connection, and returns for when the next one was intended, if that is to be opened now.
func (d *device) closed(at int64, cause *client.Cause) (again int64) {
	r := d.fleet.run
	d.mu.Lock()
	defer d.mu.Unlock()
	up := d.up
	d.busy, d.up, d.ready, d.waits = false, 0, false, 0
	if cause.Stage == client.StageConnack {
		d.listens = false // it may have made a session, without subscriptions, that the next connect finds
	}
	r.ways[0].ended(at, cause, up != 0)
	if cause.Own() || d.again != 0 {
		return d.again
	}
	if up != 0 {
		if d.outage.begin == 0 {
			d.outage = outage{begin: at}
		}
		d.attempt = int32(d.fleet.retry.After(int(d.attempt), time.Duration(at-up)))
	} else {
		d.attempt++
	}
	if wait := d.fleet.retry.Delay(int(d.attempt), d.rand(at)); wait != pace.Never {
		r.agenda.at(at+int64(wait), d)
	}
	return 0
}

func (d *device) rand(at int64) *rand.Rand {
	return d.fleet.run.rand(uint64(d.fleet.number)<<48 ^ uint64(d.local)<<16 ^ uint64(at))
}
