// Package peer knows the proxies that are compared: which programs they are, how each is configured as well as we can, and in what they differ.
//
//	p, err := peer.Parse("haproxy-2", binaries) // HAProxy with two threads
//	files, argv := p.Configure(peer.Setup{Mode: peer.TLS, Dir: dir, Listen: "127.0.0.1:8883", Brokers: brokers, …})
//
// A name is a program, "-N" for N threads or loops, and for limpet settings that are added to its edge.yaml: "limpet-2:loops=3",
// "limpet:tls.min_version=1.3" (a name that begins with tls. goes to the listener). It starts nothing itself.
package peer

import (
	"bytes"
	"context"
	_ "embed" // floor.c
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Mode is what clients speak to the proxy.
type Mode string

// The modes.
const (
	Plain Mode = "plain"
	TLS   Mode = "tls"
	WS    Mode = "ws"
	WSS   Mode = "wss"
)

// Modes are all of them.
var Modes = []Mode{Plain, TLS, WS, WSS}

// Encrypted reports whether the mode has TLS.
func (m Mode) Encrypted() bool { return m == TLS || m == WSS }

// WebSocket reports whether the mode has WebSocket.
func (m Mode) WebSocket() bool { return m == WS || m == WSS }

// Kind is a family of programs.
type Kind string

// The kinds.
const (
	Limpet  Kind = "limpet"
	HAProxy Kind = "haproxy"
	NGINX   Kind = "nginx"
	Floor   Kind = "floor"  // the least that relays at all, in C
	Direct  Kind = "direct" // no proxy
)

// Peer is a program with a number of threads.
type Peer struct {
	Name     string
	Kind     Kind
	Program  string // its file
	Threads  int
	settings []setting
}

type setting struct{ name, value string }

// floorSource is what Build compiles.
//
//go:embed floor/floor.c
var floorSource []byte

// Build makes p's program where it is not one already: Floor's, in dir, by the C compiler that p.Program names.
func (p *Peer) Build(ctx context.Context, dir string) error {
	if p.Kind != Floor {
		return nil
	}
	file := filepath.Join(dir, "floor")
	c := exec.CommandContext(ctx, p.Program, "-O2", "-x", "c", "-o", file, "-")
	c.Stdin = bytes.NewReader(floorSource)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("floor: %s: %w: %s", p.Program, err, out)
	}
	p.Program = file
	return nil
}

// Programs are the files of programs by name: "limpet", "haproxy", "nginx", "floor" (a C compiler), and names of the caller's for other builds of limpet.
type Programs map[string]string

var form = regexp.MustCompile(`^([a-z][a-z0-9.]*)(?:-([1-9][0-9]?))?((?::[a-z_.]+=[^:]*)*)$`)

// Parse reads a peer's name.
func Parse(name string, programs Programs) (Peer, error) {
	m := form.FindStringSubmatch(name)
	if m == nil {
		return Peer{}, fmt.Errorf("peer %q: expected limpet, haproxy, nginx, floor or direct, -N for N threads, and for limpet :setting=value", name)
	}
	p := Peer{Name: name, Kind: Kind(m[1]), Program: programs[m[1]], Threads: 1}
	switch p.Kind {
	case Direct:
		return p, nil
	case HAProxy, NGINX, Floor:
	default:
		p.Kind = Limpet
	}
	if p.Program == "" {
		return Peer{}, fmt.Errorf("peer %q: no program is known by the name %q", name, m[1])
	}
	if m[2] != "" {
		p.Threads, _ = strconv.Atoi(m[2])
	}
	for _, s := range strings.Split(m[3], ":")[1:] {
		key, value, _ := strings.Cut(s, "=")
		p.settings = append(p.settings, setting{key, value})
	}
	if p.Kind == Floor && p.Threads > 1 {
		return Peer{}, fmt.Errorf("peer %q: it has one thread", name)
	}
	if len(p.settings) > 0 && p.Kind != Limpet {
		return Peer{}, fmt.Errorf("peer %q: only limpet has settings", name)
	}
	return p, nil
}

// packages are where Debian has the programs.
var packages = map[Kind]string{HAProxy: "haproxy", NGINX: "nginx-light libnginx-mod-stream"}

// Missing is what to do about a program that is not there, "" if it is.
func (p Peer) Missing() string {
	if p.Kind == Direct {
		return ""
	}
	if _, err := exec.LookPath(p.Program); err == nil {
		return ""
	}
	switch p.Kind {
	case Limpet:
		return "make build"
	case Floor:
		return "apt-get install gcc libc6-dev"
	}
	return "apt-get install " + packages[p.Kind]
}

// Reference is the name of the peer that p is compared with: HAProxy with as many threads.
func (p Peer) Reference() string {
	if p.Threads == 1 {
		return string(HAProxy)
	}
	return fmt.Sprintf("%s-%d", HAProxy, p.Threads)
}

// Speaks reports whether p serves clients of this mode.
func (p Peer) Speaks(m Mode) bool { return p.Kind != Floor || m == Plain }

// Sticky reports whether p has one broker for a client ID in this mode.
func (p Peer) Sticky(m Mode) bool {
	return p.Kind == Limpet || p.Kind == Floor || p.Kind == HAProxy && !m.WebSocket()
}

// Proxied reports whether p tells the broker the client's address in a PROXY header.
func (p Peer) Proxied(m Mode) bool {
	return p.Kind == Limpet || p.Kind == HAProxy || p.Kind == Floor || p.Kind == NGINX && !m.WebSocket()
}

// Frames reports whether the broker behind p has to speak WebSocket.
func (p Peer) Frames(m Mode) bool { return m.WebSocket() && p.Kind != Limpet }

// Version is what the program says of itself.
func (p Peer) Version() string {
	var args []string
	switch p.Kind {
	case Limpet:
		args = []string{"version"}
	case HAProxy, NGINX:
		args = []string{"-v"}
	default:
		return ""
	}
	out, err := exec.Command(p.Program, args...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first
}
