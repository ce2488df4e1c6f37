//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/gauge"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/sink"
)

// A unit is one figure of one peer, measured once.
type unit struct {
	Mode   peer.Mode          `json:"mode"`
	Figure string             `json:"figure"`
	Peer   string             `json:"peer"`
	Rep    int                `json:"rep"`
	Begin  time.Time          `json:"begin"`
	Tries  int                `json:"tries"` // it was disturbed least of so many
	Cores  string             `json:"cores"`
	Values map[string]float64 `json:"values"`           // times in nanoseconds, memory in bytes; by row
	Faults []string           `json:"faults,omitempty"` // why no value counts
	Late   string             `json:"late,omitempty"`   // why no latency counts

	Spent    map[string]Spent          `json:"spent,omitempty"`
	Seen     *load.Seen                `json:"seen,omitempty"`  // while it was measured
	Total    *load.Seen                `json:"total,omitempty"` // of all traffic
	Connects map[string]load.Connected `json:"connects,omitempty"`
	Sink     sink.Counts               `json:"sink"`
	Memory   map[string]int64          `json:"memory,omitempty"` // bytes

	peer peer.Peer
	rig  *rig
	p    *params
}

func (u *unit) fault(format string, args ...any) {
	u.Faults = append(u.Faults, fmt.Sprintf(format, args...))
}

// measure measures one unit. An error is one of the rig; what goes wrong in the measuring is a fault of the unit.
func (p *params) measure(ctx context.Context, one peer.Peer, m peer.Mode, figure string, rep int, cert string) (*unit, map[string]string, error) {
	u := &unit{
		Mode: m, Figure: figure, Peer: one.Name, Rep: rep, Begin: time.Now(), Values: map[string]float64{}, Spent: map[string]Spent{}, Connects: map[string]load.Connected{},
		peer: one, p: p,
	}
	dir, err := os.MkdirTemp("", "versus-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	if u.rig, err = newRig(ctx, p, one, m, figure, dir, cert); err != nil {
		return nil, nil, err
	}
	defer u.rig.end()
	u.Cores = u.rig.pinned
	switch figure {
	case connect:
		err = u.connect(ctx)
	case idle:
		err = u.idle(ctx)
	default:
		err = u.traffic(ctx)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s, %s, %s: %w", m, figure, one.Name, err)
	}
	if err := u.rig.sink.ask(request{Op: "counts"}, &u.Sink); err != nil {
		return nil, nil, err
	}
	switch {
	case u.Sink.Faults > 0:
		u.fault("the broker did not understand %d connections", u.Sink.Faults)
	case one.Proxied(m) && u.Sink.Proxied != u.Sink.Connects:
		u.fault("%d of %d connections came with a PROXY header", u.Sink.Proxied, u.Sink.Connects)
	case one.Sticky(m) && u.Sink.Strayed > 0:
		u.fault("%d clients came back to another broker", u.Sink.Strayed)
	}
	return u, u.rig.configs, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// hold connects clients that stay.
func (u *unit) hold(n int) error {
	rate := 1000.0
	if u.Mode.Encrypted() {
		rate = 800
	}
	var c load.Connected
	if err := u.rig.load.ask(request{Op: "connect", Connects: load.Connects{Count: n, Rate: rate, Hold: true}}, &c); err != nil {
		return err
	}
	u.Connects["hold"] = c
	if c.Failed > 0 {
		u.fault("%d of %d clients could not connect: %v", c.Failed, n, c.Errors)
	}
	return nil
}

// traffic measures messages, at a rate or as many as there can be.
func (u *unit) traffic(ctx context.Context) error {
	if err := u.hold(u.p.Conns); err != nil {
		return err
	}
	begin := request{Op: "saturate", Window: u.p.Inflight}
	rate, paced := rateOf(u.Figure)
	if paced {
		begin = request{Op: "traffic", Rate: rate / 2} // the other half are the echoes
	}
	if err := u.rig.load.ask(begin, nil); err != nil {
		return err
	}
	if err := pause(ctx, u.p.Warmup); err != nil {
		return err
	}
	var dropped, seen, total load.Seen
	if err := u.rig.load.ask(request{Op: "mark"}, &dropped); err != nil {
		return err
	}
	before, err := u.rig.sample()
	if err != nil {
		return err
	}
	if err := pause(ctx, u.p.Window); err != nil {
		return err
	}
	if err := u.rig.load.ask(request{Op: "mark"}, &seen); err != nil {
		return err
	}
	after, err := u.rig.sample()
	if err != nil {
		return err
	}
	if err := u.rig.load.ask(request{Op: "stop"}, &total); err != nil {
		return err
	}
	spent := after.since(before)
	u.Spent["traffic"], u.Seen, u.Total = spent, &seen, &total

	messages := float64(seen.Sent + seen.Received)
	if messages == 0 {
		u.fault("no message came through")
		return nil
	}
	each := func(d time.Duration) float64 { return float64(d) / messages }
	u.Values["cpu"], u.Values["rest"] = each(spent.Proxy.Clock), each(spent.Rest)
	u.Values["generator"], u.Values["broker"] = each(spent.Load), each(spent.Sink)
	if paced {
		u.Values["p50"], u.Values["p99"], u.Values["p99.9"] = float64(seen.Latency.P50), float64(seen.Latency.P99), float64(seen.Latency.P999)
	} else {
		u.Values["throughput"] = messages / spent.Elapsed.Seconds()
		u.Values["busy"] = spent.Proxy.Clock.Seconds() / spent.Elapsed.Seconds() / float64(max(u.peer.Threads, 1))
	}
	switch {
	case total.Received != total.Sent:
		u.fault("of %d messages %d came back", total.Sent, total.Received)
	case total.Wrong > 0:
		u.fault("%d messages came back wrong", total.Wrong)
	case total.Refused > 0 || total.Lost > 0:
		u.fault("%d messages could not be sent, %d connections were lost", total.Refused, total.Lost)
	}
	if have := messages / spent.Elapsed.Seconds(); paced && (have < 0.95*rate || have > 1.05*rate) {
		u.fault("%.0f messages a second instead of %.0f", have, rate)
	}
	if total.Behind {
		u.Late = "the generator fell behind: " + total.Lag
	}
	return nil
}

// connect measures connections: a storm of new clients, the same ones again in good order, and with TLS once more with their tickets.
func (u *unit) connect(ctx context.Context) error {
	n := u.p.Connects
	rate := 500.0
	if u.Mode.Encrypted() {
		rate = 300
	}
	for _, step := range []struct {
		name string
		does load.Connects
	}{
		{"new", load.Connects{Count: n}},
		{"known", load.Connects{Count: n, Rate: rate}},
		{"prime", load.Connects{First: warm + 1000, Count: 1, Rate: rate, Tickets: true}},
		{"resumed", load.Connects{Count: n, Rate: rate, Tickets: true}},
	} {
		if step.does.Tickets && (!u.Mode.Encrypted() || u.peer.Kind == peer.Direct) {
			continue
		}
		before, err := u.rig.sample()
		if err != nil {
			return err
		}
		var c load.Connected
		if err := u.rig.load.ask(request{Op: "connect", Connects: step.does}, &c); err != nil {
			return err
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil { // what is closed behind the client's back
			return err
		}
		after, err := u.rig.sample()
		if err != nil {
			return err
		}
		spent := after.since(before)
		u.Spent[step.name], u.Connects[step.name] = spent, c
		u.Values[step.name] = float64(spent.Proxy.Clock) / float64(step.does.Count)
		u.Values[step.name+".rest"] = float64(spent.Rest) / float64(step.does.Count)
		u.Values[step.name+".connack"] = float64(c.Connack.P99)
		switch {
		case c.Accepted != step.does.Count || c.Failed > 0:
			u.fault("%s: of %d clients %d connected: %v", step.name, step.does.Count, c.Accepted, c.Errors)
		case step.name != "new" && step.name != "prime" && u.peer.Sticky(u.Mode) && c.Present != c.Accepted:
			u.fault("%s: of %d known clients %d found their session", step.name, c.Accepted, c.Present)
		case step.name == "resumed" && c.Resumed != c.Handshakes:
			u.fault("%s: of %d handshakes %d resumed", step.name, c.Handshakes, c.Resumed)
		case u.Mode.Encrypted() && !step.does.Tickets && c.Resumed > 0:
			u.fault("%s: %d handshakes resumed", step.name, c.Resumed)
		}
	}
	return nil
}

// settle waits until the kernel has freed what the unit before left (it takes its time with sockets), or for patience: its memory has stood still
// five times in a row.
func settle(ctx context.Context, patience time.Duration) error {
	last, still := int64(0), 0
	for until := time.Now().Add(patience); still < 5 && time.Now().Before(until); {
		now, err := gauge.Kernel()
		if err != nil {
			return err
		}
		still++
		if now < last-1<<18 || now > last+1<<18 {
			still = 0
		}
		last = now
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// idle measures clients that do nothing.
func (u *unit) idle(ctx context.Context) error {
	u.Memory = map[string]int64{}
	look := func(when string) error {
		rss, err := gauge.RSS(u.rig.pids)
		if err != nil {
			return err
		}
		u.Memory["rss "+when] = rss
		if u.Memory["kernel "+when], err = gauge.Kernel(); err != nil {
			return err
		}
		u.Memory["available "+when], err = gauge.Available()
		return err
	}
	if err := settle(ctx, u.p.Settle); err != nil {
		return err
	}
	if err := look("before"); err != nil {
		return err
	}
	if err := u.hold(u.p.Idle); err != nil {
		return err
	}
	if err := pause(ctx, u.p.Settle); err != nil { // so that pools and heaps give back what the connects took, where they do
		return err
	}
	before, err := u.rig.sample()
	if err != nil {
		return err
	}
	if err := pause(ctx, u.p.Window); err != nil {
		return err
	}
	after, err := u.rig.sample()
	if err != nil {
		return err
	}
	if err := look("with clients"); err != nil {
		return err
	}
	var seen load.Seen
	if err := u.rig.load.ask(request{Op: "stop"}, &seen); err != nil {
		return err
	}
	if seen.Lost > 0 {
		u.fault("%d of %d idle clients were cut off", seen.Lost, u.p.Idle)
	}
	spent := after.since(before)
	u.Spent["idle"] = spent
	clients := float64(u.p.Idle)
	grown := func(what string) float64 {
		return float64(u.Memory[what+" with clients"]-u.Memory[what+" before"]) / clients
	}
	u.Values["rss"], u.Values["base"] = grown("rss"), float64(u.Memory["rss before"])
	u.Values["kernel"] = grown("rss") + grown("kernel")
	u.Values["machine"] = -grown("available")
	u.Values["cpu"] = float64(spent.Proxy.Clock) / spent.Elapsed.Seconds()
	return nil
}
