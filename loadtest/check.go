package loadtest

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/near"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Bounds of a plan: what is beyond them is a slip of the pen.
const (
	maxClients = 10_000_000
	maxPayload = 1 << 20
	maxLives   = 1_000_000
	maxSources = 4096
)

// Check says what of the plan cannot be run. Its errors are a *PlanError, which names the field as it is written in YAML. Certificates and
// host names are looked at by Run.
func (p *Plan) Check() error {
	if len(p.Endpoints) == 0 {
		return planError("endpoints", "expected at least one, such as mqtt://127.0.0.1:1883")
	}
	if err := checkEndpoints("endpoints", p.Endpoints); err != nil {
		return err
	}
	if err := oneOf("choose", p.Choose, "", "random", "round-robin"); err != nil {
		return err
	}
	if err := oneOf("network", p.Network, "", "ip", "ip4", "ip6"); err != nil {
		return err
	}
	if err := p.checkWire(); err != nil {
		return err
	}
	if err := notNegative("warmup", p.Warmup, "duration", p.Duration, "settle", p.Settle); err != nil {
		return err
	}
	if p.Duration > 0 && p.Warmup >= p.Duration {
		return planError("warmup", "%v leaves nothing of the duration %v to measure", p.Warmup, p.Duration)
	}
	if len(p.Fleets) == 0 && p.Verify == nil && p.Race == nil {
		return planError("", "nobody to run: expected fleets, verify or race")
	}
	if len(p.Fleets) > maxFleets {
		return planError("fleets", "expected at most %d, found %d", maxFleets, len(p.Fleets))
	}
	for i := range p.Fleets {
		if err := p.Fleets[i].check(); err != nil {
			return within(fmt.Sprintf("fleets[%d]", i), err)
		}
	}
	if err := p.Verify.check(); err != nil {
		return within("verify", err)
	}
	if err := p.Race.check(); err != nil {
		return within("race", err)
	}
	if len(p.Faults) > 0 {
		faults := fault.Plan{Faults: p.Faults, State: p.State}
		if err := faults.Check(); err != nil {
			return planError("faults", "%s", strings.TrimPrefix(err.Error(), "fault: "))
		}
	}
	return nil
}

// maxFleets is what the numbers of publishers in headers have room for.
const maxFleets = 256

func (p *Plan) checkWire() error {
	if len(p.Sources) > maxSources {
		return planError("sources", "expected at most %d, found %d", maxSources, len(p.Sources))
	}
	for i, s := range p.Sources {
		if a, err := netip.ParseAddr(s); err != nil || a.IsUnspecified() || a.IsMulticast() {
			return planError(fmt.Sprintf("sources[%d]", i), "expected an IP address of this machine, found %q", s)
		} else if !ours(a) {
			return planError(fmt.Sprintf("sources[%d]", i), "expected an IP address of this machine, found %s", s)
		}
	}
	if (p.TLS.Cert == "") != (p.TLS.Key == "") {
		return planError("tls", "expected cert and key together")
	}
	return nil
}

// ours reports whether a socket can have the address here.
func ours(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return !errors.Is(err, syscall.EADDRNOTAVAIL) // else it cannot be said
	}
	_ = c.Close()
	return true
}

func checkEndpoints(field string, all []string) error {
	for i, s := range all {
		if _, err := wire.Parse(s, wire.TCP); err != nil {
			return planError(fmt.Sprintf("%s[%d]", field, i), "%s", strings.TrimPrefix(err.Error(), "wire: "))
		}
	}
	return nil
}

// oneOf checks a member of a closed set; its empty one is not named.
func oneOf(field, s string, set ...string) error {
	if slices.Contains(set, s) {
		return nil
	}
	set = slices.DeleteFunc(set, func(s string) bool { return s == "" })
	return planError(field, "expected %s, found %q%s", near.Among(set), s, near.Meant(s, set))
}

// notNegative checks pairs of a field and its duration.
func notNegative(pairs ...any) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if d := pairs[i+1].(Duration); d < 0 {
			return planError(pairs[i].(string), "expected no negative duration, found %v", d)
		}
	}
	return nil
}

// checkText checks an MQTT string: what an encoder would have to refuse, or a broker answer with a closed connection.
func checkText(field, s string) error {
	switch {
	case len(s) > math.MaxUint16: // §1.5.4
		return planError(field, "expected at most %d bytes, found %d", math.MaxUint16, len(s))
	case !utf8.ValidString(s): // [MQTT-1.5.4-1]
		return planError(field, "expected UTF-8, found %q", s)
	case strings.Contains(s, "\x00"): // [MQTT-1.5.4-2]
		return planError(field, "expected no NUL, found %q", s)
	}
	return nil
}

// checkTopic checks a topic's name; %i and %c in it are as good as what they become.
func checkTopic(field, s string) error {
	if s == "" || strings.ContainsAny(s, "+#") { // [MQTT-4.7.3-1], [MQTT-3.3.2-2]
		return planError(field, "expected a topic without + and #, found %q", s)
	}
	return checkText(field, s)
}

func checkFilter(field, s string) error {
	rest, shared := strings.CutPrefix(s, "$share/")
	if shared {
		var name string
		var found bool
		if name, rest, found = strings.Cut(rest, "/"); name == "" || strings.ContainsAny(name, "+#") || !found || rest == "" { // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
			return planError(field, "expected $share/NAME/FILTER, found %q", s)
		}
	}
	if rest == "" { // [MQTT-4.7.3-1]
		return planError(field, "expected a filter, such as sensors/#")
	}
	levels := strings.Split(rest, "/")
	for i, level := range levels {
		switch {
		case strings.Contains(level, "#") && (level != "#" || i < len(levels)-1): // [MQTT-4.7.1-1]
			return planError(field, "expected # alone and as the last level, found %q", s)
		case strings.Contains(level, "+") && level != "+": // [MQTT-4.7.1-2]
			return planError(field, "expected + alone in its level, found %q", s)
		}
	}
	return checkText(field, s)
}

func checkClients(field string, n int) error {
	if n < 1 || n > maxClients {
		return planError(field, "expected 1 to %d, found %d", maxClients, n)
	}
	return nil
}

func checkQoS[T byte | int](field string, q T) error {
	if q < 0 || q > 2 {
		return planError(field, "expected 0, 1 or 2, found %d", q)
	}
	return nil
}

func checkVersion(field, v string) error {
	if _, ok := parseVersion(v); !ok {
		return planError(field, "expected 3.1, 3.1.1 or 5, found %q", v)
	}
	return nil
}

func checkRetry(name string) error {
	if name == "" {
		return nil
	}
	if _, err := pace.ParseRetry(name); err != nil {
		return planError("retry", "%s", strings.TrimPrefix(err.Error(), "pace: "))
	}
	return nil
}

func checkSize(n int) error {
	if n < 0 || n > maxPayload {
		return planError("size", "expected 0 to %d bytes, found %d", maxPayload, n)
	}
	return nil
}

func (s *Session) check() error {
	if err := checkText("user", s.User); err != nil {
		return err
	}
	if err := checkVersion("version", s.Version); err != nil {
		return err
	}
	if err := notNegative("expiry", s.Expiry); err != nil {
		return err
	}
	if s.Keep/time.Second > math.MaxUint16 { // a Two Byte Integer [MQTT-3.1.2-21]
		return planError("keep", "expected 0 to %d seconds, found %d", math.MaxUint16, s.Keep/time.Second)
	}
	if s.Expiry/time.Second > math.MaxUint32 { // a Four Byte Integer: §3.1.2.11.2
		return planError("expiry", "expected 0 to %d seconds, found %d", uint32(math.MaxUint32), s.Expiry/time.Second)
	}
	return checkRetry(s.Retry)
}

func (f *Fleet) check() error {
	if err := checkClients("clients", f.Clients); err != nil {
		return err
	}
	if f.First < 0 {
		return planError("first", "expected no negative number, found %d", f.First)
	}
	if err := f.Session.check(); err != nil {
		return err
	}
	if err := checkText("id", f.ID); err != nil {
		return err
	}
	if err := notNegative("start", f.Start); err != nil {
		return err
	}
	if f.ID != "" && !strings.Contains(f.ID, "%i") && f.Clients > 1 {
		return planError("id", "%q names %d clients alike: expected %%i in it", f.ID, f.Clients)
	}
	for i, s := range f.Subscribe {
		at := fmt.Sprintf("subscribe[%d].", i)
		if err := checkFilter(at+"filter", s.Filter); err != nil {
			return err
		}
		if err := checkQoS(at+"qos", s.QoS); err != nil {
			return err
		}
	}
	if err := f.Publish.check(); err != nil {
		return within("publish", err)
	}
	if s := f.Storm; s != nil {
		if s.Times < 0 {
			return planError("storm.times", "expected no negative number, found %d", s.Times)
		}
		return within("storm", notNegative("at", s.At, "every", s.Every))
	}
	return nil
}

func (p *Publishing) check() error {
	if p == nil {
		return nil
	}
	if err := checkTopic("topic", p.Topic); err != nil {
		return err
	}
	if p.Rate.String() == "" {
		return planError("rate", "expected a schedule, such as 1000/s")
	}
	if err := checkQoS("qos", p.QoS); err != nil {
		return err
	}
	if err := notNegative("start", p.Start); err != nil {
		return err
	}
	return checkSize(p.Size)
}

func (v *Verify) check() error {
	if v == nil {
		return nil
	}
	if err := checkClients("clients", v.Clients); err != nil {
		return err
	}
	if v.Lives < 0 || v.Lives > maxLives {
		return planError("lives", "expected 1 to %d, found %d", maxLives, v.Lives)
	}
	if v.Feeders < 0 || v.Feeders > maxClients {
		return planError("feeders", "expected 1 to %d, found %d", maxClients, v.Feeders)
	}
	if v.Topic != "" {
		if err := checkTopic("topic", v.Topic); err != nil {
			return err
		}
	}
	if err := notNegative("up", v.Up, "down", v.Down, "late", v.Late); err != nil {
		return err
	}
	for i, d := range v.Drop {
		if err := oneOf(fmt.Sprintf("drop[%d]", i), d, drops...); err != nil {
			return err
		}
	}
	for i, q := range v.QoS {
		if err := checkQoS(fmt.Sprintf("qos[%d]", i), q); err != nil {
			return err
		}
	}
	for i, version := range v.Versions {
		if err := checkVersion(fmt.Sprintf("versions[%d]", i), version); err != nil {
			return err
		}
	}
	if err := v.checkIdentity(); err != nil {
		return err
	}
	if err := checkSize(v.Size); err != nil {
		return err
	}
	if v.Size > 0 && v.Size < HeaderSize {
		return planError("size", "expected at least %d bytes, so that a message can say which one it is, found %d", HeaderSize, v.Size)
	}
	if err := checkRetry(v.Retry); err != nil {
		return err
	}
	return checkEndpoints("control", v.Control)
}

var (
	drops      = []string{"clean", "abrupt", "half-open"}
	identities = []string{"session-present", "topic", "admin"}
)

func (v *Verify) checkIdentity() error {
	for i, s := range v.Identity {
		if err := oneOf(fmt.Sprintf("identity[%d]", i), s, identities...); err != nil {
			return err
		}
	}
	if slices.Contains(v.Identity, "admin") && len(v.Admin) == 0 {
		return planError("admin", "expected the URLs of all edges' admin addresses, which identity \"admin\" asks, such as http://127.0.0.1:9883")
	}
	for i, s := range v.Admin {
		if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return planError(fmt.Sprintf("admin[%d]", i), "expected a URL such as http://127.0.0.1:9883, found %q", s)
		}
	}
	return nil
}

func (r *Race) check() error {
	if r == nil {
		return nil
	}
	if err := checkClients("pairs", r.Pairs); err != nil {
		return err
	}
	if r.Topic != "" {
		if err := checkTopic("topic", r.Topic); err != nil {
			return err
		}
	}
	return notNegative("gap", r.Gap)
}
