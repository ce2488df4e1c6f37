package node

import (
	"context"
	"encoding/json"
	"errors"
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
	two := &registry.Pool{Name: "two"}
	if err := errors.Join(store.PutPool(ctx, pool, 0), store.PutPool(ctx, two, 0)); err != nil {
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
	until(t, at, 200, "pools      degraded", "the store was reset and does not have default, two, kept as known", "limpet apply", "source=watch", "registered=true")
	connect(t, at, "c")
	recorded("a")
	recorded("c")
	if err := store.PutPool(ctx, pool, 0); err != nil {
		t.Fatal(err)
	}
	until(t, at, 200, "pools      degraded", "does not have two, kept", "--prune to end the others")
	if err := store.Prune(ctx); err != nil { // as apply --prune does
		t.Fatal(err)
	}
	until(t, at, 200, "pools      ok", "pools=1")
	select {
	case err := <-closed:
		t.Errorf("the client was closed: %v", err)
	default:
	}
}

// An operator's word is not undone by one that does not read: what was known stands, an edge that has seen nothing gives a broker no new
// keys, and readiness names what is to be mended. A verdict is mended by the leader.
func TestAWordThatDoesNotReadUndoesNothing(t *testing.T) {
	etcd, err := embedded.StartEtcd(embedded.EtcdConfig{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	store, err := etcdstore.Open(etcdstore.Config{Endpoints: []string{etcd.URL()}, Mesh: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	pool := &registry.Pool{
		Name: "default", Brokers: []registry.Broker{{ID: "a", Address: serveMQTT(t)}, {ID: "b", Address: serveMQTT(t)}},
		Probe: registry.Probe{Kind: registry.ProbeNone},
	}
	if err := errors.Join(store.PutPool(ctx, pool, 0), store.SetAdmin(ctx, registry.BrokerRef{Pool: "default", Broker: "a"}, registry.AdminOut)); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("store: {etcd: {endpoints: [%q]}}", etcd.URL())
	at, stop := start(t, load(t, conf, ""))
	defer stop()
	until(t, at, 200, "pools      ok", "leader=e1")
	clients := 0
	places := func(at Addresses, a, b bool) {
		t.Helper()
		got := map[string]bool{}
		for range 12 {
			clients++
			id := fmt.Sprint("client-", clients)
			connect(t, at, id)
			var told struct{ Live []struct{ Broker string } }
			_, body := get(t, "http://"+at.Admin+"/v1/clients?key="+id)
			if err := json.Unmarshal([]byte(body), &told); err != nil || len(told.Live) != 1 {
				t.Fatalf("%v: %s", err, body)
			}
			got[told.Live[0].Broker] = true
		}
		if got["a"] != a || got["b"] != b {
			t.Errorf("new clients are placed at %v", got)
		}
	}
	const word = "/limpet/test/brokers/default/a"
	put := func(key, value string) {
		t.Helper()
		if _, err := raw.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	places(at, false, true)
	for _, value := range []string{"\x02out", "garbage", "", "\x01\x0a\x05drain"} {
		put(word, value)
		until(t, at, 200, "pools      degraded", "the admin state of broker default/a does not read", word, "it stands as out")
		places(at, false, true)
		if value == "" {
			put(word, "\x01\x0a\x03out")
			until(t, at, 200, "pools      ok")
		}
	}
	second := load(t, conf, "")
	second.ID = "e2"
	late, stopLate := start(t, second)
	defer stopLate()
	until(t, late, 200, "pools      degraded", word, `no admin state: want ready`, "gets no new keys")
	places(late, false, true)
	put(word, "\x01\x0a\x05ready")
	until(t, at, 200, "pools      ok")
	until(t, late, 200, "pools      ok")
	places(late, true, true)

	const verdict = "/limpet/test/verdicts/default/a"
	put(verdict, "\x01\x0a\x04lost")
	put(verdict, "\x02later")
	for end := time.Now().Add(4 * patience); ; time.Sleep(20 * time.Millisecond) {
		got, err := raw.Get(ctx, verdict)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Kvs) == 0 || strings.HasPrefix(string(got.Kvs[0].Value), "\x01\x0a") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still %q", verdict, got.Kvs[0].Value)
		}
	}
	until(t, at, 200, "pools      ok")
}
