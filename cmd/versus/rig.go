//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/gauge"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/peer"
)

// A rig is broker, proxy and generator, each a process.
type rig struct {
	sink, proxy, load *process
	pids              []int // of the proxy
	configs           map[string]string
	pinned            string
}

// sources are where clients connect from: one address has no more than 28,000 ports to a proxy, and NGINX hashes it.
func sources() (all []string) {
	for i := range 16 {
		all = append(all, "127.0.8."+strconv.Itoa(i+1))
	}
	return all
}

// cores shares them out: to the proxy as many as it has threads, the rest to the others. All are free if nothing would be left, or wanted.
func (p *params) cores(one peer.Peer, figure string) (proxy, others []int, said string) {
	if p.Pin == "never" || p.Pin == "auto" && figure != saturated {
		return nil, nil, "all on all cores"
	}
	n := runtime.NumCPU()
	if one.Threads >= n {
		return nil, nil, fmt.Sprintf("all on all cores: %d threads leave none of %d", one.Threads, n)
	}
	for c := range n {
		if c < one.Threads {
			proxy = append(proxy, c)
		} else {
			others = append(others, c)
		}
	}
	if one.Kind == peer.Direct {
		return others, others, fmt.Sprintf("broker and generator on cores %v", others)
	}
	return proxy, others, fmt.Sprintf("proxy on cores %v, broker and generator on %v", proxy, others)
}

// newRig starts the three in dir, which is empty, and waits until a client is served.
func newRig(ctx context.Context, p *params, one peer.Peer, m peer.Mode, figure, dir, cert string) (r *rig, err error) {
	r = &rig{}
	defer func() {
		if err != nil {
			r.end()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	mine, others, said := p.cores(one, figure)
	r.pinned = said
	protocol := "mqtt"
	if one.Frames(m) {
		protocol = "ws"
	}
	if r.sink, err = start("sink", dir, others, true, self, "sink", strconv.Itoa(p.Brokers), protocol); err != nil {
		return r, err
	}
	var brokers []string
	if err := r.sink.ask(request{Op: "addresses"}, &brokers); err != nil {
		return r, err
	}
	s := peer.Setup{Mode: m, Dir: dir, Brokers: brokers, Cert: cert, Clients: max(p.Idle, p.Conns, p.Connects) + 100}
	address := brokers[0]
	if one.Kind != peer.Direct {
		if s.Listen, err = freePort(); err != nil {
			return r, err
		}
		if s.Admin, err = freePort(); err != nil {
			return r, err
		}
		address = s.Listen
		if err := r.startProxy(ctx, one, s, mine); err != nil {
			return r, err
		}
	}
	target := load.Target{URL: url(one, m, address), Sources: sources(), Payload: p.Payload}
	if m.Encrypted() {
		target.CA = cert
	}
	text, err := json.Marshal(target)
	if err != nil {
		return r, err
	}
	if r.load, err = start("load", dir, others, true, self, "load", string(text)); err != nil {
		return r, err
	}
	return r, r.firstClient()
}

func url(one peer.Peer, m peer.Mode, address string) string {
	scheme := map[peer.Mode]string{peer.Plain: "mqtt", peer.TLS: "mqtts", peer.WS: "ws", peer.WSS: "wss"}[m]
	if one.Kind == peer.Direct { // without TLS
		scheme = map[peer.Mode]string{peer.Plain: "mqtt", peer.TLS: "mqtt", peer.WS: "ws", peer.WSS: "ws"}[m]
	}
	return scheme + "://" + address
}

func freePort() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (r *rig) startProxy(ctx context.Context, one peer.Peer, s peer.Setup, cores []int) (err error) {
	files, argv := one.Configure(s)
	r.configs = files
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if r.proxy, err = start("proxy", s.Dir, cores, false, argv...); err != nil {
		return err
	}
	ready := func() bool { return answers(s.Listen) }
	if one.Kind == peer.Limpet {
		ready = func() bool { return isReady("http://" + s.Admin + "/readyz") }
	}
	for until := time.Now().Add(15 * time.Second); !ready(); {
		if time.Now().After(until) {
			return fmt.Errorf("%s does not get ready%s", one.Name, r.proxy.said())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.proxy.gone:
			return fmt.Errorf("%s has ended%s", one.Name, r.proxy.said())
		case <-time.After(20 * time.Millisecond):
		}
	}
	r.pids, err = r.proxy.tree()
	return err
}

func answers(address string) bool {
	c, err := net.DialTimeout("tcp4", address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func isReady(url string) bool {
	c := http.Client{Timeout: time.Second}
	a, err := c.Get(url)
	if err != nil {
		return false
	}
	a.Body.Close()
	return a.StatusCode == http.StatusOK
}

// warm is the number of the first of the clients that only warm up.
const warm = 9_000_000

// firstClient connects some clients one by one, until they are served.
func (r *rig) firstClient() error {
	var c load.Connected
	for i := range 10 {
		if err := r.load.ask(request{Op: "connect", Connects: load.Connects{First: warm + 10*i, Count: 10, Rate: 500}}, &c); err != nil {
			return err
		}
		if c.Failed == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	said := ""
	if r.proxy != nil {
		said = r.proxy.said()
	}
	return fmt.Errorf("no client is served: %v%s", c.Errors, said)
}

func (r *rig) end() {
	for _, p := range []*process{r.load, r.proxy, r.sink} {
		p.end()
	}
}

// sample is what all three have used so far.
type sample struct {
	at         time.Time
	proxy      gauge.Usage
	sink, load time.Duration
	versus     time.Duration
}

func (r *rig) sample() (s sample, err error) {
	s.at = time.Now()
	var errs [4]error
	s.proxy, errs[0] = gauge.CPU(r.pids)
	s.sink, errs[1] = gauge.Clock(r.sink.pid())
	s.load, errs[2] = gauge.Clock(r.load.pid())
	s.versus, errs[3] = gauge.Clock(os.Getpid())
	return s, errors.Join(errs[:]...)
}

// Spent is what was used between two samples.
type Spent struct {
	Elapsed time.Duration `json:"elapsed"`
	Proxy   gauge.Usage   `json:"proxy"`
	Sink    time.Duration `json:"sink"`
	Load    time.Duration `json:"load"`
	// Others is what other programs used; Rest what the machine did without them, broker, generator and this program: the proxy, the kernel's
	// threads, and interrupts.
	Others time.Duration `json:"others"`
	Rest   time.Duration `json:"rest"`
}

func (s sample) since(o sample) Spent {
	d := Spent{Elapsed: s.at.Sub(o.at), Proxy: s.proxy.Sub(o.proxy), Sink: s.sink - o.sink, Load: s.load - o.load}
	gear := d.Sink + d.Load + s.versus - o.versus
	d.Others = max(0, d.Proxy.Programs-d.Proxy.Clock-gear)
	d.Rest = d.Proxy.Machine - gear - d.Others
	return d
}

// quiet is the share of the machine that others may use while something is measured.
const quiet = 0.1

// waitQuiet waits until others use less than that, while nothing of ours runs, or for patience.
func waitQuiet(ctx context.Context, patience time.Duration) error {
	for until := time.Now().Add(patience); time.Now().Before(until); {
		before, err := gauge.CPU(nil)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		after, err := gauge.CPU(nil)
		if err != nil {
			return err
		}
		if after.Sub(before).Programs.Seconds() < quiet*time.Since(begin).Seconds()*float64(runtime.NumCPU()) {
			return nil
		}
	}
	return nil
}
