package realtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
	"github.com/limpet-mesh/limpet/router"
)

// mesh is a site: stores, three edges, and pools of brokers that the test has started.
type mesh struct {
	name   string
	dir    string
	pki    *pki
	stores *stores
	store  *etcdstore.Store // to look at the records
	edges  []*edgeProc
}

// newMesh starts the stores. Edges come with startEdges, when the pools have been applied.
func newMesh(t testing.TB, name string) *mesh {
	t.Helper()
	dir := t.TempDir()
	m := &mesh{name: name, dir: dir, pki: newPKI(t, dir), stores: startStores(t, dir)}
	m.store = m.stores.open(t, name)
	return m
}

// startEdges starts three edges, e1 to e3, that serve each pool on a TCP listener of its name and the first one on all five transports.
func (m *mesh) startEdges(t testing.TB, pools ...string) {
	t.Helper()
	for i := range 3 {
		m.edges = append(m.edges, m.newEdge(t, fmt.Sprintf("e%d", i+1), m.stores.etcdURL, pools...))
	}
	for _, e := range m.edges {
		e.accepting(t)
	}
	m.awaitReady(t, patience)
}

// awaitReady waits until every edge that runs says that nothing is amiss.
func (m *mesh) awaitReady(t testing.TB, within time.Duration) {
	t.Helper()
	for _, e := range m.edges {
		if e.running() {
			e.awaitReady(t, within)
		}
	}
}

// edgeProc is a `limpet edge`.
type edgeProc struct {
	*proc
	id    string
	pki   *pki
	admin string            // address
	at    map[string]string // addresses, by listener: tcp, tls, ws, wss, quic, or a pool's name
}

// newEdge starts an edge that reaches etcd at a URL of its own.
func (m *mesh) newEdge(t testing.TB, id, etcdURL string, pools ...string) *edgeProc {
	t.Helper()
	var conf strings.Builder
	fmt.Fprintf(&conf, "mesh: %s\nid: %s\nstore: {etcd: {endpoints: ['%s']}, nats: {urls: ['%s']}}\n", m.name, id, etcdURL, m.stores.natsURL)
	fmt.Fprintf(&conf, "admin: {address: '127.0.0.1:0'}\nshutdown: {grace: %s}\nlisteners:\n", grace)
	for i, pool := range pools {
		if i > 0 {
			fmt.Fprintf(&conf, "- {name: %s, type: tcp, address: '127.0.0.1:0', pool: %s}\n", pool, pool)
			continue
		}
		for _, transport := range transports {
			tls := ""
			if transport != "tcp" && transport != "ws" {
				tls = fmt.Sprintf(", tls: {certificates: [{cert: '%s', key: '%s'}]}", m.pki.cert, m.pki.key)
			}
			fmt.Fprintf(&conf, "- {type: %s, address: '127.0.0.1:0', pool: %s%s}\n", transport, pool, tls)
		}
	}
	file := filepath.Join(m.dir, id+".edge.yaml")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return &edgeProc{proc: start(t, m.dir, id, nil, limpet, "edge", "-c", file), id: id, pki: m.pki}
}

// grace is what an edge gives its sessions after SIGTERM.
const grace = 5 * time.Second

// accepting waits until the edge accepts clients, and learns where.
func (e *edgeProc) accepting(t testing.TB) {
	t.Helper()
	var said struct {
		Listeners map[string]string
		Admin     string
	}
	line := e.lineWith(t, patience, `"message":"accepting clients"`)
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	e.at, e.admin = said.Listeners, said.Admin
}

// get reads a page of the admin address.
func (e *edgeProc) get(path string) (status int, body string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + e.admin + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// ready reads /readyz?verbose; state is the last line of it.
func (e *edgeProc) ready() (state, all string) {
	_, all, err := e.get("/readyz?verbose")
	if err != nil {
		return "", err.Error()
	}
	return all[strings.LastIndex(strings.TrimSuffix(all, "\n"), "\n")+1:], all
}

func (e *edgeProc) awaitReady(t testing.TB, within time.Duration) {
	t.Helper()
	until(t, within, e.id+" is ready", func() (bool, any) {
		state, all := e.ready()
		return state == "ok\n", all
	})
}

// awaitCheck waits for a line of /readyz?verbose that contains all of words.
func (e *edgeProc) awaitCheck(t testing.TB, within time.Duration, words ...string) {
	t.Helper()
	until(t, within, fmt.Sprintf("%s says %q", e.id, words), func() (bool, any) {
		_, all := e.ready()
		for line := range strings.Lines(all) {
			if containsAll(line, words) {
				return true, nil
			}
		}
		return false, all
	})
}

// metric reads a sample by its name with labels, as in limpet_edge_closed_total{reason="moved"}; -1 = there is none.
func (e *edgeProc) metric(t testing.TB, name string) float64 {
	t.Helper()
	_, body, err := e.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return -1
}

// placement says where keys without a record go.
type placement struct {
	pool string
	view *router.View
}

func placementOf(pools []registry.Pool, pool string) placement {
	st := &registry.State{Pools: map[string]*registry.Pool{}}
	for i := range pools {
		st.Pools[pools[i].Name] = &pools[i]
	}
	return placement{pool, router.NewView(st)}
}

func (p placement) of(key string) string {
	return p.view.Route(router.Query{Pool: p.pool, Key: key}).Broker.ID
}

// keyAt returns a key that begins with prefix and goes to broker.
func (p placement) keyAt(broker, prefix string) string {
	for i := 0; ; i++ {
		if key := fmt.Sprintf("%s-%d", prefix, i); p.of(key) == broker {
			return key
		}
	}
}
