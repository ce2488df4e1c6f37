package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

func TestStartRefuses(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{Listen: "127.0.0.1:0"}, `name ""`},
		{Config{Name: "B1", Listen: "127.0.0.1:0"}, `name "B1"`},
		{Config{Name: "b1"}, "no address to listen on"},
		{Config{Name: "b1", Listen: "127.0.0.1:0", Peers: map[string]string{"b2": "x"}}, "no address for their links"},
		{Config{Name: "b1", Listen: "127.0.0.1:0", LinkListen: "127.0.0.1:0", Peers: map[string]string{"b1": "x"}}, "its own peer"},
	} {
		if _, err := Start(c.config); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.config, err, c.want)
		}
	}
	taken := listen(t)
	defer taken.Close()
	if _, err := Start(Config{Name: "b1", Listen: taken.Addr().String()}); err == nil {
		t.Error("listened where something else does")
	}
}

// offlineQueue queues n messages for a client that is away, and returns what it gets when it is back.
func offlineQueue(t *testing.T, address string, qos byte, n int) []string {
	t.Helper()
	s := dialAddress(t, address)
	s.connect("s", 0)
	s.subscribe(1, "t", qos)
	s.write(packet(0xe0))
	_, _ = io.ReadAll(s) // until the broker has closed it
	p := dialAddress(t, address)
	p.connect("p", cleanFlag)
	for i := range n {
		m := fmt.Sprint(i)
		packetID := uint16(i + 1)
		if qos == 1 {
			p.write(packet(0x32, str("t"), id(packetID), m))
			p.expect(packet(0x40, id(packetID)))
		} else {
			p.write(packet(0x34, str("t"), id(packetID), m))
			p.expect(packet(0x50, id(packetID)))
			p.write(packet(0x62, id(packetID)))
			p.expect(packet(0x70, id(packetID)))
		}
	}
	p.write(packet(0xc0))
	p.expect(packet(0xd0)) // mochi alone queues a message after it has answered
	s = dialAddress(t, address)
	if !s.connect("s", 0) {
		t.Fatal("no session present")
	}
	var got []string
	for completed := 0; completed < n; {
		head, body, err := s.read()
		if err != nil {
			t.Fatalf("%v after %d messages", err, len(got))
		}
		switch head >> 4 {
		case 3:
			got = append(got, string(body[5:]))
			if qos == 1 {
				s.write(packet(0x40, string(body[3:5])))
				completed++
			} else {
				s.write(packet(0x50, string(body[3:5])))
			}
		case 6:
			s.write(packet(0x70, string(body)))
			completed++
		}
	}
	return got
}

func TestOfflineQueuesComeBackInOrder(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		b := single(t)
		if got := offlineQueue(t, b.Addr().String(), qos, 1000); !slices.Equal(got, numbered("%d", 1000)) {
			t.Errorf("QoS %d: got %s", qos, short(got))
		}
		eventually(t, func() string {
			for _, s := range b.Sessions() {
				if s.Queued > 0 {
					return fmt.Sprintf("%+v", s)
				}
			}
			return ""
		})
	}
}

// allowHook is all that mochi needs to serve.
type allowHook struct{ mochi.HookBase }

func (*allowHook) Provides(method byte) bool {
	return method == mochi.OnConnectAuthenticate || method == mochi.OnACLCheck
}
func (*allowHook) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (*allowHook) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

// The control: mochi alone. If this fails, mochi has been mended, and session may not be needed any more.
func TestMochiAloneLosesOrder(t *testing.T) {
	server := mochi.New(&mochi.Options{Logger: slog.New(slog.DiscardHandler)})
	ln := listen(t)
	if err := errors.Join(server.AddHook(new(allowHook), nil), server.AddListener(listeners.NewNet("t", ln)), server.Serve()); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got := offlineQueue(t, ln.Addr().String(), 1, 200)
	if want := numbered("%d", 200); slices.Equal(got, want) {
		t.Error("mochi keeps the order of queued messages")
	}
}

// The two directions have packet IDs of their own [MQTT-2.2.1-4].
func TestPacketIDsOfBothDirectionsMayBeEqual(t *testing.T) {
	b := single(t)
	s := dialRaw(t, b)
	s.connect("s", 0)
	s.subscribe(1, "t", 2)
	p := connect3(t, b, "p")
	p.publish("t", "one", 1, false)
	s.expect(packet(0x32, str("t"), id(1), "one")) // not acknowledged
	p.publish("t", "two", 2, false)
	s.expect(packet(0x34, str("t"), id(2), "two"))

	s.subscribe(1, "u", 1) // mochi alone refuses this
	s.write(packet(0x32, str("v"), id(1), "x"))
	s.expect(packet(0x40, id(1)))
	s.write(packet(0x34, str("v"), id(2), "x"))
	s.expect(packet(0x50, id(2)))
	s.write(packet(0x50, id(2))) // for two
	s.expect(packet(0x62, id(2)))
	s.write(packet(0x62, id(2))) // for ours
	s.expect(packet(0x70, id(2)))
	s.Close()

	s = dialRaw(t, b)
	if !s.connect("s", 0) {
		t.Error("no session present")
	}
	s.expect(packet(0x3a, str("t"), id(1), "one")) // DUP
	s.expect(packet(0x62, id(2)))
	s.write(packet(0x70, id(2)), packet(0x40, id(1)), packet(0xc0))
	s.expect(packet(0xd0))
	if status := b.Sessions(); status[1].Client != "s" || status[1].Queued != 0 {
		t.Errorf("%+v", status)
	}
}

// A QoS 2 message that is sent again, on a new connection too, is published once [MQTT-4.3.3-10].
func TestExactlyOnceFromThePublisher(t *testing.T) {
	b := single(t)
	s := connect3(t, b, "s")
	s.subscribe("t", 2)
	p := dialRaw(t, b)
	p.connect("p", 0)
	p.write(packet(0x34, str("t"), id(7), "once"))
	p.expect(packet(0x50, id(7)))
	p.write(packet(0x3c, str("t"), id(7), "once"))
	p.expect(packet(0x50, id(7)))
	p.Close()
	p = dialRaw(t, b)
	if !p.connect("p", 0) {
		t.Error("no session present")
	}
	p.write(packet(0x3c, str("t"), id(7), "once"))
	p.expect(packet(0x50, id(7)))
	p.write(packet(0x62, id(7)))
	p.expect(packet(0x70, id(7)))
	p.write(packet(0x34, str("t"), id(7), "another"))
	p.expect(packet(0x50, id(7)))
	s.receives("t once", "t another")
}

func TestReceiveMaximumIsRespected(t *testing.T) {
	b := single(t)
	c := dialRaw(t, b)
	c.write(connectPacket("s", cleanFlag, "\x21\x00\x02")) // Receive Maximum 2
	c.expectHead(0x20)
	c.write(packet(0x82, id(1), "\x00", str("t"), "\x01"))
	c.expectHead(0x90)
	p := connect3(t, b, "p")
	for i := range 100 {
		p.publish("t", fmt.Sprint(i), 1, false)
	}
	for i := range 100 {
		body := c.expectHead(0x32)
		if got := string(body[6:]); got != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", got, i)
		}
		if i >= 1 {
			// Two are out. A third would come before the answer to this.
			c.write(packet(0xc0))
			c.expect(packet(0xd0))
			c.write(packet(0x40, id(uint16(i)))) // the one before
		}
	}
}

func TestPacketsTooLargeForTheClientAreSkipped(t *testing.T) {
	b := single(t)
	c := dialRaw(t, b)
	c.write(connectPacket("s", cleanFlag, "\x27\x00\x00\x00\x64")) // Maximum Packet Size 100
	c.expectHead(0x20)
	c.write(packet(0x82, id(1), "\x00", str("t"), "\x02"))
	c.expectHead(0x90)
	p := connect3(t, b, "p")
	for i, payload := range []string{"a", strings.Repeat("x", 200), "b"} {
		p.publish("t", payload, byte(i), false)
	}
	if body := c.expectHead(0x30); string(body[4:]) != "a" {
		t.Errorf("%q", body)
	}
	if body := c.expectHead(0x34); string(body[6:]) != "b" {
		t.Errorf("%q", body)
	}
}

func TestCleanStartDiscardsTheSession(t *testing.T) {
	b := single(t)
	p := connect3(t, b, "p")
	s := dialRaw(t, b)
	s.connect("s", 0)
	s.subscribe(1, "t", 1)
	s.write(packet(0xe0))
	_, _ = io.ReadAll(s)
	p.publish("t", "discarded", 1, false)
	s = dialRaw(t, b)
	if s.connect("s", cleanFlag) {
		t.Error("session present")
	}
	p.publish("t", "nobody subscribes", 1, false)
	s.write(packet(0xc0))
	s.expect(packet(0xd0))
	s.subscribe(1, "t", 1)
	p.publish("t", "new", 1, false)
	s.expect(packet(0x32, str("t"), id(1), "new"))
}

// An expired session is gone with its subscriptions: mochi leaves those, and a new session would inherit them.
func TestExpiredSessionsLeaveNothing(t *testing.T) {
	t.Parallel()
	b := single(t)
	expiry := "\x11\x00\x00\x00\x01" // Session Expiry Interval 1 s
	c := dialRaw(t, b)
	c.write(connectPacket("s", 0, expiry))
	c.expectHead(0x20)
	c.write(packet(0x82, id(1), "\x00", str("t"), "\x01"))
	c.expectHead(0x90)
	c.write(packet(0xe0))
	eventually(t, func() string {
		if s := b.Sessions(); len(s) > 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	c = dialRaw(t, b)
	c.write(connectPacket("s", 0, expiry))
	if ack := c.expectHead(0x20); ack[0] != 0 || ack[1] != 0 {
		t.Errorf("CONNACK %x", ack)
	}
	connect3(t, b, "p").publish("t", "x", 1, false)
	c.write(packet(0xc0))
	c.expect(packet(0xd0))
}

func TestRetainHandling(t *testing.T) {
	b := single(t)
	p := connect3(t, b, "p")
	p.publish("t", "r", 1, true)
	c := dialRaw(t, b)
	c.write(connectPacket("s", cleanFlag, ""))
	c.expectHead(0x20)
	subscribe := func(packetID uint16, filter string, options byte) {
		c.write(packet(0x82, id(packetID), "\x00", str(filter), string([]byte{options})))
	}
	subscribe(1, "$share/g/t", 1) // none for shared subscriptions
	subscribe(2, "t", 0x20)       // do not send
	subscribe(3, "t", 0x10)       // send if the subscription is new, but it is not
	subscribe(4, "t", 0x00)       // send
	subscribe(5, "new/t", 0x10)   // send if it is new
	var got []string
	for len(got) < 2 {
		head, body, err := c.read()
		switch {
		case err != nil:
			t.Fatalf("%v after %q", err, got)
		case head>>4 == 3:
			got = append(got, fmt.Sprintf("%#x %s", head, body[4:]))
		case string(body[:2]) == id(5):
			p.publish("t", "end", 0, false)
		}
	}
	if want := []string{"0x31 r", "0x30 end"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
