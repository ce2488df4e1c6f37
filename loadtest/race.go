package loadtest

import (
	"cmp"
	"fmt"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/ledger"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// racing is a Race of which this process runs its share.
type racing struct {
	run   *run
	spec  Race
	topic string
	races *ledger.Races
}

// patience is how long a racer waits for its broker's name.
const patience = 10 * time.Second

// raceExamples is how many splits are listed.
const raceExamples = 1000

// pair is two racers of one ID.
type pair struct {
	racing *racing
	id     string
	racers [2]racer
	second int64 // when the second one starts

	lock
	told    [2]bool
	brokers [2]string
}

// racer is one connect of a pair.
type racer struct {
	client.Client
	pair     *pair
	intended int64
	sent     int64
	up       bool
	number   int
}

func newRacing(r *run, spec *Race) *racing {
	x := &racing{run: r, spec: *spec, topic: cmp.Or(spec.Topic, defaultIdentity), races: ledger.NewRaces(2, raceExamples)}
	if x.spec.Rate.String() == "" {
		x.spec.Rate = mustSchedule("200/s")
	}
	return x
}

// begin has pairs connect by the schedule.
func (x *racing) begin() {
	r := x.run
	n := r.share.count(x.spec.Pairs)
	r.work.add(n)
	r.pacers.Go(func() {
		begun := 0
		var p pace.Pacer
		on := r.pace()
		_ = p.Run(r.ctx, r.start, pace.Limit(r.share.schedule(x.spec.Rate, r.seed), n), func(i int, intended int64) {
			on.fired(intended, pace.Now())
			begun++
			x.pair(r.share.number(i), intended)
		})
		r.work.add(begun - n) // the schedule, or the run, ended before
	})
}

func (x *racing) pair(number int, intended int64) {
	p := &pair{racing: x, id: fmt.Sprintf("limpet-race-%08x-%d", x.run.id, number)}
	for i := range p.racers {
		p.racers[i].pair, p.racers[i].number, p.racers[i].Handler = p, i, &p.racers[i]
	}
	p.racers[0].connect(intended)
	if p.second = intended + int64(x.spec.Gap); x.spec.Gap > 0 {
		x.run.agenda.at(p.second, p)
	} else {
		p.racers[1].connect(intended)
	}
}

// act starts the second racer.
func (p *pair) act(at int64) { p.racers[1].connect(at) }

func (c *racer) connect(intended int64) {
	r := c.pair.racing.run
	c.intended, c.sent = intended, pace.Now()
	w := r.ways[0]
	w.started(c.sent)
	con := mqtt.Connect{Version: mqtt.V5, ID: c.pair.id, Expiry: 300, KeepAlive: 30}
	if err := r.engine.Open(&c.Client, w.next(), &con); err != nil {
		w.notOpened(c.sent, err)
		c.tell("")
		return
	}
	r.agenda.at(c.sent+int64(patience), c)
}

// act ends a racer that has not learned its broker in time.
func (c *racer) act(int64) { c.tell("") }

// tell notes the outcome of a racer, once. The pair stays connected until both are known. One that ended without a name, while the other
// learned its own, was taken over by it, or sent to it: it ended on that broker. Two that ended so prove nothing.
func (c *racer) tell(broker string) {
	p := c.pair
	p.Lock()
	defer p.Unlock()
	if p.told[c.number] {
		return
	}
	p.told[c.number], p.brokers[c.number] = true, broker
	if !p.told[1-c.number] {
		return
	}
	for i, name := range p.brokers {
		p.racing.races.Met(p.id, cmp.Or(name, p.brokers[1-i]))
	}
	for i := range p.racers {
		zero := uint32(0)
		p.racers[i].Disconnect(&zero)
	}
	p.racing.run.work.done()
}

// OnConnack implements client.Handler.
func (c *racer) OnConnack(_ *client.Client, at int64, a *mqtt.Connack) {
	r := c.pair.racing.run
	r.ways[0].accepted(&c.Client, c.intended, c.sent, at, a)
	c.up = true
	if err := c.Subscribe(1, c.pair.racing.topic, 0); err != nil {
		c.tell("")
	}
}

// OnPublish implements client.Handler.
func (c *racer) OnPublish(_ *client.Client, _ int64, p *mqtt.Publish) {
	if string(p.Topic) == c.pair.racing.topic {
		c.tell(string(p.Payload))
	}
}

// OnAcked implements client.Handler.
func (c *racer) OnAcked(_ *client.Client, at int64, _ uint64, code byte) {
	if code >= 0x80 && code != client.CodeDropped {
		c.pair.racing.run.rec.Error("subscribe", at)
		c.tell("")
	}
}

// OnClosed implements client.Handler.
func (c *racer) OnClosed(_ *client.Client, at int64, cause client.Cause) {
	r := c.pair.racing.run
	if c.up && !cause.Own() { // a takeover, which is what is to come of it
		r.rec.Connected(-1)
		r.rec.Count(result.Closed, at, 1)
	} else {
		r.ways[0].ended(at, &cause, c.up)
	}
	c.tell("")
}

func (x *racing) report() *result.Race {
	rep := x.races.Report()
	out := &result.Race{Gap: int64(x.spec.Gap), Pairs: rep.Pairs + rep.Incomplete, Split: rep.Split, Unknown: rep.Incomplete}
	for _, s := range rep.Splits {
		out.Splits.Add(result.Split{Client: s.Client, Brokers: fmt.Sprint(s.Brokers)})
	}
	return out
}
