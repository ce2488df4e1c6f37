package upstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/registry"
)

// Join is Dial for a loop: it returns the TCP connection itself, after its handshakes and without a deadline, with the layers that go on
// from there. It is for brokers over TLS and WebSocket; over plain TCP there is nothing to shake, and a loop connects by itself.
//
// Records of our own (DialerConfig.TLSRecords) will keep their ciphers in shared if that is a *tls13.Cache; Join does not touch it.
// With brokers that speak TLS 1.2 crypto/tls goes on.
//
// A broker has no word to say in MQTT ahead of the CONNECT (MQTT 3.1.1 §3.2: CONNACK answers it). Over WebSocket one that does so behind
// its answer to the upgrade is refused here; control frames in that place have been answered.
func (d *Dialer) Join(ctx context.Context, b *registry.Broker, header []byte, shared relay.Shared) (relay.Wrapped, error) {
	if b.Over() == registry.TransportTCP {
		return relay.Wrapped{}, fmt.Errorf("%w: broker %s: there are no layers over plain TCP", ErrConfig, b.ID)
	}
	cache, _ := shared.(*tls13.Cache)
	return dial(ctx, d, b, always(header), func(on layers, conn net.Conn) (relay.Wrapped, error) {
		return on.wrap(conn, d.records, cache)
	})
}

// wrap makes layers for a connection: TLS, then WebSocket, where the broker has them.
func (on layers) wrap(conn net.Conn, policy tls13.Policy, cache *tls13.Cache) (relay.Wrapped, error) {
	w := relay.Wrapped{Conn: tcpOf(conn)}
	if on.tls == nil {
		early, err := upgrade(conn, on.url)
		if err != nil {
			return w, err
		}
		return w, join(&w, conn, early)
	}
	// Without a context: here all handshakes end by conn's deadline, and the context would have conn closed besides.
	h, err := tls13.Client(context.Background(), conn, on.tls, policy)
	if err != nil {
		return w, fmt.Errorf("%w: %w", ErrTLS, err)
	}
	if h.Records == nil {
		w.Layers, w.Rest = []relay.Layer{h.Stdlib}, h.Rest
	} else {
		w.Layers, w.Rest = []relay.Layer{h.Records}, h.Rest
	}
	if on.url != nil {
		if err := on.upgradeInside(&w, conn); err != nil {
			if h.Records != nil {
				h.Records.Wipe()
			}
			return w, err
		}
	}
	if h.Records != nil {
		h.Records.Bind(cache) // from here on it is the loop's
	}
	return w, nil
}

// upgradeInside upgrades through w's TLS layer. A record that holds the end of the answer may go on with frames, and what has been opened
// cannot be given back as a rest: the new layer takes it in. The rest that stays is a piece of the next record.
func (on layers) upgradeInside(w *relay.Wrapped, conn net.Conn) error {
	in := &inside{conn: conn, layer: w.Layers[0]}
	in.open(w.Rest)
	early, err := upgrade(in, on.url)
	if err != nil {
		return err
	}
	early = append(early, in.payload...)
	w.Rest = slices.Clone(in.rest) // and not all of the buffer
	if err := join(w, in, early); err != nil {
		return err
	}
	if in.err != nil {
		return fmt.Errorf("%w: behind the answer to the upgrade: %w", ErrWebSocket, in.err)
	}
	return nil
}

// join adds the WebSocket to w's layers, and has it take in what the broker sent behind its answer to the upgrade.
func join(w *relay.Wrapped, conn io.Writer, early []byte) error {
	frames := ws.New(ws.Client)
	payload, _, err := frames.Open(early)
	if word := frames.Reply(nil); len(word) > 0 {
		if _, failed := conn.Write(word); err == nil {
			err = failed
		}
	}
	switch {
	case len(payload) > 0:
		return fmt.Errorf("%w: the broker sent %d bytes ahead of the CONNECT", ErrWebSocket, len(payload))
	case err != nil:
		return fmt.Errorf("%w: behind the answer to the upgrade: %w", ErrWebSocket, err)
	}
	w.Layers = append(w.Layers, &frames)
	return nil
}

// tcpOf is the TCP connection among those that dial makes.
func tcpOf(conn net.Conn) *net.TCPConn {
	if p, ok := conn.(*prefixed); ok {
		conn = p.Conn
	}
	return conn.(*net.TCPConn)
}

// inside is what a connection carries in its TLS layer, as the upgrade reads and writes it.
type inside struct {
	conn    net.Conn
	layer   relay.Layer
	buf     []byte
	payload []byte // opened, and not read yet
	rest    []byte // a piece of a record, not opened
	err     error  // what comes behind payload
}

// room is how much is read from the socket at once, as a rule the whole answer.
const room = 4 << 10

// Read implements io.Reader. A read that failed may be tried again: nothing is lost.
func (c *inside) Read(p []byte) (int, error) {
	for len(c.payload) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.buf = slices.Grow(append(c.buf[:0], c.rest...), room) // a rest is shorter than a record
		c.rest = c.buf
		n, err := c.conn.Read(c.buf[len(c.buf) : len(c.buf)+room])
		if n > 0 {
			c.open(c.buf[:len(c.buf)+n])
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, c.payload)
	c.payload = c.payload[n:]
	return n, nil
}

// open opens raw, and says what the layer has to say to it, such as an alert.
func (c *inside) open(raw []byte) {
	c.payload, c.rest, c.err = c.layer.Open(raw)
	if word := c.layer.Reply(nil); len(word) > 0 {
		c.conn.Write(word) // an error will come again
	}
}

// Write implements io.Writer.
func (c *inside) Write(p []byte) (int, error) {
	if _, err := c.conn.Write(c.layer.Seal(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
