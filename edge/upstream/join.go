package upstream

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/registry"
)

// Join is Dial for a loop: it returns the TCP connection itself, after its handshakes and without a deadline, with the layers that go on
// from there. It is for brokers over TLS and WebSocket; over plain TCP there is nothing to shake, and a loop connects by itself.
//
// With brokers that speak TLS 1.2 crypto/tls goes on in any case.
//
// A broker has no word to say in MQTT ahead of the CONNECT (MQTT 3.1.1 §3.2: CONNACK answers it). Over WebSocket one that does so behind
// its answer to the upgrade is refused here; control frames in that place have been answered.
func (d *Dialer) Join(ctx context.Context, b *registry.Broker, header []byte) (relay.Wrapped, error) {
	if b.Over() == registry.TransportTCP {
		return relay.Wrapped{}, fmt.Errorf("%w: broker %s: there are no layers over plain TCP", ErrConfig, b.ID)
	}
	return dial(ctx, d, b, always(header), func(on layers, conn net.Conn) (relay.Wrapped, error) {
		return on.wrap(conn, d.records)
	})
}

// wrap makes layers for a connection: TLS, then WebSocket, where the broker has them.
func (on layers) wrap(conn net.Conn, policy tls13.Policy) (relay.Wrapped, error) {
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
	w.Layers, w.Rest = []relay.Layer{h.Layer()}, h.Rest
	if on.url != nil {
		if err := on.upgradeInside(&w, h.Through(conn)); err != nil {
			if h.Records != nil {
				h.Records.Wipe()
			}
			return w, err
		}
	}
	return w, nil
}

// upgradeInside upgrades through w's TLS layer. A record that holds the end of the answer may go on with frames, and what has been opened
// cannot be given back as a rest: the new layer takes it in. The rest that stays is a piece of the next record.
func (on layers) upgradeInside(w *relay.Wrapped, in *tls13.Through) error {
	early, err := upgrade(in, on.url)
	if err != nil {
		return err
	}
	more, rest, behind := in.Left()
	w.Rest = rest
	if err := join(w, in, append(early, more...)); err != nil {
		return err
	}
	if behind != nil {
		return fmt.Errorf("%w: behind the answer to the upgrade: %w", ErrWebSocket, behind)
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
