package realtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"
)

// message is one that a client sent or received.
type message struct {
	topic, payload string
	qos            byte
	retained       bool
}

// String shortens what is long.
func (m message) String() string {
	return fmt.Sprintf("%s qos=%d retained=%v %.20q(%d)", m.topic, m.qos, m.retained, m.payload, len(m.payload))
}

// client is a connected client of somebody else's library.
type client interface {
	subscribe(filter string, qos byte) error
	publish(m message) error
	leave() // with DISCONNECT
	drop()  // without a word: the Will is due
	inbox() *inbox
}

// library connects a client by a listener of an edge. sessionPresent is the CONNACK's flag.
type library func(e *edgeProc, listener string, o options) (c client, sessionPresent bool, err error)

type options struct {
	id    string
	clean bool // and nothing is kept after the connection
	will  *message
	had   []message // what came over an earlier connection
}

// inbox holds what a client received.
type inbox struct {
	had []message
	mu  sync.Mutex
	all []message
}

// add takes in a message. One that an earlier connection of the client has shown may come again, marked as a duplicate: it left before
// its acknowledgement was out.
func (b *inbox) add(m message, duplicate bool) {
	if duplicate && slices.Contains(b.had, m) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, m)
}

func (b *inbox) messages() []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

// await waits until exactly want has come, in that order if ordered.
func (b *inbox) await(t testing.TB, ordered bool, want ...message) {
	t.Helper()
	until(t, patience, fmt.Sprintf("messages %v", want), func() (bool, any) {
		got := b.messages()
		w := slices.Clone(want)
		if !ordered {
			sortMessages(got)
			sortMessages(w)
		}
		return slices.Equal(got, w), got
	})
}

func sortMessages(ms []message) {
	slices.SortFunc(ms, func(a, b message) int { return strings.Compare(a.String(), b.String()) })
}

// pahoV3 is a client of paho.mqtt.golang, MQTT 3.1.1.
type pahoV3 struct {
	paho3.Client
	in   inbox
	conn net.Conn // under it, if we dialed
}

var schemes = map[string]string{"tls": "ssl", "ws": "ws", "wss": "wss"}

func connectV3(e *edgeProc, listener string, o options) (client, bool, error) {
	c := &pahoV3{in: inbox{had: o.had}}
	opts := paho3.NewClientOptions().SetClientID(o.id).SetCleanSession(o.clean).SetProtocolVersion(4).SetAutoReconnect(false).
		SetConnectRetry(false).SetConnectTimeout(dialTimeout).SetKeepAlive(30 * time.Second).SetOrderMatters(true).SetTLSConfig(e.clientTLS()).
		SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) {
			c.in.add(message{m.Topic(), string(m.Payload()), m.Qos(), m.Retained()}, m.Duplicate())
		})
	path := ""
	if listener == "ws" || listener == "wss" {
		path = "/mqtt"
	}
	scheme := schemes[listener]
	if scheme == "" || o.will != nil { // what the library does not have or need, and what drop must have in its hands
		scheme = "tcp"
		opts.SetCustomOpenConnectionFn(func(*url.URL, paho3.ClientOptions) (net.Conn, error) {
			conn, err := e.dial(listener)
			c.conn = conn
			return conn, err
		})
	}
	opts.AddBroker(scheme + "://" + e.at[listener] + path)
	if w := o.will; w != nil {
		opts.SetWill(w.topic, w.payload, w.qos, w.retained)
	}
	c.Client = paho3.NewClient(opts)
	token := c.Connect().(*paho3.ConnectToken)
	if !token.WaitTimeout(dialTimeout) {
		return nil, false, fmt.Errorf("no CONNACK within %v", dialTimeout)
	}
	if err := token.Error(); err != nil {
		return nil, false, err
	}
	return c, token.SessionPresent(), nil
}

func (c *pahoV3) subscribe(filter string, qos byte) error {
	return waitToken(c.Subscribe(filter, qos, nil))
}

func (c *pahoV3) publish(m message) error {
	return waitToken(c.Publish(m.topic, m.qos, m.retained, m.payload))
}

func (c *pahoV3) leave()        { c.Disconnect(100) }
func (c *pahoV3) inbox() *inbox { return &c.in }

func (c *pahoV3) drop() { c.conn.Close() }

func waitToken(t paho3.Token) error {
	if !t.WaitTimeout(patience) {
		return fmt.Errorf("no acknowledgement within %v", patience)
	}
	return t.Error()
}

// pahoV5 is a client of paho.golang, MQTT 5.
type pahoV5 struct {
	*paho5.Client
	in   inbox
	conn net.Conn
}

func connectV5(e *edgeProc, listener string, o options) (client, bool, error) {
	conn, err := e.dial(listener)
	if err != nil {
		return nil, false, err
	}
	c := &pahoV5{conn: conn, in: inbox{had: o.had}}
	c.Client = paho5.NewClient(paho5.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), PacketTimeout: patience,
		OnPublishReceived: []func(paho5.PublishReceived) (bool, error){func(r paho5.PublishReceived) (bool, error) {
			c.in.add(message{r.Packet.Topic, string(r.Packet.Payload), r.Packet.QoS, r.Packet.Retain}, r.Packet.Duplicate())
			return true, nil
		}},
	})
	hour := uint32(3600)
	connect := &paho5.Connect{ClientID: o.id, CleanStart: o.clean, KeepAlive: 30}
	if !o.clean {
		connect.Properties = &paho5.ConnectProperties{SessionExpiryInterval: &hour}
	}
	if w := o.will; w != nil {
		connect.WillMessage = &paho5.WillMessage{Topic: w.topic, Payload: []byte(w.payload), QoS: w.qos, Retain: w.retained}
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	ack, err := c.Connect(ctx, connect)
	if err != nil {
		conn.Close()
		if ack != nil {
			err = fmt.Errorf("CONNACK %#x: %w", ack.ReasonCode, err)
		}
		return nil, false, err
	}
	return c, ack.SessionPresent, nil
}

func (c *pahoV5) subscribe(filter string, qos byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: filter, QoS: qos}}})
	return err
}

func (c *pahoV5) publish(m message) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Publish(ctx, &paho5.Publish{Topic: m.topic, QoS: m.qos, Retain: m.retained, Payload: []byte(m.payload)})
	return err
}

func (c *pahoV5) leave()        { c.Disconnect(&paho5.Disconnect{}) }
func (c *pahoV5) drop()         { c.conn.Close() }
func (c *pahoV5) inbox() *inbox { return &c.in }
