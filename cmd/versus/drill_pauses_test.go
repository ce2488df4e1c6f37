//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/limpet-mesh/limpet/cmd/versus/internal/load"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

// A gap is the longest time that a message took, counted from when it was due, in some second.
type gap struct {
	at      time.Duration // since the beginning
	edge    time.Duration // through the edge
	direct  time.Duration // past it, to the broker itself
	machine time.Duration // who slept for a millisecond was woken that late
	edgeP99 time.Duration
}

func (g gap) String() string {
	return fmt.Sprintf("%s at %.0f s (in that second p99 %s; past the edge %s, the machine itself %s)", ms(g.edge), g.at.Seconds(), ms(g.edgeP99), ms(g.direct), ms(g.machine))
}

// TestDrillPauses: what an edge does besides is not felt by a live client. Goal: no gap above 20 ms on a quiet machine, which one that relays
// 2,000 messages a second is, and one that relays 20,000 is not.
func TestDrillPauses(t *testing.T) {
	beside(t)
	for _, rate := range sized([]float64{400}, []float64{1000, 10_000}) { // publishes a second, and as many echoes
		t.Run(fmt.Sprintf("%.0f messages a second", 2*rate), func(t *testing.T) {
			beside(t)
			drillPauses(t, rate)
		})
	}
}

func drillPauses(t *testing.T, rate float64) {
	clients := sized(20, 100)
	records := sized(2000, 100_000)
	whole := lasting(t, 5*time.Second, 10*time.Minute)
	step := sized(300*time.Millisecond, 5*time.Second) // of each phase, at least

	s := newBroker(t, nil)
	etcd := s.startStore()
	line := newLink(t, strings.TrimPrefix(etcd, "http://"))
	mesh := func(interval string) string {
		return s.file("mesh.yaml", s.mesh("{type: tcp, interval: "+interval+"}"))
	}
	s.apply(etcd, mesh("2s"))
	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{etcd}, Mesh: "drill", Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	fill(t, store, 0, records)
	other := s.otherCertificate()
	s.startEdge([]listener{{"tls", "tls", ""}}, "tls_records: limpet", "log: {level: info}", "store: {etcd: {endpoints: ['http://"+line.address()+"']}}")
	listed := func(n int) {
		t.Helper()
		until(t, patience, "the store is listed", func() (bool, any) { got := s.linesWith("store listed"); return got >= n, got })
	}
	listed(1)
	if n := s.metrics()["limpet_cache_affinities"]; int(n) != records {
		t.Fatalf("the edge has %.0f records of %d", n, records)
	}

	live, direct, churn := s.generator("mqtts", "tls"), s.generator("mqtt", s.broker), s.generator("mqtts", "tls", nice...)
	live.connect(load.Connects{Count: clients, Rate: 200, Hold: true})
	direct.connect(load.Connects{First: clients, Count: 10, Rate: 100, Hold: true})
	live.traffic(rate)
	direct.traffic(sized(100.0, 1000.0))
	stalls := watchStalls(t)

	begun := time.Now()
	worst := map[string]gap{}
	mark := func(name string) {
		l, d := live.mark().Latency, direct.mark().Latency
		g := gap{at: time.Since(begun), edge: l.Max, direct: d.Max, edgeP99: l.P99}
		_, g.machine = stalls.mark()
		if g.edge > worst[name].edge {
			worst[name] = g
		}
	}
	// during does something while it looks at each second, and at some more behind it.
	during := func(name string, do func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- do() }()
		end := time.Now().Add(step)
		for open := true; open || time.Now().Before(end); {
			select {
			case err := <-done:
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				open, end, done = false, time.Now().Add(step), nil
			case <-time.After(min(step, time.Second)):
			}
			mark(name)
		}
	}
	nothing := func() error { return nil }
	during("the beginning", nothing)
	delete(worst, "the beginning")
	collections, next, reloads := 0, records, 0
	for round := 1; round == 1 || time.Since(begun) < whole; round++ {
		during("nothing", nothing)
		before := s.holds().collections
		during("collections, by 200 TLS connects/s", func() error {
			n := int(200 * step.Seconds())
			var c load.Connected
			err := churn.ask(request{Op: "connect", Connects: load.Connects{First: 100_000, Count: n, Rate: 200}}, &c)
			if err == nil && c.Accepted != n {
				err = fmt.Errorf("of %d newcomers %d connected: %v", n, c.Accepted, c.Errors)
			}
			return err
		})
		collections += s.holds().collections - before
		during(fmt.Sprintf("a listing of %d records", records), func() error {
			line.cut()
			fill(t, store, next, next+1) // two revisions of which the edge does not hear, and the first of them will be forgotten
			fill(t, store, next+1, next+2)
			next += 2
			err := compact(t.Context(), etcd)
			line.mend()
			if err != nil {
				return err
			}
			for end := time.Now().Add(patience); s.linesWith("store listed") <= round; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					return errors.New("it has not been listed anew")
				}
			}
			return nil
		})
		during("a change of the pool's configuration", func() error {
			s.apply(etcd, mesh([]string{"2s", "3s"}[round%2]))
			return nil
		})
		during("new certificates, SIGHUP", func() error {
			if err := s.exchange(other); err != nil {
				return err
			}
			reloads++
			if err := syscall.Kill(s.edge.pid(), syscall.SIGHUP); err != nil {
				return err
			}
			return s.showsCertificate()
		})
	}
	total := live.stop()
	direct.stop()
	for name, g := range worst {
		figure(t, "pauses, longest gap during %s: %v", name, g)
	}
	figure(t, "pauses: %d clients, %.0f messages/s over TLS, %v; %d collections during the connects; goal 20 ms; generator: %s",
		clients, 2*rate, time.Since(begun).Round(time.Second), collections, total.Lag)
	figure(t, "pauses, SIGHUP: %d times, and newcomers saw the new certificate", reloads)
	if n := s.linesWith("SIGHUP: certificates, keys and client authorities are read again"); n != reloads {
		t.Errorf("%d reloads, and %d lines about them", reloads, n)
	}
}

// otherCertificate makes a second one, which clients trust as they do the first.
func (s *site) otherCertificate() (name string) {
	s.t.Helper()
	name = s.cert + ".other"
	if err := writeCertificate(name); err != nil {
		s.t.Fatal(err)
	}
	var both []byte
	for _, file := range []string{s.cert, name} {
		text, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		both = append(both, text...)
	}
	s.ca = s.file("ca.pem", string(both))
	return name
}

// exchange lets the edge's certificate and the other change places.
func (s *site) exchange(other string) error {
	for _, end := range []string{"", ".key"} {
		for _, move := range [][2]string{{s.cert, s.cert + ".third"}, {other, s.cert}, {s.cert + ".third", other}} {
			if err := os.Rename(move[0]+end, move[1]+end); err != nil {
				return err
			}
		}
	}
	return nil
}

// showsCertificate waits until newcomers see the certificate that is in the file.
func (s *site) showsCertificate() error {
	pair, err := tls.LoadX509KeyPair(s.cert, s.cert+".key")
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.at["tls"], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		shown := c.ConnectionState().PeerCertificates[0]
		c.Close()
		if shown.Equal(pair.Leaf) {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("newcomers still see the old certificate")
		}
	}
}

// startStore starts an etcd that leaves the processors to the others, and returns its URL.
func (s *site) startStore() string {
	s.t.Helper()
	p := s.start("store", true, append(append([]string{}, nice...),
		builtLimpet(s.t), "store", "--only", "etcd", "--no-sync", "--data", s.t.TempDir(), "--etcd-port", "0", "--peer-port", "0", "--log-level", "warn")...)
	text, err := p.out.ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(text), "etcd ")
	if err != nil || !ok {
		s.t.Fatalf("the store says %q, %v%s", text, err, p.said())
	}
	return url
}

func (s *site) apply(etcd, file string) {
	argv := append(append([]string{}, nice...), builtLimpet(s.t), "apply", "-f", file, "--etcd", etcd)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		s.t.Errorf("apply: %v: %s", err, out)
	}
}

// fill records the keys from..to-1.
func fill(t *testing.T, store registry.Store, from, to int) {
	now := time.Now()
	for from < to {
		var ws []registry.Write
		for ; from < to && len(ws) < registry.MaxCommit; from++ {
			ws = append(ws, registry.Write{
				Pool: "default", Key: fmt.Sprintf("device-%08d", from), Lease: 24 * time.Hour,
				Affinity: registry.Affinity{Broker: "b1", Home: "b1", Writer: "drill", Written: now, Expires: now.Add(24 * time.Hour), Reason: "placement"},
			})
		}
		results, err := store.Commit(t.Context(), ws)
		if err != nil {
			t.Errorf("commit: %v", err)
			return
		}
		for _, r := range results {
			if r.Status != registry.Committed {
				t.Errorf("commit: %v", r.Status)
				return
			}
		}
	}
}

// compact makes etcd forget its history.
func compact(ctx context.Context, etcd string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	head, err := c.Get(ctx, "k")
	if err != nil {
		return err
	}
	_, err = c.Compact(ctx, head.Header.Revision)
	return err
}

// link is a way to a server that can be cut.
type link struct {
	to string
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	whole bool
	conns map[net.Conn]bool
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{to: to, ln: ln, whole: true, conns: map[net.Conn]bool{}}
	l.wg.Go(l.run)
	t.Cleanup(func() {
		ln.Close()
		l.cut()
		l.wg.Wait()
	})
	return l
}

func (l *link) address() string { return l.ln.Addr().String() }

func (l *link) run() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(c) })
	}
}

func (l *link) serve(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer s.Close()
	l.mu.Lock()
	whole := l.whole
	l.conns[c], l.conns[s] = true, true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.conns, c)
		delete(l.conns, s)
		l.mu.Unlock()
	}()
	if !whole {
		return
	}
	var other sync.WaitGroup
	pipe := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		to.Close()
		from.Close()
	}
	other.Go(func() { pipe(s, c) })
	pipe(c, s)
	other.Wait()
}

// cut breaks all connections, and those that come until mend.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = false
	for c := range l.conns {
		c.Close()
	}
}

func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = true
}
