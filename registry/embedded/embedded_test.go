package embedded

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// Some goroutines of the servers outlive them for a few seconds.
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = goleak.Find(); err == nil {
			break
		}
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func etcdClient(t *testing.T, e *Etcd) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestEtcdKeepsItsDataOverARestartOnTheSamePort(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dir := t.TempDir()
	e, err := StartEtcd(EtcdConfig{Dir: dir, ClientAddr: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	c := etcdClient(t, e)
	lease, err := c.Grant(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, "k", "v", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(e.URL(), "http://")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e2, err := StartEtcd(EtcdConfig{Dir: dir, ClientAddr: addr, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e2.Close() })
	if e2.URL() != e.URL() {
		t.Errorf("URL %s, want %s as before", e2.URL(), e.URL())
	}
	got, err := c.Get(ctx, "k")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" || got.Kvs[0].Lease != int64(lease.ID) {
		t.Errorf("after the restart: %+v, %v", got, err)
	}
	if err := e2.Close(); err != nil {
		t.Error(err)
	}
}

func TestEtcdTakesABatchOf127(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e, err := StartEtcd(EtcdConfig{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	c := etcdClient(t, e)
	ops := make([]clientv3.Op, 127)
	for i := range ops {
		k := fmt.Sprint("k", i)
		ops[i] = clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(k, "v")}, []clientv3.Op{clientv3.OpGet(k)})
	}
	if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
		t.Errorf("127 nested transactions: %v", err)
	}
}

func TestEtcdSaysWhatIsInTheWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dir := t.TempDir()
	e, err := StartEtcd(EtcdConfig{Dir: dir, ClientAddr: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name string
		cfg  EtcdConfig
		want []string
	}{
		{"client port taken", EtcdConfig{Dir: t.TempDir(), ClientAddr: l.Addr().String()}, []string{l.Addr().String(), "choose another port"}},
		{"peer port taken", EtcdConfig{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", PeerAddr: l.Addr().String()}, []string{"choose another port"}},
		{"directory in use", EtcdConfig{Dir: dir, ClientAddr: "127.0.0.1:0"}, []string{dir, "in use", "another directory"}},
		{"no directory", EtcdConfig{ClientAddr: "127.0.0.1:0"}, []string{"data directory"}},
		{"a file for a directory", EtcdConfig{Dir: file, ClientAddr: "127.0.0.1:0"}, []string{file}},
		{"no port", EtcdConfig{Dir: t.TempDir(), ClientAddr: "localhost"}, []string{`"localhost"`, "host:port"}},
		{"half a certificate", EtcdConfig{Dir: t.TempDir(), TLS: ServerTLS{Cert: "c"}}, []string{"key"}},
	} {
		e, err := StartEtcd(c.cfg)
		if err == nil {
			e.Close()
			t.Errorf("%s: it started", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q says nothing of %q", c.name, err, want)
			}
		}
	}
}

func TestNATSRestartsOnTheSamePort(t *testing.T) {
	n, err := StartNATS(NATSConfig{Addr: "127.0.0.1:0", Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	for range 2 {
		addr := strings.TrimPrefix(n.URL(), "nats://")
		if c, err := nats.Connect(n.URL()); err == nil {
			c.Close()
			t.Error("connected without a password")
		}
		c, err := nats.Connect(n.URL(), nats.UserInfo("u", "p"))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err = StartNATS(NATSConfig{Addr: addr, Username: "u", Password: "p"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if got := strings.TrimPrefix(n.URL(), "nats://"); got != addr {
			t.Errorf("listens on %s, want %s", got, addr)
		}
	}
}

func TestNATSSaysWhatIsInTheWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, c := range []struct {
		name string
		cfg  NATSConfig
		want string
	}{
		{"port taken", NATSConfig{Addr: l.Addr().String()}, "choose another port"},
		{"no port", NATSConfig{Addr: "localhost"}, "host:port"},
		{"a name for a port", NATSConfig{Addr: "localhost:nats"}, "number"},
		{"no such certificate", NATSConfig{Addr: "127.0.0.1:0", TLS: ServerTLS{Cert: "no.pem", Key: "no.key"}}, "no.pem"},
	} {
		if n, err := StartNATS(c.cfg); err == nil {
			n.Close()
			t.Errorf("%s: it started", c.name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q says nothing of %q", c.name, err, c.want)
		}
	}
}
