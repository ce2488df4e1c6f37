package relay

import "github.com/limpet-mesh/limpet/edge/mqtt"

// Reason is why a session ended: one of a closed set, counted, logged and shown.
type Reason uint8

const (
	ReasonNone             Reason = iota
	ReasonClientDisconnect        // the client sent DISCONNECT
	ReasonClientClosed            // the client's connection ended without DISCONNECT
	ReasonBrokerClosed            // the broker ended the connection
	ReasonBrokerRefused           // the broker's CONNACK was no success
	ReasonConnectTimeout          // no whole CONNECT in time
	ReasonNotConnect              // the first packet is something else
	ReasonMalformed               // the CONNECT is malformed
	ReasonTooLarge                // the CONNECT is above the bound
	ReasonVersion                 // protocol name or level unknown
	ReasonClientID                // a client ID that MQTT forbids
	ReasonProxyUntrusted          // a PROXY header from an address that may not send one
	ReasonProxyMalformed          // a trusted address sent no PROXY header, or a broken one
	ReasonNoBroker                // nobody may serve the key
	ReasonAwaitHome               // the key's broker is away, and its session with it
	ReasonDialFailed              // no broker could be reached
	ReasonConnackTimeout          // the broker did not answer the CONNECT in time
	ReasonBrokerProtocol          // the broker's first packet was no CONNACK
	ReasonKeepAlive               // the client was silent for longer than it said it would be
	ReasonBrokerTimeout           // the broker was silent, though the client had sent PINGREQ
	ReasonBrokerDown              // the mesh judged the broker down
	ReasonMoved                   // the key belongs to another broker now
	ReasonTwin                    // a newer connection of the same client has a session at another broker
	ReasonShutdown                // this edge ends
	ReasonOverload                // a limit of this edge is reached
	ReasonTransport               // the transport's own rules were broken (WebSocket, TLS, QUIC)
	ReasonInternal                // a fault of ours
	numReasons
)

// Reasons lists the whole set.
func Reasons() []Reason {
	all := make([]Reason, 0, numReasons-1)
	for r := ReasonNone + 1; r < numReasons; r++ {
		all = append(all, r)
	}
	return all
}

var reasonNames = [numReasons]string{
	ReasonNone:             "none",
	ReasonClientDisconnect: "client_disconnect",
	ReasonClientClosed:     "client_closed",
	ReasonBrokerClosed:     "broker_closed",
	ReasonBrokerRefused:    "broker_refused",
	ReasonConnectTimeout:   "connect_timeout",
	ReasonNotConnect:       "not_connect",
	ReasonMalformed:        "malformed",
	ReasonTooLarge:         "too_large",
	ReasonVersion:          "unknown_version",
	ReasonClientID:         "bad_client_id",
	ReasonProxyUntrusted:   "proxy_untrusted",
	ReasonProxyMalformed:   "proxy_malformed",
	ReasonNoBroker:         "no_broker",
	ReasonAwaitHome:        "await_home",
	ReasonDialFailed:       "dial_failed",
	ReasonConnackTimeout:   "connack_timeout",
	ReasonBrokerProtocol:   "broker_protocol",
	ReasonKeepAlive:        "keep_alive",
	ReasonBrokerTimeout:    "broker_timeout",
	ReasonBrokerDown:       "broker_down",
	ReasonMoved:            "moved",
	ReasonTwin:             "twin",
	ReasonShutdown:         "shutdown",
	ReasonOverload:         "overload",
	ReasonTransport:        "transport",
	ReasonInternal:         "internal",
}

// String is the reason's name in logs and metrics.
func (r Reason) String() string {
	if r < numReasons {
		return reasonNames[r]
	}
	return "invalid"
}

// disconnectCode is what an MQTT 5 client is told in a DISCONNECT when we end its session [MQTT5 §3.14.2.1].
func (r Reason) disconnectCode() byte {
	switch r {
	case ReasonMoved:
		return mqtt.UseAnotherServer
	case ReasonTwin:
		return mqtt.SessionTakenOver
	case ReasonKeepAlive:
		return mqtt.KeepAliveTimeout
	case ReasonOverload:
		return mqtt.ServerBusy
	default:
		return mqtt.ServerShuttingDown
	}
}

// connackCode is the same for a client that has not had its CONNACK yet [MQTT5 §3.2.2.2].
func (r Reason) connackCode() byte {
	switch r {
	case ReasonMoved:
		return mqtt.UseAnotherServer
	case ReasonOverload:
		return mqtt.ServerBusy
	default:
		return mqtt.ServerUnavailable
	}
}
