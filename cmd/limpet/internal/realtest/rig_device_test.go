package realtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// device is an MQTT 5 client that keeps a session and never gives up: cut off, it goes to the next edge at once, and refused, it
// tries the one after that a little later.
type device struct {
	id        string
	transport string
	edges     []*edgeProc // in the order in which it tries them
	fleet     *fleet

	mu     sync.Mutex
	conn   net.Conn
	up     bool
	edge   *edgeProc // where it is, or was last
	events []event
}

// event is what happened to a device.
type event struct {
	at      time.Time
	what    string // up, down, refused, failed
	edge    string
	code    byte // of the CONNACK that refused, or of the DISCONNECT before the end; 0 = none
	present bool // the session was there
	tries   int  // up: how many it took since it was cut off
	err     error
}

func (e event) String() string {
	return fmt.Sprintf("%s %s at %s code=%#x present=%v tries=%d %v", e.at.Format("05.000"), e.what, e.edge, e.code, e.present, e.tries, e.err)
}

// retryPause is between two tries of a device that was refused.
const retryPause = 100 * time.Millisecond

// fleet is all devices of a test.
type fleet struct {
	devices []*device
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func newFleet(t testing.TB) *fleet {
	f := &fleet{}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		f.cancel()
		for _, d := range f.devices {
			d.cut()
		}
		f.wg.Wait()
	})
	return f
}

// add starts a device that tries edges in that order, round and round.
func (f *fleet) add(id, transport string, edges ...*edgeProc) *device {
	d := &device{id: id, transport: transport, edges: edges, fleet: f}
	f.devices = append(f.devices, d)
	f.wg.Go(d.run)
	return d
}

func (d *device) run() {
	tries := 0
	for i := 0; d.fleet.ctx.Err() == nil; i++ {
		edge := d.edges[i%len(d.edges)]
		tries++
		if d.visit(edge, tries) {
			tries = 0
			continue
		}
		select {
		case <-d.fleet.ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

func (d *device) note(e event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.at = time.Now()
	d.events = append(d.events, e)
	d.up = e.what == "up"
}

// visit is one connection, from dial to close; it reports whether the broker accepted it.
func (d *device) visit(edge *edgeProc, tries int) bool {
	conn, err := edge.dial(d.transport)
	if err != nil {
		d.note(event{what: "failed", edge: edge.id, tries: tries, err: err})
		return false
	}
	defer conn.Close()
	d.mu.Lock()
	d.conn, d.edge = conn, edge
	d.mu.Unlock()
	if d.fleet.ctx.Err() != nil { // cut may have been before
		return false
	}
	expiry := uint32(600)
	var connect bytes.Buffer
	(&packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: d.id, Properties: &packets.Properties{SessionExpiryInterval: &expiry},
	}).WriteTo(&connect)
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(connect.Bytes()); err != nil {
		d.note(event{what: "failed", edge: edge.id, tries: tries, err: err})
		return false
	}
	p, err := packets.ReadPacket(conn)
	if err != nil {
		d.note(event{what: "failed", edge: edge.id, tries: tries, err: err})
		return false
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok || ack.ReasonCode != 0 {
		e := event{what: "refused", edge: edge.id, tries: tries, err: fmt.Errorf("%s", p.PacketType())}
		if ok {
			e.code = ack.ReasonCode
		}
		d.note(e)
		return false
	}
	conn.SetDeadline(time.Time{})
	d.note(event{what: "up", edge: edge.id, present: ack.SessionPresent, tries: tries})
	down := event{what: "down", edge: edge.id}
	for {
		p, err := packets.ReadPacket(conn)
		if err != nil {
			down.err = err
			break
		}
		if bye, ok := p.Content.(*packets.Disconnect); ok {
			down.code = bye.ReasonCode
		}
	}
	d.note(down)
	return true
}

// cut closes the connection.
func (d *device) cut() {
	d.mu.Lock()
	conn := d.conn
	d.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// since returns what happened after a moment.
func (d *device) since(t time.Time) []event {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, e := range d.events {
		if e.at.After(t) {
			return append([]event(nil), d.events[i:]...)
		}
	}
	return nil
}

// first returns the first event of a kind after a moment.
func (d *device) first(what string, t time.Time) (event, bool) {
	for _, e := range d.since(t) {
		if e.what == what {
			return e, true
		}
	}
	return event{}, false
}

func (d *device) isUp() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.up
}

// at is the edge where the device is, or was last.
func (d *device) at() *edgeProc {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.edge
}

// awaitUp waits until all devices are connected.
func (f *fleet) awaitUp(t testing.TB, within time.Duration, what string, of func(*device) bool) {
	t.Helper()
	until(t, within, what, func() (bool, any) {
		var missing []string
		for _, d := range f.devices {
			if of(d) && !d.isUp() {
				missing = append(missing, d.id)
			}
		}
		return len(missing) == 0, fmt.Sprintf("%d are not: %.200s", len(missing), fmt.Sprint(missing))
	})
}

func everyone(*device) bool { return true }
