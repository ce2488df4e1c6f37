package result

import "slices"

// Counter names one of the closed set of counters. All exist, at zero, from the start of a run.
type Counter uint8

// The counters. Their names, rates and meanings are in SCHEMA.md.
const (
	ConnectsStarted Counter = iota // connects that were begun
	Connects                       // CONNACKs that accepted
	SessionsPresent                // of these, with Session Present
	Refusals                       // CONNACKs that refused
	Disconnects                    // connections that the run itself ended: orderly, abrupt or half-open
	Closed                         // connections that ended without the run's doing
	Publishes                      // PUBLISH packets sent for the first time
	Resends                        // PUBLISH packets sent again, after a reconnect
	Acked                          // PUBACK, or PUBCOMP, with success
	Receives                       // PUBLISH packets received
	ReceivesDup                    // of these, with DUP
	Subscribes                     // filters asked for
	Subscribed                     // filters granted
	BytesOut                       // MQTT bytes sent, without those of TLS, WebSocket and QUIC
	BytesIn                        // MQTT bytes received, likewise
	Errors                         // all errors; by reason: Result.Errors
	numCounters
)

var counterNames = [numCounters]string{
	"connects_started", "connects", "sessions_present", "refusals", "disconnects", "closed",
	"publishes", "resends", "acked", "receives", "receives_dup", "subscribes", "subscribed", "bytes_out", "bytes_in", "errors",
}

func (c Counter) String() string { return nameOf(counterNames[:], int(c)) }

// rates are the counters that have a rate a second, under the name that people use for it.
var rates = []struct {
	name    string
	counter Counter
}{
	{"connect.rate", Connects},
	{"publish.rate", Publishes},
	{"ack.rate", Acked},
	{"receive.rate", Receives},
	{"error.rate", Errors},
}

// Latency names one of the closed set of latencies. Those that have a twin named ".service" count from the intended
// time, so that a stall also counts for what it kept waiting (no coordinated omission); the twin counts from the
// moment when the request was really sent.
type Latency uint8

// The latencies.
const (
	Connect        Latency = iota // to the end of the handshakes of TCP, TLS, WebSocket or QUIC
	ConnectService                //
	Connack                       // to the CONNACK that accepts
	ConnackService                //
	Puback                        // of a publish, to its PUBACK or PUBCOMP
	PubackService                 //
	Suback                        // of a SUBSCRIBE, to its SUBACK
	SubackService                 //
	E2E                           // of a publish, to its receipt by a subscriber
	E2EService                    //
	Outage                        // per client, from a fault to its first acknowledged publish
	Lag                           // the generator's own: from the intended time to the send
	numLatencies
)

var latencyNames = [numLatencies]string{
	"connect", "connect.service", "connack", "connack.service", "puback", "puback.service",
	"suback", "suback.service", "e2e", "e2e.service", "outage", "lag",
}

func (l Latency) String() string { return nameOf(latencyNames[:], int(l)) }

// Latencies lists all latencies, in the order of their constants.
func Latencies() []Latency {
	all := make([]Latency, numLatencies)
	for i := range all {
		all[i] = Latency(i)
	}
	return all
}

// reasons are the errors that every result counts, at zero from the start. Recorder.Error takes others as well.
var reasons = []string{
	"resolve", "refused", "unreachable", "timeout", "reset", "closed", // of the network
	"tls", "upgrade", "websocket", "quic", // of what is between TCP and MQTT
	"descriptors", "ports", "memory", "source", // of the generator's machine
	"refusal", "disconnected", "connack-timeout", "keepalive", "malformed", "too-large", "protocol", // of a connection
	"publish", "subscribe", "queue", // of a message
	"other",
}

// Reasons lists the errors that every result counts from the start.
func Reasons() []string { return slices.Clone(reasons) }

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return "unknown"
}
