package cli

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/limpet-mesh/limpet/loadtest"
	"github.com/limpet-mesh/limpet/loadtest/fault"
	"github.com/limpet-mesh/limpet/loadtest/pace"
	"github.com/limpet-mesh/limpet/loadtest/result"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

// targetFlags say where to connect.
type targetFlags struct {
	hosts           []string
	port            uint16
	ssl, ws, quic   bool
	path            string
	edges           []string
	state           string
	transports      []string
	choose, network string
	sources         []string
	proxy           bool
	tls             loadtest.TLS
	brokers, admins []string // of the state file
	noDefault       bool     // the hosts' default is none
}

func (t *targetFlags) add(f *pflag.FlagSet) {
	f.StringSliceVarP(&t.hosts, "host", "h", []string{"127.0.0.1"}, "hosts or addresses")
	f.Uint16VarP(&t.port, "port", "p", 0, "port (default: that of the transport, such as 1883)")
	f.BoolVarP(&t.ssl, "ssl", "S", false, "TLS, also below --ws")
	f.BoolVar(&t.ws, "ws", false, "WebSocket")
	f.BoolVar(&t.quic, "quic", false, "QUIC")
	f.StringVar(&t.path, "path", wire.DefaultPath, "of WebSocket")
	f.StringArrayVar(&t.edges, "edge", nil, "URL to connect to instead, such as mqtt://h, mqtts://h:8883, wss://h/mqtt, quic://h; may be repeated")
	f.StringVar(&t.state, "state", "", "file that limpet demo --state wrote: its edges are the targets, its parts those of --fault")
	f.StringSliceVar(&t.transports, "transports", nil, "of --edge and --state, only these: tcp, tls, ws, wss, quic")
	f.StringVar(&t.choose, "choose", "random", "who connects where: random or round-robin")
	f.StringVar(&t.network, "network", "ip", "addresses of names: ip, ip4 or ip6")
	f.StringSliceVar(&t.sources, "ifaddr", nil, "local addresses to connect from, in turn")
	f.BoolVar(&t.proxy, "proxy", false, "send a PROXY v2 header first")
	f.StringVar(&t.tls.CA, "ca", "", "PEM file of the authority to trust (default: the system's)")
	f.StringVar(&t.tls.Cert, "cert", "", "PEM file of the client's certificate")
	f.StringVar(&t.tls.Key, "key", "", "PEM file of its key")
	f.StringVar(&t.tls.ServerName, "server-name", "", "to expect in the server's certificate (default: the host)")
	f.BoolVar(&t.tls.Insecure, "insecure", false, "trust every certificate")
	f.BoolVar(&t.tls.NoTickets, "no-tickets", false, "a full TLS handshake for each connect")
}

// into fills in a plan's targets. A plan that has some keeps them, unless flags say otherwise.
func (t *targetFlags) into(cmd *cobra.Command, p *loadtest.Plan) error {
	f := cmd.Flags()
	if f.Changed("port") && t.port == 0 {
		return usagef(cmd, "-p: expected 1 to 65535, found 0")
	}
	var kinds []wire.Transport
	for _, name := range t.transports {
		kind, err := wire.ParseTransport(name)
		if err != nil {
			return usagef(cmd, "--transports: expected some of tcp, tls, ws, wss, quic, found %q", name)
		}
		kinds = append(kinds, kind)
	}
	var all []wire.Target
	switch {
	case len(t.edges) > 0 && f.Changed("host"):
		return usagef(cmd, "expected one of -h and --edge, found both")
	case len(t.edges) > 0:
		for _, s := range t.edges {
			target, err := wire.Parse(s, t.transport())
			if err != nil {
				return usagef(cmd, "--edge: %s", strings.TrimPrefix(err.Error(), "wire: "))
			}
			all = append(all, target)
		}
	case f.Changed("host") || t.state == "" && !t.noDefault:
		for _, host := range t.hosts {
			target, err := t.host(host)
			if err != nil {
				return usagef(cmd, "-h: %s", strings.TrimPrefix(err.Error(), "wire: "))
			}
			all = append(all, target)
		}
	}
	if t.state != "" {
		state, err := fault.ReadState(t.state)
		if err != nil {
			return usagef(cmd, "--state: %s", strings.TrimPrefix(err.Error(), "fault: "))
		}
		p.State = t.state
		if len(all) == 0 && len(p.Endpoints) == 0 {
			all = edgesOf(state)
		}
		if t.tls.CA == "" && p.TLS.CA == "" {
			t.tls.CA = state.CA
		}
		for _, e := range state.Edges {
			if e.Admin != "" {
				t.admins = append(t.admins, "http://"+e.Admin)
			}
		}
		for _, b := range state.Brokers {
			t.brokers = append(t.brokers, "tcp://"+b.MQTT)
		}
	}
	if len(kinds) > 0 {
		all = slices.DeleteFunc(all, func(w wire.Target) bool { return !slices.Contains(kinds, w.Transport) })
		if len(all) == 0 {
			return usagef(cmd, "--transports: nothing to connect to is left of the targets")
		}
	}
	if len(all) > 0 {
		p.Endpoints = nil
		for _, target := range all {
			p.Endpoints = append(p.Endpoints, target.String())
		}
	}
	set(f, "choose", &p.Choose, t.choose)
	set(f, "network", &p.Network, t.network)
	set(f, "ifaddr", &p.Sources, t.sources)
	set(f, "proxy", &p.Proxy, t.proxy)
	if t.tls != (loadtest.TLS{}) {
		p.TLS = t.tls
	}
	return nil
}

// set gives a plan's field the value of a flag that was given.
func set[T any](f *pflag.FlagSet, name string, field *T, value T) {
	if f.Changed(name) {
		*field = value
	}
}

// transport is what --ssl, --ws and --quic say.
func (t *targetFlags) transport() wire.Transport {
	switch {
	case t.quic:
		return wire.QUIC
	case t.ws && t.ssl:
		return wire.WSS
	case t.ws:
		return wire.WS
	case t.ssl:
		return wire.TLS
	}
	return wire.TCP
}

// host is a target of -h, -p and the transport.
func (t *targetFlags) host(host string) (wire.Target, error) {
	kind := t.transport()
	text := host
	if t.port != 0 {
		text = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(t.port)))
	}
	text = kind.String() + "://" + text
	if kind == wire.WS || kind == wire.WSS {
		text += "/" + strings.TrimPrefix(t.path, "/")
	}
	if strings.Contains(host, "://") {
		return wire.Target{}, fmt.Errorf("expected a host, found %q: did you mean --edge %s?", host, host)
	}
	return wire.Parse(text, kind)
}

// edgesOf lists every address of every edge.
func edgesOf(s *fault.State) []wire.Target {
	var all []wire.Target
	for _, e := range s.Edges {
		for kind, address := range map[wire.Transport]string{wire.TCP: e.TCP, wire.TLS: e.TLS, wire.WS: e.WS, wire.WSS: e.WSS, wire.QUIC: e.QUIC} {
			if address == "" {
				continue
			}
			if t, err := wire.Parse(kind.String()+"://"+address, kind); err == nil {
				all = append(all, t)
			}
		}
	}
	slices.SortFunc(all, func(a, b wire.Target) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// sessionFlags say how clients speak MQTT.
type sessionFlags struct {
	version, user, password, retry string
	keep, expiry                   seconds
	clean                          truth
}

func (s *sessionFlags) add(f *pflag.FlagSet, clean bool) {
	s.keep, s.clean = seconds(time.Minute), truth(clean)
	f.StringVarP(&s.version, "version", "V", "5", "of MQTT: 3 (3.1), 4 (3.1.1) or 5")
	f.VarP(&s.keep, "keepalive", "k", "in seconds, or as 90s; 0 = none")
	f.VarP(&s.clean, "clean", "C", "start without an old session")
	f.VarP(&s.expiry, "session-expiry", "x", "of sessions (MQTT 5), in seconds, or as 2h (default 1h; with -C true none)")
	f.StringVarP(&s.user, "user", "u", "", "user name")
	f.StringVarP(&s.password, "password", "P", "", "password")
	f.StringVar(&s.retry, "retry", "", "how clients come back that were cut off: "+retries()+" (default none; with --fault paho)")
}

func retries() string {
	names := []string{}
	for _, p := range pace.Profiles() {
		names = append(names, p.Name)
	}
	return strings.Join(append(names, "fixed:2s"), ", ")
}

// session is what the flags say.
func (s *sessionFlags) session(faults bool) loadtest.Session {
	out := loadtest.Session{
		Version: s.version, Clean: bool(s.clean), Expiry: time.Duration(s.expiry), Keep: time.Duration(s.keep),
		User: s.user, Password: s.password, Retry: s.retry,
	}
	if s.keep == 0 {
		out.Keep = -1
	}
	if out.Retry == "" && faults {
		out.Retry = "paho"
	}
	return out
}

// seconds is a duration that is written as a number of seconds, or as 1h30m.
type seconds time.Duration

func (s *seconds) String() string {
	if *s == 0 {
		return "" // cobra does not tell it
	}
	return time.Duration(*s).String()
}
func (s *seconds) Type() string { return "seconds" }
func (s *seconds) Set(text string) error {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		*s = seconds(time.Duration(n) * time.Second)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("expected seconds, such as 60, or a duration, such as 1h")
	}
	*s = seconds(d)
	return nil
}

// truth is a bool whose value may stand after a space: -C false.
type truth bool

func (t *truth) String() string { return strconv.FormatBool(bool(*t)) }
func (t *truth) Type() string   { return "true|false" }
func (t *truth) Set(text string) error {
	b, err := strconv.ParseBool(text)
	if err != nil {
		return errors.New("expected true or false")
	}
	*t = truth(b)
	return nil
}

// rateFlag is a schedule; a bare number is so many a second.
type rateFlag struct{ pace.Spec }

func (r *rateFlag) Type() string { return "rate" }
func (r *rateFlag) Set(text string) error {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		text += "/s"
	}
	var err error
	r.Spec, err = pace.Parse(text)
	return err
}

// flagError tells a mistake in a flag in our own words: what strconv says is for programmers, and which package an error is of for nobody.
func flagError(cmd *cobra.Command, err error) error {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var near string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && near == "" && resemble(unknown.GetSpecifiedName(), f.Name) {
				near = f.Name
			}
		})
		if near != "" {
			return usagef(cmd, "%w: did you mean --%s?", err, near)
		}
	}
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usage(cmd, err)
	}
	name := "--" + bad.GetFlag().Name
	switch bad.GetFlag().Value.Type() {
	case "int", "uint", "uint8", "uint16", "uint64":
		return usagef(cmd, "%s: expected a whole number in range, found %q", name, bad.GetValue())
	case "float64":
		return usagef(cmd, "%s: expected a number, found %q", name, bad.GetValue())
	case "duration":
		return usagef(cmd, "%s: expected a duration such as 30s or 1m30s, found %q", name, bad.GetValue())
	}
	text := bad.Unwrap().Error()
	for _, prefix := range []string{"result: not an assertion: ", "pace: bad schedule ", "fault: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	text = strings.TrimPrefix(text, strconv.Quote(bad.GetValue())+", ")
	return usagef(cmd, "%s %q: %s", name, bad.GetValue(), text)
}

// resemble reports whether a word was probably meant: one of at least three letters begins with the other, or their letters are the same.
func resemble(word, name string) bool {
	sorted := func(s string) string {
		b := []byte(s)
		slices.Sort(b)
		return string(b)
	}
	return len(word) >= 3 && (strings.HasPrefix(name, word) || strings.HasPrefix(word, name) || sorted(word) == sorted(name))
}

// faultsFlag and assertsFlag gather what is given several times.
type faultsFlag []fault.Fault

func (l *faultsFlag) String() string { return "" }
func (l *faultsFlag) Type() string   { return "fault" }
func (l *faultsFlag) Set(text string) error {
	one, err := fault.Parse(text)
	*l = append(*l, one)
	return err
}

type assertsFlag []result.Assertion

func (l *assertsFlag) String() string { return "" }
func (l *assertsFlag) Type() string   { return "assertion" }
func (l *assertsFlag) Set(text string) error {
	one, err := result.ParseAssertion(text)
	*l = append(*l, one)
	return err
}
