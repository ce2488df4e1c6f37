package edge

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
)

// choir is clients that say packets and compare what comes back.
type choir struct {
	t      *testing.T
	edge   *testEdge
	rounds atomic.Int64
	stop   chan struct{}
	wg     sync.WaitGroup
}

// newChoir begins with so many clients, of which every third comes and goes. burst is how many packets each says at once.
func newChoir(t *testing.T, e *testEdge, clients, burst int) *choir {
	c := &choir{t: t, edge: e, stop: make(chan struct{})}
	for i := range clients {
		c.wg.Go(func() {
			for n := 0; c.sings(i, n, burst); n++ {
			}
		})
	}
	return c
}

func (c *choir) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// sings is one session of client i's; false: the last one.
func (c *choir) sings(i, n, burst int) bool {
	s, err := net.Dial("tcp", c.edge.addr)
	if err != nil {
		c.t.Errorf("client %d, session %d: %v", i, n, err)
		return false
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(10 * time.Minute))
	k := clean(fmt.Sprintf("choir-%d", i))
	s.Write(mqtt.AppendConnect(nil, k))
	if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
		c.t.Errorf("client %d, session %d: no CONNACK: %v", i, n, err)
		return false
	}
	noise := rand.NewChaCha8([32]byte{byte(i), byte(n)})
	const packet = 100
	said, heard := make([]byte, burst*packet), make([]byte, burst*packet)
	for round := 0; !c.stopped(); round++ {
		if i%3 == 0 && round == 50 {
			return true
		}
		noise.Read(said)
		for p := said; len(p) > 0; p = p[packet:] { // a PUBLISH of QoS 0
			copy(p, []byte{0x30, packet - 2, 0, 1, 't'})
		}
		s.Write(said)
		if _, err := io.ReadFull(s, heard); err != nil || !bytes.Equal(said, heard) {
			c.t.Errorf("client %d, session %d, round %d: same %v, %v", i, n, round, bytes.Equal(said, heard), err)
			return false
		}
		c.rounds.Add(1)
	}
	return false
}

// goesOn waits for so many rounds more.
func (c *choir) goesOn(n int64) {
	c.t.Helper()
	n += c.rounds.Load()
	eventually(c.t, "the clients go on", func() (bool, any) { return c.rounds.Load() >= n || c.t.Failed(), c.rounds.Load() })
}

// ends lets the clients leave.
func (c *choir) ends() {
	close(c.stop)
	c.wg.Wait()
}

// echoing is a mesh whose broker sends back what it is sent.
func echoing(t *testing.T) *mesh {
	m := newMesh(t, "b1")
	m.brokers["b1"].echo = true
	return m
}

// Loops come and go under clients that talk, come and go.
func TestLoopsComeAndGo(t *testing.T) {
	m := echoing(t)
	e := m.edge("e1", func(c *Config, _ *Listener) { c.Loops = 1 }) // nobody else changes the number
	c := newChoir(t, e, 9, 3)
	c.goesOn(1)
	e.Addresses() // behind the beginning of Run
	f := e.loops
	number := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d loops", n), func() (bool, any) {
			f.loads(time.Second) // who retires is looked after
			return e.count("limpet_edge_loops") == float64(n), f.number()
		})
	}
	number(1)
	for range 5 {
		for n := range 2 {
			if !f.grow(.7) {
				t.Fatal(e.log)
			}
			f.give(even(append(f.loads(time.Second)[:n+1], load{})))
			number(n + 2)
			c.goesOn(300)
		}
		for n := 3; n > 1; n-- {
			f.shrink(0, n-1) // the oldest
			number(n - 1)
			c.goesOn(300)
		}
	}
	busy := e.count("limpet_edge_loop_busy_seconds_total")
	c.goesOn(300)
	if now := e.count("limpet_edge_loop_busy_seconds_total"); busy <= 0 || now <= busy {
		t.Errorf("busy for %v s, and then %v s", busy, now)
	}
	e.logged(`"loops":3`, "another loop")
	e.logged(`"loops":1`, "a loop retires")
	c.ends()
	// Listeners that have closed accept in no loop, nor in one that comes later.
	for _, ln := range e.listening() {
		ln.close()
	}
	if !f.grow(.7) {
		t.Fatal(e.log)
	}
	if s, err := net.Dial("tcp", e.addr); err == nil {
		s.Close()
		t.Error("somebody listens")
	}
	e.balanced()
	e.stops()
}

// One loop becomes as many as there are processors under load and, with LIMPET_DRILLS=1, one again a minute after it.
func TestLoopsFollowTheLoad(t *testing.T) {
	m := echoing(t)
	e := m.edge("e1")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(e.MostLoops() + 2)) // as a node has it
	number := func() int { return int(e.count("limpet_edge_loops")) }
	if n := number(); n != 1 {
		t.Errorf("begins with %d loops", n)
	}
	c := newChoir(t, e, 100, 20)
	began := time.Now()
	for number() < e.MostLoops() {
		if c.goesOn(1); time.Since(began) > time.Minute {
			t.Fatalf("%d loops after a minute of load\n%s", number(), e.log)
		}
	}
	grown := time.Since(began)
	drilling := os.Getenv("LIMPET_DRILLS") == "1"
	for drilling && time.Since(began) < grown+10*time.Second { // it does not shrink under load
		if c.goesOn(1); number() != e.MostLoops() {
			t.Fatalf("%d loops under load", number())
		}
	}
	c.ends()
	ended := time.Now()
	for drilling && number() > 1 {
		if <-time.After(100 * time.Millisecond); time.Since(ended) > time.Duration(e.MostLoops())*2*shrinkAfter {
			t.Fatalf("%d loops long after the load\n%s", number(), e.log)
		}
	}
	if drilling && e.MostLoops() > 1 && time.Since(ended) < shrinkAfter/2 {
		t.Errorf("one loop again %v after the load", time.Since(ended))
	}
	t.Logf("%d loops %v after the load began, %d %v after its end; %d rounds of 20 packets", e.MostLoops(), grown, number(), time.Since(ended), c.rounds.Load())
	e.balanced()
	e.stops()
}

// Who has had time for a CONNECT and has said none makes room for a newcomer in an edge that is full; clients do not, nor who has just come.
func TestSilentOnesMakeRoom(t *testing.T) {
	t.Parallel()
	for _, when := range []struct {
		name    string
		timeout time.Duration
		loops   int
	}{{"long silent", 30 * time.Second, 1}, {"long silent, to another loop", 30 * time.Second, 3}, {"just come", 10 * time.Minute, 1}} {
		t.Run(when.name, func(t *testing.T) {
			t.Parallel()
			timeout := when.timeout
			m := echoing(t)
			e := m.edge("e1", func(c *Config, ln *Listener) {
				c.Loops, c.MaxConnections, ln.Limits.ConnectTimeout = when.loops, 4, timeout
			})
			client, _ := e.connect(persistent("served"))
			var silent []*session
			for range 3 {
				s := e.dial()
				s.Write([]byte{0x10})
				silent = append(silent, s)
			}
			eventually(t, "full", func() (bool, any) { return e.Full(), e.Live() })
			if timeout > time.Minute {
				e.dial().ends()
			} else {
				eventually(t, "somebody who is not a loop's is turned away, and a silent one goes", func() (bool, any) {
					if e.Live() == 4 && e.admit(e.listening()[0], relay.Origin{}) != nil {
						t.Error("taken in")
					}
					return e.Live() < 4, e.Live()
				})
				for i := range 3 {
					eventually(t, "a newcomer is served", func() (bool, any) {
						s := e.dial()
						s.Write(mqtt.AppendConnect(nil, persistent(fmt.Sprint("newcomer ", i))))
						_, err := s.connack(mqtt.V311)
						return err == nil, err
					})
				}
				for _, s := range silent {
					s.ends()
				}
				e.dial().ends() // clients make no room
			}
			client.Write([]byte{0xc0, 0})
			client.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(client, make([]byte, 2)); err != nil {
				t.Errorf("the client: %v", err)
			}
			if timeout > time.Minute && e.Live() != 4 {
				t.Errorf("%d sessions", e.Live())
			}
		})
	}
}
