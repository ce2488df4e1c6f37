package liar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/loadtest/ledger"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// window is how many PUBLISHes the broker has in flight.
const window = 20

// A broker is one that sends a client a numbered stream on its own topic, and is strict about every acknowledgement.
type broker struct {
	t        *testing.T
	listener net.Listener
	qos      byte
	count    int

	mu   sync.Mutex
	met  []string
	done chan struct{} // one for each stream that is sent and acknowledged
}

func newBroker(t *testing.T, qos byte, count int) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, listener: l, qos: qos, count: count, done: make(chan struct{}, 1000)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				if err := b.serve(c); err != nil {
					t.Errorf("broker: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return b
}

func (b *broker) addr() string { return b.listener.Addr().String() }

func (b *broker) clients() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.met)
}

func (b *broker) serve(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(c)
	p, err := readPacket(in, nil)
	if err != nil {
		return err
	}
	v, id, err := p.connect()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.met = append(b.met, id)
	b.mu.Unlock()
	connack := []byte{0x20, 2, 0, 0}
	if v == mqtt.V5 {
		connack = []byte{0x20, 3, 0, 0, 0}
	}
	if _, err := c.Write(connack); err != nil {
		return err
	}
	expect := map[uint16]mqtt.Kind{} // what each packet ID waits for
	next := uint16(1)
	send := func() error {
		for b.count > 0 && int(next) <= b.count && len(expect) < window {
			payload := binary.BigEndian.AppendUint64(nil, uint64(next))
			out := mqtt.AppendPublish(nil, v, &mqtt.Publish{Topic: []byte("t/" + id), Payload: payload, QoS: b.qos, ID: next})
			if _, err := c.Write(out); err != nil {
				return err
			}
			switch b.qos {
			case 1:
				expect[next] = mqtt.PUBACK
			case 2:
				expect[next] = mqtt.PUBREC
			}
			next++
		}
		return nil
	}
	for told := false; ; {
		if err := send(); err != nil {
			return err
		}
		if !told && int(next) > b.count && len(expect) == 0 {
			told = true
			b.done <- struct{}{}
		}
		p, err := readPacket(in, p)
		if err != nil {
			return nil // the client has gone
		}
		if p.kind() == mqtt.DISCONNECT {
			continue
		}
		if want := expect[p.id()]; p.kind() != want || want == 0 {
			return fmt.Errorf("%v for packet ID %d, which waits for %v", p.kind(), p.id(), want)
		}
		delete(expect, p.id())
		if p.kind() == mqtt.PUBREC {
			expect[p.id()] = mqtt.PUBCOMP
			if _, err := c.Write(mqtt.AppendAck(nil, v, mqtt.PUBREL, p.id(), 0)); err != nil {
				return err
			}
		}
	}
}

// A delivery is what a client got, told once for each life of a packet ID.
type delivery struct {
	seq uint64
	dup bool
	at  time.Time
}

// subscriber connects and hands out deliveries until its context is done.
func subscriber(ctx context.Context, t *testing.T, addr, id string, v mqtt.Version, fn func(delivery)) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(time.Now().Add(patience))
	con := mqtt.Connect{Version: v, ID: id, KeepAlive: 60}
	if _, err := c.Write(con.Append(nil)); err != nil {
		t.Error(err)
		return
	}
	reader := mqtt.Reader{Version: v}
	defer reader.Release()
	pending := map[uint16]bool{} // QoS 2: told, not released
	buf := make([]byte, 4096)
	var p mqtt.Packet
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for rest, ok := buf[:n], true; ok; {
			if rest, ok, err = reader.Next(rest, &p); err != nil {
				t.Errorf("%s reads %v", id, err)
				return
			}
			if !ok {
				break
			}
			var out []byte
			switch p.Kind {
			case mqtt.CONNACK:
				fn(delivery{})
			case mqtt.PUBLISH:
				if !pending[p.Publish.ID] || p.Publish.QoS < 2 {
					fn(delivery{binary.BigEndian.Uint64(p.Publish.Payload), p.Publish.Dup, time.Now()})
				}
				switch p.Publish.QoS {
				case 1:
					out = mqtt.AppendAck(nil, v, mqtt.PUBACK, p.Publish.ID, 0)
				case 2:
					pending[p.Publish.ID] = true
					out = mqtt.AppendAck(nil, v, mqtt.PUBREC, p.Publish.ID, 0)
				}
			case mqtt.PUBREL:
				if !pending[p.ID] {
					t.Errorf("%s: PUBREL for packet ID %d, which is not pending", id, p.ID)
				}
				delete(pending, p.ID)
				out = mqtt.AppendAck(nil, v, mqtt.PUBCOMP, p.ID, 0)
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

// start runs a Liar for the test.
func start(t *testing.T, cfg Config) *Liar {
	t.Helper()
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.hold = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// TestEachLieIsFound: the ledger finds behind a liar what the liar told, under the right word and nothing else, and the broker sees
// nothing but a subscriber that acknowledges everything in order.
func TestEachLieIsFound(t *testing.T) {
	const count, clients = 300, 4
	for name, c := range map[string]struct {
		lies Lies
		told func(Told) int64
		want func(c *ledger.Counts, n uint64)
	}{
		"nothing":   {Lies{}, func(x Told) int64 { return x.Dropped + x.Duplicated + x.Swapped + x.Stalled + x.Astray }, nil},
		"drop":      {Lies{Drop: 100}, func(x Told) int64 { return x.Dropped }, func(c *ledger.Counts, n uint64) { c.Lost = n; c.Received -= n }},
		"duplicate": {Lies{Duplicate: 100}, func(x Told) int64 { return x.Duplicated }, func(c *ledger.Counts, n uint64) { c.Duplicated = n }},
		"swap":      {Lies{Swap: 100}, func(x Told) int64 { return x.Swapped }, func(c *ledger.Counts, n uint64) { c.Reordered = n }},
	} {
		for qos := range byte(3) {
			for _, v := range []mqtt.Version{mqtt.V311, mqtt.V5} {
				t.Run(fmt.Sprintf("%s/QoS%d/%v", name, qos, v), func(t *testing.T) {
					b := newBroker(t, qos, count)
					l := start(t, Config{Brokers: []string{b.addr()}})
					l.Set(c.lies)
					books := ledger.New(ledger.Config{Late: -1})
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var all sync.WaitGroup
					for i := range clients {
						id := fmt.Sprintf("c%d", i)
						s := books.Stream("broker", "t/"+id, qos)
						f := s.Flow(id, qos)
						f.Subscribed(1)
						for n := range uint64(count) {
							s.Sent(n + 1)
							s.Acked(n + 1)
						}
						all.Go(func() {
							subscriber(ctx, t, l.Addr(), id, v, func(d delivery) {
								if d.seq != 0 {
									f.Received(d.seq, d.dup, 0, d.at.UnixNano())
								}
							})
						})
					}
					for i := range clients {
						select {
						case <-b.done:
						case <-time.After(patience):
							t.Fatalf("%d of %d streams are acknowledged", i, clients)
						}
					}
					var got, want ledger.Counts
					told := uint64(0)
					for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) { // QoS 0 is on its way still
						told = uint64(c.told(l.Told()))
						want = ledger.Counts{Sent: clients * count, Acked: clients * count, Expected: clients * count, Received: clients * count}
						if qos == 0 {
							want.Acked = 0
						}
						if c.want != nil {
							c.want(&want, told)
						}
						if got = books.Settle(1, nil).QoS[qos]; got == want {
							break
						}
					}
					cancel()
					all.Wait()
					if got != want || c.want == nil && told != 0 || c.want != nil && told < 5 {
						t.Errorf("liar: %+v\ngot    %+v\nwanted %+v", l.Told(), got, want)
					}
				})
			}
		}
	}
}

// TestStallIsFelt: while one connection stands still, a message waits for as long.
func TestStallIsFelt(t *testing.T) {
	b := newBroker(t, 1, 10)
	l := start(t, Config{Brokers: []string{b.addr()}})
	l.Set(Lies{Stall: 7, StallFor: 300 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	var longest time.Duration
	all.Go(func() {
		last := time.Now()
		subscriber(ctx, t, l.Addr(), "c", mqtt.V311, func(d delivery) {
			if d.seq > 1 {
				longest = max(longest, d.at.Sub(last))
			}
			last = d.at
		})
	})
	waitFor(t, b.done)
	cancel()
	all.Wait()
	if longest < 290*time.Millisecond || l.Told().Stalled != 1 {
		t.Errorf("the longest gap is %v; %+v", longest, l.Told())
	}
}

func waitFor(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("nothing happens")
	}
}

// TestASwapThatFindsNoNeighbour is no lie, and loses nothing.
func TestASwapThatFindsNoNeighbour(t *testing.T) {
	b := newBroker(t, 2, 5)
	l := start(t, Config{Brokers: []string{b.addr()}})
	l.Set(Lies{Swap: 5})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	var got []uint64
	all.Go(func() {
		subscriber(ctx, t, l.Addr(), "c", mqtt.V5, func(d delivery) { got = append(got, d.seq) })
	})
	waitFor(t, b.done)
	cancel()
	all.Wait()
	if !slices.Equal(got, []uint64{0, 1, 2, 3, 4, 5}) || l.Told().Swapped != 0 {
		t.Errorf("got %v; %+v", got, l.Told())
	}
}

// TestAffinity: an honest proxy brings everybody home; one that lies leads astray as many as it says.
func TestAffinity(t *testing.T) {
	brokers := []*broker{newBroker(t, 0, 0), newBroker(t, 0, 0), newBroker(t, 0, 0)}
	l := start(t, Config{Brokers: []string{brokers[0].addr(), brokers[1].addr(), brokers[2].addr()}, Clients: "c"})
	homes := ledger.NewHomes(ledger.HomesConfig{})
	records := map[string]*ledger.Home{}
	now := int64(0)
	connect := func(id string) {
		ctx, cancel := context.WithCancel(t.Context())
		subscriber(ctx, t, l.Addr(), id, mqtt.V311, func(delivery) { cancel() }) // the CONNACK
		cancel()
		met := -1
		for i, b := range brokers {
			if n := len(b.clients()); n > 0 && b.clients()[n-1] == id {
				met = i
			}
			b.mu.Lock()
			b.met = nil
			b.mu.Unlock()
		}
		if records[id] == nil {
			records[id] = homes.Client(id)
		}
		now++
		records[id].Met(ledger.Meeting{At: now, Topic: brokers[met].addr()})
	}
	lives := func(n int) {
		for range n {
			for i := range 10 {
				connect(fmt.Sprintf("c%d", i))
			}
			connect("publisher")
		}
	}
	lives(5)
	if r := homes.Report(); r.Judged != 44 || r.Sticky != 44 || len(r.Brokers) != 3 || l.Told().Astray != 0 {
		t.Errorf("honest: %+v", r)
	}
	l.Set(Lies{Astray: 3})
	lives(6)
	r := homes.Report()
	if told := l.Told(); told.Astray != 20 || r.MovesUnexplained != told.Astray || r.Judged-r.Sticky != told.Astray || told.Connects != 121 {
		t.Errorf("%+v\n%+v", told, r)
	}
	if slices.ContainsFunc(r.Moves, func(m ledger.Move) bool { return m.Client == "publisher" }) {
		t.Error("a client that is none of the liar's business was led astray")
	}
}

// TestOnlyItsTopics: other topics are left alone.
func TestOnlyItsTopics(t *testing.T) {
	b := newBroker(t, 1, 20)
	l := start(t, Config{Brokers: []string{b.addr()}, Topics: "t/liar/"})
	l.Set(Lies{Drop: 1})
	for _, id := range []string{"c", "liar/c"} {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		n := 0
		all.Go(func() {
			subscriber(ctx, t, l.Addr(), id, mqtt.V311, func(d delivery) {
				if d.seq != 0 { // not the CONNACK
					n++
				}
			})
		})
		waitFor(t, b.done)
		cancel()
		all.Wait()
		if want := map[string]int{"c": 20, "liar/c": 0}[id]; n != want {
			t.Errorf("%s gets %d messages, expected %d", id, n, want)
		}
	}
	if told := l.Told(); told.Publishes != 20 || told.Dropped != 20 {
		t.Errorf("%+v", told)
	}
}

func TestPause(t *testing.T) {
	b := newBroker(t, 1, 3)
	l := start(t, Config{Brokers: []string{b.addr()}})
	resume := l.Pause()
	l.Pause() // is the same one
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { subscriber(ctx, t, l.Addr(), "c", mqtt.V311, func(delivery) {}) })
	time.Sleep(50 * time.Millisecond) // long enough for what must not happen
	if n := len(b.clients()); n != 0 {
		t.Errorf("%d clients came through a pause", n)
	}
	resume()
	resume()
	waitFor(t, b.done)
	cancel()
	all.Wait()
	l.Pause() // and nobody ends it but the end of Run
}

func TestWhatIsNotMQTT(t *testing.T) {
	b := newBroker(t, 0, 0)
	l := start(t, Config{Brokers: []string{b.addr()}})
	for _, sent := range []string{"GET / HTTP/1.1\r\n\r\n", "\xc0\x00", "\x10\xff\xff\xff\xff\x01", "\x10\xff\xff\xff\x7f", "\x10\x02\x00\x04"} {
		c, err := net.Dial("tcp", l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte(sent)); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %v, expected the connection to be closed", sent, err)
		}
		_ = c.Close()
	}
	if n := len(b.clients()); n != 0 {
		t.Errorf("%d connections reached the broker", n)
	}
	if _, err := Listen(Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("no brokers: %v", err)
	}
	if _, err := Listen(Config{Addr: "256.0.0.1:x", Brokers: []string{"x"}}); err == nil {
		t.Error("no such address, and no error")
	}
}

// FuzzPacket: what a stranger sends is read, or refused, within bounds.
func FuzzPacket(f *testing.F) {
	con := mqtt.Connect{Version: mqtt.V5, ID: "c", Expiry: 7, Clean: true}
	f.Add(con.Append(nil))
	con.Version = mqtt.V31
	f.Add(con.Append(nil))
	f.Add(mqtt.AppendPublish(nil, mqtt.V5, &mqtt.Publish{Topic: []byte("t"), Payload: []byte("p"), QoS: 1, ID: 3}))
	f.Add(mqtt.AppendAck(nil, mqtt.V311, mqtt.PUBREL, 7, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bufio.NewReader(bytes.NewReader(b))
		var buf []byte
		for {
			p, err := readPacket(in, buf)
			if err != nil {
				return
			}
			buf = p
			if len(p) > len(b) {
				t.Fatalf("%d bytes out of %d", len(p), len(b))
			}
			p.id()
			_, _, _ = p.connect()
			if x, err := p.publication(); err == nil && x.qos > 0 {
				x.setID(x.id() ^ 0x8000)
			}
		}
	})
}
