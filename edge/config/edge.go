package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// ParseEdge reads an edge's configuration; name is the file's, for errors and for the file names in it.
func ParseEdge(name string, data []byte) (*Edge, error) {
	r := &report{index: index{file: name, pos: map[string]Pos{}}}
	e := &Edge{at: &r.index}
	root := r.parseYAML(data)
	if len(r.errs) == 0 {
		if kindOf(root) == MeshFile {
			r.add(&Error{File: name, Pos: Pos{1, 1}, Message: "expected the configuration of an edge, found that of a mesh"})
			return nil, r.err()
		}
		v := newValue(r, root, "", Pos{1, 1})
		v.mapping(e.fields(), "mesh", "store", "listeners")
		e.complete(v)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Edge) fields() fields {
	return fields{
		"mesh":      func(v value) { e.Mesh = v.name() },
		"id":        func(v value) { e.ID = v.name() },
		"store":     func(v value) { e.Store = readStore(v) },
		"mesh_file": func(v value) { e.MeshFile = v.file("a mesh file") },
		"listeners": func(v value) {
			if len(v.node.items) > maxListeners {
				v.fail("expected at most %d listeners, found %d", maxListeners, len(v.node.items))
				return
			}
			v.list("listeners", 1, func(_ int, v value) { e.Listeners = append(e.Listeners, readListener(v)) })
		},
		"tls_records": func(v value) { e.TLSRecords = oneOf(v, TLSRecordsStdlib, TLSRecordsLimpet) },
		"limits": func(v value) {
			v.mapping(fields{
				"connect_size":    func(v value) { e.Limits.ConnectSize = v.size(1<<10, 1<<20) },
				"connect_timeout": func(v value) { e.Limits.ConnectTimeout = v.duration(100*time.Millisecond, 5*time.Minute) },
				"connections":     func(v value) { e.Limits.Connections = v.number(0, 100_000_000) },
				"handshakes":      func(v value) { e.Limits.Handshakes = v.number(1, 1_000_000) },
				"keep_alive":      func(v value) { e.Limits.KeepAlive = v.factor(DefaultKeepAlive, 10) },
			})
		},
		"loops": func(v value) { e.Loops = v.number(0, 1024) },
		"admin": func(v value) {
			v.mapping(fields{"address": func(v value) { e.Admin.Address = v.loopback(9883) }})
		},
		"log": func(v value) {
			v.mapping(fields{
				"level":  func(v value) { e.Log.Level = oneOf(v, "trace", "debug", "info", "warn", "error") },
				"format": func(v value) { e.Log.Format = oneOf(v, "json", "console") },
			})
		},
		"shutdown": func(v value) {
			v.mapping(fields{"grace": func(v value) { e.Shutdown.Grace = v.duration(time.Millisecond, time.Hour) }})
		},
	}
}

// maxListeners bounds the work of comparing each address with the others.
const maxListeners = 1000

// complete fills what the file leaves out, then judges what no single field can tell.
func (e *Edge) complete(v value) {
	set(&e.TLSRecords, TLSRecordsStdlib)
	set(&e.Limits.ConnectSize, DefaultConnectSize)
	set(&e.Limits.ConnectTimeout, DefaultConnectTimeout)
	set(&e.Limits.Handshakes, DefaultHandshakes)
	set(&e.Limits.KeepAlive, DefaultKeepAlive)
	set(&e.Admin.Address, DefaultAdminAddress)
	set(&e.Log.Level, "info")
	set(&e.Log.Format, "json")
	set(&e.Shutdown.Grace, DefaultGrace)
	if !v.has("id") {
		if host, err := os.Hostname(); err == nil {
			e.ID = NameFrom(host)
		}
		if e.ID == "" {
			v.r.addf("id", "required field is missing, and the host has no name to take instead")
		}
	}
	switch {
	case e.Store.None && !v.has("mesh_file"):
		v.r.addf("mesh_file", "required field is missing: without a store, the pools come from a mesh file")
	case v.has("store") && !e.Store.None && v.has("mesh_file"):
		v.r.addf("mesh_file", "expected only with \"store: none\": the pools come from the store")
	}
	e.checkNames(v.r)
	e.checkPorts(v.r)
}

// set gives *p the default if it has no value.
func set[T comparable](p *T, def T) {
	var zero T
	if *p == zero {
		*p = def
	}
}

func (e *Edge) checkNames(r *report) {
	first := map[string]int{}
	for i, l := range e.Listeners {
		if l.Name == "" {
			continue
		}
		j, taken := first[l.Name]
		if !taken {
			first[l.Name] = i
			continue
		}
		field := fmt.Sprintf("listeners[%d].name", i)
		if _, given := r.pos[field]; given {
			r.addf(field, "duplicate name %q: listeners[%d] has it", l.Name, j)
		} else {
			r.addf(field, "required field is missing: %q, the default, is the name of listeners[%d]", l.Name, j)
		}
	}
}

// checkPorts finds addresses that cannot be bound together. QUIC is UDP and has ports of its own.
func (e *Edge) checkPorts(r *report) {
	type bound struct {
		field, address string
		udp            bool
	}
	all := []bound{{"admin.address", e.Admin.Address, false}}
	for i, l := range e.Listeners {
		if l.Address == "" {
			continue
		}
		next := bound{fmt.Sprintf("listeners[%d].address", i), l.Address, l.Type == QUIC}
		for _, b := range all {
			if b.udp == next.udp && overlap(b.address, next.address) {
				r.addf(next.field, "expected an address of its own, found %q, which clashes with %s (%s)", next.address, b.field, b.address)
				break
			}
		}
		all = append(all, next)
	}
}

// overlap reports whether two listening addresses share a port of a host.
func overlap(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	if portA != portB || portA == "0" {
		return false
	}
	ipA, errA := netip.ParseAddr(hostA)
	ipB, errB := netip.ParseAddr(hostB)
	ipA, ipB = ipA.Unmap(), ipB.Unmap()
	everywhere := func(host string, ip netip.Addr) bool { return host == "" || ip == netip.IPv6Unspecified() }
	switch {
	case everywhere(hostA, ipA) || everywhere(hostB, ipB):
		return true
	case errA != nil || errB != nil:
		return hostA == hostB
	case ipA.IsUnspecified() || ipB.IsUnspecified(): // 0.0.0.0
		return ipA.Is4() == ipB.Is4()
	}
	return ipA == ipB
}

// loopback reads an address that only this machine reaches.
func (v value) loopback(port int) string {
	what := "a loopback address such as 127.0.0.1:9883 (the admin API has no authentication)"
	return parsed(v, what, func(s string) (string, string, bool) {
		a, _, ok := parseAddress(s, port, true)
		if !ok {
			return "", "", false
		}
		host, p, _ := net.SplitHostPort(a)
		ip, err := netip.ParseAddr(host)
		return a, "127.0.0.1:" + p, err == nil && ip.Unmap().IsLoopback() || host == "localhost"
	})
}
