package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// A mix is one session of which nothing is regular: what is sent in which pieces, who is slow, and how it ends. All of it comes from a seed.
type mix struct {
	seed   uint64
	end    mixEnd
	greet  time.Duration    // how long the client's welcome takes behind its handshake
	think  time.Duration    // how long the owner thinks; below 0 it answers at once
	dial   time.Duration    // how long the dial takes
	data   [2][]byte        // what each side sends, its CONNECT or CONNACK included
	cut    int              // where the side that resets does so
	sized  [2]uint64        // packets in data; 0 = they are none
	rnd    [2][2]*rand.Rand // of each side, writing and reading
	buffer [2]int           // of each side's socket, for reading; 0 = the kernel's

	target  Target
	reached chan *odd // the broker's end
	ended   chan Summary
}

type mixEnd int

const (
	halfCloses mixEnd = iota // each side ends its direction when it has said all
	clientCloses
	brokerCloses
	clientResets
	brokerResets
	mixEnds
)

func (e mixEnd) String() string {
	return [mixEnds]string{"half closes", "client closes", "broker closes", "client resets", "broker resets"}[e]
}

func newMix(seed uint64, half bool) *mix {
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &mix{seed: seed, reached: make(chan *odd, 1), ended: make(chan Summary, 1), think: -1}
	if m.end = mixEnd(seed % uint64(mixEnds)); m.end == halfCloses && !half {
		m.end = clientCloses
	}
	pause := func() time.Duration { return time.Duration(rnd.IntN(2) * rnd.IntN(8_000_000)) }
	m.greet, m.dial = pause(), pause()
	if rnd.IntN(2) == 0 {
		m.think = pause()
	}
	c := mqtt.Connect{Version: mqtt.V311, ClientID: []byte(strconv.FormatUint(seed, 10)), CleanStart: true, KeepAlive: 60}
	m.data = [2][]byte{mqtt.AppendConnect(nil, &c), connack311}
	for side := range m.data {
		var key [32]byte
		key[0], key[1] = byte(seed), byte(side)
		noise := rand.NewChaCha8(key)
		total := anySize(rnd, 1<<20)
		p := make([]byte, total)
		noise.Read(p)
		if rnd.IntN(2) == 0 { // in packets
			m.sized[side] = 1
			var packets []byte
			for len(p) > 0 {
				n := min(len(p), anySize(rnd, 1<<18))
				packets = append(packets, 0x30)
				packets = binary.AppendUvarint(packets, uint64(n)) // the same encoding [MQTT5 §1.5.5]
				packets = append(packets, p[:n]...)
				p = p[n:]
				m.sized[side]++
			}
			p = packets
		}
		m.data[side] = append(m.data[side][:len(m.data[side]):len(m.data[side])], p...)
		if rnd.IntN(4) == 0 {
			m.buffer[side] = 96 << 10 // less than a segment of the loopback device makes the kernel wait for timers
		}
		m.rnd[side] = [2]*rand.Rand{rand.New(rand.NewPCG(seed, 1+2*uint64(side))), rand.New(rand.NewPCG(seed, 2+2*uint64(side)))}
	}
	switch m.end {
	case clientResets:
		m.cut = m.connectSize() + rnd.IntN(len(m.data[Client])-m.connectSize())
	case brokerResets:
		m.cut = len(connack311) + rnd.IntN(len(m.data[Broker])-len(connack311))
	}
	return m
}

// write sends what side has to say, up to the cut if that is its own.
func (m *mix) write(side Side, o *odd, begun chan<- struct{}) error {
	defer func() {
		if begun != nil {
			close(begun)
		}
	}()
	rnd, data := m.rnd[side][0], m.data[side]
	own := m.end == clientResets && side == Client || m.end == brokerResets && side == Broker
	if own {
		data = data[:m.cut]
	}
	for first := true; len(data) > 0; first = false {
		n := min(len(data), anySize(rnd, 1<<20))
		if side == Client && first { // the CONNECT, and a burst behind it
			n = min(len(data), max(n, rnd.IntN(200)))
		}
		switch p := data[:n]; rnd.IntN(4) {
		case 0: // byte by byte
			n = min(n, 100)
			for i := range p[:n] {
				if err := o.say(p[i : i+1]); err != nil {
					return err
				}
			}
		case 1: // in pieces
			for len(p) > 0 {
				k := min(len(p), max(anySize(rnd, 1<<16), n/50))
				if err := o.say(p[:k]); err != nil {
					return err
				}
				p = p[k:]
			}
		default:
			if err := o.say(p); err != nil {
				return err
			}
		}
		if begun != nil {
			close(begun)
			begun = nil
		}
		data = data[n:]
		if rnd.IntN(4) == 0 {
			<-time.After(time.Duration(rnd.IntN(3_000_000)))
		}
	}
	if own {
		o.reset()
	} else if m.end == halfCloses {
		return o.CloseWrite()
	}
	return nil
}

// read compares what comes to side with what the other one sent. It returns how much of it came.
func (m *mix) read(side Side, o *odd, at int) (int, error) {
	rnd, want := m.rnd[side][1], m.data[side.Other()]
	buf := make([]byte, 64<<10)
	for {
		if at == len(want) && m.end < clientResets && m.end != halfCloses {
			return at, nil // all of it, and nothing ends yet
		}
		n, err := o.Read(buf[:1+rnd.IntN(len(buf))])
		if refusal := []byte{0x20, 2, 0, 3}; at == 0 && m.end == brokerResets && side == Client && bytes.Equal(buf[:n], refusal) {
			return 0, io.EOF // the reset has destroyed the broker's CONNACK
		}
		if at+n > len(want) || !bytes.Equal(buf[:n], want[at:at+n]) {
			return at, fmt.Errorf("what came to the %v from byte %d on is not what was sent", side, at)
		}
		at += n
		if err != nil {
			return at, err
		}
		if rnd.IntN(50) == 0 {
			<-time.After(time.Duration(rnd.IntN(10_000_000)))
		}
	}
}

// play is one side of the session. got is how much of the other side's data had been read.
func (m *mix) play(side Side, o *odd, got int) error {
	o.SetDeadline(time.Now().Add(mixTime))
	defer o.Close()
	if m.buffer[side] > 0 {
		o.Conn.(*net.TCPConn).SetReadBuffer(m.buffer[side])
	}
	var wg sync.WaitGroup
	var written error
	begun := make(chan struct{})
	wg.Go(func() { written = m.write(side, o, begun) })
	if side == Client {
		<-begun // what it kept since its handshake has gone out
	}
	got, err := m.read(side, o, got)
	wg.Wait()
	all := len(m.data[side.Other()])
	switch m.end {
	case clientResets, brokerResets:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the %v hears of no reset: %w", side, err)
		}
		if err != nil && err.Error()[0] == 'w' { // what came…
			return err
		}
		return nil
	case halfCloses:
		if got != all || err != io.EOF || written != nil {
			return fmt.Errorf("the %v got %d of %d bytes: %v; wrote: %v", side, got, all, err, written)
		}
		return nil
	}
	closes := (m.end == clientCloses) == (side == Client)
	if got != all || written != nil || err != nil && (err != io.EOF || closes) { // the end may come with the last byte
		return fmt.Errorf("the %v got %d of %d bytes: %v; wrote: %v", side, got, all, err, written)
	}
	if closes {
		if err := o.CloseWrite(); err != nil {
			return fmt.Errorf("the %v closes: %w", side, err)
		}
	}
	if err == io.EOF {
		return nil
	}
	if n, err := o.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return fmt.Errorf("the %v got %d bytes too many, or no end: %v", side, n, err)
	}
	return nil
}

// mixTime bounds a mix.
const mixTime = time.Minute

// A hall is where the mixes of one mode take place, several at a time.
type hall struct {
	mode mode
	at   netip.AddrPort // the relay's
	// strays are sessions that ended before their CONNECT was whole: a reset destroys what is on its way.
	strays chan struct{}

	mu    sync.Mutex
	mixes map[string]*mix // by client ID, and by the client's address
}

func (h *hall) find(key string) *mix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mixes[key]
}

func (h *hall) enter(key string, m *mix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mixes[key] = m
}

// leave closes what reaches the broker too late.
func (h *hall) leave(m *mix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mixes, strconv.FormatUint(m.seed, 10))
	select {
	case o := <-m.reached:
		o.Close()
	default:
	}
}

// mixOwner owns a session; it knows which one when it has its CONNECT.
type mixOwner struct {
	echoOwner
	h *hall
	m *mix
}

func (o *mixOwner) Route(c Conn, q Query) (Answer, bool) {
	m := o.h.find(string(q.Connect.ClientID))
	if m == nil {
		return Answer{}, true
	}
	o.m = m
	if m.think < 0 {
		return Answer{Target: &m.target}, true
	}
	time.AfterFunc(m.think, func() { c.Answer(Answer{Target: &m.target}) })
	return Answer{}, false
}

func (o *mixOwner) Closed(s Summary) {
	if o.m != nil {
		o.m.ended <- s
	} else {
		o.h.strays <- struct{}{}
	}
}

// newHall starts a relay and a broker.
func newHall(t *testing.T, m mode, narrow bool) (h *hall, broker netip.AddrPort) {
	h = &hall{mode: m, mixes: map[string]*mix{}, strays: make(chan struct{}, 1000)}
	ln := mustListen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := h.serve(c); err != nil {
					c.Close()
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	h.at, _ = m.relay(t, relayed{
		narrow: narrow,
		limits: &Limits{Linger: mixTime}, // who ends first must not cut who goes on
		owner:  func() Owner { return &mixOwner{h: h} },
		pause: func(c net.Conn) time.Duration {
			if m := h.find(c.RemoteAddr().String()); m != nil {
				return m.greet
			}
			return 0
		},
		failed: func(c net.Conn) {
			if m := h.find(c.RemoteAddr().String()); m != nil && m.end == clientResets {
				m.ended <- Summary{} // before there was a session
			}
		},
	})
	return h, ln.Addr().(*net.TCPAddr).AddrPort()
}

// serve learns whose connection it is.
func (h *hall) serve(c net.Conn) error {
	c.SetDeadline(time.Now().Add(mixTime))
	o, err := newOdd(c, h.mode.broker, false, rand.New(rand.NewPCG(0, 0)))
	if err != nil {
		return err
	}
	var got []byte
	for buf := make([]byte, 1); ; {
		n, err := o.Read(buf)
		if got = append(got, buf[:n]...); err != nil {
			return err
		}
		connect, err := mqtt.ParseConnect(got, 0xffff)
		if err == mqtt.ErrShort {
			continue
		}
		if err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		m := h.mixes[string(connect.ClientID)]
		if m == nil || !bytes.Equal(got, m.data[Client][:len(got)]) {
			return errors.New("a foreign CONNECT")
		}
		o.reseed(m.rnd[Broker][0])
		select {
		case m.reached <- o:
			return nil
		default:
			return errors.New("reached twice")
		}
	}
}

// run plays a mix.
func (h *hall) run(m *mix, broker netip.AddrPort) error {
	m.target = h.mode.target(broker, func() { <-time.After(m.dial) })
	h.enter(strconv.FormatUint(m.seed, 10), m)
	conn, err := net.Dial("tcp", h.at.String())
	if err != nil {
		return err
	}
	h.enter(conn.LocalAddr().String(), m)
	conn.SetDeadline(time.Now().Add(mixTime))
	client, err := newOdd(conn, h.mode.client, true, rand.New(rand.NewPCG(m.seed, 7)))
	if err != nil {
		conn.Close()
		return fmt.Errorf("the client shakes hands: %w", err)
	}
	var errs [2]error
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() { errs[Client] = m.play(Client, client, 0) })
	wg.Go(func() {
		select {
		case o := <-m.reached:
			errs[Broker] = m.play(Broker, o, m.connectSize())
		case <-done:
			if m.end != clientResets {
				errs[Broker] = errors.New("the broker was not reached")
			}
		}
	})
	// A client that resets may do so before there is a broker.
	var s Summary
	strays := h.strays
	if m.end != clientResets {
		strays = nil
	}
	select {
	case s = <-m.ended:
	case <-strays:
	case <-time.After(mixTime + patience):
		err = errors.New("the session does not end")
	}
	close(done)
	wg.Wait()
	h.leave(m)
	if err = errors.Join(errs[Client], errs[Broker], err); err != nil {
		return fmt.Errorf("%w; %+v", err, s)
	}
	if m.end >= clientResets {
		return nil
	}
	for side := range m.data {
		if got, want := s.Bytes[side], uint64(len(m.data[side])); got != want {
			err = fmt.Errorf("%d bytes counted from the %v, not %d", got, Side(side), want)
		}
		if got, want := s.Packets[side], m.sized[side]; want > 0 && got != want {
			err = fmt.Errorf("%d packets counted from the %v, not %d", got, Side(side), want)
		}
	}
	return err
}

func (m *mix) connectSize() int {
	c, err := mqtt.ParseConnect(m.data[Client], 0xffff)
	if err != nil {
		panic(err)
	}
	return c.Size
}

// Sessions of every mode of which nothing is regular: what arrives is what was sent, to the byte. RELAY_TEST_SEED repeats one.
func TestMixes(t *testing.T) {
	t.Parallel()
	for _, mode := range modes() {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			var halls [2]*hall // one whose sockets are soon full
			var brokers [2]netip.AddrPort
			for i := range halls {
				halls[i], brokers[i] = newHall(t, mode, i == 1)
			}
			first, n := uint64(1), sized(10, 500)
			if seed, err := strconv.ParseUint(os.Getenv("RELAY_TEST_SEED"), 10, 64); err == nil {
				first, n = seed, 1
			}
			turns := make(chan struct{}, 5)
			var wg sync.WaitGroup
			var ends [mixEnds]int
			for seed := first; seed < first+uint64(n); seed++ {
				m := newMix(seed, mode.half())
				ends[m.end]++
				turns <- struct{}{}
				wg.Go(func() {
					defer func() { <-turns }()
					if err := halls[seed/2%2].run(m, brokers[seed/2%2]); err != nil {
						t.Errorf("RELAY_TEST_SEED=%d, %v, %d bytes up and %d down: %v", seed, m.end, len(m.data[Client]), len(m.data[Broker]), err)
					}
				})
			}
			wg.Wait()
			t.Logf("%d mixes with ends of each kind: %v", n, ends)
		})
	}
}
