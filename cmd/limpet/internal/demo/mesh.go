package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// mesh is what the demo runs: stores, brokers, edges, a process each.
type mesh struct {
	dir    string
	layout *layout
	pki    *pki
	sup    *supervisor
	file   string // mesh.yaml

	standalone bool // the brokers share nothing

	etcd, nats *child
	brokers    [brokers]*child
	edges      [edges]*child

	whole time.Time // since when all edges have served
}

// newMesh prepares everything in dir; nothing runs yet but the supervisor. close lets go of what it holds.
func newMesh(exe, dir string, shift, standalone bool) (m *mesh, err error) {
	m = &mesh{dir: dir, standalone: standalone}
	if m.layout, err = newLayout(shift); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.layout.release()
		}
	}()
	if m.pki, err = newPKI(dir); err != nil {
		return nil, err
	}
	if m.file, err = meshFile(dir, m.layout); err != nil {
		return nil, err
	}
	var configs [edges]string
	for i := range configs {
		if configs[i], err = edgeFile(dir, m.layout, m.pki, i); err != nil {
			return nil, err
		}
	}
	if m.sup, err = newSupervisor(exe, dir); err != nil {
		return nil, err
	}
	m.addStores()
	m.addBrokers()
	for i := range m.edges {
		admin := "http://" + m.layout.edges[i].Admin
		m.edges[i] = m.sup.add(&child{
			name: edgeName(i), args: []string{"edge", "-c", configs[i]},
			ready: func(ctx context.Context) error { return edgeReady(ctx, admin) },
		})
	}
	return m, nil
}

func (m *mesh) etcdURL() string { return "http://" + m.layout.etcd }
func (m *mesh) natsURL() string { return "nats://" + m.layout.nats }

func (m *mesh) addStores() {
	port := func(address string) string {
		_, p := split(address)
		return p
	}
	data := filepath.Join(m.dir, "data")
	m.etcd = m.sup.add(&child{
		name: "etcd", ready: func(ctx context.Context) error { return get(ctx, m.etcdURL()+"/health", nil) },
		args: []string{
			"store", "--only", "etcd", "--data", data, "--no-sync", // nobody misses the data; a slow disk would be missed
			"--etcd-port", port(m.layout.etcd), "--peer-port", port(m.layout.peer),
		},
	})
	m.nats = m.sup.add(&child{
		name: "nats", ready: func(ctx context.Context) error { return natsReady(ctx, m.layout.nats) },
		args: []string{"store", "--only", "nats", "--data", data, "--nats-port", port(m.layout.nats)},
	})
}

func (m *mesh) addBrokers() {
	for i, b := range m.layout.brokers {
		file := filepath.Join(m.dir, brokerName(i)+".ready")
		args := []string{
			"demo-broker", "--name", brokerName(i), "--listen", b.mqtt, "--link-listen", b.link,
			"--proxy-protocol", "--ready-file", file,
		}
		for j, peer := range m.layout.brokers {
			if j != i && !m.standalone {
				args = append(args, "--peer", brokerName(j)+"="+peer.link)
			}
		}
		if m.standalone {
			args = append(args, "--standalone")
		}
		c := m.sup.add(&child{name: brokerName(i), args: args})
		c.ready = func(context.Context) error { return brokerReady(file, c.pid()) }
		m.brokers[i] = c
	}
}

// start brings the mesh up and returns when every edge serves.
func (m *mesh) start(ctx context.Context) error {
	m.layout.servers.release()
	early := append([]*child{m.etcd, m.nats}, m.brokers[:]...)
	for _, c := range early {
		if err := c.start(); err != nil {
			return err
		}
	}
	if err := m.etcd.await(ctx); err != nil {
		return err
	}
	m.layout.fronts.release()
	for _, c := range m.edges {
		if err := c.start(); err != nil {
			return err
		}
	}
	if err := m.apply(ctx); err != nil {
		return err
	}
	if err := awaitAll(ctx, append(early, m.edges[:]...)); err != nil {
		return err
	}
	m.whole = time.Now()
	return nil
}

func awaitAll(ctx context.Context, children []*child) error {
	errs := make([]error, len(children))
	var all sync.WaitGroup
	for i, c := range children {
		all.Go(func() { errs[i] = c.await(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// apply puts the pool into etcd, as an operator does.
func (m *mesh) apply(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, m.sup.exe, "apply", "-f", m.file, "--etcd", m.etcdURL(), "--timeout", startTimeout.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("limpet apply: %w\n  %s", err, strings.TrimSpace(string(out))))
	}
	return nil
}

// stop ends every process in order: edges, which say goodbye to clients and stores, then the rest.
func (m *mesh) stop() {
	stopAll(m.edges[:])
	stopAll(append([]*child{m.nats, m.etcd}, m.brokers[:]...))
}

func stopAll(children []*child) {
	var all sync.WaitGroup
	for _, c := range children {
		all.Go(c.stop)
	}
	all.Wait()
}

// close stops what runs and lets go of everything but the files.
func (m *mesh) close() error {
	m.stop()
	m.layout.release()
	return m.sup.close()
}

// get asks an HTTP server; a status other than 200 is an error.
func get(ctx context.Context, url string, body *string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxPacket))
	if err != nil {
		return err
	}
	if body != nil {
		*body = string(text)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

// edgeReady asks an edge whether all is well with it; an edge that is only degraded is not ready for a story.
func edgeReady(ctx context.Context, admin string) error {
	var checks string
	if err := get(ctx, admin+"/readyz?verbose", &checks); err != nil {
		return err
	}
	if lines := strings.Fields(checks); len(lines) == 0 || lines[len(lines)-1] != "ok" {
		return errors.New(strings.TrimSpace(checks))
	}
	return nil
}

// leader asks the edges which of them leads.
func (m *mesh) leader(ctx context.Context) (string, error) {
	var checks string
	if err := get(ctx, "http://"+m.layout.edges[0].Admin+"/readyz?verbose", &checks); err != nil {
		return "", err
	}
	_, after, _ := strings.Cut(checks, "leader=")
	name, _, _ := strings.Cut(after, " ")
	return name, nil
}

// natsReady waits for the server's first word.
func natsReady(ctx context.Context, address string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	word, err := bufio.NewReader(io.LimitReader(c, 16)).ReadString(' ')
	if err == nil && word != "INFO " {
		err = fmt.Errorf("it says %q", word)
	}
	return err
}

// brokerReady looks for the file that a broker writes when it accepts clients.
func brokerReady(file string, pid int) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(data), fmt.Sprintf(`"pid":%d}`, pid)) {
		return errors.New("only its predecessor was")
	}
	return nil
}
