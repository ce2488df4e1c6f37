package loadtest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
)

// Plan is all of a run: who connects where, what they do, and what is done to the servers meanwhile. Every verb of `limpet loadtest` is a
// way to write one; `limpet loadtest scenario FILE` reads it as YAML.
type Plan struct {
	Verb string `yaml:"-" json:"verb"`
	Name string `yaml:"name,omitempty" json:"name,omitempty"`

	Endpoints []string `yaml:"endpoints" json:"endpoints"`                 // see wire.Parse; a name stands for all its addresses
	Choose    string   `yaml:"choose,omitempty" json:"choose,omitempty"`   // "random" (default) or "round-robin", by connect
	Network   string   `yaml:"network,omitempty" json:"network,omitempty"` // "ip" (default), "ip4", "ip6"
	TLS       TLS      `yaml:"tls,omitempty" json:"tls,omitzero"`
	Sources   []string `yaml:"sources,omitempty" json:"sources,omitempty"` // local addresses, in turn
	Proxy     bool     `yaml:"proxy,omitempty" json:"proxy,omitempty"`     // a PROXY v2 header first

	Seed     uint64        `yaml:"seed,omitempty" json:"seed,omitempty"`         // of every choice; 0 = 1
	Warmup   time.Duration `yaml:"warmup,omitempty" json:"warmup,omitempty"`     // from the start: not in the totals
	Duration time.Duration `yaml:"duration,omitempty" json:"duration,omitempty"` // of the whole, without Settle; 0 = until all have done what they are to do, or for ever
	Settle   time.Duration `yaml:"settle,omitempty" json:"settle,omitempty"`     // at the end, at most: what is under way may still arrive; 0 = DefaultSettle, of Verify 30 s

	Fleets []Fleet `yaml:"fleets,omitempty" json:"fleets,omitempty"`
	Verify *Verify `yaml:"verify,omitempty" json:"verify,omitempty"`
	Race   *Race   `yaml:"race,omitempty" json:"race,omitempty"`

	Faults []fault.Fault      `yaml:"faults,omitempty" json:"faults,omitempty"`
	State  string             `yaml:"state,omitempty" json:"state,omitempty"` // file that names the parts for Faults: `limpet demo --state FILE`
	Assert []result.Assertion `yaml:"assert,omitempty" json:"assert,omitempty"`
}

// TLS is for tls, wss and quic.
type TLS struct {
	CA         string `yaml:"ca,omitempty" json:"ca,omitempty"` // PEM file; "" = the system's
	Cert       string `yaml:"cert,omitempty" json:"cert,omitempty"`
	Key        string `yaml:"key,omitempty" json:"key,omitempty"`
	ServerName string `yaml:"server_name,omitempty" json:"server_name,omitempty"`
	Insecure   bool   `yaml:"insecure,omitempty" json:"insecure,omitempty"`
	NoTickets  bool   `yaml:"no_tickets,omitempty" json:"no_tickets,omitempty"` // every handshake a full one
}

// Session is how clients speak MQTT.
type Session struct {
	Version  string        `yaml:"version,omitempty" json:"version,omitempty"`   // "5" (default), "3.1.1", "3.1"
	Clean    bool          `yaml:"clean,omitempty" json:"clean,omitempty"`       // Clean Session, Clean Start
	Expiry   time.Duration `yaml:"expiry,omitempty" json:"expiry,omitempty"`     // of the session (MQTT 5); 0 = an hour if not Clean
	Keep     time.Duration `yaml:"keep,omitempty" json:"keep,omitempty"`         // keep-alive; 0 = 60 s, negative = none
	User     string        `yaml:"user,omitempty" json:"user,omitempty"`         // %i and %c as in a topic
	Password string        `yaml:"password,omitempty" json:"password,omitempty"` // likewise
	Retry    string        `yaml:"retry,omitempty" json:"retry,omitempty"`       // how clients come back that were cut off: see pace.ParseRetry; "" = none
}

// Fleet is clients that all do the same.
type Fleet struct {
	Name    string    `yaml:"name,omitempty" json:"name,omitempty"`
	Clients int       `yaml:"clients" json:"clients"`
	ID      string    `yaml:"id,omitempty" json:"id,omitempty"`           // %i = the client's number; "" = "limpet-NAME-%i"
	First   int       `yaml:"first,omitempty" json:"first,omitempty"`     // number of the first client
	Start   Duration  `yaml:"start,omitempty" json:"start,omitzero"`      // of the first connect, from the start of the run
	Connect pace.Spec `yaml:"connect,omitempty" json:"connect,omitempty"` // empty: 1000/s
	Session `yaml:",inline"`

	Subscribe []Subscription `yaml:"subscribe,omitempty" json:"subscribe,omitempty"`
	Publish   *Publishing    `yaml:"publish,omitempty" json:"publish,omitempty"`
	Storm     *Storm         `yaml:"storm,omitempty" json:"storm,omitempty"`
}

// Duration is written as text in YAML, and as nanoseconds in JSON.
type Duration = time.Duration

// Subscription is a filter; %i and %c in it are the client's number and ID.
type Subscription struct {
	Filter string `yaml:"filter" json:"filter"`
	QoS    byte   `yaml:"qos,omitempty" json:"qos,omitempty"`
}

// Publishing is what a fleet publishes, together: the events of Rate go to its clients in turn.
type Publishing struct {
	Topic  string    `yaml:"topic" json:"topic"` // %i and %c as in a filter
	QoS    byte      `yaml:"qos,omitempty" json:"qos,omitempty"`
	Retain bool      `yaml:"retain,omitempty" json:"retain,omitempty"`
	Size   int       `yaml:"size,omitempty" json:"size,omitempty"` // bytes of payload; 0 = 256. Below HeaderSize messages carry no time, and are only counted.
	Rate   pace.Spec `yaml:"rate" json:"rate"`
	Start  Duration  `yaml:"start,omitempty" json:"start,omitzero"` // from the start of the run; 0 = when all have connected, or should have
}

// Storm cuts every client of a fleet off at the same time, abruptly, and lets them connect again.
type Storm struct {
	At      Duration  `yaml:"at,omitempty" json:"at,omitzero"` // from the start of the run; 0 = a second after the last connect is due
	Every   Duration  `yaml:"every,omitempty" json:"every,omitzero"`
	Times   int       `yaml:"times,omitempty" json:"times,omitempty"`     // 0 = once
	Connect pace.Spec `yaml:"connect,omitempty" json:"connect,omitempty"` // how they come back; empty: all at once
}

// Verify is persistent clients that live many lives: each connects somewhere, receives a numbered stream, also what was sent while it was
// away, and comes back by another way.
type Verify struct {
	Clients  int       `yaml:"clients" json:"clients"`
	Lives    int       `yaml:"lives,omitempty" json:"lives,omitempty"`     // of each, on purpose; 0 = 10
	Connect  pace.Spec `yaml:"connect,omitempty" json:"connect,omitempty"` // of first lives; empty: 500/s
	Up       Duration  `yaml:"up,omitempty" json:"up,omitzero"`            // how long a life lasts, half to one and a half times; 0 = 3 s
	Down     Duration  `yaml:"down,omitempty" json:"down,omitzero"`        // how long the client is away then, likewise; 0 = 1 s
	Drop     []string  `yaml:"drop,omitempty" json:"drop,omitempty"`       // how lives end: clean, abrupt, half-open; empty: all
	Feeders  int       `yaml:"feeders,omitempty" json:"feeders,omitempty"` // clients that publish; 0 = one for each 100
	Rate     pace.Spec `yaml:"rate,omitempty" json:"rate,omitempty"`       // of messages, for all streams together; empty: one for each client every 2 s
	QoS      []int     `yaml:"qos,omitempty" json:"qos,omitempty"`         // of the streams, in turn; empty: 1, 2
	Size     int       `yaml:"size,omitempty" json:"size,omitempty"`
	Versions []string  `yaml:"versions,omitempty" json:"versions,omitempty"` // in turn; empty: 3.1.1 and 5
	Retry    string    `yaml:"retry,omitempty" json:"retry,omitempty"`       // "" = paho
	Late     Duration  `yaml:"late,omitempty" json:"late,omitzero"`          // 0 = 5 s
	Identity []string  `yaml:"identity,omitempty" json:"identity,omitempty"` // session-present, topic, admin; empty: session-present
	Topic    string    `yaml:"topic,omitempty" json:"topic,omitempty"`       // of identity "topic"; "" = $SYS/broker/name
	Admin    []string  `yaml:"admin,omitempty" json:"admin,omitempty"`       // of identity "admin": the URLs of all edges' admin addresses
	Pool     string    `yaml:"pool,omitempty" json:"pool,omitempty"`         // likewise: of the listeners; "" = "default"
	Control  []string  `yaml:"control,omitempty" json:"control,omitempty"`   // endpoints of brokers: a tenth of the clients goes straight to one and stays with it
}

// Race is pairs of connects of one new client ID.
type Race struct {
	Pairs int       `yaml:"pairs" json:"pairs"`
	Gap   Duration  `yaml:"gap,omitempty" json:"gap,omitzero"`
	Rate  pace.Spec `yaml:"rate,omitempty" json:"rate,omitempty"`   // of pairs; empty: 200/s
	Topic string    `yaml:"topic,omitempty" json:"topic,omitempty"` // with the broker's name; "" = $SYS/broker/name
}

// public is the plan without its secrets, for results.
func (p *Plan) public() *Plan {
	out := *p
	out.Fleets = slices.Clone(p.Fleets)
	for i := range out.Fleets {
		if out.Fleets[i].Password != "" {
			out.Fleets[i].Password = "(not told)"
		}
	}
	return &out
}

// Defaults.
const (
	DefaultSettle = 10 * time.Second
	DefaultSize   = 256
)

// ErrPlan is what every error of Plan.Check wraps.
var ErrPlan = errors.New("loadtest: plan")

// PlanError is what of a plan cannot be run.
type PlanError struct {
	Field   string // as it is written in YAML: fleets[0].publish.topic; "" = the plan as a whole
	Message string // what was expected, and what was found
}

func (e *PlanError) Error() string {
	if e.Field == "" {
		return ErrPlan.Error() + ": " + e.Message
	}
	return ErrPlan.Error() + ": " + e.Field + ": " + e.Message
}

// Is tells that e is ErrPlan.
func (e *PlanError) Is(target error) bool { return target == ErrPlan }

func planError(field, format string, args ...any) error {
	return &PlanError{field, fmt.Sprintf(format, args...)}
}

// within puts the field of an error below another one.
func within(field string, err error) error {
	if e, ok := errors.AsType[*PlanError](err); ok {
		return &PlanError{field + "." + e.Field, e.Message}
	}
	return err
}
