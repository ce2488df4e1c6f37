package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// conn is one client's connection, from accept to its end. mochi serves it; what mochi's hooks need to know
// about it is here.
type conn struct {
	net.Conn
	closing  chan struct{} // closed by kick: the connection will end
	ended    chan struct{} // closed when mochi has let go of the connection
	released chan struct{} // closed when its client ID is free for another
	sending  sync.WaitGroup

	mu     sync.Mutex
	kicked bool

	// Owned by mochi's goroutine for this connection.
	will        *will        // nil: none, or discarded
	subscribing *subscribing // the SUBSCRIBE being processed

	// Written by that goroutine alone, under Broker.mu.
	client      *mqtt.Client // from CONNECT on
	session     *session     // from CONNACK on
	established bool
}

// subscribing is a SUBSCRIBE whose retained messages are still to be sent.
type subscribing struct {
	filters packets.Subscriptions
	existed []bool
	codes   []byte
}

// SetDeadline is how mochi enforces the keep-alive, in whole seconds of 16 bits: a Keep Alive of 1 s would be enforced after 1 s
// already, one of 12 h after 3 h. It must not lengthen the time that a kicked client has.
func (c *conn) SetDeadline(t time.Time) error {
	if c.client != nil && !t.IsZero() {
		t = time.Now().Add(time.Duration(c.client.State.Keepalive) * time.Second * 3 / 2) // [MQTT-3.1.2-24], 5: [MQTT-3.1.2-22]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kicked {
		return nil
	}
	return c.Conn.SetDeadline(t)
}

// kick ends the connection, telling a MQTT 5 client why; also one whose client reads nothing, in kickGrace.
func (b *Broker) kick(c *conn, reason packets.Code) {
	c.mu.Lock()
	first := !c.kicked
	if first {
		c.kicked = true
		close(c.closing)
		_ = c.Conn.SetDeadline(time.Now().Add(kickGrace)) // fails on a closed connection only
	}
	c.mu.Unlock()
	if !first {
		return
	}
	b.mu.Lock()
	client, established := c.client, c.established
	b.mu.Unlock()
	switch {
	case client == nil:
		c.Close()
	case established && client.Properties.ProtocolVersion == 5:
		_ = b.server.DisconnectClient(client, reason) // returns reason
	default: // MQTT 3 has no DISCONNECT from the server; before CONNACK MQTT 5 has none either
		client.Stop(reason)
	}
}

// enter makes c the only connection of its client ID: it ends the one there is and waits until nothing of it is
// left. mochi does neither under a lock, so that two CONNECTs at once can both stay [MQTT-3.1.4-3], and
// the end of an old connection can take the state of a new one with it.
func (b *Broker) enter(c *conn) error {
	id := c.client.ID
	timeout := time.NewTimer(takeoverTimeout)
	defer timeout.Stop()
	for {
		b.mu.Lock()
		old := b.owners[id]
		if old == nil {
			b.owners[id] = c
		}
		b.mu.Unlock()
		if old == nil {
			return nil
		}
		b.kick(old, packets.ErrSessionTakenOver)
		select {
		case <-old.released:
		case <-c.closing:
			return net.ErrClosed
		case <-timeout.C:
			return fmt.Errorf("broker: the old connection of %q does not end", id)
		}
	}
}

// listener feeds mochi, and learns what mochi's own listeners do not: when a connection is over.
type listener struct {
	b *Broker
	net.Listener
	served chan struct{}
}

var _ listeners.Listener = (*listener)(nil)

func (l *listener) ID() string              { return l.b.config.Name }
func (l *listener) Address() string         { return l.Addr().String() }
func (l *listener) Protocol() string        { return l.Addr().Network() }
func (l *listener) Init(*slog.Logger) error { return nil }

// Close is for mochi; by then Broker.Close has ended the connections.
func (l *listener) Close(listeners.CloseFn) { _ = l.Listener.Close() }

// Serve accepts until the listener closes.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer close(l.served)
	for {
		raw, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.b.log.Warn().Err(err).Msg("accept a client")
			if !l.b.pause(backoffMin) {
				return
			}
			continue
		}
		c := &conn{
			Conn:    raw,
			closing: make(chan struct{}), ended: make(chan struct{}), released: make(chan struct{}),
		}
		if !l.b.track(c) {
			raw.Close()
			return
		}
		l.b.clients.Go(func() {
			defer l.b.untrack(c)
			// Bounds the wait for CONNECT, which mochi does not; CONNECT's keep-alive replaces it.
			_ = raw.SetDeadline(time.Now().Add(connectTimeout))
			err := establish(l.ID(), c)
			l.b.finish(c)
			l.b.log.Debug().Err(err).Stringer("remote", raw.RemoteAddr()).Msg("client connection closed")
		})
	}
}

// finish cleans up after a connection that mochi has let go of, then frees its client ID.
func (b *Broker) finish(c *conn) {
	close(c.ended)
	c.sending.Wait()
	c.Close()
	if c.client == nil {
		return
	}
	if c.session != nil {
		b.endSession(c)
	}
	b.release(c.client.ID, c)
}

// release frees a client ID, if it was c's.
func (b *Broker) release(id string, c *conn) {
	b.mu.Lock()
	if b.owners[id] == c {
		delete(b.owners, id)
	}
	b.mu.Unlock()
	close(c.released)
}

// endSession takes the connection from its session, publishes the will if it is due, and ends the session if it
// ends with its connection.
func (b *Broker) endSession(c *conn) {
	c.session.detach()
	version, expiry := c.client.Properties.ProtocolVersion, c.client.Properties.Props.SessionExpiryInterval
	over := version == 5 && expiry == 0 || version < 5 && c.client.Properties.Clean // [MQTT-3.1.2-23], 3.1.1 §3.1.2.4
	if c.will != nil {
		delay := min(c.will.delay, seconds(expiry))
		if over {
			delay = 0
		}
		b.publishWill(c.client.ID, c.will, delay)
	}
	if over {
		b.forget(c.client)
	} else {
		b.reportSession(c.session)
	}
}

// forget ends a session, in mochi too, which leaves subscriptions behind where a session expires, and the whole
// session where CONNACK could not be written.
func (b *Broker) forget(client *mqtt.Client) {
	if current, ok := b.server.Clients.Get(client.ID); ok && current == client {
		b.server.UnsubscribeClient(client)
		b.server.Clients.Delete(client.ID)
	}
	b.mu.Lock()
	delete(b.sessions, client.ID)
	b.mu.Unlock()
	b.sys(sessionTopic(client.ID), nil)
}

// send writes what the session owes to the connection, until that ends.
func (b *Broker) send(c *conn) {
	for {
		pk, ok := c.session.take(time.Now())
		if !ok {
			select {
			case <-c.session.wake:
				continue
			case <-c.ended:
				return
			}
		}
		switch err := c.client.WritePacket(pk); {
		case err == nil:
		case errors.Is(err, packets.ErrPacketTooLarge):
			c.session.abandon(pk.PacketID)
		default:
			c.client.Stop(err)
			return
		}
	}
}
