package edge

import (
	"bytes"
	"testing"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/router"
)

// A client that connects again after its placement has changed has one connection, the new one, though nothing of it is recorded.
func TestANewerConnectionEndsTheOlder(t *testing.T) {
	m := newMesh(t, "b1", "b2")
	e := m.edge("e1")
	both := m.pool.Brokers
	place := func(b registry.Broker) {
		if err := m.store.SetPin(m.ctx(), registry.PinRef{Pool: "default", Key: "x"}, b.ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pin is known", func() (bool, any) {
			d := e.view.Load().Route(router.Query{Pool: "default", Key: "x"})
			return d.Broker != nil && d.Broker.ID == b.ID, d
		})
	}
	for _, k := range []func(id string) *mqtt.Connect{clean, func(id string) *mqtt.Connect { return v5(id, 0) }} {
		place(both[0])
		older, _ := e.connect(k("x"))
		if home := m.home("x"); home != both[0].ID {
			t.Fatalf("at %s", home)
		}
		place(both[1])
		newer, _ := e.connect(k("x"))
		words := older.ends()
		if k("x").Version == mqtt.V5 && !bytes.Equal(words, mqtt.AppendDisconnect(nil, mqtt.V5, mqtt.SessionTakenOver)) {
			t.Errorf("the older is told %x", words)
		}
		if home := m.home("x"); home != both[1].ID {
			t.Errorf("the client stays at %s", home)
		}
		e.logged(`"reason":"twin"`)

		// Another client is none of it.
		other, _ := e.connect(k("y"))
		m.home("y")
		other.Close()
		newer.Close()
		eventually(t, "all have left", func() (bool, any) { return e.table.count() == 0, e.table.count() })
	}
	if n := e.count("limpet_edge_closed_total", "twin"); n != 2 {
		t.Errorf("%v older connections ended", n)
	}
}

// Of two connections of one client the one is ended that was accepted first, whatever came first before that; at one broker it is the broker's business.
func TestWhoIsTheOlder(t *testing.T) {
	d := newDesk(t, nil)
	come := func(broker string) (*client, *fakeConn) {
		d.tie("x", broker)
		return d.come(clean("x"))
	}
	a, fa := come("b1")
	b, fb := come("b2")
	same, fsame := come("b2")
	b.Accepted(fb, mqtt.Connack{}, 0)
	a.Accepted(fa, mqtt.Connack{}, 0)
	if len(fa.stops) != 0 || len(fb.stops) != 1 || fb.stops[0] != relay.ReasonTwin {
		t.Errorf("stopped for %v and %v, want the second only, a twin", fa.stops, fb.stops)
	}
	same.Accepted(fsame, mqtt.Connack{}, 0)
	if len(fa.stops) != 1 || len(fb.stops) != 1 || len(fsame.stops) != 0 {
		t.Errorf("stopped for %v, %v and %v", fa.stops, fb.stops, fsame.stops)
	}
	again, fagain := come("b2")
	again.Accepted(fagain, mqtt.Connack{}, 0)
	if len(fsame.stops) != 0 {
		t.Errorf("stopped for %v by one at the same broker", fsame.stops)
	}
}
