package loadtest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/ledger"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// citizen is a persistent client that lives many lives.
//
//	connect ─▶ CONNACK ─▶ (subscribe, if there is no session) ─▶ identity ─▶ up … ─▶ drop ─▶ down … ─▶ connect
//	   ▲                                                                        │
//	   └──────────── retry profile ◀──────────── cut off ◀──────────────────────┘   (not a life of its own)
type citizen struct {
	client.Client
	group  *group
	number int
	id     string
	speech speech
	way    *way
	rand   *rand.Rand
	home   *ledger.Home
	stream *stream
	flow   *ledger.Flow // once subscribed

	lock
	state      citizenState
	lives      int   // begun on purpose
	planned    bool  // this connection begins one
	session    bool  // the broker should know us
	listens    bool  // and our subscription
	done       bool  // nothing more is planned
	out        int64 // since when it tries to connect; 0: it is connected, or rests
	stranded   bool  // it tried for too long to be waited for
	due        int64 // when the agenda is to call
	intended   int64
	sent       int64
	asked      int64 // SUBSCRIBE
	up         int64 // CONNACK; 0: not connected
	attempt    int
	meeting    *ledger.Meeting // to be told once those that are awaited have said which broker this is
	awaited    witness
	outage     outage
	unanswered bool   // a connect since the last CONNACK: it may have made a session
	sentAway   string // elsewhere, by the mesh's own word, since the last connect
}

// citizenState is what the next call of the agenda means.
type citizenState uint8

const (
	away     citizenState = iota // it connects
	resting                      // connected: it drops
	finished                     // it stays connected
)

// witness is who tells a client's broker, but for the session itself.
type witness uint8

const (
	byTopic witness = 1 << iota
	byEdge
)

const (
	tokenStream   = 1
	tokenIdentity = 2
	tokenBack     = 3
)

func newCitizen(g *group, number int, w *way, s *stream) *citizen {
	v := g.v
	session := Session{Version: v.spec.Versions[number/len(v.spec.QoS)%len(v.spec.Versions)], Keep: 30 * time.Second}
	c := &citizen{
		group: g, number: number, id: fmt.Sprintf("limpet-citizen-%08x-%d", v.run.id, number), speech: session.speech(), way: w,
		rand: v.run.rand(uint64(number)), stream: s, planned: true,
	}
	c.home = g.homes.Client(c.id)
	c.Handler = c
	return c
}

// act implements actor.
func (c *citizen) act(at int64) {
	c.Lock()
	state, due := c.state, c.due
	c.Unlock()
	switch {
	case at != due: // what was planned before the client was cut off
	case state == away:
		c.connect(at)
	case state == resting:
		c.drop()
	}
}

// later has the agenda call at a stamp, and at no other that was asked for before.
func (c *citizen) later(at int64) {
	c.due = at
	c.group.v.run.agenda.at(at, c)
}

// around draws from half to one and a half of d.
func (c *citizen) around(d time.Duration) int64 { return int64(d)/2 + c.rand.Int64N(int64(d)+1) }

func (c *citizen) connect(intended int64) {
	r := c.group.v.run
	c.Lock()
	c.intended, c.sent = intended, pace.Now()
	now := c.sent
	if c.out == 0 {
		c.out = now
	}
	con := c.speech.connect(c.number, c.id)
	c.Unlock()
	c.way.started(now)
	if err := r.engine.Open(&c.Client, c.way.next(), &con); err != nil {
		c.way.notOpened(now, err)
	}
}

// OnConnack implements client.Handler.
func (c *citizen) OnConnack(_ *client.Client, at int64, a *mqtt.Connack) {
	r := c.group.v.run
	c.Lock()
	defer c.Unlock()
	c.way.accepted(&c.Client, c.intended, c.sent, at, a)
	c.up, c.out, c.stranded = at, 0, false
	m := &ledger.Meeting{At: at, Presence: ledger.Unasked, Doubt: c.unanswered}
	present := a.SessionPresent
	if c.unanswered {
		c.unanswered, c.listens = false, false // it subscribes again, which does no harm
		present = present && !(c.session && c.home.MayBeNew())
	}
	switch {
	case present:
		m.Presence = ledger.Kept
	case c.session:
		m.Presence, c.listens = ledger.Gone, false
		if c.flow != nil {
			c.flow.SessionLost()
		}
	}
	c.session = true
	m.Reason, c.sentAway = c.sentAway, ""
	c.meeting = m
	if c.flow != nil {
		c.flow.Online(at)
	}
	if !c.listens {
		c.asked = at
		r.rec.Count(result.Subscribes, at, 1)
		if err := c.Subscribe(tokenStream, string(c.stream.topic), c.stream.qos); err != nil {
			r.rec.Error("subscribe", at)
		}
	}
	c.identify(at)
	if c.outage.begin != 0 {
		if err := c.Publish(tokenBack, append([]byte("limpet/back/"), c.id...), nil, 1, false); err != nil {
			c.outage = outage{}
		}
	}
	if c.planned {
		c.planned = false
		c.lives++
	}
	c.state = resting
	c.later(at + c.around(c.group.v.spec.Up))
}

// identify asks which broker this is. Called with the lock held.
func (c *citizen) identify(at int64) {
	v, m := c.group.v, c.meeting
	c.awaited = 0
	if v.byTopic {
		if err := c.Subscribe(tokenIdentity, v.spec.Topic, 0); err != nil {
			v.run.rec.Error("subscribe", at)
		}
		c.awaited |= byTopic
	}
	if v.oracle != nil && !c.group.direct && v.oracle.ask(c.id, func(broker string) {
		c.Lock()
		defer c.Unlock()
		if c.meeting == m {
			m.Admin = broker
			c.heard(byEdge)
		}
	}) {
		c.awaited |= byEdge
	}
	c.heard(0)
}

// heard notes that a witness has spoken. Called with the lock held.
func (c *citizen) heard(w witness) {
	if c.awaited &^= w; c.awaited == 0 {
		c.met()
	}
}

// met tells the record what is known of the broker that answered, once. Called with the lock held.
func (c *citizen) met() {
	if c.meeting != nil {
		c.home.Met(*c.meeting)
		c.meeting = nil
	}
}

// drop ends a life, unless it was the last.
func (c *citizen) drop() {
	v := c.group.v
	c.Lock()
	defer c.Unlock()
	if c.up == 0 || c.state != resting {
		return // it was cut off meanwhile
	}
	if c.lives >= v.spec.Lives || v.run.ctx.Err() != nil {
		c.state = finished
		c.finish()
		return
	}
	c.state, c.planned = away, true
	switch v.spec.Drop[c.rand.IntN(len(v.spec.Drop))] {
	case "clean":
		c.Disconnect(nil)
	case "abrupt":
		c.Abort()
	default:
		c.Abandon()
	}
}

// renew gives up the connection for another one.
func (c *citizen) renew() {
	c.Lock()
	defer c.Unlock()
	if c.up != 0 {
		c.state = away
		c.Abort()
	}
}

// finish notes that the citizen has lived all its lives.
func (c *citizen) finish() {
	if !c.done {
		c.done = true
		c.group.v.run.work.done()
	}
}

// OnPublish implements client.Handler.
func (c *citizen) OnPublish(_ *client.Client, at int64, p *mqtt.Publish) {
	r := c.group.v.run
	c.Lock()
	defer c.Unlock()
	h, ok := readHeader(p.Payload, r.id)
	switch {
	case ok && string(p.Topic) == string(c.stream.topic):
		r.hear(at)
		r.rec.Count(result.Receives, at, 1)
		if p.Dup {
			r.rec.Count(result.ReceivesDup, at, 1)
		}
		if h.intended >= c.up { // what waited for the client's return tells nothing of the way
			r.rec.E2E.Record(h.intended, h.sent, at)
		}
		if c.flow == nil {
			c.flow = c.stream.Flow(c.id, c.stream.qos)
		}
		c.flow.Received(h.sequence, p.Dup, h.sent, at)
	case c.group.v.byTopic && string(p.Topic) == c.group.v.spec.Topic:
		if c.meeting != nil {
			c.meeting.Topic = string(p.Payload)
			c.heard(byTopic)
		}
	}
}

// OnAcked implements client.Handler.
func (c *citizen) OnAcked(_ *client.Client, at int64, token uint64, code byte) {
	r := c.group.v.run
	c.Lock()
	defer c.Unlock()
	switch {
	case token == tokenBack:
		if code < 0x80 && c.outage.begin != 0 {
			c.outage.over(r, at)
		}
	case code == client.CodeDropped: // the next connection asks again
	case code >= 0x80:
		r.rec.Error("subscribe", at)
	case token == tokenStream:
		r.rec.Suback.Record(c.asked, c.asked, at)
		r.rec.Count(result.Subscribed, at, 1)
		c.listens = true
		if c.flow == nil {
			c.flow = c.stream.Flow(c.id, code)
		}
		c.flow.Subscribed(c.stream.Last() + 1)
	}
}

// OnClosed implements client.Handler.
func (c *citizen) OnClosed(_ *client.Client, at int64, cause client.Cause) {
	v := c.group.v
	c.Lock()
	defer c.Unlock()
	up := c.up
	c.up = 0
	c.met() // a witness that has not spoken yet never will
	if up != 0 && c.flow != nil {
		c.flow.Offline(at)
	}
	c.way.ended(at, &cause, up != 0)
	if up == 0 && cause.Stage == client.StageConnack {
		c.unanswered = true
	}
	if word := sentAway(&cause); word != "" {
		c.sentAway = word
	}
	if cause.Own() {
		if c.state == away && cause.Reason != client.ReasonEnd {
			c.later(at + c.around(v.spec.Down))
		}
		return
	}
	if up != 0 {
		if c.outage.begin == 0 {
			c.outage = outage{begin: at}
		}
		c.attempt = v.retry.After(c.attempt, time.Duration(at-up))
	} else {
		c.attempt++
	}
	c.state = away
	wait := v.retry.Delay(c.attempt, c.rand)
	if c.stranded = wait == pace.Never || c.out != 0 && at-c.out > int64(strandedAfter); c.stranded {
		c.finish() // the run is not held up by it
	}
	if wait != pace.Never {
		c.later(at + int64(wait))
	}
}

// meshSaid begins the reasons that the mesh itself gave, unlike those that are faults of the run.
const meshSaid = "the mesh said: "

// sentAway is why the mesh sends a client elsewhere (MQTT 5 §4.11), if that is how its connection ended.
func sentAway(cause *client.Cause) string {
	if cause.Code == 0x9C || cause.Code == 0x9D { // of the CONNACK or the DISCONNECT; no other cause has a code
		return meshSaid + codeName(cause.Code)
	}
	return ""
}
