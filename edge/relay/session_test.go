package relay

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
)

// Packets of the scripts.
var (
	connect311 = mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V311, ClientID: []byte("dev"), CleanStart: true, KeepAlive: 60})
	connect5   = mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V5, ClientID: []byte("dev"), KeepAlive: 60, HasSessionExpiry: true, SessionExpiry: 3600})
	connack311 = []byte{0x20, 2, 0, 0}
	connack5   = []byte{0x20, 3, 1, 0, 0}
	refused311 = []byte{0x20, 2, 0, 5}
	assigned5  = append([]byte{0x20, 10, 0, 0, 7, 0x12, 0, 4}, "auto"...)
	auth5      = []byte{0xf0, 2, 0x18, 0}
	publish    = append([]byte{0x30, 7, 0, 1, 't'}, "data"...)
	bigPublish = append([]byte{0x30, 0x83, 0xc8, 0x01, 0, 1, 't'}, bytes.Repeat([]byte("x"), 25_600)...)
	ping       = []byte{0xc0, 0}
	pong       = []byte{0xd0, 0}
	goodbye    = []byte{0xe0, 0}
	goodbye5   = []byte{0xe0, 7, 4, 5, 0x11, 0, 0, 1, 0}
)

// established is a session up to its CONNACK.
var established = []step{
	client(connect311), told("route dev 0 cause 0"), brokerGets(prelude, connect311), broker(connack311), clientGets(connack311), told("accepted false "),
}

var established5 = []step{
	client(connect5), told("route dev 0 cause 0"), brokerGets(prelude, connect5), broker(connack5), clientGets(connack5), told("accepted true "),
}

func then(first []step, more ...step) []step { return append(append([]step{}, first...), more...) }

var scripts = []struct {
	name     string
	answers  []answer
	limits   Limits
	preamble bool
	half     bool // one direction goes on after the other has ended, which WebSocket does not have
	steps    []step
}{
	{name: "a life", steps: then(
		established,
		client(ping), brokerGets(ping), broker(pong), clientGets(pong),
		client(publish, publish), brokerGets(publish, publish), broker(bigPublish), clientGets(bigPublish),
		client(goodbye), brokerGets(goodbye), told("goodbye 0 false 0"), clientFIN, brokerEnds, brokerFIN, clientEnds, told("closed client_disconnect"),
	)},
	{name: "an MQTT 5 goodbye with an expiry", steps: then(
		established5,
		client(goodbye5), brokerGets(goodbye5), told("goodbye 4 true 256"), clientFIN, brokerEnds, brokerFIN, told("closed client_disconnect"),
	)},
	{name: "pipelined behind CONNECT", steps: []step{
		client(connect311, publish, ping), brokerGets(prelude, connect311, publish, ping),
		broker(connack311, publish), clientGets(connack311, publish), told("accepted false "),
		client(publish), brokerGets(publish), clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "CONNECT in pieces", steps: []step{
		client(connect311[:1]), client(connect311[1:5]), client(connect311[5:]), brokerGets(prelude, connect311),
		broker(connack311[:2]), broker(connack311[2:]), clientGets(connack311), told("accepted false "),
		clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "a whole life at once", half: true, steps: []step{
		client(connect311, publish, goodbye), clientFIN,
		brokerGets(prelude, connect311, publish, goodbye), brokerEnds, told("goodbye 0 false 0"),
		broker(connack311), clientGets(connack311), told("accepted false "), brokerFIN, clientEnds, told("closed client_disconnect"),
	}},
	{name: "AUTH before CONNACK", steps: []step{
		client(connect5), brokerGets(prelude, connect5), broker(auth5), clientGets(auth5), client(auth5), brokerGets(auth5),
		broker(auth5, connack5), clientGets(auth5, connack5), told("accepted true "), brokerFIN, clientEnds, clientFIN, told("closed broker_closed"),
	}},
	{name: "an assigned client ID", steps: []step{
		client(connect5), brokerGets(prelude, connect5), broker(assigned5), clientGets(assigned5), told("accepted false auto"),
		clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "the broker refuses", steps: []step{
		client(connect311), brokerGets(prelude, connect311), broker(refused311), clientGets(refused311), neverTold("accepted false "),
		brokerFIN, clientEnds, clientFIN, told("closed broker_refused"),
	}},
	{name: "the broker's last words arrive after its FIN", half: true, steps: then(
		established,
		clientFIN, brokerEnds, broker(bigPublish), brokerFIN, clientGets(bigPublish), clientEnds, told("closed client_closed"),
	)},
	{name: "a goodbye in pieces", steps: then(
		established5,
		client(goodbye5[:1]), client(goodbye5[1:4]), client(goodbye5[4:]), brokerGets(goodbye5), told("goodbye 4 true 256"),
		clientFIN, brokerEnds, brokerFIN, told("closed client_disconnect"),
	)},
	{name: "more behind a goodbye", steps: then(
		established5,
		client(goodbye5, publish), brokerGets(goodbye5, publish), told("goodbye 4 true 256"),
		clientFIN, brokerEnds, brokerFIN, told("closed client_disconnect"),
	)},
	{name: "no MQTT behind a goodbye", steps: then(
		established5,
		client(goodbye5, []byte{0, 0}), brokerGets(goodbye5, []byte{0, 0}), told("goodbye 4 true 256"),
		clientFIN, brokerEnds, brokerFIN, told("closed client_disconnect"),
	)},
	{name: "a goodbye behind a goodbye", steps: then(
		established5,
		client(goodbye5, goodbye), brokerGets(goodbye5, goodbye), told("goodbye 4 true 256"), neverTold("goodbye 0 false 0"),
		clientFIN, brokerEnds, brokerFIN, told("closed client_disconnect"),
	)},
	{name: "half close by the broker", half: true, steps: then(
		established,
		brokerFIN, clientEnds, client(publish), brokerGets(publish), clientFIN, told("closed broker_closed"),
	)},
	{name: "the client is reset", steps: then(established, clientAbort, brokerEnds, brokerFIN, told("closed client_closed"))},
	{name: "the broker is reset", steps: then(established, brokerAbort, clientEnds, clientFIN, told("closed broker_closed"))},

	{name: "the client is reset after its half close", half: true, steps: then(
		established,
		client(publish, goodbye), clientFIN, brokerGets(publish, goodbye), brokerEnds, told("goodbye 0 false 0"), clientAbort, neverTold("closed client_disconnect"),
		brokerFIN, told("closed client_disconnect"),
	)},

	{name: "first choice cannot be dialed, and the client has said all", half: true, answers: []answer{toNowhere, toBroker}, steps: []step{
		client(connect311, publish, goodbye), clientFIN, told("route dev 1 cause 1"), brokerGets(prelude, connect311, publish, goodbye), brokerEnds,
		told("goodbye 0 false 0"), broker(connack311), clientGets(connack311), brokerFIN, clientEnds, told("closed client_disconnect"),
	}},
	{name: "an owner that names the dead for ever", answers: slices.Repeat([]answer{toNowhere}, 2*maxAttempts), steps: []step{
		client(connect311), clientGets([]byte{0x20, 2, 0, 3}), clientEnds, clientFIN, told("closed dial_failed"),
	}},
	{name: "first choice cannot be dialed", answers: []answer{toNowhere, toBroker}, steps: []step{
		client(connect311), told("route dev 0 cause 0"), told("route dev 1 cause 1"), brokerGets(prelude, connect311),
		broker(connack311), clientGets(connack311), clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "nobody can be dialed", answers: []answer{toNowhere, toNowhere, refuseBusy}, steps: []step{
		client(connect5), told("route dev 2 cause 1"), clientGets([]byte{0x20, 3, 0, mqtt.ServerBusy, 0}), clientEnds, clientFIN, told("closed overload"),
	}},
	{name: "refused at once, MQTT 3.1.1", answers: []answer{refuseBusy}, steps: []step{
		client(connect311, publish), clientGets([]byte{0x20, 2, 0, 3}), clientEnds, clientFIN, told("closed overload"),
	}},
	{name: "refused, and the client stays", limits: Limits{Linger: 100 * time.Millisecond}, answers: []answer{refuseBusy}, steps: []step{
		client(connect311), clientGets([]byte{0x20, 2, 0, 3}), clientEnds, after(time.Second), told("closed overload"),
	}},
	{name: "refused after the client's half close", half: true, answers: []answer{later}, steps: []step{
		client(connect311, publish), clientFIN, told("route dev 0 cause 0"), refuseNow,
		clientGets([]byte{0x20, 2, 0, 3}), clientEnds, told("closed overload"),
	}},
	{name: "the owner answers later", answers: []answer{later}, steps: []step{
		client(connect311), told("route dev 0 cause 0"), client(publish), answerNow, brokerGets(prelude, connect311, publish),
		broker(connack311), clientGets(connack311), clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "the client is gone before the owner answers", answers: []answer{later}, steps: []step{
		client(connect311), told("route dev 0 cause 0"), clientFIN, told("closed client_closed"), clientEnds,
	}},
	{name: "the broker hangs up on the CONNECT, once", steps: []step{
		client(connect311), brokerGets(prelude, connect311), brokerFIN, told("route dev 1 cause 2"), renewed, brokerGets(prelude, connect311),
		broker(connack311), clientGets(connack311), clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	}},
	{name: "the broker hangs up after more than the CONNECT", steps: []step{
		client(connect311, publish), brokerGets(prelude, connect311, publish), brokerFIN,
		clientGets([]byte{0x20, 2, 0, 3}), clientEnds, clientFIN, told("closed broker_closed"),
	}},
	{name: "the broker hangs up after an AUTH", steps: []step{
		client(connect5), brokerGets(prelude, connect5), broker(auth5), clientGets(auth5), brokerFIN,
		clientGets([]byte{0x20, 3, 0, mqtt.ServerUnavailable, 0}), clientEnds, clientFIN, neverTold("route dev 1 cause 2"), told("closed broker_closed"),
	}},
	{name: "an AUTH that is none", steps: []step{
		client(connect5), brokerGets(prelude, connect5), broker([]byte{0xf0, 0xff, 0xff, 0xff, 0xff, 1}),
		clientGets([]byte{0x20, 3, 0, mqtt.ServerUnavailable, 0}), clientEnds, clientFIN, told("closed broker_protocol"),
	}},
	{name: "the broker speaks something else", steps: []step{
		client(connect311), brokerGets(prelude, connect311), broker([]byte("HTTP/1.1 400\r\n")),
		clientGets([]byte{0x20, 2, 0, 3}), clientEnds, clientFIN, told("closed broker_protocol"),
	}},

	{name: "stopped while relaying, MQTT 5", steps: then(
		established5,
		stop(ReasonShutdown), clientGets([]byte{0xe0, 2, mqtt.ServerShuttingDown, 0}), clientEnds, brokerEnds, clientFIN, told("closed shutdown"),
	)},
	{name: "moved, MQTT 5", steps: then(
		established5,
		stop(ReasonMoved), clientGets([]byte{0xe0, 2, mqtt.UseAnotherServer, 0}), clientEnds, brokerEnds, clientFIN, told("closed moved"),
	)},
	{name: "stopped for a newer connection, MQTT 5", steps: then(
		established5,
		stop(ReasonTwin), clientGets([]byte{0xe0, 2, mqtt.SessionTakenOver, 0}), clientEnds, brokerEnds, clientFIN, told("closed twin"),
	)},
	{name: "stopped while relaying, MQTT 3.1.1", steps: then(established, stop(ReasonBrokerDown), clientEnds, brokerEnds, clientFIN, told("closed broker_down"))},
	{name: "stopped in the middle of a packet", steps: then(
		established5,
		broker(bigPublish[:1000]), clientGets(bigPublish[:1000]), stop(ReasonShutdown), clientEnds, brokerEnds, clientFIN, told("closed shutdown"),
	)},
	{name: "the broker ends, and the client stays", limits: Limits{Linger: 100 * time.Millisecond}, steps: then(
		established,
		broker(publish), brokerFIN, told("broker ended"), clientGets(publish), clientEnds, after(time.Second), told("closed broker_closed"),
	)},
	{name: "the broker breaks, and the client stays", limits: Limits{Linger: 100 * time.Millisecond}, steps: then(
		established,
		brokerAbort, told("broker ended"), clientEnds, after(time.Second), told("closed broker_closed"),
	)},
	{name: "stopped after its goodbye", steps: then(
		established,
		client(goodbye), brokerGets(goodbye), told("goodbye 0 false 0"), stop(ReasonShutdown), brokerFIN, clientEnds, clientFIN,
		told("closed client_disconnect"),
	)},
	{name: "stopped before the CONNACK", steps: []step{
		client(connect5), brokerGets(prelude, connect5), stop(ReasonBrokerDown), brokerEnds,
		clientGets([]byte{0x20, 3, 0, mqtt.ServerUnavailable, 0}), clientEnds, clientFIN, told("closed broker_down"),
	}},
	{name: "stopped while the owner thinks", answers: []answer{later}, steps: []step{
		client(connect311), told("route dev 0 cause 0"), stop(ReasonShutdown), clientGets([]byte{0x20, 2, 0, 3}), clientEnds, clientFIN, told("closed shutdown"),
	}},

	{name: "no MQTT at all", steps: []step{client([]byte("GET / HTTP/1.1\r\n")), clientEnds, told("closed not_connect")}},
	{name: "what could have become a PROXY header", steps: []step{client([]byte("P")), client([]byte("OST / HTTP/1.1\r\n")), clientEnds, told("closed not_connect")}},
	{name: "another packet first", steps: []step{client(publish), clientEnds, told("closed not_connect")}},
	{name: "a PROXY header from a stranger", steps: []step{client([]byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), connect311), clientEnds, told("closed proxy_untrusted")}},
	{name: "a PROXY v2 header from a stranger", steps: []step{client([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"), connect311), clientEnds, told("closed proxy_untrusted")}},
	{name: "a fifth length byte", steps: []step{client([]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f}), clientEnds, told("closed malformed")}},
	{name: "too large", limits: Limits{ConnectSize: 1000}, steps: []step{
		client([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 4}), clientEnds, told("closed too_large"),
	}},
	{name: "too large, MQTT 5", limits: Limits{ConnectSize: 1000}, steps: []step{
		client([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5}),
		clientGets([]byte{0x20, 3, 0, mqtt.PacketTooLarge, 0}), clientEnds, clientFIN, told("closed too_large"),
	}},
	{name: "too large, and no MQTT", limits: Limits{ConnectSize: 1000}, steps: []step{
		client([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, bytes.Repeat([]byte("x"), longestLevel)), clientEnds, told("closed too_large"),
	}},
	{name: "an unknown level", steps: []step{
		client([]byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 9, 2, 0, 60, 0, 1, 'x'}),
		clientGets([]byte{0x20, 3, 0, mqtt.UnsupportedVersion, 0}), clientEnds, clientFIN, told("closed unknown_version"),
	}},
	{name: "NUL in the client ID, MQTT 5", steps: []step{
		client([]byte{0x10, 16, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 0, 0, 3, 'a', 0, 'b'}),
		clientGets([]byte{0x20, 3, 0, mqtt.ClientIDNotValid, 0}), clientEnds, clientFIN, told("closed bad_client_id"),
	}},
	{name: "silence", limits: Limits{ConnectTimeout: 100 * time.Millisecond}, steps: []step{after(time.Second), clientEnds, told("closed connect_timeout")}},
	{name: "half a CONNECT", limits: Limits{ConnectTimeout: 100 * time.Millisecond}, steps: []step{
		client(connect311[:5]), after(time.Second), clientEnds, told("closed connect_timeout"),
	}},

	{name: "a preamble", preamble: true, steps: then(
		[]step{client([]byte("<pre>"), connect311), brokerGets(prelude, connect311), broker(connack311), clientGets(connack311)},
		clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	)},
	{name: "a preamble in pieces", preamble: true, steps: then(
		[]step{client([]byte("<p")), client([]byte("re>")), client(connect311), brokerGets(prelude, connect311), broker(connack311), clientGets(connack311)},
		clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	)},
	{name: "no preamble where one is due", preamble: true, steps: []step{client(connect311), clientEnds, told("closed proxy_malformed")}},
	{name: "a preamble without end", preamble: true, steps: []step{client([]byte("<" + strings.Repeat("p", maxPreamble))), clientEnds, told("closed proxy_malformed")}},

	{name: "bytes that are no MQTT pass all the same", steps: then(
		established,
		client([]byte{0x00, 0x01, 0x02}), brokerGets([]byte{0x00, 0x01, 0x02}), client(publish), brokerGets(publish),
		broker([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff}), clientGets([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff}), broker(pong), clientGets(pong),
		clientFIN, brokerEnds, brokerFIN, told("closed client_closed"),
	)},
}

// renewed expects the session's next connection to the broker.
func renewed(_ *testing.T, r *rig) {
	if r.renew != nil {
		r.renew()
	}
}

func TestScripts(t *testing.T) {
	for _, kind := range rigKinds() {
		t.Run(kind.name, func(t *testing.T) {
			for _, sc := range scripts {
				if sc.preamble && kind.wrapped || sc.half && kind.ws {
					continue
				}
				t.Run(sc.name, func(t *testing.T) {
					t.Parallel()
					own := newScriptOwner(sc.answers)
					l := sc.limits
					r := kind.make(t, own, &l, sc.preamble)
					for _, s := range sc.steps {
						s(t, r)
					}
				})
			}
		})
	}
}
