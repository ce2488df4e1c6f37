package loadtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// Bounds of a plan: what is beyond them is a slip of the pen.
const (
	maxClients = 10_000_000
	maxPayload = 1 << 20
	maxLives   = 1_000_000
)

// Check says what of the plan cannot be run. Its errors wrap ErrPlan, and name the field as it is written in YAML. Files and names are looked
// at by Run.
func (p *Plan) Check() error {
	if len(p.Endpoints) == 0 {
		return planError("endpoints: expected at least one, such as mqtt://127.0.0.1:1883")
	}
	if err := checkEndpoints("endpoints", p.Endpoints); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "random", "round-robin"}, p.Choose) {
		return planError("choose: expected random or round-robin, found %q", p.Choose)
	}
	if !slices.Contains([]string{"", "ip", "ip4", "ip6"}, p.Network) {
		return planError("network: expected ip, ip4 or ip6, found %q", p.Network)
	}
	for _, s := range p.Sources {
		if _, err := netip.ParseAddr(s); err != nil {
			return planError("sources: %q is no IP address", s)
		}
	}
	if (p.TLS.Cert == "") != (p.TLS.Key == "") {
		return planError("tls: cert and key go together")
	}
	if p.Warmup < 0 || p.Duration < 0 || p.Settle < 0 {
		return planError("a duration below zero")
	}
	if p.Duration > 0 && p.Warmup >= p.Duration {
		return planError("warmup: %v leaves nothing of duration %v to measure", p.Warmup, p.Duration)
	}
	if len(p.Fleets) == 0 && p.Verify == nil && p.Race == nil {
		return planError("nobody to run: expected fleets, verify or race")
	}
	for i := range p.Fleets {
		if err := p.Fleets[i].check(); err != nil {
			return fmt.Errorf("%w (fleets[%d] %s)", err, i, p.Fleets[i].Name)
		}
	}
	if err := p.Verify.check(); err != nil {
		return err
	}
	if err := p.Race.check(); err != nil {
		return err
	}
	if len(p.Faults) > 0 {
		faults := fault.Plan{Faults: p.Faults, State: p.State}
		if err := faults.Check(); err != nil {
			return fmt.Errorf("%w: faults: %w", ErrPlan, err)
		}
	}
	return nil
}

func checkEndpoints(field string, all []string) error {
	if _, err := wire.ParseAll(all, wire.TCP); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrPlan, field, err)
	}
	return nil
}

func checkClients(field string, n int) error {
	if n < 1 || n > maxClients {
		return planError("%s: expected 1 to %d, found %d", field, maxClients, n)
	}
	return nil
}

func checkQoS(field string, q byte) error {
	if q > 2 {
		return planError("%s: expected 0, 1 or 2, found %d", field, q)
	}
	return nil
}

func checkVersion(v string) error {
	if _, ok := parseVersion(v); !ok {
		return planError("version: expected 3.1, 3.1.1 or 5, found %q", v)
	}
	return nil
}

func checkRetry(name string) error {
	if name == "" {
		return nil
	}
	if _, err := pace.ParseRetry(name); err != nil {
		return fmt.Errorf("%w: retry: %w", ErrPlan, err)
	}
	return nil
}

func checkSize(n int) error {
	if n < 0 || n > maxPayload {
		return planError("size: expected 0 to %d bytes, found %d", maxPayload, n)
	}
	return nil
}

func (s *Session) check() error {
	if err := checkVersion(s.Version); err != nil {
		return err
	}
	if s.Expiry < 0 {
		return planError("expiry: below zero")
	}
	return checkRetry(s.Retry)
}

func (f *Fleet) check() error {
	if err := checkClients("clients", f.Clients); err != nil {
		return err
	}
	if err := f.Session.check(); err != nil {
		return err
	}
	if f.ID != "" && !strings.Contains(f.ID, "%i") && f.Clients > 1 {
		return planError("id: %q names %d clients alike: expected %%i in it", f.ID, f.Clients)
	}
	for _, s := range f.Subscribe {
		if s.Filter == "" {
			return planError("subscribe: an empty filter")
		}
		if err := checkQoS("subscribe.qos", s.QoS); err != nil {
			return err
		}
	}
	if p := f.Publish; p != nil {
		if p.Topic == "" || strings.ContainsAny(p.Topic, "+#\x00") {
			return planError("publish.topic: %q: expected a topic without + and #", p.Topic) // [MQTT-3.3.2-2]
		}
		if p.Rate.String() == "" {
			return planError("publish.rate: expected a schedule, such as 1000/s")
		}
		if err := checkQoS("publish.qos", p.QoS); err != nil {
			return err
		}
		if err := checkSize(p.Size); err != nil {
			return err
		}
	}
	return nil
}

func (v *Verify) check() error {
	if v == nil {
		return nil
	}
	if err := checkClients("verify.clients", v.Clients); err != nil {
		return err
	}
	if v.Lives < 0 || v.Lives > maxLives {
		return planError("verify.lives: expected 1 to %d, found %d", maxLives, v.Lives)
	}
	for _, d := range v.Drop {
		if !slices.Contains(drops, d) {
			return planError("verify.drop: expected %s, found %q", strings.Join(drops, ", "), d)
		}
	}
	for _, q := range v.QoS {
		if err := checkQoS("verify.qos", q); err != nil {
			return err
		}
	}
	for _, version := range v.Versions {
		if err := checkVersion(version); err != nil {
			return err
		}
	}
	if err := checkIdentity("verify.identity", v.Identity); err != nil {
		return err
	}
	if slices.Contains(v.Identity, "admin") && len(v.Admin) == 0 {
		return planError("verify.identity: admin needs the edges' admin addresses (admin)")
	}
	if err := checkSize(v.Size); err != nil {
		return err
	}
	if v.Size > 0 && v.Size < HeaderSize {
		return planError("verify.size: expected at least %d bytes: a message must say which one it is", HeaderSize)
	}
	if err := checkRetry(v.Retry); err != nil {
		return err
	}
	return checkEndpoints("verify.control", v.Control)
}

var (
	drops      = []string{"clean", "abrupt", "half-open"}
	identities = []string{"session-present", "topic", "admin"}
)

func checkIdentity(field string, all []string) error {
	for _, s := range all {
		if !slices.Contains(identities, s) {
			return planError("%s: expected %s, found %q", field, strings.Join(identities, ", "), s)
		}
	}
	return nil
}

func (r *Race) check() error {
	if r == nil {
		return nil
	}
	if err := checkClients("race.pairs", r.Pairs); err != nil {
		return err
	}
	if r.Gap < 0 {
		return planError("race.gap: below zero")
	}
	return checkIdentity("race.identity", r.Identity)
}
