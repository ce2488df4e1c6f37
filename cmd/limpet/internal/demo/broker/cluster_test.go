package broker

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

func TestPublishersAndSubscribersFindEachOther(t *testing.T) {
	brokers, _ := cluster(t, 3)
	for qos := range byte(3) {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			topic := fmt.Sprintf("t/%d", qos)
			subscribers := make([]*client3, 3)
			for i, b := range brokers {
				subscribers[i] = connect3(t, b, "subscriber")
				subscribers[i].subscribe(topic, 2)
			}
			publisher := connect3(t, brokers[1], "publisher")
			want := numbered(topic+" %d", 300)
			for i := range want {
				publisher.Publish(topic, qos, false, fmt.Sprint(i))
			}
			for _, s := range subscribers {
				s.receives(want...)
			}
		})
	}
}

func TestLargeMessagesCross(t *testing.T) {
	brokers, _ := cluster(t, 2)
	payload := make([]byte, 5<<20)
	_, _ = rand.Read(payload)
	s := connect3(t, brokers[1], "s")
	s.subscribe("large", 2)
	connect3(t, brokers[0], "p").publish("large", string(payload), 2, false)
	s.receives("large " + string(payload))
}

func TestPropertiesCross(t *testing.T) {
	brokers, _ := cluster(t, 2)
	s, got := connect5(t, brokers[1], &paho.Connect{
		ClientID: "s", CleanStart: true,
		Properties: &paho.ConnectProperties{RequestProblemInfo: false}, // user properties of messages are no problems
	})
	subID := 7
	if _, err := s.Subscribe(t.Context(), &paho.Subscribe{
		Properties:    &paho.SubscribeProperties{SubscriptionIdentifier: &subID},
		Subscriptions: []paho.SubscribeOptions{{Topic: "t/#", QoS: 2, RetainAsPublished: true}},
	}); err != nil {
		t.Fatal(err)
	}
	p, _ := connect5(t, brokers[0], &paho.Connect{ClientID: "p", CleanStart: true})
	format, expiry := byte(1), uint32(600)
	if _, err := p.Publish(t.Context(), &paho.Publish{
		Topic: "t/x", QoS: 1, Retain: true, Payload: []byte("hello"),
		Properties: &paho.PublishProperties{
			PayloadFormat: &format, MessageExpiry: &expiry, ContentType: "text/plain", ResponseTopic: "answers",
			CorrelationData: []byte{1, 0, 2},
			User:            paho.UserProperties{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}, {Key: "a", Value: "3"}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	m := receive5(t, got)
	if m.Topic != "t/x" || string(m.Payload) != "hello" || m.QoS != 1 || !m.Retain {
		t.Errorf("got %+v", m)
	}
	q := m.Properties
	if q.PayloadFormat == nil || *q.PayloadFormat != 1 || q.MessageExpiry == nil || *q.MessageExpiry > 600 || *q.MessageExpiry < 580 ||
		q.ContentType != "text/plain" || q.ResponseTopic != "answers" || !bytes.Equal(q.CorrelationData, []byte{1, 0, 2}) ||
		!slices.Equal(q.User, paho.UserProperties{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}, {Key: "a", Value: "3"}}) ||
		q.SubscriptionIdentifier == nil || *q.SubscriptionIdentifier != 7 {
		t.Errorf("got properties %+v", q)
	}
}

func TestRetainedMessagesAreShared(t *testing.T) {
	brokers, wires := cluster(t, 3)
	at := func(i int) (retained []string) { // what a new subscriber gets
		s := connect3(t, brokers[i], "new")
		s.subscribe("r/#", 1)
		s.subscribe("mark", 1)
		s.publish("mark", "end", 1, false) // comes after what is retained
		eventually(t, func() string {
			if retained = s.received(); !slices.Contains(retained, "mark end") {
				return fmt.Sprintf("no end in %q", retained)
			}
			return ""
		})
		s.Disconnect(0)
		retained = retained[:len(retained)-1]
		slices.Sort(retained)
		return retained
	}
	everywhere := func(want ...string) {
		t.Helper()
		for i := range brokers {
			if got := at(i); !slices.Equal(got, want) {
				t.Errorf("at b%d: %q, want %q", i+1, got, want)
			}
		}
	}
	p := [3]*client3{}
	for i, b := range brokers {
		p[i] = connect3(t, b, "p")
	}
	p[0].publish("r/a", "1", 1, true)
	p[1].publish("r/b", "2", 2, true)
	everywhere("r/a 1 (retained)", "r/b 2 (retained)")
	p[2].publish("r/a", "3", 1, true)
	p[2].publish("r/b", "", 1, true)
	everywhere("r/a 3 (retained)")

	t.Run("peer away", func(t *testing.T) {
		for name, w := range wires {
			if strings.Contains(name, "b3") {
				w.set(true)
			}
		}
		p[0].publish("r/a", "", 1, true)
		p[1].publish("r/c", "4", 0, true)
		p[2].publish("r/d", "5", 1, true)
		if got, want := at(2), []string{"r/a 3 (retained)", "r/d 5 (retained)"}; !slices.Equal(got, want) {
			t.Errorf("b3 alone has %q, want %q", got, want)
		}
		for _, w := range wires {
			w.set(false)
		}
		linked(t, brokers...)
		settled(t, brokers...)
		everywhere("r/c 4 (retained)", "r/d 5 (retained)")
	})
}

func TestStartingBrokerGetsRetainedMessagesFirst(t *testing.T) {
	links := [2]net.Listener{listen(t), listen(t)}
	config := func(i int) Config {
		return Config{
			Name: fmt.Sprintf("b%d", i+1), Logger: logger(t),
			Peers: map[string]string{fmt.Sprintf("b%d", 2-i): links[1-i].Addr().String()},
		}
	}
	address := links[1].Addr().String()
	links[1].Close() // b2 is away
	b1, err := start(config(0), listen(t), links[0])
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, b1)
	p := connect3(t, b1, "p")
	for round := range 3 {
		want := make([]string, 100)
		for i := range want {
			want[i] = fmt.Sprintf("r/%03d %d (retained)", i, round)
			p.Publish(fmt.Sprintf("r/%03d", i), 0, true, fmt.Sprint(round))
		}
		p.publish("cleared", "", 1, true)
		var links2 net.Listener
		eventually(t, func() string {
			if links2, err = net.Listen("tcp", address); err != nil {
				return err.Error()
			}
			return ""
		})
		b2, err := start(config(1), listen(t), links2)
		if err != nil {
			t.Fatal(err)
		}
		s := connect3(t, b2, "s")
		s.subscribe("#", 1)
		eventually(t, func() string {
			got := s.received()
			slices.Sort(got)
			if got = slices.DeleteFunc(got, func(m string) bool { return !strings.HasSuffix(m, "(retained)") }); !slices.Equal(got, want) {
				return fmt.Sprintf("got %s", short(got))
			}
			return ""
		})
		s.publish("cleared", "again", 1, true)
		s.Disconnect(0)
		stop(t, b2)
	}
}

func TestWillsCross(t *testing.T) {
	brokers, _ := cluster(t, 2)
	s := connect3(t, brokers[1], "s")
	s.subscribe("will/#", 2)
	dying := func(name string, orderly bool) {
		c := dialRaw(t, brokers[0])
		c.write(packet(0x10, str("MQTT"), "\x04", string([]byte{0x2e}), "\x00\x00", str(name), str("will/"+name), str("gone"))) // QoS 1, retained
		c.expectHead(0x20)
		if orderly {
			c.write(packet(0xe0))
		}
		c.Close()
		eventually(t, func() string {
			if c := brokers[0].Sessions(); len(c) > 0 {
				return fmt.Sprintf("still there: %+v", c)
			}
			return ""
		})
	}
	dying("orderly", true)
	dying("killed", false)
	s.receives("will/killed gone")
	settled(t, brokers...)
	late := connect3(t, brokers[1], "late")
	late.subscribe("will/#", 2)
	late.receives("will/killed gone (retained)")
}

func TestWillsKeepPropertiesAndDelay(t *testing.T) {
	brokers, _ := cluster(t, 2)
	s, got := connect5(t, brokers[1], &paho.Connect{ClientID: "s", CleanStart: true})
	if _, err := s.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "will", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	dying := func(flags byte, payload string) { // QoS 1, session expiry 2 h, will delay 1 h
		t.Helper()
		c := dialRaw(t, brokers[0])
		will := "\x18\x00\x00\x0e\x10" + "\x02\x00\x00\x00\x3c" + "\x03" + str("text/plain") + "\x26" + str("k") + str("v")
		c.write(packet(0x10, str("MQTT"), "\x05", string([]byte{0x0c | flags}), "\x00\x00", "\x05\x11\x00\x00\x1c\x20", str("c"),
			string([]byte{byte(len(will))}), will, str("will"), str(payload)))
		c.expectHead(0x20)
		c.write(packet(0xe0, "\x04")) // disconnect with will
		eventually(t, func() string {
			brokers[0].mu.Lock()
			defer brokers[0].mu.Unlock()
			if w, ok := brokers[0].wills["c"]; !ok || string(w.message.payload) != payload {
				return fmt.Sprintf("will %q does not wait: %v", payload, brokers[0].wills)
			}
			return ""
		})
	}
	dying(cleanFlag, "one")
	dying(0, "two") // its return cancels one
	dying(cleanFlag, "three")
	if m := receive5(t, got); string(m.Payload) != "two" { // its session is over, and the delay with it
		t.Errorf("got %q, want two", m.Payload)
	}
	brokers[0].publishDueWills(time.Now().Add(59 * time.Minute))
	brokers[0].publishDueWills(time.Now().Add(61 * time.Minute))
	m := receive5(t, got)
	if string(m.Payload) != "three" || m.Properties.ContentType != "text/plain" || m.Properties.User.Get("k") != "v" ||
		m.Properties.MessageExpiry == nil || *m.Properties.MessageExpiry > 60 {
		t.Errorf("got %q %+v", m.Payload, m.Properties)
	}
	if len(got) > 0 {
		t.Errorf("and %q", (<-got).Payload)
	}
}

// Links break again and again, in the middle of anything: everything arrives once and in order.
func TestNothingIsLostOrDoubledOverBrokenLinks(t *testing.T) {
	brokers, wires := cluster(t, 2)
	s := connect3(t, brokers[1], "s")
	s.subscribe("t", 2)
	p := connect3(t, brokers[0], "p")
	const n = 3000
	var cutting sync.WaitGroup
	done := make(chan struct{})
	cutting.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				wires["b1→b2"].set(false)
				return
			case <-time.After(time.Duration(5+i%30) * time.Millisecond):
				wires["b1→b2"].set(i%2 == 0)
			}
		}
	})
	for i := range n {
		if token := p.Publish("t", byte(1+i%2), false, fmt.Sprint(i)); i%100 == 0 {
			p.wait(token)
		}
	}
	close(done)
	cutting.Wait()
	s.receives(numbered("t %d", n)...)
	settled(t, brokers[0])
}

func TestStandaloneSharesNothing(t *testing.T) {
	b1 := single(t, func(c *Config) {
		c.Standalone, c.LinkListen, c.Peers = true, "127.0.0.1:0", map[string]string{"b2": "127.0.0.1:1"}
	})
	if b1.LinkAddr() != nil || len(b1.Peers()) != 0 {
		t.Errorf("link address %v, peers %v", b1.LinkAddr(), b1.Peers())
	}
	s := connect3(t, b1, "s")
	s.subscribe("t", 1)
	connect3(t, b1, "p").publish("t", "x", 1, false)
	s.receives("t x")
}

func TestEachBrokerHasItsOwnName(t *testing.T) {
	brokers, _ := cluster(t, 3)
	for _, b := range brokers {
		s := connect3(t, b, "s")
		s.subscribe("$SYS/broker/name", 1)
		s.receives("$SYS/broker/name " + b.Name() + " (retained)")
		s.publish("$SYS/broker/name", "forged", 1, true) // answered, without effect
	}
	settled(t, brokers...)
	for _, b := range brokers {
		s := connect3(t, b, "s")
		s.subscribe("$SYS/broker/+", 1)
		eventually(t, func() string {
			if got := s.received(); !slices.Contains(got, "$SYS/broker/name "+b.Name()+" (retained)") {
				return fmt.Sprintf("%q", got)
			}
			return ""
		})
	}
}

func TestStatusIsUnderSys(t *testing.T) {
	brokers, _ := cluster(t, 2)
	s := connect3(t, brokers[0], "watch")
	s.subscribe("$SYS/broker/sessions/a%2Fb", 1)
	s.subscribe("$SYS/broker/peers/#", 1)
	s.receives(`$SYS/broker/peers/b2 {"name":"b2","up":true,"kept":0,"dropped":0} (retained)`)
	c := connect3(t, brokers[0], "a/b")
	c.Disconnect(0)
	eventually(t, func() string {
		got := s.received()
		if len(got) != 3 || !strings.Contains(got[1], `"client":"a/b","connected":true,"remote":"127.0.0.1:`) || got[2] != "$SYS/broker/sessions/a%2Fb " {
			return fmt.Sprintf("%q", got)
		}
		return ""
	})
	if n := brokers[0].Connects("a/b"); n != 1 {
		t.Errorf("%d connects", n)
	}
}

// A message is at the peers when its publisher has its answer, so that no later death of the broker can lose it.
func TestPeersHaveWhatIsAcknowledged(t *testing.T) {
	brokers, _ := cluster(t, 3)
	for _, b := range brokers[1:] {
		s := connect3(t, b, "s", persistent)
		s.subscribe("t", 2)
		s.Disconnect(0)
		eventually(t, func() string {
			if status := b.Sessions(); len(status) != 1 || status[0].Connected {
				return fmt.Sprintf("%+v", status)
			}
			return ""
		})
	}
	p := dialRaw(t, brokers[0])
	p.connect("p", cleanFlag)
	for i := range 200 {
		n := uint16(i + 1)
		if i%2 == 0 {
			p.write(packet(0x32, str("t"), id(n), "x"))
			p.expect(packet(0x40, id(n)))
		} else {
			p.write(packet(0x34, str("t"), id(n), "x"))
			p.expect(packet(0x50, id(n)))
		}
		for _, b := range brokers[1:] {
			if status := b.Sessions(); status[0].Queued != i+1 {
				t.Fatalf("%d acknowledged, %s has %d", i+1, b.Name(), status[0].Queued)
			}
		}
	}
}

func TestSharedSubscriptionsAreSharedAtEachBroker(t *testing.T) {
	brokers, _ := cluster(t, 2)
	var members []*client3
	for i := range 4 {
		c := connect3(t, brokers[i%2], fmt.Sprintf("s%d", i))
		c.subscribe("$share/g/t", 1)
		members = append(members, c)
	}
	p := connect3(t, brokers[0], "p")
	for range 100 {
		p.publish("t", "x", 1, false)
	}
	eventually(t, func() string {
		var n [4]int
		for i, c := range members {
			n[i] = len(c.received())
		}
		if n[0]+n[2] != 100 || n[1]+n[3] != 100 {
			return fmt.Sprintf("members of one broker got %d + %d, of the other %d + %d", n[0], n[2], n[1], n[3])
		}
		return ""
	})
}
