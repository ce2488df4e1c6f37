//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/gauge"
	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
)

// The drills are tests of one edge, the built binary with one loop, between the broker and the generators of versus, a process each:
//
//	go test -run Drill ./cmd/versus                                   # small, and only right or wrong
//	LIMPET_DRILLS=1 go test -count=1 -v -run DrillStorm ./cmd/versus  # full size: prints figures, on a line that begins with "drill:"
//
// They use what versus has, and are here for that; nothing of them is in it.

// patience is how long a drill waits for what should take well below a second.
const patience = 30 * time.Second

// drilling reports whether drills have their full size.
func drilling() bool { return os.Getenv("LIMPET_DRILLS") == "1" }

// sized is how much of something there is: little, or in a drill of full size much.
func sized[T any](little, much T) T {
	if drilling() {
		return much
	}
	return little
}

// beside lets a test run beside others, unless it shall print figures.
func beside(t *testing.T) {
	if !drilling() {
		t.Parallel()
	}
}

// lasting is how long a drill goes on: little, or as long as it is meant to, or what LIMPET_DRILL_FOR says (1m30s).
func lasting(t *testing.T, little, much time.Duration) time.Duration {
	t.Helper()
	if text := os.Getenv("LIMPET_DRILL_FOR"); drilling() && text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return sized(little, much)
}

// figure prints a line for BENCHMARKS.md.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("drill: "+format, args...)
}

func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 2, 64) + " ms"
}

// buildDir is where it goes: TestMain's.
var buildDir string

var buildLimpet = sync.OnceValues(func() (string, error) {
	file := filepath.Join(buildDir, "limpet")
	if out, err := exec.Command("go", "build", "-o", file, "github.com/limpet-mesh/limpet/cmd/limpet").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
})

// builtLimpet is the binary, built once for all tests.
func builtLimpet(t *testing.T) string {
	t.Helper()
	file, err := buildLimpet()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// until polls ok, and fails with what was seen last if it never is.
func until(t *testing.T, within time.Duration, what string, ok func() (bool, any)) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		done, seen := ok()
		if done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v; seen last: %v", what, within, seen)
		}
	}
}

// site is one edge and its broker.
type site struct {
	t      *testing.T
	dir    string
	sink   *process
	broker string // address
	edge   *process
	at     map[string]string // addresses by listener's name
	admin  string
	cert   string
	ca     string // whom its clients trust
	before []string
	count  int // of other processes
}

// listener is a part of an edge.yaml: its name is its type unless rest says otherwise.
type listener struct{ name, kind, rest string }

// newSite starts a broker and an edge; settings are lines of its edge.yaml. Without a store among them it has none, and its pool is in a file.
func newSite(t *testing.T, before []string, listeners []listener, settings ...string) *site {
	t.Helper()
	s := newBroker(t, before)
	s.startEdge(listeners, settings...)
	return s
}

// newBroker is a site whose edge has not been started yet; before is what its broker and its generators are started by, such as urgent.
func newBroker(t *testing.T, before []string) *site {
	t.Helper()
	if err := raiseDescriptors(); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, before: before, dir: t.TempDir(), at: map[string]string{}}
	s.sink = s.child("sink", before, "sink", "1", "mqtt")
	var brokers []string
	s.ask(s.sink, request{Op: "addresses"}, &brokers)
	s.broker = brokers[0]
	s.cert = filepath.Join(s.dir, "cert.pem")
	if err := writeCertificate(s.cert); err != nil {
		t.Fatal(err)
	}
	s.ca = s.cert
	return s
}

func (s *site) startEdge(listeners []listener, settings ...string) {
	t := s.t
	t.Helper()
	s.admin = s.port()
	stores := "store: none\nmesh_file: " + s.file("mesh.yaml", s.mesh("{type: tcp}"))
	level := "log: {level: warn}"
	text := []string{"mesh: drill", "id: edge", "loops: 1", "admin: {address: \"" + s.admin + "\"}"}
	for _, line := range settings {
		switch key, _, _ := strings.Cut(line, ":"); key {
		case "store":
			stores = ""
		case "log":
			level = ""
		}
		text = append(text, line)
	}
	text = append(text, level, stores, "listeners:")
	for _, l := range listeners {
		s.at[l.name] = s.port()
		text = append(text, fmt.Sprintf("  - {name: %s, type: %s, address: %q%s}", l.name, l.kind, s.at[l.name], l.rest))
		if l.kind == "tls" || l.kind == "wss" {
			text[len(text)-1] = fmt.Sprintf("  - {name: %s, type: %s, address: %q, tls: {certificates: [{cert: %s, key: %s}]}%s}", l.name, l.kind, s.at[l.name], s.cert, s.cert+".key", l.rest)
		}
	}
	s.edge = s.start("edge", false, builtLimpet(t), "edge", "-c", s.file("edge.yaml", strings.Join(text, "\n")+"\n"))
	until(t, patience, "the edge is ready", func() (bool, any) {
		select {
		case <-s.edge.gone:
			t.Fatalf("the edge has ended%s", s.edge.said())
		default:
		}
		return isReady("http://" + s.admin + "/readyz"), s.edge.said()
	})
}

// mesh is a mesh file with the broker.
func (s *site) mesh(probe string) string {
	return fmt.Sprintf("mesh: drill\npools: [{name: default, probe: %s, brokers: [{id: b1, address: %q, proxy_protocol: v2}]}]\n", probe, s.broker)
}

func (s *site) file(name, text string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func (s *site) port() string {
	s.t.Helper()
	p, err := freePort()
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// start starts a process that ends with the test.
func (s *site) start(name string, talk bool, argv ...string) *process {
	s.t.Helper()
	p, err := start(name, s.dir, nil, talk, argv...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		select {
		case <-p.gone:
			if s.t.Failed() {
				s.t.Logf("%s had ended by itself: %v", name, p.cmd.ProcessState)
			}
		default:
		}
		p.end()
		if said := p.said(); s.t.Failed() && said != "" {
			s.t.Logf("%s%s", name, said)
		}
	})
	return p
}

// child starts this program as another one; before is what it is started by, such as nice.
func (s *site) child(name string, before []string, args ...string) *process {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.count++
	return s.start(fmt.Sprintf("%s%d", name, s.count), true, slices.Concat(before, []string{self}, args)...)
}

func (s *site) ask(p *process, r request, v any) {
	s.t.Helper()
	if err := p.ask(r, v); err != nil {
		s.t.Fatal(err)
	}
}

// generator is a process with clients.
type generator struct {
	*process
	s *site
}

// generator starts one, for the listener or, if there is none of that name, the address itself; by before, if there is any, instead of the site's.
func (s *site) generator(scheme, listener string, before ...string) *generator {
	s.t.Helper()
	address := listener
	if at, ok := s.at[listener]; ok {
		address = at
	}
	target := load.Target{URL: scheme + "://" + address, Sources: sources(), Payload: 100}
	if scheme == "mqtts" || scheme == "wss" {
		target.CA = s.ca
	}
	text, err := json.Marshal(target)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(before) == 0 {
		before = s.before
	}
	return &generator{s.child("load", before, "load", string(text)), s}
}

// connect connects n clients, the first with the number first.
func (g *generator) connect(c load.Connects) load.Connected {
	g.s.t.Helper()
	var got load.Connected
	g.s.ask(g.process, request{Op: "connect", Connects: c}, &got)
	if got.Accepted != c.Count || got.Failed > 0 {
		g.s.t.Fatalf("of %d clients %d connected: %v", c.Count, got.Accepted, got.Errors)
	}
	return got
}

// traffic begins to publish that many messages a second; there are as many echoes.
func (g *generator) traffic(rate float64) {
	g.s.t.Helper()
	g.s.ask(g.process, request{Op: "traffic", Rate: rate}, nil)
}

func (g *generator) mark() (seen load.Seen) {
	g.s.t.Helper()
	g.s.ask(g.process, request{Op: "mark"}, &seen)
	return seen
}

// stop ends the traffic, and checks that nothing was lost of it.
func (g *generator) stop() (seen load.Seen) {
	g.s.t.Helper()
	g.s.ask(g.process, request{Op: "stop"}, &seen)
	if seen.Sent == 0 || seen.Received != seen.Sent || seen.Wrong+seen.Lost+seen.Refused > 0 {
		g.s.t.Errorf("%d messages sent, %d came back, %d wrong; %d connections lost, %d messages refused", seen.Sent, seen.Received, seen.Wrong, seen.Lost, seen.Refused)
	}
	return seen
}

// metrics are what the edge says of itself, by name with labels.
func (s *site) metrics() map[string]float64 {
	s.t.Helper()
	c := http.Client{Timeout: patience}
	a, err := c.Get("http://" + s.admin + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	all := map[string]float64{}
	for lines := bufio.NewScanner(a.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			all[name] = v
		}
	}
	return all
}

// holds is what the edge has.
type holds struct {
	goroutines, descriptors, sessions int
	heap, rss                         int64 // bytes
	collections                       int
	cpu                               time.Duration
}

func (s *site) holds() (h holds) {
	s.t.Helper()
	m := s.metrics()
	h = holds{
		goroutines: int(m["go_goroutines"]), descriptors: int(m["process_open_fds"]), sessions: int(m["limpet_edge_connections"]),
		heap: int64(m["go_memstats_heap_inuse_bytes"]), collections: int(m["go_gc_duration_seconds_count"]),
	}
	var err error
	if h.rss, err = gauge.RSS([]int{s.edge.pid()}); err != nil {
		s.t.Fatal(err)
	}
	h.cpu = s.clock(s.edge)
	return h
}

// clock is the CPU time that a process has used.
func (s *site) clock(p *process) time.Duration {
	s.t.Helper()
	used, err := gauge.Clock(p.pid())
	if err != nil {
		s.t.Fatal(err)
	}
	return used
}

// usage is what the machine has.
func (s *site) usage() gauge.Usage {
	s.t.Helper()
	used, err := gauge.CPU(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return used
}

func (h holds) String() string {
	return fmt.Sprintf("RSS %.1f MiB, heap in use %.1f MiB, %d goroutines, %d descriptors, %d sessions", mib(h.rss), mib(h.heap), h.goroutines, h.descriptors, h.sessions)
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// idleHands is how many goroutines for handshakes a loop keeps for the next ones.
const idleHands = 16

// calm waits until the edge has no more sessions, descriptors and goroutines than then, but for idleHands.
func (s *site) calm(then holds) {
	s.t.Helper()
	until(s.t, patience, "sessions, descriptors and goroutines are what they were", func() (bool, any) {
		now := s.holds()
		return now.sessions <= then.sessions && now.descriptors <= then.descriptors && now.goroutines <= then.goroutines+idleHands, fmt.Sprintf("%v; before: %v", now, then)
	})
}

// ends are connections that ended, by why.
func (s *site) ends() map[string]float64 {
	s.t.Helper()
	all := map[string]float64{}
	for name, n := range s.metrics() {
		if strings.HasPrefix(name, "limpet_edge_closed_total{") || strings.HasPrefix(name, "limpet_edge_rejected_total{") {
			_, why, _ := strings.Cut(name, `reason="`)
			if n > 0 {
				all[strings.TrimSuffix(why, `"}`)] += n
			}
		}
	}
	return all
}

// linesWith counts lines of the edge's log that have some text.
func (s *site) linesWith(text string) (n int) {
	s.t.Helper()
	b, err := os.ReadFile(s.edge.log)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// stalls measures how late the machine wakes who has slept for a millisecond, on each processor: what the machine does not give to anybody, or
// to others, is none of the edge's, and shows here.
type stalls struct {
	mu   sync.Mutex
	late []time.Duration
	stop chan struct{}
	all  sync.WaitGroup
}

func watchStalls(t *testing.T) *stalls {
	s := &stalls{stop: make(chan struct{})}
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil {
		t.Fatal(err)
	}
	for core := range 1024 {
		if !cores.IsSet(core) {
			continue
		}
		s.all.Go(func() {
			if err := onCores([]int{core}, func() error { s.watch(); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { close(s.stop); s.all.Wait() })
	return s
}

// watch sleeps on a thread of its own. This process does little else: what its own scheduler takes to let it go on is in the figure.
func (s *stalls) watch() {
	const nap = time.Millisecond
	pause := unix.NsecToTimespec(int64(nap))
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		begun := time.Now()
		_ = unix.Nanosleep(&pause, nil)
		late := time.Since(begun) - nap
		s.mu.Lock()
		s.late = append(s.late, late)
		s.mu.Unlock()
	}
}

// mark returns the 99th percentile and the longest since the last call.
func (s *stalls) mark() (p99, most time.Duration) {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	if len(late) == 0 {
		return 0, 0
	}
	slices.Sort(late)
	return late[len(late)*99/100], late[len(late)-1]
}

// urgent is what broker and generators of a drill of full size are started by, where that is allowed: on a site they are machines of their own,
// and what they wait for a processor here would be counted as the edge's. Not where they do much: then the edge would wait for them.
var urgent = sync.OnceValue(func() []string {
	if argv := []string{"chrt", "-f", "1"}; drilling() && exec.Command(argv[0], append(argv[1:], "true")...).Run() == nil {
		return argv
	}
	return nil
})

// nice is what a process is started by that shall run only when nobody else wants to.
var nice = []string{"nice", "-n", "19"}
