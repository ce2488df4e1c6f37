package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/ws"
)

// Admit is asked who owns a connection that has shaken hands; nil: nobody, it is closed.
type Admit func(o relay.Origin) relay.Owner

// Door lets a relay.Loop accept for a TLS, WS or WSS listener: the loop accepts from RawTCP, and shakes hands step by step, within the
// same bounds as Serve. Use either it or Serve.
func (l *Listener) Door(admit Admit) relay.Door { return &door{l, admit} }

type door struct {
	l     *Listener
	admit Admit
}

var _ relay.Door = (*door)(nil)

// Room implements relay.Door.
func (d *door) Room() (wait time.Duration, ok bool) {
	wait, ok = d.l.queue.room()
	return min(wait, acceptPauseMin), ok // nobody tells a loop of a place that is free
}

// Enough implements relay.Door: a whole TLS record, which the ClientHello is as a rule, or all of an HTTP request.
func (d *door) Enough(head []byte) bool {
	if d.l.cfg.Transport == WS {
		return bytes.Contains(head, []byte("\r\n\r\n")) || len(head) >= maxUpgrade || len(head) > 0 && checkMethod(head) != nil
	}
	if len(head) == 0 {
		return false
	}
	const handshake = 22 // RFC 8446 §5.1; all else is for those who judge it
	return head[0] != handshake || len(head) >= 5 && len(head) >= 5+int(binary.BigEndian.Uint16(head[3:]))
}

// Come implements relay.Door.
func (d *door) Come(conn relay.Newcomer, accepted time.Time) func(context.Context) (relay.Owner, []relay.Layer, []byte) {
	l := d.l
	place := l.queue.enter(accepted, func() { _ = conn.Close() })
	return func(ctx context.Context) (relay.Owner, []relay.Layer, []byte) {
		o := l.origin(conn)
		deadline := accepted.Add(l.cfg.handshakeTimeout())
		_ = conn.SetDeadline(deadline) // a connection that is cut says so when it is read
		layers, rest, err := l.wrap(conn, &o, deadline)
		if evicted := l.queue.leave(place); evicted || err != nil || ctx.Err() != nil {
			l.reject(o, err, ctx.Err() != nil, evicted)
			return nil, layers, nil
		}
		conn.MakeRoom()
		return d.admit(o), layers, rest
	}
}

// wrap does all that precedes the first MQTT byte, and completes o. Layers that it made hold secrets, also where it fails then.
func (l *Listener) wrap(conn net.Conn, o *relay.Origin, deadline time.Time) (layers []relay.Layer, rest []byte, err error) {
	head, err := l.head(conn, o)
	if err != nil {
		return nil, nil, err
	}
	frames := ws.New(ws.Server)
	if l.cfg.Transport == WS {
		if err := l.cfg.WebSocket.accept(head, deadline); err != nil {
			return nil, nil, err
		}
		if len(head.rest) > 0 {
			return nil, nil, failed(ReasonWSUpgrade, errPipelined)
		}
		return []relay.Layer{&frames}, nil, nil
	}
	h, err := l.certs.server.Handshake(context.Background(), head) // a context would cost a goroutine; the deadline, and Close, do as well
	if err != nil {
		return nil, nil, failed(ReasonTLSHandshake, fmt.Errorf("listen: TLS handshake: %w", err))
	}
	acknowledge(conn)
	o.TLS = tlsOrigin(h.State)
	h.State = tls.ConnectionState{}
	layers = []relay.Layer{h.Layer()}
	if l.cfg.Transport == TLS {
		return layers, h.Rest, nil
	}
	through := h.Through(head)
	if err := l.cfg.WebSocket.accept(through, deadline); err != nil {
		return layers, nil, err
	}
	early, rest, err := through.Left()
	if len(early) > 0 || err != nil {
		return layers, nil, failed(ReasonWSUpgrade, errPipelined)
	}
	return append(layers, &frames), rest, nil
}
