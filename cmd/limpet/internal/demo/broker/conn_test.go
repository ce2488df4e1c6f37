package broker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/mochi-mqtt/server/v2"
	proxyproto "github.com/pires/go-proxyproto"
)

// Two CONNECTs of one client ID at once leave exactly one connection.
func TestRacingConnectsLeaveOne(t *testing.T) {
	b := single(t)
	const pairs, parallel = 1000, 20
	var racing sync.WaitGroup
	for worker := range parallel {
		racing.Go(func() {
			for i := range pairs / parallel {
				if problem := race(b, fmt.Sprintf("c%d-%d", worker, i), byte(i%2)*cleanFlag); problem != "" {
					t.Error(problem)
				}
			}
		})
	}
	racing.Wait()
	eventually(t, func() string {
		for _, s := range b.Sessions() {
			if s.Connected {
				return fmt.Sprintf("%+v", s)
			}
		}
		return ""
	})
}

// race connects twice at once, and checks that one of the two is closed and the other one served.
func race(b *Broker, client string, flags byte) (problem string) {
	type racer struct {
		net.Conn
		received atomic.Int64
		closed   chan struct{}
	}
	var racers [2]*racer
	var reading sync.WaitGroup
	defer reading.Wait()
	for i := range racers {
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		r := &racer{Conn: conn, closed: make(chan struct{})}
		reading.Go(func() {
			defer close(r.closed)
			buf := make([]byte, 100)
			for {
				n, err := r.Read(buf)
				if err != nil {
					return
				}
				r.received.Add(int64(n))
			}
		})
		racers[i] = r
	}
	for _, r := range racers {
		if _, err := r.Write(connectPacket(client, flags)); err != nil {
			return err.Error()
		}
	}
	left := racers[0]
	select {
	case <-racers[0].closed:
		left = racers[1]
	case <-racers[1].closed:
	case <-time.After(patience):
		return client + ": two connections"
	}
	if _, err := left.Write([]byte{0xc0, 0}); err != nil {
		return fmt.Sprintf("%s: no connection is left: %v", client, err)
	}
	for deadline := time.Now().Add(patience); left.received.Load() < 6; { // CONNACK and PINGRESP
		select {
		case <-left.closed:
			return client + ": no connection is left"
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			return client + ": the connection that is left is not served"
		}
	}
	return ""
}

// The end of the old connection does not touch what the new one has done since.
func TestTakeoverKeepsTheSession(t *testing.T) {
	b := single(t)
	p := connect3(t, b, "p")
	var got []string
	for i := range 50 {
		s := dialRaw(t, b)
		if present := s.connect("s", 0); present != (i > 0) {
			t.Fatalf("connection %d: session present %v", i, present)
		}
		if i == 0 {
			s.subscribe(1, "t", 1)
		}
		p.publish("t", fmt.Sprint(i), 1, false)
		body := s.expectHead(0x32)
		got = append(got, string(body[5:]))
		s.write(packet(0x40, string(body[3:5])))
		s.write(packet(0xc0))
		s.expect(packet(0xd0)) // the PUBACK was read
	}
	if !slices.Equal(got, numbered("%d", 50)) {
		t.Errorf("got %s", short(got))
	}
	if n := b.Connects("s"); n != 50 {
		t.Errorf("%d connects", n)
	}
}

// A client that reads nothing does not delay the one that takes over.
func TestTakeoverOfAClientThatReadsNothing(t *testing.T) {
	b := single(t)
	s := dialRaw(t, b)
	s.connect("s", 0)
	s.subscribe(1, "t", 1)
	p := connect3(t, b, "p")
	payload := strings.Repeat("x", 1<<20)
	for range 20 { // more than the sockets hold
		p.publish("t", payload, 1, false)
	}
	again := dialRaw(t, b)
	if !again.connect("s", 0) {
		t.Error("no session present")
	}
	for range 20 {
		head, body, err := again.read()
		if err != nil || head&^8 != 0x32 {
			t.Fatalf("%#x, %d bytes, %v", head, len(body), err)
		}
		again.write(packet(0x40, string(body[3:5])))
	}
}

func TestProxyProtocol(t *testing.T) {
	b := single(t, func(c *Config) { c.ProxyProtocol = true })
	source := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4321}
	source6 := &net.TCPAddr{IP: net.ParseIP("2001:db8::9"), Port: 4321}
	target := b.Addr().(*net.TCPAddr)
	target6 := &net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 1883}
	local := proxyproto.HeaderProxyFromAddrs(2, nil, nil)
	for name, c := range map[string]struct {
		header *proxyproto.Header
		want   string
	}{
		"v1":    {proxyproto.HeaderProxyFromAddrs(1, source, target), "203.0.113.9:4321"},
		"v2":    {proxyproto.HeaderProxyFromAddrs(2, source, target), "203.0.113.9:4321"},
		"v2-6":  {proxyproto.HeaderProxyFromAddrs(2, source6, target6), "[2001:db8::9]:4321"},
		"local": {local, ""},
		"none":  {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialRaw(t, b)
			if c.header != nil {
				if _, err := c.header.WriteTo(conn); err != nil {
					t.Fatal(err)
				}
			}
			conn.connect(name, cleanFlag)
			want := c.want
			if want == "" {
				want = conn.LocalAddr().String()
			}
			eventually(t, func() string {
				for _, s := range b.Sessions() {
					if s.Client == name && s.Remote == want {
						return ""
					}
				}
				return fmt.Sprintf("%+v, want %s", b.Sessions(), want)
			})
		})
	}
	t.Run("off", func(t *testing.T) {
		conn := dialRaw(t, single(t))
		if _, err := proxyproto.HeaderProxyFromAddrs(2, source, target).WriteTo(conn); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a header was taken where none is expected")
		}
	})
}

// What a client of MQTT 3 that is not accepted reads: a return code of its own version, or the end.
func TestRefusals(t *testing.T) {
	b := single(t)
	connect := func(name, level, flags, rest string) []byte {
		return packet(0x10, str(name), level, flags, "\x00\x00", rest)
	}
	for name, c := range map[string]struct {
		connect []byte
		code    string // "" = none, the connection ends
	}{
		"bridge":                    {connect("MQTT", "\x84", "\x02", str("c")), "\x01"},
		"bridge of 3.1":             {connect("MQIsdp", "\x83", "\x02", str("c")), "\x01"},
		"level 6":                   {connect("MQTT", "\x06", "\x02", str("c")), "\x01"},
		"session without an ID":     {connect("MQTT", "\x04", "\x00", str("")), "\x02"},
		"reserved flag":             {connect("MQTT", "\x04", "\x03", str("c")), ""},
		"will retain without will":  {connect("MQTT", "\x04", "\x22", str("c")), ""},
		"will of QoS 3":             {connect("MQTT", "\x04", "\x1e", str("c")+str("t")+str("m")), ""},
		"password flag, and no one": {connect("MQIsdp", "\x03", "\xc2", str("c")+str("ann")+str("")), ""},
		"another protocol":          {connect("MQXX", "\x04", "\x02", str("c")), ""},
	} {
		conn := dialRaw(t, b)
		conn.write(c.connect)
		head, body, err := conn.read()
		switch {
		case c.code == "":
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: got %#x %q, %v, want the end", name, head, body, err)
			}
		case err != nil || head != 0x20 || string(body) != "\x00"+c.code:
			t.Errorf("%s: got %#x %q, %v, want return code %q", name, head, body, err, c.code)
		}
	}
}

// deadlines is a connection that knows what was asked of it last.
type deadlines struct {
	net.Conn
	last time.Time
}

func (d *deadlines) SetDeadline(t time.Time) error {
	d.last = t
	return nil
}

// A client has one and a half times its Keep Alive, whatever mochi makes of it.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for keepAlive, want := range map[uint16]time.Duration{
			1: 1500 * time.Millisecond, 2: 3 * time.Second, 3: 4500 * time.Millisecond, 60: 90 * time.Second, 65535: 98302500 * time.Millisecond,
		} {
			d := &deadlines{}
			c := &conn{Conn: d, client: &mqtt.Client{}}
			c.client.State.Keepalive = keepAlive
			_ = c.SetDeadline(time.Now().Add(time.Duration(keepAlive+keepAlive/2) * time.Second)) // as mochi does
			if got := time.Until(d.last); got != want {
				t.Errorf("Keep Alive %d: %v, want %v", keepAlive, got, want)
			}
			_ = c.SetDeadline(time.Time{}) // Keep Alive 0
			if !d.last.IsZero() {
				t.Errorf("no Keep Alive: %v", d.last)
			}
		}
	})
}

func TestCloseTellsClients(t *testing.T) {
	b, err := Start(Config{Name: "b1", Listen: "127.0.0.1:0", Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	disconnected := make(chan byte, 1)
	conn, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: conn, OnServerDisconnect: func(d *paho.Disconnect) { disconnected <- d.ReasonCode }})
	if _, err := c.Connect(t.Context(), &paho.Connect{ClientID: "c", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	// Its CONNACK is on its way a moment before the session stands; the answer to something else is proof.
	if _, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "t"}}}); err != nil {
		t.Fatal(err)
	}
	old := dialRaw(t, b) // MQTT 3.1.1 has no such packet
	old.connect("old", 0)
	silent := dialRaw(t, b)
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	select {
	case reason := <-disconnected:
		if reason != 0x8b {
			t.Errorf("reason %#x", reason)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no DISCONNECT within 10 s")
	}
	<-c.Done()
	for _, c := range []*rawClient{old, silent} {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes instead of the end", n)
		}
	}
}

// Wills that a closing broker publishes reach the peers.
func TestClosePublishesWills(t *testing.T) {
	brokers, _ := cluster(t, 2)
	s := connect3(t, brokers[1], "s")
	s.subscribe("will", 1)
	c := dialRaw(t, brokers[0])
	c.write(packet(0x10, str("MQTT"), "\x04", "\x0e", "\x00\x00", str("c"), str("will"), str("gone")))
	c.expectHead(0x20)
	if err := brokers[0].Close(); err != nil {
		t.Error(err)
	}
	s.receives("will gone")
}
