package loadtest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/loadtest/client"
	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// When a run is given up because nobody gets through.
const (
	hopeless = 3 * time.Second  // after the first connect: something failed, and nothing has succeeded
	silent   = 10 * time.Second // nothing failed either
	fleeting = time.Second / 2  // at the end of a run: what is shorter tells nothing
)

// ErrUnreachable is what Run returns when not a single client could connect.
var ErrUnreachable = errors.New("loadtest: nobody could connect")

// way is endpoints that clients choose among. It knows whether anybody gets through, and how each kind of failure looked when it came first.
type way struct {
	run     *run
	targets []string
	next    func() *wire.Endpoint

	mu       sync.Mutex
	first    int64 // stamp of the first connect
	tried    int64
	through  bool
	failures map[string]int64
	examples map[string]*client.Cause
}

// way adds one to the run's.
func (r *run) way(targets []string, next func() *wire.Endpoint) *way {
	w := &way{run: r, targets: targets, next: next}
	r.ways = append(r.ways, w)
	return w
}

// started notes that a connect begins.
func (w *way) started(now int64) {
	w.run.rec.Count(result.ConnectsStarted, now, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tried++
	if w.first == 0 {
		w.first = now
	}
}

// notOpened notes a connect that could not even begin.
func (w *way) notOpened(at int64, err error) {
	w.failed(at, &client.Cause{Reason: "other", Err: err})
}

// accepted notes a CONNACK that accepts.
func (w *way) accepted(c *client.Client, intended, sent, at int64, a *mqtt.Connack) {
	r := w.run
	begun, ready := c.Stamps()
	r.rec.Connect.Record(intended, begun, ready)
	r.rec.Connack.Record(intended, sent, at)
	r.rec.Count(result.Connects, at, 1)
	r.rec.Connected(1)
	if a.SessionPresent {
		r.rec.Count(result.SessionsPresent, at, 1)
	}
	w.mu.Lock()
	w.through = true
	w.mu.Unlock()
}

// ended notes how a connection ended that was accepted, or was not.
func (w *way) ended(at int64, cause *client.Cause, accepted bool) {
	if cause.Reason == client.ReasonEnd {
		return // the run is over: who was connected then stays so in its last second
	}
	r := w.run
	if accepted {
		r.rec.Connected(-1)
	}
	if cause.Own() {
		r.rec.Count(result.Disconnects, at, 1)
		return
	}
	if accepted {
		r.rec.Count(result.Closed, at, 1)
	}
	if cause.Reason == client.ReasonRefusal {
		r.rec.Count(result.Refusals, at, 1)
	}
	w.failed(at, cause)
}

// failed notes an error of a connection.
func (w *way) failed(at int64, cause *client.Cause) {
	w.run.rec.Error(cause.Reason, at)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failures == nil {
		w.failures, w.examples = map[string]int64{}, map[string]*client.Cause{}
	}
	w.failures[cause.Reason]++
	if _, known := w.examples[cause.Reason]; !known {
		one := *cause
		w.examples[cause.Reason] = &one
	}
}

// hint tells what went wrong where nobody gets through, so that its reader knows where to look.
func hint(c *client.Cause) string {
	with := func(s string) string {
		if c.Err != nil {
			s += ": " + c.Err.Error()
		}
		return s
	}
	early := c.Stage == client.StageConnack
	handshake := c.Stage == client.StageHandshake
	switch c.Reason {
	case "refused":
		return "connection refused: nobody listens there"
	case "timeout", "unreachable", "resolve":
		return with("no answer from there")
	case client.ReasonConnackTimeout:
		return "no CONNACK came: is it MQTT, and without TLS?"
	case "closed", "reset":
		if handshake {
			return "the connection was closed during the handshake: does it speak this transport?"
		}
		if early {
			return "the connection was closed in answer to CONNECT: is it MQTT, and this transport?"
		}
	case client.ReasonMalformed, client.ReasonProtocol:
		if early {
			return with("this is no MQTT server")
		}
	case "tls":
		return with("TLS failed (is the right CA given?)")
	case "upgrade":
		return with("the WebSocket upgrade failed (is the path right?)")
	}
	return describe(c)
}

// describe tells what went wrong with a server that others do reach.
func describe(c *client.Cause) string {
	switch c.Reason {
	case client.ReasonRefusal:
		return "refused: " + codeName(c.Code)
	case client.ReasonDisconnected:
		return "DISCONNECT: " + codeName(c.Code)
	}
	return c.String()
}

// codeName is a reason of CONNACK or DISCONNECT in words (MQTT 5 §3.2.2.2 and §3.14.2.1, MQTT 3.1.1 §3.2.2.3).
func codeName(code byte) string {
	words, ok := codeNames[code]
	if !ok {
		words = "unknown"
	}
	return fmt.Sprintf("%s (code %#02x)", words, code)
}

var codeNames = map[byte]string{
	1: "unacceptable protocol version", 2: "client ID rejected", 3: "server unavailable", 4: "bad user name or password", 5: "not authorized",
	0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error", 0x83: "implementation specific error",
	0x84: "unsupported protocol version", 0x85: "client ID not valid", 0x86: "bad user name or password", 0x87: "not authorized",
	0x88: "server unavailable", 0x89: "server busy", 0x8A: "banned", 0x8B: "server shutting down", 0x8C: "bad authentication method",
	0x8D: "keep alive timeout", 0x8E: "session taken over", 0x90: "topic name invalid", 0x93: "receive maximum exceeded",
	0x95: "packet too large", 0x96: "message rate too high", 0x97: "quota exceeded", 0x98: "administrative action", 0x99: "payload format invalid",
	0x9A: "retain not supported", 0x9B: "QoS not supported", 0x9C: "use another server", 0x9D: "server moved",
	0x9F: "connection rate exceeded", 0xA0: "maximum connect time",
}

// hope returns ErrUnreachable, with why, when nobody has got through by one of the ways for so long: where something failed, or where nothing
// was heard at all.
func (r *run) hope(failing, unheard time.Duration) error {
	for _, w := range r.ways {
		if err := w.hope(failing, unheard); err != nil {
			return err
		}
	}
	return nil
}

func (w *way) hope(failing, unheard time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.through || w.tried == 0 {
		return nil
	}
	waited := time.Duration(pace.Now() - w.first)
	what := ""
	switch {
	case len(w.failures) > 0 && waited >= failing:
		what = hint(w.examples[commonest(w.failures)[0]])
	case waited >= unheard:
		what = "no answer: does anything listen there, and is it MQTT, and this transport?"
	default:
		return nil
	}
	return fmt.Errorf("%w to %s: %s", ErrUnreachable, few(w.targets), what) // workers say the same: it is told once
}

// hoped is hope at the end of the run, which waits no longer: any failure will do, and so does silence, unless it was too short to tell
// anything because somebody ended the run, or because these are only a few of all its clients, who may have begun just now.
func (r *run) hoped(interrupted bool) error {
	unheard := time.Duration(0)
	if interrupted || r.share.Of > 1 {
		unheard = fleeting
	}
	return r.hope(0, unheard)
}

// commonest lists the reasons of failures, the most common one first.
func commonest(failures map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(failures), func(a, b string) int {
		return cmp.Or(cmp.Compare(failures[b], failures[a]), cmp.Compare(a, b))
	})
}

// notes gives an example of each of the most common failures.
func (r *run) notes() []string {
	const most = 5
	failures, examples := map[string]int64{}, map[string]*client.Cause{}
	for _, w := range r.ways {
		w.mu.Lock()
		for reason, n := range w.failures {
			failures[reason] += n
			if examples[reason] == nil {
				examples[reason] = w.examples[reason]
			}
		}
		w.mu.Unlock()
	}
	notes := []string{}
	for _, reason := range commonest(failures) {
		if len(notes) < most {
			notes = append(notes, fmt.Sprintf("the first error %q: %s", reason, describe(examples[reason])))
		}
	}
	return notes
}

// few names some of many.
func few(all []string) string {
	const most = 3
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
}
