package client

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// The scripts that every driver must pass.
var scripts = []struct {
	name string
	cfg  Config
	dial wire.Config
	run  func(r *rig)
}{
	{name: "connect, disconnect", run: func(r *rig) {
		p := r.connect()
		r.client.Disconnect(nil)
		p.expect(mqtt.DISCONNECT)
		p.expectEnd("eof")
		p.Close()
		r.told.expect(r, "closed session: disconnect")
	}},
	{name: "disconnect with an expiry", run: func(r *rig) {
		p := r.connect()
		zero := uint32(0)
		r.client.Disconnect(&zero)
		if got := p.expect(mqtt.DISCONNECT).Raw; !bytes.Equal(got, []byte{0xe0, 7, 0, 5, 0x11, 0, 0, 0, 0}) {
			r.Errorf("DISCONNECT %x", got)
		}
	}},
	{name: "what is queued goes before DISCONNECT", run: func(r *rig) {
		p := r.connect()
		big := strings.Repeat("x", 900<<10)
		for range 4 {
			if err := r.client.Publish(0, []byte("t"), []byte(big), 0, false); errors.Is(err, ErrQueueFull) {
				break
			} else if err != nil {
				r.Fatal(err)
			}
		}
		r.client.Disconnect(nil)
		if err := r.client.Publish(0, []byte("t"), nil, 0, false); !errors.Is(err, ErrNotConnected) {
			r.Errorf("Publish after Disconnect: %v", err)
		}
		n := 0
		for ; ; n++ {
			if k, err := p.next(); err != nil {
				r.Fatal(err)
			} else if k.Kind == mqtt.DISCONNECT {
				break
			}
		}
		if n == 0 {
			r.Error("nothing came before DISCONNECT")
		}
		p.expectEnd("eof")
		r.told.expect(r, "closed session: disconnect")
	}},
	{name: "abort", run: func(r *rig) {
		p := r.connect()
		r.client.Abort()
		p.expectEnd("reset")
		r.told.expect(r, "closed session: abort")
	}},
	{name: "abort before CONNACK", run: func(r *rig) {
		r.open()
		p := r.accept()
		r.client.Abort()
		p.expectEnd("reset")
		r.told.expect(r, "closed connack: abort")
	}},
	{name: "an Open that is aborted at once", run: func(r *rig) {
		r.open()
		r.client.Abort()
		r.told.expect(r, "closed dial: abort")
		r.stale = true // that one's connection may have been made
		p := r.connect()
		r.publish(0, "t", "m", 0)
		p.expectPublish("t", "m", 0, false)
	}},
	{name: "abandon", cfg: Config{Grace: time.Millisecond}, run: func(r *rig) {
		p := r.connect()
		r.client.Abandon()
		r.told.expect(r, "closed session: abandon")
		p.sendPublish("t", "m", 1, 1, false)
		p.silent()
		p2 := r.connect()
		r.publish(0, "t", "m", 0)
		p2.expectPublish("t", "m", 0, false)
		p.expectEnd("reset") // after the grace
		r.told.nothing(r)
	}},
	{name: "the engine ends", run: func(r *rig) {
		p := r.connect()
		r.stop()
		r.told.expect(r, "closed session: end")
		p.expect(mqtt.DISCONNECT)
		p.expectEnd("eof")
		if err := r.engine.Open(r.client, r.ep, &r.con); !errors.Is(err, ErrEnded) {
			r.Errorf("Open: %v", err)
		}
	}},
	{name: "the engine ends with an abandoned connection", run: func(r *rig) {
		p := r.connect()
		r.client.Abandon()
		r.told.expect(r, "closed session: abandon")
		r.stop()
		p.expectEnd("reset")
	}},
	{name: "opened twice", run: func(r *rig) {
		r.connect()
		if err := r.engine.Open(r.client, r.ep, &r.con); !errors.Is(err, ErrOpen) {
			r.Errorf("Open: %v", err)
		}
	}},
	{name: "refused connection", run: func(r *rig) {
		r.ep.Addr = refusing(r)
		r.open()
		r.told.expect(r, "closed dial: refused")
	}},
	{name: "no source address", dial: wire.Config{Sources: addrs("192.0.2.1")}, run: func(r *rig) {
		r.open()
		r.told.expect(r, "closed dial: ports")
	}},
	{name: "a source address", dial: wire.Config{Sources: addrs("127.0.0.7")}, run: func(r *rig) {
		p := r.connect()
		if host, _, _ := net.SplitHostPort(p.RemoteAddr().String()); host != "127.0.0.7" {
			r.Errorf("the client comes from %s", host)
		}
	}},
	{name: "refused by CONNACK", run: func(r *rig) {
		r.open()
		p := r.accept()
		p.send(0x20, 7, 0, 0x9c, 4, 0x1c, 0, 1, 'b')
		r.told.expect(r, "closed connack: refusal 0x9c")
		p.expectEnd("eof")
	}},
	{name: "no CONNACK", cfg: Config{ConnackTimeout: time.Millisecond}, run: func(r *rig) {
		r.open()
		p := r.accept()
		r.told.expect(r, "closed connack: connack-timeout")
		p.Close()
	}},
	{name: "the server closes", run: func(r *rig) {
		r.connect().Close()
		r.told.expect(r, "closed session: closed")
	}},
	{name: "the server resets", run: func(r *rig) {
		p := r.connect()
		reset(p.Conn)
		r.told.expect(r, "closed session: reset")
	}},
	{name: "the server disconnects", run: func(r *rig) {
		p := r.connect()
		p.send(0xe0, 2, 0x8e, 0)
		r.told.expect(r, "closed session: disconnected 0x8e")
		p.expectEnd("eof")
	}},
	{name: "the server disconnects, in MQTT 3", run: func(r *rig) {
		r.con.Version = mqtt.V311
		r.connect().send(0xe0, 2, 0x8e, 0)
		r.told.expect(r, "closed session: disconnected 0x8e")
	}},
	{name: "a last message, and the end", run: func(r *rig) {
		p := r.connect()
		p.sendPublish("t", "last", 0, 0, false)
		p.Close()
		r.told.expect(r, "publish t last 0", "closed session: closed")
	}},
	{name: "not MQTT", run: func(r *rig) {
		r.open()
		p := r.accept()
		p.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")...)
		r.told.expect(r, "closed connack: malformed")
		p.Close()
	}},
	{name: "a packet that has no place", run: func(r *rig) {
		p := r.connect()
		p.send(0xc0, 0)
		r.told.expect(r, "closed session: protocol")
		p.Close()
	}},
	{name: "a packet that is too large", cfg: Config{MaxPacket: 100}, run: func(r *rig) {
		p := r.connect()
		p.send(0x30, 0xff, 0xff, 0xff, 0x7f)
		r.told.expect(r, "closed session: too-large")
		p.Close()
	}},
	{name: "keep-alive", run: func(r *rig) {
		r.con.KeepAlive = 1
		p := r.connect()
		for range 3 {
			p.expect(mqtt.PINGREQ)
			p.send(0xd0, 0)
		}
	}},
	{name: "keep-alive of the server", run: func(r *rig) {
		r.con.KeepAlive = 1000
		p := r.connect(0x20, 6, 0, 0, 3, 0x13, 0, 1)
		p.expect(mqtt.PINGREQ)
	}},
	{name: "no PINGRESP", cfg: Config{PingTimeout: time.Millisecond}, run: func(r *rig) {
		r.con.KeepAlive = 1
		p := r.connect()
		p.expect(mqtt.PINGREQ)
		r.told.expect(r, "closed session: keepalive")
		p.Close()
	}},
	{name: "publish at each QoS", run: func(r *rig) {
		p := r.connect()
		r.publish(1, "t", "zero", 0)
		p.expectPublish("t", "zero", 0, false)
		r.publish(2, "t", "one", 1)
		p.sendAck(mqtt.PUBACK, p.expectPublish("t", "one", 1, false), 0x10)
		r.told.expect(r, "acked 2 0x10")
		r.publish(3, "t", "two", 2)
		id := p.expectPublish("t", "two", 2, false)
		p.sendAck(mqtt.PUBREC, id, 0)
		p.expectAck(mqtt.PUBREL, id, 0)
		p.sendAck(mqtt.PUBCOMP, id, 0)
		r.told.expect(r, "acked 3 0x00")
		r.publish(4, "t", "refused", 2)
		p.sendAck(mqtt.PUBREC, p.expectPublish("t", "refused", 2, false), 0x87)
		r.told.expect(r, "acked 4 0x87")
		if n := r.client.Inflight(); n != 0 {
			r.Errorf("%d in flight", n)
		}
	}},
	{name: "acknowledgements out of order", run: func(r *rig) {
		p := r.connect()
		var ids []uint16
		for i := range 5 {
			r.publish(uint64(i), "t", "m", 1)
			ids = append(ids, p.expectPublish("t", "m", 1, false))
		}
		for _, i := range []int{2, 1, 4, 0, 3} {
			p.sendAck(mqtt.PUBACK, ids[i], 0)
		}
		r.told.expect(r, "acked 2 0x00", "acked 1 0x00", "acked 4 0x00", "acked 0 0x00", "acked 3 0x00")
	}},
	{name: "acknowledgements that nobody waits for", run: func(r *rig) {
		p := r.connect()
		p.sendAck(mqtt.PUBACK, 7, 0)
		p.sendAck(mqtt.PUBCOMP, 7, 0)
		p.sendAck(mqtt.PUBREC, 7, 0)
		p.expectAck(mqtt.PUBREL, 7, 0x92)
		p.sendAck(mqtt.PUBREL, 8, 0)
		p.expectAck(mqtt.PUBCOMP, 8, 0x92)
		r.told.nothing(r)
	}},
	{name: "receive at each QoS", run: func(r *rig) {
		p := r.connect()
		p.sendPublish("t", "zero", 0, 0, false)
		r.told.expect(r, "publish t zero 0")
		p.sendPublish("t", "one", 1, 5, false)
		p.expectAck(mqtt.PUBACK, 5, 0)
		r.told.expect(r, "publish t one 1")
		p.sendPublish("t", "two", 2, 6, false)
		p.expectAck(mqtt.PUBREC, 6, 0)
		r.told.expect(r, "publish t two 2")
		p.sendPublish("t", "two", 2, 6, true)
		p.expectAck(mqtt.PUBREC, 6, 0)
		p.sendAck(mqtt.PUBREL, 6, 0)
		p.expectAck(mqtt.PUBCOMP, 6, 0)
		p.sendPublish("t", "new life", 2, 6, false)
		p.expectAck(mqtt.PUBREC, 6, 0)
		r.told.expect(r, "publish t new life 2") // and not the DUP
	}},
	{name: "subscribe", run: func(r *rig) {
		p := r.connect()
		if err := r.client.Subscribe(9, "a/#", 2); err != nil {
			r.Fatal(err)
		}
		if got := p.expect(mqtt.SUBSCRIBE).Raw; !bytes.Equal(got, []byte{0x82, 9, 0, 1, 0, 0, 3, 'a', '/', '#', 2}) {
			r.Errorf("SUBSCRIBE %x", got)
		}
		p.send(0x90, 4, 0, 1, 0, 1)
		r.told.expect(r, "acked 9 0x01")
		if err := r.client.Unsubscribe(10, "a/#"); err != nil {
			r.Fatal(err)
		}
		p.expect(mqtt.UNSUBSCRIBE)
		p.send(0xb0, 4, 0, 2, 0, 0x11)
		r.told.expect(r, "acked 10 0x11")
	}},
	{name: "subscribe without an answer", run: func(r *rig) {
		p := r.connect()
		if err := r.client.Subscribe(9, "a", 0); err != nil {
			r.Fatal(err)
		}
		p.expect(mqtt.SUBSCRIBE)
		p.Close()
		r.told.expect(r, "acked 9 0xff", "closed session: closed")
	}},
	{name: "the Receive Maximum", run: func(r *rig) {
		p := r.connect(0x20, 6, 0, 0, 3, 0x21, 0, 2)
		r.publish(1, "t", "a", 1)
		r.publish(2, "t", "b", 2)
		if err := r.client.Publish(3, []byte("t"), nil, 1, false); !errors.Is(err, ErrInflight) {
			r.Errorf("the third: %v", err)
		}
		r.publish(0, "t", "c", 0)
		p.sendAck(mqtt.PUBACK, p.expectPublish("t", "a", 1, false), 0)
		r.told.expect(r, "acked 1 0x00")
		r.publish(4, "t", "d", 1)
	}},
	{name: "the server's limits", run: func(r *rig) {
		r.connect(0x20, 10, 0, 0, 7, 0x24, 1, 0x27, 0, 0, 0, 30)
		if err := r.client.Publish(1, []byte("t"), nil, 2, false); !errors.Is(err, ErrQoS) {
			r.Errorf("QoS 2: %v", err)
		}
		if err := r.client.Publish(1, []byte("t"), make([]byte, 40), 0, false); !errors.Is(err, ErrTooLarge) {
			r.Errorf("40 bytes: %v", err)
		}
	}},
	{name: "in flight over a reconnect", run: func(r *rig) {
		r.con.Clean, r.con.Expiry = false, 100
		p := r.connect()
		r.publish(1, "t", "one", 1)
		r.publish(2, "t", "two", 2)
		r.publish(3, "t", "released", 2)
		one, two := p.expectPublish("t", "one", 1, false), p.expectPublish("t", "two", 2, false)
		released := p.expectPublish("t", "released", 2, false)
		p.sendAck(mqtt.PUBREC, released, 0)
		p.expectAck(mqtt.PUBREL, released, 0)
		p.sendPublish("t", "in", 2, 77, false)
		p.expectAck(mqtt.PUBREC, 77, 0)
		p.Close()
		r.told.expect(r, "publish t in 2", "closed session: closed")
		if err := r.client.Publish(4, []byte("t"), nil, 1, false); !errors.Is(err, ErrNotConnected) {
			r.Errorf("Publish without a connection: %v", err)
		}

		p = r.resume()
		if id := p.expectPublish("t", "one", 1, true); id != one {
			r.Errorf("packet ID %d, was %d", id, one)
		}
		if id := p.expectPublish("t", "two", 2, true); id != two {
			r.Errorf("packet ID %d, was %d", id, two)
		}
		p.expectAck(mqtt.PUBREL, released, 0)
		p.sendPublish("t", "in", 2, 77, true)
		p.expectAck(mqtt.PUBREC, 77, 0)
		p.sendAck(mqtt.PUBACK, one, 0)
		p.sendAck(mqtt.PUBCOMP, released, 0)
		r.told.expect(r, "acked 1 0x00", "acked 3 0x00")
		p.Close()
		r.told.expect(r, "closed session: closed")

		p = r.resume()
		p.expectPublish("t", "two", 2, true)
	}},
	{name: "in flight over a reconnect, within a smaller Receive Maximum", run: func(r *rig) {
		r.con.Clean, r.con.Expiry = false, 100
		r.connect().Close()
		r.told.expect(r, "closed session: closed")
		p := r.resume()
		for i, m := range []string{"a", "b", "c"} {
			r.publish(uint64(i), "t", m, 1)
			p.expectPublish("t", m, 1, false)
		}
		p.Close()
		r.told.expect(r, "closed session: closed")
		p = r.connect(0x20, 6, 1, 0, 3, 0x21, 0, 1)
		a := p.expectPublish("t", "a", 1, true)
		if err := r.client.Publish(9, []byte("t"), nil, 1, false); !errors.Is(err, ErrInflight) {
			r.Errorf("a new one overtakes: %v", err)
		}
		p.sendAck(mqtt.PUBACK, a, 0)
		b := p.expectPublish("t", "b", 1, true)
		p.sendAck(mqtt.PUBACK, b, 0)
		p.expectPublish("t", "c", 1, true)
		r.told.expect(r, "acked 0 0x00", "acked 1 0x00")
	}},
	{name: "the session is gone", run: func(r *rig) {
		p := r.connect()
		r.publish(1, "t", "one", 1)
		p.expectPublish("t", "one", 1, false)
		p.Close()
		r.told.expect(r, "closed session: closed")
		r.open()
		p = r.accept()
		p.send(0x20, 3, 0, 0, 0)
		r.told.expect(r, "acked 1 0xff", "connack false")
		r.publish(2, "t", "next", 1)
		p.expectPublish("t", "next", 1, false)
	}},
	{name: "the session is gone, sent again", run: func(r *rig) {
		r.client.Resend = true
		p := r.connect()
		r.publish(1, "t", "one", 1)
		p.expectPublish("t", "one", 1, false)
		p.Close()
		r.told.expect(r, "closed session: closed")
		p = r.connect()
		p.sendAck(mqtt.PUBACK, p.expectPublish("t", "one", 1, false), 0)
		r.told.expect(r, "acked 1 0x00")
	}},
	{name: "a full queue", cfg: Config{Queue: 64 << 10}, run: func(r *rig) {
		p := r.connect()
		sent, payload := 0, make([]byte, 32<<10)
		for {
			err := r.client.Publish(0, []byte("t"), payload, 0, false)
			if errors.Is(err, ErrQueueFull) {
				break
			}
			if err != nil {
				r.Fatal(err)
			}
			if sent++; sent > 10_000 {
				r.Fatal("the queue is never full")
			}
		}
		for range sent {
			p.expectPublish("t", string(payload), 0, false)
		}
		r.publish(0, "t", "after", 0)
		p.expectPublish("t", "after", 0, false)
	}},
	{name: "a server that does not read is not read", run: func(r *rig) {
		told := &meter{}
		r.client.Handler = told
		r.open()
		p := r.accept()
		p.send(0x20, 3, 0, 0, 0)
		var batch []byte
		for i := range 8000 {
			batch = mqtt.AppendPublish(batch, mqtt.V5, &mqtt.Publish{Topic: []byte("t"), QoS: 1, ID: uint16(i + 1)})
		}
		queued := func() int {
			r.client.mu.Lock()
			defer r.client.mu.Unlock()
			if r.client.out == nil {
				return 0
			}
			return len(r.client.out.b)
		}
		sent := 0 // bytes of batches, until all buffers between here and the client are full
		for end := time.Now().Add(2 * patience); ; {
			if err := p.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				r.Fatal(err)
			}
			n, err := p.Write(batch[sent%len(batch):])
			sent += n
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if n == 0 && queued() > stopReading || r.ep.Transport != wire.TCP {
					break
				}
			} else if err != nil {
				r.Fatal(err)
			}
			if time.Now().After(end) {
				r.Fatalf("%d bytes sent, %d queued", sent, queued())
			}
		}
		if n := queued(); n > stopReading+256<<10 {
			r.Errorf("%d bytes are queued", n)
		}
		if r.ep.Transport != wire.TCP {
			return // a TLS connection is of no use after a write that was cut
		}
		written := make(chan error, 1)
		go func() { // the rest, from the message that was cut on, and a mark
			rest := mqtt.AppendAck(bytes.Clone(batch[sent%len(batch):]), mqtt.V5, mqtt.PUBREL, 1, 0)
			err := p.SetWriteDeadline(time.Now().Add(patience))
			if err == nil {
				_, err = p.Write(rest)
			}
			written <- err
		}()
		want, acked := (sent/len(batch)+1)*8000, 0
		for p.must().Kind == mqtt.PUBACK {
			acked++
		}
		if err := <-written; err != nil {
			r.Fatal(err)
		}
		if got := int(told.received.Load()); acked != want || got != want {
			r.Errorf("%d messages sent, %d told, %d acknowledged", want, got, acked)
		}
	}},
	{name: "a PROXY header", dial: wire.Config{Proxy: true}, run: func(r *rig) {
		if r.ep.Transport != wire.TCP {
			return // wire's own tests have it
		}
		r.open()
		c, err := r.ln.Accept()
		if err != nil {
			r.Fatal(err)
		}
		defer c.Close()
		b := make([]byte, 28+1)
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			r.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || string(b[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || b[28] != 0x10 {
			r.Fatalf("%x, %v: want a PROXY v2 header and a CONNECT", b, err)
		}
		from := c.RemoteAddr().(*net.TCPAddr)
		if got := int(b[24])<<8 | int(b[25]); got != from.Port {
			r.Errorf("the header says port %d, the client's is %d", got, from.Port)
		}
	}},
	{name: "MQTT 3.1.1", run: func(r *rig) {
		r.con.Version, r.con.Clean = mqtt.V311, false
		p := r.connect()
		r.publish(1, "t", "m", 1)
		id := p.expectPublish("t", "m", 1, false)
		p.Close()
		r.told.expect(r, "closed session: closed")
		p = r.resume()
		p.expectPublish("t", "m", 1, true)
		p.sendAck(mqtt.PUBACK, id, 0)
		r.told.expect(r, "acked 1 0x00")
		r.client.Disconnect(nil)
		p.expect(mqtt.DISCONNECT)
	}},
	{name: "byte by byte", run: func(r *rig) {
		p := r.connect()
		b := mqtt.AppendPublish(nil, mqtt.V5, &mqtt.Publish{Topic: []byte("t"), Payload: []byte("slow"), QoS: 1, ID: 3})
		for _, one := range b {
			p.send(one)
		}
		r.told.expect(r, "publish t slow 1")
		p.expectAck(mqtt.PUBACK, 3, 0)
	}},
}

func TestScripts(t *testing.T) {
	for _, d := range drivers {
		if d.loops > 0 && !loopsSupported {
			continue
		}
		for _, s := range scripts {
			t.Run(d.name+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				s.run(newRig(t, d, s.cfg, s.dial))
			})
		}
	}
}
