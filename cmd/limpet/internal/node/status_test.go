package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/embedded"
	"github.com/limpet-mesh/limpet/registry/etcdstore"
)

// until asks for the readiness of an edge until it says what is expected.
func until(t *testing.T, at Addresses, code int, parts ...string) {
	t.Helper()
	for end := time.Now().Add(2 * patience); ; time.Sleep(20 * time.Millisecond) {
		got, body := get(t, "http://"+at.Admin+"/readyz?verbose")
		missing := ""
		for _, part := range parts {
			if !strings.Contains(body, part) {
				missing = part
			}
		}
		if got == code && missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("readiness is %d and lacks %q:\n%s", got, missing, body)
		}
	}
}

// connect is a client that stays.
func connect(t *testing.T, at Addresses, id string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.Listeners["tcp"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	c.Write(mqtt.AppendConnect(nil, &mqtt.Connect{Version: mqtt.V5, ClientID: []byte(id), HasSessionExpiry: true, SessionExpiry: 3600}))
	ack := make([]byte, 5)
	if _, err := io.ReadFull(c, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		t.Fatalf("%s: CONNACK %x, %v", id, ack, err)
	}
	return c
}

// What stands in the store of a running edge may turn to garbage, and the store may come back empty: nobody is closed, newcomers are
// served, records are written again, and readiness says what is to be done.
func TestAStoreThatForgetsClosesNobody(t *testing.T) {
	dir := t.TempDir()
	serve := func(addr string) *embedded.Etcd {
		e, err := embedded.StartEtcd(embedded.EtcdConfig{Dir: dir, ClientAddr: addr, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	etcd := serve("127.0.0.1:0")
	defer func() { etcd.Close() }()
	url := etcd.URL()
	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{url}, Mesh: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	pool := &registry.Pool{Name: "default", Brokers: []registry.Broker{{ID: "b1", Address: serveMQTT(t)}}, Probe: registry.Probe{Kind: registry.ProbeNone}}
	if err := store.PutPool(ctx, pool, 0); err != nil {
		t.Fatal(err)
	}
	at, stop := start(t, load(t, fmt.Sprintf("store: {etcd: {endpoints: [%q]}}", url), ""))
	defer stop() // before its store
	until(t, at, 200, "pools      ok", "registered=true")
	client := connect(t, at, "a")
	closed := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		closed <- err
	}()
	recorded := func(key string) {
		t.Helper()
		for end := time.Now().Add(2 * patience); ; time.Sleep(20 * time.Millisecond) {
			a, err := store.Get(ctx, "default", key)
			if err == nil && a.Broker == "b1" {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no record of %s: %+v, %v", key, a, err)
			}
		}
	}
	recorded("a")

	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	put, err := raw.Put(ctx, "/limpet/test/pools/default", "\x02later")
	if err != nil {
		t.Fatal(err)
	}
	until(t, at, 200, "pools      degraded", "pool default does not read", fmt.Sprintf("revision %d", put.Header.Revision), "limpet apply", "ignored=1")
	connect(t, at, "b")
	if _, body := get(t, "http://"+at.Admin+"/metrics"); !strings.Contains(body, "limpet_store_ignored_total 1\n") {
		t.Error("the metric of what is ignored is missing")
	}
	if err := store.PutPool(ctx, pool, put.Header.Revision); err != nil {
		t.Fatal(err)
	}
	until(t, at, 200, "pools      ok")

	if err := etcd.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, at, 200, "store      degraded")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	etcd = serve(strings.TrimPrefix(url, "http://"))
	until(t, at, 200, "pools      degraded", "the store was reset and does not have default", "limpet apply", "source=watch", "registered=true")
	connect(t, at, "c")
	recorded("a")
	recorded("c")
	if err := store.PutPool(ctx, pool, 0); err != nil {
		t.Fatal(err)
	}
	until(t, at, 200, "pools      ok")
	select {
	case err := <-closed:
		t.Errorf("the client was closed: %v", err)
	default:
	}
}
