package etcdstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/limpet-mesh/limpet/registry"
	"github.com/limpet-mesh/limpet/registry/embedded"
)

func TestOpenRefuses(t *testing.T) {
	good := []string{"http://127.0.0.1:1"}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Mesh: "m"}, "endpoints"},
		{Config{Endpoints: good}, "mesh"},
		{Config{Endpoints: good, Mesh: "../m"}, "mesh"},
		{Config{Endpoints: []string{"127.0.0.1:2379"}, Mesh: "m"}, "want http://host:port"},
		{Config{Endpoints: []string{"tcp://127.0.0.1:2379"}, Mesh: "m"}, "want http://host:port"},
		{Config{Endpoints: []string{"http://"}, Mesh: "m"}, "want http://host:port"},
		{Config{Endpoints: []string{"http://a:1", "https://b:1"}, Mesh: "m"}, "same scheme"},
		{Config{Endpoints: []string{"https://a:1", "http://b:1"}, Mesh: "m"}, "http://b:1"},
		{Config{Endpoints: good, Mesh: "m", TLS: TLS{ServerName: "etcd"}}, "want https://127.0.0.1:1"},
		{Config{Endpoints: []string{"https://a:1"}, Mesh: "m", TLS: TLS{CA: "absent.pem"}}, "absent.pem"},
		{Config{Endpoints: good, Mesh: "m", Username: "u"}, "password"},
	} {
		s, err := Open(c.cfg)
		if err == nil {
			s.Close()
			t.Errorf("%+v was taken", c.cfg)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %q says nothing of %q", c.cfg, err, c.want)
		}
	}
}

// A ca makes certificates in a directory.
type ca struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := &ca{dir: t.TempDir()}
	c.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true}
	c.key = c.issue(t, "ca", c.cert)
	return c
}

// issue writes name.pem and name.key.
func (c *ca) issue(t *testing.T, name string, cert *x509.Certificate) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, parentKey := c.cert, c.key
	if cert.IsCA {
		parentKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		c.file(name + ".pem"): {Type: "CERTIFICATE", Bytes: der},
		c.file(name + ".key"): {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key
}

func (c *ca) file(name string) string { return filepath.Join(c.dir, name) }

func TestTLS(t *testing.T) {
	t.Parallel()
	c := newCA(t)
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c.issue(t, "server", &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"etcd.test"}, ExtKeyUsage: usages})
	c.issue(t, "edge", &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "edge"}, ExtKeyUsage: usages})
	e, err := embedded.StartEtcd(embedded.EtcdConfig{
		Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", NoSync: true,
		TLS: embedded.ServerTLS{Cert: c.file("server.pem"), Key: c.file("server.key"), ClientCA: c.file("ca.pem")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	client := func(files TLS) *Store {
		return open(t, shared, "m", func(cfg *Config) { cfg.Endpoints, cfg.TLS = []string{e.URL()}, files })
	}
	for _, name := range []string{"", "etcd.test"} {
		good := client(TLS{CA: c.file("ca.pem"), Cert: c.file("edge.pem"), Key: c.file("edge.key"), ServerName: name})
		if _, err := good.Commit(within(t), []registry.Write{create("k"+name, "b1")}); err != nil {
			t.Errorf("with a certificate, verifying %q: %v", name, err)
		}
	}
	for name, files := range map[string]TLS{
		"without a certificate":  {CA: c.file("ca.pem")},
		"with other authorities": {Cert: c.file("edge.pem"), Key: c.file("edge.key")},
		"with another name":      {CA: c.file("ca.pem"), Cert: c.file("edge.pem"), Key: c.file("edge.key"), ServerName: "etcd.example"},
	} {
		s := client(files)
		ctx, cancel := contextFor(t, 300*time.Millisecond)
		if _, err := s.Get(ctx, "p", "k"); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
		cancel()
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	own := ownServer(t)
	raw := own.raw(t)
	ctx := within(t)
	for _, step := range []func() error{
		func() error { _, err := raw.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := raw.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := raw.UserAdd(ctx, "edge", "secret"); return err },
		func() error { _, err := raw.RoleAdd(ctx, "edges"); return err },
		func() error {
			_, err := raw.RoleGrantPermission(ctx, "edges", "/limpet/m/", clientv3.GetPrefixRangeEnd("/limpet/m/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := raw.UserGrantRole(ctx, "edge", "edges"); return err },
		func() error { _, err := raw.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	client := func(mesh, password string) *Store {
		// bcrypt takes its time, under the race detector most of all.
		return open(t, own, mesh, func(c *Config) { c.Username, c.Password, c.DialTimeout = "edge", password, patience })
	}
	s := client("m", "secret")
	w := create("k", "b1")
	w.Lease = time.Hour
	commit(t, s, w)
	untilListed(t, s)
	ses, err := s.Join(within(t), registry.Edge{ID: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Close(within(t)); err != nil {
		t.Error(err)
	}
	for name, s := range map[string]*Store{"a wrong password": client("m", "wrong"), "another mesh": client("other", "secret")} {
		_, err := s.Commit(within(t), []registry.Write{create("k", "b1")})
		if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "user name") {
			t.Errorf("%s: %v, want ErrUnavailable and what to check", name, err)
		}
	}
}
