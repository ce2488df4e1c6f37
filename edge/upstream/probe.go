package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/registry"
)

// probeKeepAlive is the Keep Alive of a probe's CONNECT, in seconds: the broker forgets a probe that we could not end.
const probeKeepAlive = 30

// ProbeTCP asks whether b accepts connections: it dials, through TLS and the WebSocket upgrade where b has them, and closes.
// Where b wants a PROXY header it gets one, with the connection's own addresses, so that it has nothing to complain of.
// It takes no longer than ctx allows.
func (d *Dialer) ProbeTCP(ctx context.Context, b *registry.Broker) error {
	stream, err := d.dialOwn(ctx, b)
	if err != nil {
		return err
	}
	defer stream.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := stream.SetWriteDeadline(end); err != nil {
			return err
		}
	}
	return stream.CloseWrite() // over plain TCP it is this that sends the header
}

// ProbeMQTT asks whether b speaks MQTT: CONNECT (3.1.1, clean session, that client ID), CONNACK, DISCONNECT. Any CONNACK will do:
// a broker that refuses a client without credentials is alive. Use one client ID for each broker and prober, since brokers keep track of them.
// It takes no longer than ctx allows.
func (d *Dialer) ProbeMQTT(ctx context.Context, b *registry.Broker, clientID string) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, registry.DefaultProbeTimeout)
		defer cancel()
	}
	if len(clientID) == 0 || len(clientID) > 0xffff {
		return fmt.Errorf("%w: a probe's client ID of %d bytes: want 1 to 65535", ErrConfig, len(clientID))
	}
	connect := mqtt.AppendConnect(nil, &mqtt.Connect{
		Version: mqtt.V311, ClientID: []byte(clientID), CleanStart: true, KeepAlive: probeKeepAlive,
	})
	stream, err := d.dialOwn(ctx, b)
	if err != nil {
		return err
	}
	defer stream.Close()
	end, _ := ctx.Deadline()
	if err := errors.Join(stream.SetReadDeadline(end), stream.SetWriteDeadline(end)); err != nil {
		return err
	}
	inTime := context.AfterFunc(ctx, func() { stream.SetReadDeadline(time.Unix(1, 0)) })
	defer inTime()
	accepted, err := greet(stream, connect)
	if err != nil {
		return fmt.Errorf("%w: broker %s: %w", ErrConnack, b.ID, interrupted(ctx, err))
	}
	if accepted {
		stream.Write([]byte{byte(mqtt.DISCONNECT) << 4, 0}) // the broker has shown that it lives, whether it reads this or not
	}
	stream.CloseWrite()
	return nil
}

// greet sends a CONNECT and reads as much of the answer as tells what it is.
func greet(stream io.ReadWriter, connect []byte) (accepted bool, err error) {
	if _, err := stream.Write(connect); err != nil {
		return false, err
	}
	var answer [4]byte
	if _, err := io.ReadFull(stream, answer[:]); err != nil {
		return false, err
	}
	// MQTT 3.1.1 §3.2: a remaining length of 2. A broker that speaks MQTT 5 only may refuse in its own, longer form.
	if answer[0] != byte(mqtt.CONNACK)<<4 || answer[1] < 2 {
		return false, fmt.Errorf("the answer begins with % x", answer)
	}
	return answer[3] == 0, nil
}
