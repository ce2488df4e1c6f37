package broker

import (
	"fmt"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is where mochi meets the rest. mochi reads and writes packets, checks them, keeps the subscriptions,
// answers, and watches the keep-alive. Messages, retained messages, wills and what is owed to each session are ours.
type hook struct {
	mqtt.HookBase
	b *Broker
}

func (h *hook) ID() string { return "limpet-demo" }

func (h *hook) Provides(method byte) bool {
	switch method {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished,
		mqtt.OnPacketRead, mqtt.OnPacketProcessed, mqtt.OnPacketEncode, mqtt.OnSubscribe, mqtt.OnSubscribed,
		mqtt.OnPublish, mqtt.OnClientExpired:
		return true
	}
	return false
}

// Everybody may do everything: it is a demo, on loopback.
func (h *hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (h *hook) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// discarded stands for a topic that clients may not publish to: such a message is answered and dropped.
const discarded = "$limpet/discarded"

// connOf returns the connection of a client that the listener accepted, as all are.
func connOf(cl *mqtt.Client) *conn { return cl.Net.Conn.(*conn) }

// OnConnect sees a valid CONNECT before mochi looks at the session.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c := connOf(cl)
	h.b.mu.Lock()
	c.client = cl
	h.b.mu.Unlock()
	c.will = willOf(&pk)
	cl.Properties.Will = mqtt.Will{} // ours from here on: mochi's forgets most properties, and delayed ones of ended sessions
	return h.b.enter(c)
}

// OnSessionEstablish: the connection is accepted.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	h.b.cancelWill(cl.ID, pk.Connect.Clean)
}

// OnPacketEncode sees every packet before it is written.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Connack:
		switch {
		case pk.ReasonCode == packets.CodeSuccess.Code:
			h.b.open(connOf(cl), pk.SessionPresent)
			pk.Properties.MaximumPacketSize = maxPacket // [MQTT-3.2.2-15]
		case cl.Properties.ProtocolVersion != 5:
			pk.ReasonCode = returnCode(pk.ReasonCode)
		}
	case packets.Publish:
		pk.Mods.DisallowProblemInfo = false // is about problems; mochi would drop user properties [MQTT-3.3.2-17]
	}
	return pk
}

// OnSessionEstablished: CONNACK is written.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	h.b.establish(c)
	if current, ok := h.b.server.Clients.Get(cl.ID); !ok || current != cl {
		h.b.server.Clients.Add(cl) // mochi's sweep of expired sessions removes by client ID, and may have hit this one
	}
	c.sending.Go(func() { h.b.send(c) })
}

// OnPacketRead sees every packet before mochi processes it.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s := connOf(cl).session
	if s == nil {
		return pk, conforming(&pk)
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if underSys(pk.TopicName) {
			pk.TopicName = discarded // mochi would not even answer
		}
	case packets.Puback:
		s.puback(pk.PacketID)
	case packets.Pubrec:
		if s.pubrec(pk.PacketID, pk.ReasonCode >= packets.ErrUnspecifiedError.Code) {
			lend(cl, pk.PacketID, packets.Publish) // so that mochi answers PUBREL
		}
	case packets.Pubcomp:
		s.pubcomp(pk.PacketID)
	case packets.Disconnect:
		// MQTT 5 §3.14.2.1: mochi skips a reason code that no properties follow. Nobody sends a 0 that way.
		if pk.ProtocolVersion == 5 && pk.FixedHeader.Remaining == 1 {
			pk.ReasonCode = packets.CodeDisconnectWillMessage.Code
		}
	case packets.Pubrel:
		if s.released(pk.PacketID) {
			lend(cl, pk.PacketID, packets.Pubrec) // so that mochi answers PUBCOMP
		}
	}
	return pk, nil
}

// conforming refuses a CONNECT of MQTT 3 that the connection must be closed for without a CONNACK [MQTT-3.1.4-1, -3.1.2-3 in 3.1.1].
// mochi would answer with a code of MQTT 5.
func conforming(connect *packets.Packet) error {
	if connect.ProtocolVersion == 5 {
		return nil
	}
	switch code := connect.ConnectValidate(); code {
	case packets.CodeSuccess, packets.ErrProtocolViolationProtocolVersion, packets.ErrClientIdentifierNotValid: // these have a code
		return nil
	default:
		return fmt.Errorf("%w: %w", packets.ErrRejectPacket, code)
	}
}

// returnCode is what MQTT 3 has for a reason that a CONNECT is refused for (MQTT 3.1.1 §3.2.2.3). Bridges, whose protocol level has
// another bit set, and levels that nobody knows get 1, after which a bridge comes again as a client [MQTT-3.1.2-2].
func returnCode(reason byte) byte {
	switch reason {
	case packets.ErrProtocolViolationProtocolVersion.Code, packets.ErrUnsupportedProtocolVersion.Code:
		return packets.Err3UnsupportedProtocolVersion.Code
	case packets.ErrUnspecifiedError.Code, packets.ErrClientIdentifierNotValid.Code: // no client ID, and a session to keep [MQTT-3.1.3-8]
		return packets.Err3ClientIdentifierNotValid.Code
	}
	if reason < packets.ErrUnspecifiedError.Code {
		return reason
	}
	return packets.Err3ServerUnavailable.Code
}

// lend gives mochi's list of packet IDs in use an entry for the packet that it is about to process. Between
// packets the list is empty.
func lend(cl *mqtt.Client, id uint16, kind byte) {
	cl.State.Inflight.Set(packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: id})
}

// OnPacketProcessed sees every packet after it was processed, with the answer written or failed.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	c := connOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if cl.State.Inflight.Delete(pk.PacketID) && pk.FixedHeader.Qos == 2 {
			c.session.received(pk.PacketID)
		}
	case packets.Pubrec, packets.Pubrel:
		cl.State.Inflight.Delete(pk.PacketID)
	case packets.Subscribe:
		if c.subscribing != nil && err == nil {
			h.b.sendRetained(c)
		}
		c.subscribing = nil
	case packets.Disconnect:
		if err == nil && pk.ReasonCode == packets.CodeSuccess.Code {
			c.will = nil // [MQTT-3.14.4-3]
		}
	}
}

// OnSubscribe keeps mochi from sending retained messages, which it does not have.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	s := &subscribing{filters: pk.Filters, existed: make([]bool, len(pk.Filters))}
	altered := make(packets.Subscriptions, len(pk.Filters))
	for i, sub := range pk.Filters {
		_, s.existed[i] = cl.State.Subscriptions.Get(sub.Filter)
		sub.RetainHandling = 2 // do not send
		altered[i] = sub
	}
	pk.Filters = altered
	connOf(cl).subscribing = s
	return pk
}

func (h *hook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	connOf(cl).subscribing.codes = codes
}

// OnPublish publishes a client's message. mochi answers when it returns, and does nothing else.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	switch {
	case pk.TopicName == discarded || !publishable(pk.TopicName):
	case pk.FixedHeader.Qos == 2 && c.session.holds(pk.PacketID): // published when it first came [MQTT-4.3.3-10]
	default:
		peers := h.b.publish(messageOf(&pk))
		if pk.FixedHeader.Qos > 0 {
			h.b.awaitPeers(peers)
		}
	}
	return pk, packets.CodeSuccessIgnore
}

// OnClientExpired: the session of a client that is away is over. mochi removes its own part of it.
func (h *hook) OnClientExpired(cl *mqtt.Client) {
	guard := &conn{kicked: true, released: make(chan struct{})} // a new connection waits for this
	h.b.mu.Lock()
	busy := h.b.owners[cl.ID] != nil
	if !busy {
		h.b.owners[cl.ID] = guard
	}
	h.b.mu.Unlock()
	if !busy {
		h.b.forget(cl)
		h.b.release(cl.ID, guard)
	}
}
