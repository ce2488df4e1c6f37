package realtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// TestFailures is one mesh to which everything happens in turn: a broker is killed and comes back, another freezes, an edge is
// killed, an edge is told to leave. Devices on all transports live through it.
func TestFailures(t *testing.T) {
	t.Parallel()
	m := newMesh(t, "failures")
	brokers := demoBrokers(t, m.dir, 3)
	// What is tested is not how long a probe may take, but what follows from it.
	const options = "rehome_after: 2s, probe: {interval: 500ms, timeout: 500ms}"
	pools := m.stores.apply(t, m.dir, m.name, poolText{"default", options, entries(brokers, "proxy_protocol: v2")})
	began := time.Now()
	m.startEdges(t, "default")
	s := &failures{m: m, brokers: brokers, place: placementOf(pools, "default"), fleet: newFleet(t)}
	for i := range 90 {
		e := m.edges
		s.fleet.add(fmt.Sprintf("device-%d", i), transports[i%5], e[i%3], e[(i+1)%3], e[(i+2)%3])
	}
	s.fleet.awaitUp(t, patience, "all devices connected", everyone)
	s.awaitHomes(t)
	// A new leader does not say that a broker is down before every edge that lives has had the time to come back.
	settled := began.Add(registry.SessionTTL + 2*time.Second)
	until(t, 2*registry.SessionTTL, "the leader has settled", func() (bool, any) { return time.Now().After(settled), time.Until(settled) })

	t.Run("broker killed", s.brokerKilled)
	t.Run("broker returns", s.brokerReturns)
	t.Run("broker frozen", s.brokerFrozen)
	t.Run("edge killed", s.edgeKilled)
	t.Run("edge told to leave", s.edgeLeaves)
}

type failures struct {
	m       *mesh
	brokers []*broker
	place   placement
	fleet   *fleet
	home    map[string]string // of each device, by the records in etcd
}

// awaitHomes waits until every device has a record, and notes it.
func (s *failures) awaitHomes(t *testing.T) {
	t.Helper()
	s.home = map[string]string{}
	until(t, patience, "a record of every device", func() (bool, any) {
		for id, a := range recorded(t, s.m.store, "default") {
			s.home[id] = a.Broker
		}
		return len(s.home) == len(s.fleet.devices), len(s.home)
	})
}

// split returns the devices of a broker, and the others.
func (s *failures) split(broker string) (theirs, others []*device) {
	for _, d := range s.fleet.devices {
		if s.home[d.id] == broker {
			theirs = append(theirs, d)
		} else {
			others = append(others, d)
		}
	}
	return theirs, others
}

// untouched checks that nothing at all has happened to devices.
func untouched(t *testing.T, devices []*device, since time.Time) {
	t.Helper()
	for _, d := range devices {
		if e := d.since(since); len(e) > 0 {
			t.Errorf("%s has nothing to do with it, but %v", d.id, e)
		}
	}
}

// slowest waits until something has happened to every one of devices, and returns how long the last one took.
func slowest(t *testing.T, devices []*device, what string, since time.Time) (took time.Duration) {
	t.Helper()
	until(t, 2*patience, fmt.Sprintf("%d devices are %s", len(devices), what), func() (bool, any) {
		took = 0
		for _, d := range devices {
			e, ok := d.first(what, since)
			if !ok {
				return false, fmt.Sprint(d.id, d.since(since))
			}
			took = max(took, e.at.Sub(since))
		}
		return true, nil
	})
	return took
}

func (s *failures) brokerKilled(t *testing.T) {
	victims, others := s.split("b1")
	at := time.Now()
	s.brokers[0].kill()
	claim(t, fmt.Sprintf("%d clients of a killed broker are closed", len(victims)), slowest(t, victims, "down", at), time.Second)
	claim(t, "all of them are back elsewhere", slowest(t, victims, "up", at), 5*time.Second)
	untouched(t, others, at)
	for _, d := range victims {
		for _, e := range d.since(at) {
			if e.what == "refused" && e.code != 0x88 || e.what == "failed" {
				t.Errorf("%s: %v", d.id, e)
			}
			if e.what == "up" && e.present {
				t.Errorf("%s: a broker that never met it has its session", d.id)
			}
		}
	}
	until(t, patience, "records name the new brokers", func() (bool, any) {
		records, wrong := recorded(t, s.m.store, "default"), ""
		for _, d := range victims {
			a := records[d.id]
			s.home[d.id] = a.Broker
			if a.Broker == "b1" || a.Broker == "" || a.Home != "b1" || a.Reason != "rehomed" {
				wrong += fmt.Sprintf("%s %+v ", d.id, a)
			}
		}
		return wrong == "", wrong
	})
	for _, e := range s.m.edges {
		e.awaitCheck(t, patience, "broker", "degraded", "default/b1", "verdict=lost")
	}
}

func (s *failures) brokerReturns(t *testing.T) {
	at := time.Now()
	s.brokers[0].start(t)
	s.m.awaitReady(t, 2*patience)
	untouched(t, s.fleet.devices, at) // failback: stay
	id := s.place.keyAt("b1", "newcomer")
	s.fleet.add(id, "tcp", s.m.edges...)
	s.fleet.awaitUp(t, patience, "a new client", everyone)
	awaitRecords(t, s.m.store, "default", map[string]string{id: "b1"})
	s.home[id] = "b1"
}

func (s *failures) brokerFrozen(t *testing.T) {
	victims, others := s.split("b2")
	at := time.Now()
	s.brokers[1].freeze()
	down := slowest(t, victims, "down", at)
	t.Logf("%d clients of a frozen broker are closed after %v", len(victims), down.Round(time.Millisecond))
	claim(t, "all of them are back elsewhere", slowest(t, victims, "up", at)-down, 5*time.Second)
	untouched(t, others, at)
	s.brokers[1].thaw()
	s.m.awaitReady(t, 2*patience)
	untouched(t, others, at)
	s.awaitHomes(t)
}

func (s *failures) edgeKilled(t *testing.T) {
	dead := s.m.edges[0]
	var victims, others []*device
	for _, d := range s.fleet.devices {
		if d.at() == dead {
			victims = append(victims, d)
		} else {
			others = append(others, d)
		}
	}
	if len(victims) < 10 {
		t.Fatalf("only %d devices at %s", len(victims), dead.id)
	}
	at := time.Now()
	dead.kill()
	slowest(t, victims, "up", at)
	var back, backQUIC time.Duration
	for _, d := range victims {
		e, _ := d.first("up", at)
		if d.transport == "quic" {
			backQUIC = max(backQUIC, e.at.Sub(at))
		} else {
			back = max(back, e.at.Sub(at))
		}
	}
	t.Logf("%d clients of a killed edge are back after %v; those over QUIC, who have to notice first, after %v",
		len(victims), back.Round(time.Millisecond), backQUIC.Round(time.Millisecond))
	for _, d := range victims {
		if e, _ := d.first("up", at); e.tries != 1 || !e.present {
			t.Errorf("%s came home with %d tries, Session Present %v: %v", d.id, e.tries, e.present, d.since(at))
		}
	}
	untouched(t, others, at)
	awaitRecords(t, s.m.store, "default", s.home)
}

func (s *failures) edgeLeaves(t *testing.T) {
	leaving, stays := s.m.edges[1], s.m.edges[2]
	var victims, others []*device
	for _, d := range s.fleet.devices {
		if d.at() == leaving {
			victims = append(victims, d)
		} else {
			others = append(others, d)
		}
	}
	// A client of MQTT 3.1.1, to which the protocol lets nobody say anything.
	old, _, err := rawConnect(leaving.at["tcp"], "old", true, patience)
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() {
		left <- ends(old, exitPatience)
		old.Close()
	}()
	if len(victims) < 10 {
		t.Fatalf("only %d devices at %s", len(victims), leaving.id)
	}
	at := time.Now()
	if err := leaving.terminate(t); err != nil {
		t.Errorf("exit: %v", err)
	}
	claim(t, fmt.Sprintf("an edge with %d clients ended with 0", len(victims)), time.Since(at), grace)
	if err := <-left; err != nil {
		t.Error(err)
	}
	slowest(t, victims, "up", at)
	for _, d := range victims {
		down, _ := d.first("down", at)
		if down.code != 0x8b {
			t.Errorf("%s (%s) was closed with %#x, want DISCONNECT 0x8B: %v", d.id, d.transport, down.code, d.since(at))
		}
		if up, _ := d.first("up", at); up.edge != stays.id || !up.present {
			t.Errorf("%s: %v", d.id, d.since(at))
		}
	}
	untouched(t, others, at)
}
