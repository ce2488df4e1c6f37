package config

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// ParseMesh reads a mesh's pools; name is the file's, for errors.
func ParseMesh(name string, data []byte) (*Mesh, error) {
	r := &report{index: index{file: name, pos: map[string]Pos{}}}
	m := &Mesh{at: &r.index}
	root := r.parseYAML(data)
	if len(r.errs) == 0 {
		if kindOf(root) == EdgeFile {
			r.add(&Error{File: name, Pos: Pos{1, 1}, Message: "expected the configuration of a mesh, found that of an edge"})
			return nil, r.err()
		}
		newValue(r, root, "", Pos{1, 1}).mapping(m.fields(), "mesh", "pools")
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	slices.SortFunc(m.Pools, func(a, b registry.Pool) int { return cmp.Compare(a.Name, b.Name) })
	return m, nil
}

func (m *Mesh) fields() fields {
	return fields{
		"mesh": func(v value) { m.Name = v.name() },
		"pools": func(v value) {
			names := unique{}
			v.list("pools", 1, func(_ int, v value) {
				p := readPool(v)
				names.check(v, "name", p.Name)
				m.Pools = append(m.Pools, p)
			})
		},
	}
}

// unique maps values to the fields that have them.
type unique map[string]string

// check reports a field of v whose value another has. Empty values are mistakes that were reported already.
func (u unique) check(v value, field, text string) {
	if text == "" {
		return
	}
	if other, taken := u[text]; taken {
		v.r.addf(v.child(field), "duplicate %s %q: %s has it", field, text, other)
		return
	}
	u[text] = v.path
}

func readPool(v value) registry.Pool {
	var p registry.Pool
	v.mapping(fields{
		"name":            func(v value) { p.Name = v.name() },
		"policy":          func(v value) { p.Policy = oneOf(v, registry.PolicyHash) },
		"sessions":        func(v value) { p.Sessions = oneOf(v, registry.SessionsLocal, registry.SessionsReplicated) },
		"rehome_after":    func(v value) { p.RehomeAfter = v.duration(100*time.Millisecond, 24*time.Hour) },
		"ttl":             func(v value) { p.TTL = v.duration(time.Second, maxTTL) },
		"max_ttl":         func(v value) { p.MaxTTL = v.duration(time.Second, maxTTL) },
		"failback":        func(v value) { p.Failback = oneOf(v, registry.FailbackStay) },
		"connect_timeout": func(v value) { p.ConnectTimeout = v.duration(100*time.Millisecond, 5*time.Minute) },
		"dial_timeout":    func(v value) { p.DialTimeout = v.duration(50*time.Millisecond, time.Minute) },
		"probe":           func(v value) { p.Probe = readProbe(v) },
		"brokers": func(v value) {
			ids, addresses := unique{}, unique{}
			v.list("brokers", 1, func(_ int, v value) {
				b := readBroker(v)
				ids.check(v, "id", b.ID)
				addresses.check(v, "address", strings.ToLower(b.Address))
				p.Brokers = append(p.Brokers, b)
			})
			slices.SortFunc(p.Brokers, func(a, b registry.Broker) int { return cmp.Compare(a.ID, b.ID) })
		},
	}, "name", "brokers")
	if p.TTL > p.RecordTTL(p.TTL) {
		v.r.addf(v.child("ttl"), "expected at most max_ttl (%s), found %q", FormatDuration(p.RecordTTL(p.TTL)), FormatDuration(p.TTL))
	}
	if dial, connect := p.DialDeadline(), p.ConnectDeadline(); dial > connect {
		field := "connect_timeout"
		if v.has("dial_timeout") {
			field = "dial_timeout"
		}
		v.r.addf(v.child(field), "expected dial_timeout (%s) to be at most connect_timeout (%s)", FormatDuration(dial), FormatDuration(connect))
	}
	return p
}

const maxTTL = 10 * 365 * 24 * time.Hour

func readProbe(v value) (p registry.Probe) {
	v.mapping(fields{
		"type":     func(v value) { p.Kind = oneOf(v, registry.ProbeMQTT, registry.ProbeTCP, registry.ProbeNone) },
		"interval": func(v value) { p.Interval = v.duration(100*time.Millisecond, time.Hour) },
		"timeout":  func(v value) { p.Timeout = v.duration(50*time.Millisecond, time.Minute) },
		"rise":     func(v value) { p.Rise = v.number(1, 100) },
		"fall":     func(v value) { p.Fall = v.number(1, 100) },
	})
	return p
}

func readBroker(v value) registry.Broker {
	var b registry.Broker
	v.mapping(fields{
		"id":      func(v value) { b.ID = v.name() },
		"address": func(v value) { b.Address = v.brokerAddress() },
		"weight":  func(v value) { b.Weight = v.number(1, registry.MaxWeight) },
		"transport": func(v value) {
			b.Transport = oneOf(v, registry.TransportTCP, registry.TransportTLS, registry.TransportWS, registry.TransportWSS)
		},
		"path": func(v value) { b.Path = v.requestPath() },
		"proxy_protocol": func(v value) {
			if b.Proxy = oneOf(v, "none", registry.ProxyV1, registry.ProxyV2); b.Proxy == "none" {
				b.Proxy = registry.ProxyNone
			}
		},
		"tls": func(v value) {
			v.mapping(fields{
				"ca":          func(v value) { b.TLS.CA = v.absolute("a PEM file with authorities") },
				"cert":        func(v value) { b.TLS.Cert = v.absolute("a PEM file with the edge's certificate") },
				"key":         func(v value) { b.TLS.Key = v.absolute("a PEM file with the private key") },
				"server_name": func(v value) { b.TLS.ServerName = v.host() },
			})
			v.pair("cert", "key")
		},
	}, "id", "address")
	over := b.Over()
	if v.has("tls") && over != registry.TransportTLS && over != registry.TransportWSS {
		v.r.addf(v.child("tls"), "expected only with transport tls or wss, found with %s", over)
	}
	if v.has("path") && over != registry.TransportWS && over != registry.TransportWSS {
		v.r.addf(v.child("path"), "expected only with transport ws or wss, found with %s", over)
	}
	return b
}

// brokerAddress reads an address that is dialled.
func (v value) brokerAddress() string {
	return parsed(v, "host:port", func(s string) (string, string, bool) {
		a, hint, ok := parseAddress(s, 0, false)
		if host, port := splitAddress(s); !ok && port == "" && validHost(host) {
			hint = net.JoinHostPort(host, "1883")
		}
		return a, hint, ok
	})
}

// host reads a host's name or address.
func (v value) host() string {
	return parsed(v, "a host name", func(s string) (string, string, bool) { return s, "", validHost(s) })
}

// PoolField is a field of a pool that has a value, in the words of a mesh file.
type PoolField struct{ Path, Value string }

// PoolFields lists what is set in a pool, except its name, in a fixed order:
// the difference of two pools is that of their lists. Brokers go by ID, as in brokers[b1].address.
func PoolFields(p *registry.Pool) []PoolField {
	var out []PoolField
	add := func(path, value string) {
		if value != "" {
			out = append(out, PoolField{path, value})
		}
	}
	duration := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return FormatDuration(d)
	}
	number := func(n int) string { return strings.TrimPrefix(fmt.Sprint(n), "0") }
	add("policy", string(p.Policy))
	add("sessions", string(p.Sessions))
	add("rehome_after", duration(p.RehomeAfter))
	add("ttl", duration(p.TTL))
	add("max_ttl", duration(p.MaxTTL))
	add("failback", string(p.Failback))
	add("connect_timeout", duration(p.ConnectTimeout))
	add("dial_timeout", duration(p.DialTimeout))
	add("probe.type", string(p.Probe.Kind))
	add("probe.interval", duration(p.Probe.Interval))
	add("probe.timeout", duration(p.Probe.Timeout))
	add("probe.rise", number(p.Probe.Rise))
	add("probe.fall", number(p.Probe.Fall))
	for _, b := range p.Brokers {
		at := "brokers[" + b.ID + "]."
		add(at+"address", b.Address)
		add(at+"weight", number(b.Weight))
		add(at+"transport", string(b.Transport))
		add(at+"path", b.Path)
		add(at+"proxy_protocol", string(b.Proxy))
		add(at+"tls.ca", b.TLS.CA)
		add(at+"tls.cert", b.TLS.Cert)
		add(at+"tls.key", b.TLS.Key)
		add(at+"tls.server_name", b.TLS.ServerName)
	}
	return out
}
