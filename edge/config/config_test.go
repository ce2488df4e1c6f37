package config

import (
	"crypto/tls"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// fullEdge sets every field of an edge file, except those that exclude each other.
const fullEdge = `
mesh: demo
id: e1
store:
  etcd:
    endpoints: ["https://etcd1.example.com", "https://10.0.0.2:12379"]
    username: edge
    password_file: secrets/etcd
    tls: {ca: etcd-ca.pem, cert: etcd.pem, key: /etc/limpet/etcd.key}
  nats:
    urls: ["nats://127.0.0.1", "tls://[::1]:14222"]
    username: edge
    password_file: secrets/nats
    tls: {ca: nats-ca.pem, cert: nats.pem, key: nats.key}
listeners:
  - type: tcp
  - name: bridge
    type: tcp
    address: "127.0.0.1:11883"
    pool: bridges
    proxy_protocol: {from: ["10.0.0.0/8", "192.168.1.1", "fd00::/8"]}
  - type: tls
    address: "[::1]"
    tls:
      certificates:
        - {cert: a.pem, key: a.key}
        - {cert: b.pem, key: b.key}
      min_version: 1.3
      client_ca: clients.pem
      client_auth: require
  - type: ws
    websocket: {path: /live/mqtt, origins: ["https://app.example.com", "https://*.example.org:8443", "*", "null"]}
  - type: wss
    address: localhost
    tls: {certificates: [{cert: a.pem, key: a.key}]}
  - type: quic
    address: "0.0.0.0:1883"
    tls: {certificates: [{cert: a.pem, key: a.key}], client_ca: clients.pem, client_auth: request}
tls_records: limpet
limits: {connect_size: 64KiB, connect_timeout: 7s, connections: 5000, handshakes: 99, keep_alive: 2.5}
loops: 3
admin: {address: "[::1]:19883"}
log: {level: debug, format: console}
shutdown: {grace: 1m30s}
`

var wantFullEdge = Edge{
	Mesh: "demo",
	ID:   "e1",
	Store: Store{
		Etcd: &Etcd{
			Endpoints:    []string{"https://etcd1.example.com:2379", "https://10.0.0.2:12379"},
			Username:     "edge",
			PasswordFile: "/etc/limpet/secrets/etcd",
			TLS:          &ClientTLS{"/etc/limpet/etcd-ca.pem", "/etc/limpet/etcd.pem", "/etc/limpet/etcd.key"},
		},
		NATS: &NATS{
			URLs:         []string{"nats://127.0.0.1:4222", "tls://[::1]:14222"},
			Username:     "edge",
			PasswordFile: "/etc/limpet/secrets/nats",
			TLS:          &ClientTLS{"/etc/limpet/nats-ca.pem", "/etc/limpet/nats.pem", "/etc/limpet/nats.key"},
		},
	},
	Listeners: []Listener{
		{Name: "tcp", Type: TCP, Address: ":1883", Pool: "default"},
		{
			Name: "bridge", Type: TCP, Address: "127.0.0.1:11883", Pool: "bridges",
			ProxyProtocol: ProxyProtocol{[]netip.Prefix{
				netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.1.1/32"), netip.MustParsePrefix("fd00::/8"),
			}},
		},
		{
			Name: "tls", Type: TLS, Address: "[::1]:8883", Pool: "default",
			TLS: &ServerTLS{
				Certificates: []Certificate{{"/etc/limpet/a.pem", "/etc/limpet/a.key"}, {"/etc/limpet/b.pem", "/etc/limpet/b.key"}},
				MinVersion:   tls.VersionTLS13, ClientCA: "/etc/limpet/clients.pem", ClientAuth: ClientAuthRequire,
			},
		},
		{
			Name: "ws", Type: WS, Address: ":8083", Pool: "default",
			WebSocket: &WebSocket{"/live/mqtt", []string{"https://app.example.com", "https://*.example.org:8443", "*", "null"}},
		},
		{
			Name: "wss", Type: WSS, Address: "localhost:8084", Pool: "default",
			TLS: &ServerTLS{
				Certificates: []Certificate{{"/etc/limpet/a.pem", "/etc/limpet/a.key"}}, MinVersion: tls.VersionTLS12, ClientAuth: ClientAuthNone,
			},
			WebSocket: &WebSocket{Path: "/mqtt"},
		},
		{
			Name: "quic", Type: QUIC, Address: "0.0.0.0:1883", Pool: "default",
			TLS: &ServerTLS{
				Certificates: []Certificate{{"/etc/limpet/a.pem", "/etc/limpet/a.key"}},
				MinVersion:   tls.VersionTLS13, ClientCA: "/etc/limpet/clients.pem", ClientAuth: ClientAuthRequest,
			},
		},
	},
	TLSRecords: TLSRecordsLimpet,
	Limits:     Limits{64 << 10, 7 * time.Second, 5000, 99, 2.5},
	Loops:      3,
	Admin:      Admin{"[::1]:19883"},
	Log:        Log{"debug", "console"},
	Shutdown:   Shutdown{90 * time.Second},
}

func TestEveryFieldOfAnEdge(t *testing.T) {
	got, err := ParseEdge("/etc/limpet/edge.yaml", []byte(fullEdge))
	if err != nil {
		t.Fatal(err)
	}
	got.at = nil
	equal(t, *got, wantFullEdge)
	// The other halves of what excludes itself.
	creds, err := ParseEdge("dir/edge.yaml", []byte("mesh: m\nid: e\nstore: {etcd: {endpoints: ['http://h']}, nats: {urls: ['nats://h'], credentials: c}}\nlisteners: [{type: tcp}]"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, *creds.Store.NATS, NATS{URLs: []string{"nats://h:4222"}, Credentials: "dir/c"})
	none, err := ParseEdge("dir/edge.yaml", []byte("mesh: m\nid: e\nstore: none\nmesh_file: ../mesh.yaml\nlisteners: [{type: tcp}]"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, none.Store, Store{None: true})
	equal(t, none.MeshFile, "mesh.yaml")

	// A field that no file above sets is a field without a test.
	unset := zeroFields(reflect.ValueOf([]any{wantFullEdge, *creds.Store.NATS, *none}), "")
	delete(unset, "Edge.at")
	if len(unset) > 0 {
		t.Errorf("never set: %v", unset)
	}
}

func TestDefaultsOfAnEdge(t *testing.T) {
	got, err := ParseEdge("edge.yaml", []byte("mesh: m\nstore: none\nmesh_file: m.yaml\nlisteners: [{type: tcp}]"))
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got.at = nil
	equal(t, *got, Edge{
		Mesh: "m", ID: NameFrom(host), Store: Store{None: true}, MeshFile: "m.yaml",
		Listeners:  []Listener{{Name: "tcp", Type: TCP, Address: ":1883", Pool: "default"}},
		TLSRecords: TLSRecordsStdlib,
		Limits:     Limits{ConnectSize: 131072, ConnectTimeout: 10 * time.Second, Handshakes: 4096, KeepAlive: 1.5},
		Admin:      Admin{"127.0.0.1:9883"}, Log: Log{"info", "json"}, Shutdown: Shutdown{10 * time.Second},
	})
}

// Windows line ends, a byte order mark, comments and empty mappings change nothing.
func TestFormsOfAFile(t *testing.T) {
	const file = "\ufeff# comment\r\nmesh: \"m\" # comment\r\nid: 'e'\r\nstore: none\r\nmesh_file: m.yaml\r\nlisteners:\r\n- type: tcp\r\nlimits:\r\n  # loops: 3\r\nlog: {}\r\n...\r\n"
	e, err := ParseEdge("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if e.Mesh != "m" || e.ID != "e" || len(e.Listeners) != 1 {
		t.Errorf("got %+v", e)
	}
}

const fullMesh = `
mesh: demo
pools:
  - name: zebra
    brokers: [{id: b, address: "h:1"}]
  - name: default
    policy: hash
    sessions: replicated
    rehome_after: 3s
    ttl: 24h
    max_ttl: 48h
    failback: stay
    connect_timeout: 9s
    dial_timeout: 4s
    probe: {type: tcp, interval: 5s, timeout: 1s, rise: 4, fall: 6}
    brokers:
      - id: b2
        address: "[fd00::1]:8084"
        weight: 7
        transport: wss
        path: /ws
        proxy_protocol: v2
        tls: {ca: /ca.pem, cert: /c.pem, key: /c.key, server_name: b2.example.com}
      - {id: b1, address: "b1.example.com:1883", proxy_protocol: none}
`

var wantFullMesh = Mesh{Name: "demo", Pools: []registry.Pool{
	{
		Name: "default", Policy: "hash", Sessions: "replicated", RehomeAfter: 3 * time.Second, TTL: 24 * time.Hour, MaxTTL: 48 * time.Hour,
		Failback: "stay", ConnectTimeout: 9 * time.Second, DialTimeout: 4 * time.Second,
		Probe: registry.Probe{Kind: "tcp", Interval: 5 * time.Second, Timeout: time.Second, Rise: 4, Fall: 6},
		Brokers: []registry.Broker{
			{ID: "b1", Address: "b1.example.com:1883"},
			{
				ID: "b2", Address: "[fd00::1]:8084", Weight: 7, Transport: "wss", Path: "/ws", Proxy: "v2",
				TLS: registry.BrokerTLS{CA: "/ca.pem", Cert: "/c.pem", Key: "/c.key", ServerName: "b2.example.com"},
			},
		},
	},
	{Name: "zebra", Brokers: []registry.Broker{{ID: "b", Address: "h:1"}}},
}}

func TestEveryFieldOfAMesh(t *testing.T) {
	got, err := ParseMesh("mesh.yaml", []byte(fullMesh))
	if err != nil {
		t.Fatal(err)
	}
	got.at = nil
	equal(t, *got, wantFullMesh)
	unset := zeroFields(reflect.ValueOf(wantFullMesh), "")
	delete(unset, "Mesh.at")
	delete(unset, "Pool.Revision") // the store's
	if len(unset) > 0 {
		t.Errorf("never set: %v", unset)
	}
}

// Each field of a pool is named by PoolFields as a mesh file names it: what it lists, written down again, is the same pool.
func TestPoolFieldsAreComplete(t *testing.T) {
	pool := wantFullMesh.Pools[0]
	fields := PoolFields(&pool)
	listed := map[string]bool{}
	for _, f := range fields {
		listed[f.Path] = true
	}
	for _, want := range []string{"policy", "max_ttl", "probe.fall", "brokers[b1].address", "brokers[b2].tls.server_name"} {
		if !listed[want] {
			t.Errorf("%s is not listed", want)
		}
	}
	// Clearing any field, whichever it is, must show.
	forEachField(reflect.ValueOf(&pool).Elem(), "Pool", func(name string, v reflect.Value) {
		if name == "Pool.Name" || name == "Pool.Revision" || v.IsZero() {
			return
		}
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		v.SetZero()
		if reflect.DeepEqual(PoolFields(&pool), fields) {
			t.Errorf("%s does not show", name)
		}
		v.Set(old)
	})
}

func TestKind(t *testing.T) {
	for _, c := range []struct {
		file string
		want FileKind
	}{
		{fullEdge, EdgeFile},
		{fullMesh, MeshFile},
		{"listner: []\nlimits: {}", EdgeFile},
		{"mesh: m\npool: []", MeshFile},
		{"mesh: m", UnknownFile},
		{"", UnknownFile},
		{"- a", UnknownFile},
		{"a: [", UnknownFile},
	} {
		if got := Kind([]byte(c.file)); got != c.want {
			t.Errorf("%.30q: kind %v, want %v", c.file, got, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	edge, mesh := filepath.Join(dir, "edge.yaml"), filepath.Join(dir, "mesh.yaml")
	write(t, edge, fullEdge)
	write(t, mesh, fullMesh)
	e, err := LoadEdge(edge)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "a.pem"); e.Listeners[2].TLS.Certificates[0].Cert != want {
		t.Errorf("certificate %s, want %s", e.Listeners[2].TLS.Certificates[0].Cert, want)
	}
	if got, want := e.Errorf("listeners[1].address", "port in use").Error(), edge+":19:14: listeners[1].address: port in use"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if m, err := LoadMesh(mesh); err != nil || m.Pool("zebra") == nil || m.Pool("z") != nil {
		t.Errorf("got %+v, %v", m, err)
	}
	if _, err := LoadEdge(filepath.Join(dir, "none.yaml")); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := LoadMesh(dir); err == nil {
		t.Error("a folder was read")
	}
	write(t, edge, string(make([]byte, MaxFile+10)))
	if _, err := LoadEdge(edge); err == nil || err.Error() != edge+": expected at most 1048576 bytes" {
		t.Errorf("a file too large: %v", err)
	}
}

// A configuration that no file holds has no positions, and says so without a crash.
func TestErrorfWithoutAFile(t *testing.T) {
	if got := (&Edge{}).Errorf("admin.address", "port in use").Error(); got != "configuration: admin.address: port in use" {
		t.Errorf("got %s", got)
	}
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// forEachField calls fn for every field that is no struct or list of its own, below any structs, pointers and slices.
func forEachField(v reflect.Value, name string, fn func(string, reflect.Value)) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() || v.Type() == reflect.TypeFor[*index]() {
			fn(name, v)
			return
		}
		if v.Kind() == reflect.Pointer {
			fn(name, v)
		}
		forEachField(v.Elem(), name, fn)
	case reflect.Slice:
		if v.Len() == 0 {
			fn(name, v)
		}
		for i := range v.Len() {
			forEachField(v.Index(i), name, fn)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[netip.Prefix]() {
			fn(name, v)
			return
		}
		for i := range v.NumField() {
			forEachField(v.Field(i), v.Type().Name()+"."+v.Type().Field(i).Name, fn)
		}
	default:
		fn(name, v)
	}
}

// zeroFields returns the fields, as Type.Field, that are zero wherever they appear below v.
func zeroFields(v reflect.Value, name string) map[string]bool {
	zero, set := map[string]bool{}, map[string]bool{}
	forEachField(v, name, func(name string, v reflect.Value) {
		if v.IsZero() {
			zero[name] = true
		} else {
			set[name] = true
		}
	})
	for name := range set {
		delete(zero, name)
	}
	return zero
}

// Who wants no watch over keep-alives says so.
func TestKeepAliveOff(t *testing.T) {
	for text, want := range map[string]float64{"off": -1, `"off"`: -1, "1.5": 1.5, "10": 10} {
		e, err := ParseEdge("e.yaml", []byte("mesh: m\nid: e\nstore: none\nmesh_file: m.yaml\nlisteners: [{type: tcp}]\nlimits: {keep_alive: "+text+"}\n"))
		if err != nil || e.Limits.KeepAlive != want {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
}
