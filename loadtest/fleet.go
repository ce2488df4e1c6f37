package loadtest

import (
	"cmp"
	"fmt"
	"time"

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
	if p := f.spec.Publish; p != nil {
		for i := range f.devices {
			f.devices[i].sender = &sender{topic: []byte(expand(p.Topic, f.number0(i), f.id(i)))}
		}
	}
	due := r.start + int64(f.spec.Start)
	// The last connect is due when the schedule has given as many times as there are clients.
	last := due + int64(span(spec, r.seed, f.spec.Clients))
	r.pacers.Go(func() {
		var p pace.Pacer
		on := r.pace()
		_ = p.Run(r.ctx, due, pace.Limit(r.share.schedule(spec, r.seed), n), func(i int, intended int64) {
			on.fired(intended, pace.Now())
			f.devices[i].connect(intended)
		})
	})
	if p := f.spec.Publish; p != nil {
		finite = !p.Rate.Endless()
		from := last + int64(100*time.Millisecond)
		if p.Start > 0 {
			from = r.start + int64(p.Start)
		}
		if finite {
			r.work.add(1)
		}
		r.pacers.Go(func() {
			var pacer pace.Pacer
			on := r.pace()
			_ = pacer.Run(r.ctx, from, r.share.turns(p.Rate, r.seed+1, f.spec.Clients), func(i int, intended int64) {
				on.fired(intended, pace.Now())
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
			name := "storm"
			if times > 1 {
				name = fmt.Sprintf("storm %d", k+1)
			}
			r.rec.Fault(result.Fault{Spec: name, Begin: max(begin-r.start, 0), Outcome: "all connections were reset"})
			for i := range f.devices {
				f.devices[i].cut(name, begin)
			}
			var p pace.Pacer
			on := r.pace()
			_ = p.Run(r.ctx, begin, pace.Limit(r.share.schedule(spec, r.seed+uint64(k)), len(f.devices)), func(i int, intended int64) {
				on.fired(intended, pace.Now())
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
