package loadtest

import (
	"cmp"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// fleet is a Fleet of which this process runs its share.
type fleet struct {
	run      *run
	spec     *Fleet
	number   int // among the plan's
	speech   speech
	retry    pace.Profile
	payloads *payloads
	devices  []device // not moved: links point into them
	base     uint32   // of the publishers' numbers in headers
}

// speech is a Session as CONNECT says it.
type speech struct {
	version   mqtt.Version
	clean     bool
	expiry    uint32
	keepAlive uint16
	user      string
	password  string
}

// maxBacklog is how many messages of a client wait for its connection, or for room in its window; more are errors.
const maxBacklog = 10_000

// device is one client of a fleet.
type device struct {
	client.Client
	fleet *fleet
	local int32 // in fleet.devices

	mu       sync.Mutex
	session  bool  // the broker should know us
	ready    bool  // connected, and subscribed if that is its task
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
	fault fault.Event
	begin int64 // of the fault, or of the loss if there was none; 0: all is well
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

func newFleet(r *run, spec *Fleet, number int) *fleet {
	f := &fleet{run: r, spec: spec, number: number, speech: spec.Session.speech(), devices: make([]device, r.share.count(spec.Clients))}
	f.retry, _ = pace.ParseRetry(cmp.Or(spec.Retry, "none")) // checked
	if p := spec.Publish; p != nil {
		size := p.Size
		if size == 0 {
			size = DefaultSize
		}
		f.payloads = newPayloads(size)
	}
	f.base = uint32(number) << 24
	for i := range f.devices {
		d := &f.devices[i]
		d.fleet, d.local, d.Handler, d.Resend = f, int32(i), d, true
	}
	return f
}

// speech translates a Session, which has been checked.
func (s *Session) speech() speech {
	v, _ := parseVersion(s.Version)
	out := speech{version: v, clean: s.Clean, user: s.User, password: s.Password, keepAlive: 60}
	switch {
	case s.Keep < 0:
		out.keepAlive = 0
	case s.Keep > 0:
		out.keepAlive = uint16(max(s.Keep/time.Second, 1))
	}
	if v == mqtt.V5 {
		if out.expiry = uint32(s.Expiry / time.Second); out.expiry == 0 && !s.Clean {
			out.expiry = 3600
		}
	}
	return out
}

func parseVersion(s string) (mqtt.Version, bool) {
	switch s {
	case "", "5", "5.0":
		return mqtt.V5, true
	case "4", "3.1.1":
		return mqtt.V311, true
	case "3", "3.1":
		return mqtt.V31, true
	}
	return 0, false
}

// lasts reports whether a session outlives its connection.
func (s *speech) lasts() bool {
	if s.version == mqtt.V5 {
		return s.expiry > 0
	}
	return !s.clean
}

// connect is the CONNECT of a client.
func (s *speech) connect(number int, id string) mqtt.Connect {
	c := mqtt.Connect{Version: s.version, ID: id, Clean: s.clean, Expiry: s.expiry, KeepAlive: s.keepAlive}
	if s.user != "" {
		c.User, c.HasUser = expand(s.user, number, id), true
	}
	if s.password != "" {
		c.Password, c.HasPassword = []byte(expand(s.password, number, id)), true
	}
	return c
}

// begin starts what the fleet does; true: it is done some time.
func (f *fleet) begin() (finite bool) {
	r := f.run
	spec := f.spec.Connect
	if spec.String() == "" {
		spec = mustSchedule("1000/s")
	}
	n := len(f.devices)
	due := r.start + int64(f.spec.Start)
	// The last connect is due when the schedule has given as many times as there are clients.
	last := due + int64(span(spec, r.seed, f.spec.Clients))
	r.pacers.Go(func() {
		var p pace.Pacer
		_ = p.Run(r.ctx, due, pace.Limit(r.share.schedule(spec, r.seed), n), func(i int, intended int64) {
			r.rec.Fired(intended, pace.Now())
			f.devices[i].connect(intended)
		})
	})
	if f.spec.Publish != nil && n > 0 {
		p := f.spec.Publish
		finite = !p.Rate.Endless()
		from := last + int64(100*time.Millisecond)
		if p.Start > 0 {
			from = r.start + int64(p.Start)
		}
		for i := range f.devices {
			number := f.number0(i)
			f.devices[i].sender = &sender{topic: []byte(expand(p.Topic, number, f.id(i)))}
		}
		if finite {
			r.work.add(1)
		}
		r.pacers.Go(func() {
			var pacer pace.Pacer
			_ = pacer.Run(r.ctx, from, r.share.schedule(p.Rate, r.seed+1), func(i int, intended int64) {
				r.rec.Fired(intended, pace.Now())
				f.devices[i%n].publish(intended)
			})
			if finite {
				r.work.done()
			}
		})
	}
	if s := f.spec.Storm; s != nil {
		finite = f.storm(s, last) || finite
	}
	return finite
}

// span is when a schedule gives its n-th time.
func span(spec pace.Spec, seed uint64, n int) (last time.Duration) {
	s := pace.Limit(spec.New(seed), n)
	for {
		at, ok := s.Next()
		if !ok {
			return last
		}
		last = at
	}
}

func mustSchedule(text string) pace.Spec {
	s, err := pace.Parse(text)
	if err != nil {
		panic(err)
	}
	return s
}

// number0 is the number of a local client in its ID and topics.
func (f *fleet) number0(local int) int { return f.spec.First + f.run.share.number(local) }

func (f *fleet) id(local int) string {
	pattern := f.spec.ID
	if pattern == "" {
		pattern = "limpet-" + cmp.Or(f.spec.Name, "client") + "-%i"
	}
	return expand(pattern, f.number0(local), "")
}

// storm cuts everybody off, and calls them back by a schedule.
func (f *fleet) storm(s *Storm, last int64) (finite bool) {
	r := f.run
	at := last + int64(time.Second)
	if s.At > 0 {
		at = r.start + int64(s.At)
	}
	times := max(s.Times, 1)
	spec := s.Connect
	if spec.String() == "" {
		spec = mustSchedule("burst 1000000000")
	}
	r.work.add(1)
	r.pacers.Go(func() {
		defer r.work.done()
		for k := range times {
			begin := at + int64(k)*int64(s.Every)
			if !r.sleepUntil(begin) {
				return
			}
			for i := range f.devices {
				f.devices[i].cut(begin)
			}
			var p pace.Pacer
			_ = p.Run(r.ctx, begin, pace.Limit(r.share.schedule(spec, r.seed+uint64(k)), len(f.devices)), func(i int, intended int64) {
				r.rec.Fired(intended, pace.Now())
				f.devices[i].connect(intended)
			})
			f.awaitAll()
		}
	})
	return true
}

// awaitAll waits until all are connected, a minute at most.
func (f *fleet) awaitAll() {
	end := pace.Now() + int64(time.Minute)
	for i := 0; i < len(f.devices) && pace.Now() < end; {
		d := &f.devices[i]
		d.mu.Lock()
		ready := d.ready
		d.mu.Unlock()
		if ready {
			i++
		} else if !f.run.sleepUntil(pace.Now() + int64(20*time.Millisecond)) {
			return
		}
	}
}

// sleepUntil reports whether the time came before the run's end.
func (r *run) sleepUntil(stamp int64) bool {
	t := time.NewTimer(time.Duration(stamp - pace.Now()))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// act is a reconnect by the retry profile.
func (d *device) act(at int64) { d.connect(at) }

// connect opens a connection that was intended for a stamp, which may be that of an earlier try.
func (d *device) connect(intended int64) {
	r := d.fleet.run
	d.mu.Lock()
	d.intended, d.sent = intended, pace.Now()
	number := d.fleet.number0(int(d.local))
	con := d.fleet.speech.connect(number, d.fleet.id(int(d.local)))
	now := d.sent
	d.mu.Unlock()
	r.started(now)
	if err := r.engine.Open(&d.Client, r.choose.Next(), &con); err != nil {
		r.rec.Error("other", now)
	}
}

// cut drops the connection abruptly, to be called back: what the client suffers counts from begin.
func (d *device) cut(begin int64) {
	d.mu.Lock()
	d.outage = outage{begin: begin}
	d.mu.Unlock()
	d.Abort()
}

// OnConnack implements client.Handler.
func (d *device) OnConnack(_ *client.Client, at int64, a *mqtt.Connack) {
	r := d.fleet.run
	d.mu.Lock()
	defer d.mu.Unlock()
	r.accepted(d.intended, d.sent, at, a)
	d.up, d.session = at, d.fleet.speech.lasts()
	if a.SessionPresent || len(d.fleet.spec.Subscribe) == 0 {
		d.open()
		return
	}
	number := d.fleet.number0(int(d.local))
	id := d.fleet.id(int(d.local))
	for i, s := range d.fleet.spec.Subscribe {
		r.rec.Count(result.Subscribes, at, 1)
		if err := d.Subscribe(tokenSubscribe|uint64(i), expand(s.Filter, number, id), s.QoS); err != nil {
			r.rec.Error("subscribe", at)
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
	s := d.sender
	if !d.ready || len(s.backlog) > 0 {
		d.wait(intended)
		return
	}
	if !d.send(intended) {
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
		} else if code != client.CodeDropped {
			r.rec.Error("subscribe", at)
		}
		if d.waits <= 0 && d.up != 0 {
			d.open()
		}
		return
	}
	if code < 0x80 && d.outage.begin != 0 {
		r.rec.Outage(d.outage.fault.Number, d.outage.name(), d.outage.begin, at)
		d.outage = outage{}
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

func (o *outage) name() string {
	if o.fault.Number == 0 {
		return ""
	}
	return o.fault.Fault.String()
}

// OnPublish implements client.Handler.
func (d *device) OnPublish(_ *client.Client, at int64, p *mqtt.Publish) {
	r := d.fleet.run
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
	r := d.fleet.run
	d.mu.Lock()
	defer d.mu.Unlock()
	up := d.up
	d.up, d.ready, d.waits = 0, false, 0
	r.ended(at, &cause, up != 0)
	if cause.Own() {
		return
	}
	if up != 0 {
		if d.outage.begin == 0 {
			if f, ok := r.faults.blame(at); ok {
				d.outage = outage{fault: f, begin: f.Begin}
			} else {
				d.outage = outage{begin: at}
			}
		}
		d.attempt = int32(d.fleet.retry.After(int(d.attempt), time.Duration(at-up)))
	} else {
		d.attempt++
	}
	if wait := d.fleet.retry.Delay(int(d.attempt), d.rand(at)); wait != pace.Never {
		r.agenda.at(at+int64(wait), d)
	}
}

func (d *device) rand(at int64) *rand.Rand {
	return d.fleet.run.rand(uint64(d.fleet.number)<<48 ^ uint64(d.local)<<16 ^ uint64(at))
}
