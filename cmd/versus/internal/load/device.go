package load

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
)

// party is the clients of one Connect.
type party struct {
	hold bool
	done chan struct{} // closed when left is 0

	mu     sync.Mutex
	left   int
	result Connected
}

func (p *party) accepted(present bool, took time.Duration) {
	p.mu.Lock()
	p.result.Accepted++
	if present {
		p.result.Present++
	}
	p.result.hist.Record(took)
	p.mu.Unlock()
}

// leave tells that n are through; why not, unless empty.
func (p *party) leave(n int, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if why != "" {
		p.result.Failed += n
		if p.result.Errors == nil {
			p.result.Errors = map[string]int{}
		}
		p.result.Errors[why] += n
	}
	if p.left -= n; p.left == 0 {
		close(p.done)
	}
}

// device is what a client does: it connects, sends, and looks at what comes back. Its calls come one at a time; only send has its own lock.
type device struct {
	load   *Load
	index  uint32
	id     string
	client client.Client

	party    *party
	due      int64
	accepted bool

	mu       sync.Mutex
	sent     uint32
	received uint32
	payload  []byte
}

func (d *device) OnConnack(c *client.Client, at int64, a *mqtt.Connack) {
	d.accepted = true
	d.party.accepted(a.SessionPresent, time.Duration(at-d.due))
	if d.party.hold {
		d.party.leave(1, "")
	} else {
		c.Disconnect(nil)
	}
}

func (d *device) OnClosed(_ *client.Client, _ int64, cause client.Cause) {
	switch {
	case !d.accepted:
		d.party.leave(1, cause.String())
	case d.party.hold:
		d.load.lost.Add(1)
	case cause.Own():
		d.party.leave(1, "")
	default: // before its DISCONNECT
		d.party.leave(1, "after the CONNACK: "+cause.String())
	}
}

func (d *device) OnAcked(*client.Client, int64, uint64, byte) {}

// send publishes the next message, which is due now or was at due.
func (d *device) send(due int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	binary.LittleEndian.PutUint64(d.payload, uint64(due))
	binary.LittleEndian.PutUint32(d.payload[12:], d.sent)
	// Before it goes out: its echo must not be counted first.
	s := &d.load.seen[d.index%shards]
	s.mu.Lock()
	s.sent++
	s.mu.Unlock()
	if err := d.client.Publish(0, topicBytes, d.payload, 0, false); err != nil {
		s.mu.Lock()
		s.sent--
		s.mu.Unlock()
		d.load.refused.Add(1)
		return false
	}
	d.sent++
	return true
}

var topicBytes = []byte(topic)

func (d *device) OnPublish(_ *client.Client, at int64, p *mqtt.Publish) {
	window := d.load.window.Load()
	s := &d.load.seen[d.index%shards]
	s.mu.Lock()
	if d.mine(p.Payload) {
		s.received++
		if window == 0 {
			s.hist.Record(time.Duration(at - int64(binary.LittleEndian.Uint64(p.Payload))))
		}
	} else {
		s.wrong++
	}
	s.mu.Unlock()
	if window > 0 {
		d.send(pace.Now())
	}
}

// mine reports whether b is the next message of this client, unchanged.
func (d *device) mine(b []byte) bool {
	if len(b) != len(d.payload) || binary.LittleEndian.Uint32(b[8:]) != d.index || binary.LittleEndian.Uint32(b[12:]) != d.received {
		return false
	}
	d.received++
	return bytes.Equal(b[stamp:], d.payload[stamp:]) // which never changes
}
