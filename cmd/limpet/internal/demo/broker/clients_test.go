package broker

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt3 "github.com/eclipse/paho.mqtt.golang"
)

// client3 is a MQTT 3.1.1 client and what it was sent.
type client3 struct {
	mqtt3.Client
	t   *testing.T
	mu  sync.Mutex
	got []string
}

func connect3(t *testing.T, b *Broker, name string, edit ...func(*mqtt3.ClientOptions)) *client3 {
	t.Helper()
	c := &client3{t: t}
	o := mqtt3.NewClientOptions().AddBroker("tcp://" + b.Addr().String()).SetClientID(name).SetAutoReconnect(false).
		SetConnectTimeout(patience).SetWriteTimeout(patience).SetDefaultPublishHandler(c.receive)
	for _, f := range edit {
		f(o)
	}
	c.Client = mqtt3.NewClient(o)
	c.wait(c.Connect())
	t.Cleanup(func() { c.Disconnect(0) })
	return c
}

func persistent(o *mqtt3.ClientOptions) { o.SetCleanSession(false) }

func (c *client3) receive(_ mqtt3.Client, m mqtt3.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := m.Topic() + " " + string(m.Payload())
	if m.Retained() {
		text += " (retained)"
	}
	c.got = append(c.got, text)
}

func (c *client3) wait(token mqtt3.Token) {
	c.t.Helper()
	if !token.WaitTimeout(patience) {
		c.t.Fatal("no answer")
	}
	if err := token.Error(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client3) subscribe(filter string, qos byte) {
	c.t.Helper()
	c.wait(c.Subscribe(filter, qos, nil))
}

func (c *client3) publish(topic, payload string, qos byte, retain bool) {
	c.t.Helper()
	c.wait(c.Publish(topic, qos, retain, payload))
}

func (c *client3) received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// receives waits until the client has been sent exactly this, in order.
func (c *client3) receives(want ...string) {
	c.t.Helper()
	eventually(c.t, func() string {
		if got := c.received(); !slices.Equal(got, want) {
			return fmt.Sprintf("got %s, want %s", short(got), short(want))
		}
		return ""
	})
}

func short(list []string) string {
	if len(list) > 12 {
		return fmt.Sprintf("%d: %.200q … %.200q", len(list), list[:6], list[len(list)-6:])
	}
	return fmt.Sprintf("%.200q", list)
}

func numbered(format string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i)
	}
	return out
}

func connect5(t *testing.T, b *Broker, connect *paho.Connect) (*paho.Client, <-chan *paho.Publish) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *paho.Publish, 1000)
	c := paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			got <- p.Packet
			return true, nil
		}},
	})
	connect.KeepAlive = 30
	if ack, err := c.Connect(ctx, connect); err != nil {
		t.Fatalf("%v, %+v", err, ack)
	}
	t.Cleanup(func() {
		_ = c.Disconnect(&paho.Disconnect{})
		<-c.Done()
	})
	return c, got
}

func receive5(t *testing.T, got <-chan *paho.Publish) *paho.Publish {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(patience):
		t.Fatal("nothing received")
		return nil
	}
}
