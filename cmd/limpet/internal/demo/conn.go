package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	// maxPacket bounds what a story's client reads: its own messages are some bytes long.
	maxPacket = 1 << 20
	// sessionExpiry, in seconds, is what MQTT 5 clients ask for. MQTT 3.1.1 has no word for it.
	sessionExpiry = 300
	// leaveTimeout is how long a client that said DISCONNECT waits for the end of its connection.
	leaveTimeout = time.Second

	mqtt311 byte = 4 // protocol levels
	mqtt5   byte = 5
)

// message is what a client got.
type message struct{ topic, payload string }

// conn is one MQTT connection of a story's client: CONNECT, SUBSCRIBE, PUBLISH and DISCONNECT, QoS 1, MQTT 3.1.1 and 5.
type conn struct {
	rw      io.ReadWriteCloser
	version byte
	deliver func(message) // called by the reader, before the acknowledgement

	writing sync.Mutex

	mu      sync.Mutex
	next    uint16
	waiting map[uint16]chan packets.Packet // for SUBACK or PUBACK, by packet ID

	done   chan struct{} // closed when the connection has ended, and the reader with it
	ended  time.Time     // set before done is closed, as is err
	err    error
	reader sync.WaitGroup
}

// refusal is a CONNACK that says no.
type refusal struct{ code byte }

func (r *refusal) Error() string { return fmt.Sprintf("refused with code 0x%02x", r.code) }

// errGone is what calls on a connection that has ended return.
var errGone = errors.New("connection closed")

// hello is what a client says in its CONNECT.
type hello struct {
	client  string
	version byte
	clean   bool // and nothing left behind: a session of no expiry
}

// connect says CONNECT on rw and waits for CONNACK; rw is closed if that is no success.
func connect(ctx context.Context, rw io.ReadWriteCloser, h hello, deliver func(message)) (c *conn, present bool, err error) {
	c = &conn{rw: rw, version: h.version, deliver: deliver, waiting: map[uint16]chan packets.Packet{}, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = rw.Close()
		}
	}()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect:     packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: h.client, Clean: h.clean},
	}
	if h.version == mqtt5 && !h.clean {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = sessionExpiry, true
	}
	if err := c.write(&pk, (*packets.Packet).ConnectEncode); err != nil {
		return nil, false, err
	}
	r := bufio.NewReader(rw)
	ack, err := readPacket(r, h.version)
	switch {
	case err != nil:
		return nil, false, err
	case ack.FixedHeader.Type != packets.Connack:
		return nil, false, fmt.Errorf("the answer to CONNECT is %s", packets.PacketNames[ack.FixedHeader.Type])
	case ack.ReasonCode != 0:
		return nil, false, &refusal{ack.ReasonCode}
	}
	c.reader.Go(func() { c.read(r) })
	return c, ack.SessionPresent, nil
}

// readPacket reads one packet of those that servers send.
func readPacket(r *bufio.Reader, version byte) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: version}
	first, err := r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(r)
	if err != nil {
		return pk, err
	}
	if n > maxPacket {
		return pk, fmt.Errorf("a packet of %d bytes", n)
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	default:
		err = fmt.Errorf("a packet of type %s, which nobody asked for", packets.PacketNames[pk.FixedHeader.Type])
	}
	return pk, err
}

// read takes in packets until the connection ends.
func (c *conn) read(r *bufio.Reader) {
	var err error
	for err == nil {
		var pk packets.Packet
		if pk, err = readPacket(r, c.version); err == nil {
			err = c.take(&pk)
		}
	}
	_ = c.rw.Close()
	c.err, c.ended = err, time.Now()
	close(c.done)
}

func (c *conn) take(pk *packets.Packet) error {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		c.deliver(message{pk.TopicName, string(pk.Payload)})
		if pk.FixedHeader.Qos == 1 {
			ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID}
			return c.write(&ack, (*packets.Packet).PubackEncode)
		}
	case packets.Puback, packets.Suback:
		c.mu.Lock()
		answer := c.waiting[pk.PacketID]
		delete(c.waiting, pk.PacketID)
		c.mu.Unlock()
		if answer != nil {
			answer <- *pk // of capacity 1
		}
	case packets.Disconnect:
		return fmt.Errorf("DISCONNECT with code 0x%02x", pk.ReasonCode)
	}
	return nil
}

func (c *conn) write(pk *packets.Packet, encode func(*packets.Packet, *bytes.Buffer) error) error {
	pk.ProtocolVersion = c.version
	var b bytes.Buffer
	if err := encode(pk, &b); err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err := c.rw.Write(b.Bytes())
	return err
}

// ask writes a packet with an ID and waits for its answer.
func (c *conn) ask(ctx context.Context, pk packets.Packet, encode func(*packets.Packet, *bytes.Buffer) error) (packets.Packet, error) {
	answer := make(chan packets.Packet, 1)
	c.mu.Lock()
	for c.next++; c.next == 0 || c.waiting[c.next] != nil; c.next++ {
	}
	pk.PacketID = c.next
	c.waiting[pk.PacketID] = answer
	c.mu.Unlock()
	if err := c.write(&pk, encode); err != nil {
		return packets.Packet{}, err
	}
	select {
	case pk := <-answer:
		return pk, nil
	case <-c.done:
		return packets.Packet{}, fmt.Errorf("%w: %w", errGone, c.err)
	case <-ctx.Done():
		return packets.Packet{}, context.Cause(ctx)
	}
}

// subscribe asks for topics with QoS 1, and waits until that is granted.
func (c *conn) subscribe(ctx context.Context, filters ...string) error {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}} // [MQTT-3.8.1-1]
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: 1})
	}
	ack, err := c.ask(ctx, pk, (*packets.Packet).SubscribeEncode)
	if err != nil {
		return err
	}
	for i, code := range ack.ReasonCodes {
		if code >= 0x80 && i < len(filters) {
			return fmt.Errorf("SUBSCRIBE to %s: refused with code 0x%02x", filters[i], code)
		}
	}
	return nil
}

// publish sends a message with QoS 1 and waits until the broker has it.
func (c *conn) publish(ctx context.Context, topic, payload string) error {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, TopicName: topic, Payload: []byte(payload)}
	ack, err := c.ask(ctx, pk, (*packets.Packet).PublishEncode)
	if err == nil && ack.ReasonCode >= 0x80 {
		err = fmt.Errorf("PUBLISH to %s: refused with code 0x%02x", topic, ack.ReasonCode)
	}
	return err
}

// leave says DISCONNECT and waits for the other side to end the connection, so that nothing on its way is lost.
func (c *conn) leave() {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}
	if c.write(&pk, (*packets.Packet).DisconnectEncode) == nil {
		select {
		case <-c.done:
		case <-time.After(leaveTimeout):
		}
	}
	c.cut()
}

// cut ends the connection.
func (c *conn) cut() {
	_ = c.rw.Close()
	c.reader.Wait()
}

// alive reports whether the connection has not ended.
func (c *conn) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}
