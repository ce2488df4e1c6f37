package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/config"
)

// certificate writes name.pem, self-signed and good until then, and name.key.
func certificate(t *testing.T, dir, name string, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.AddDate(-1, 0, 0), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What keeps an edge from starting is told with its place in the configuration and what to do, a line for each.
func TestWhatCannotWorkIsLocated(t *testing.T) {
	taken := make([]string, 2)
	for i := range taken {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		taken[i] = ln.Addr().String()
	}
	write := strings.NewReplacer("BUSY", "'"+taken[0]+"'", "TAKEN", "'"+taken[1]+"'")
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		certificate(t, dir, name, time.Now().AddDate(0, 6, 0))
	}
	in := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	in("mesh.yaml", "mesh: m\npools: [{name: default, brokers: [{id: b, address: 'h:1'}]}]\n")
	in("bad.yaml", "mesh: m\npools: [{name: default}]\n")
	const (
		none  = "mesh: m\nid: e\nadmin: {address: '127.0.0.1:0'}\nstore: none\nmesh_file: mesh.yaml\n"
		tcp   = "listeners:\n- {type: tcp, address: '127.0.0.1:0'}\n"
		inUse = "the address is in use: stop the process that holds it or choose another port"
	)
	tls := func(pair string) string {
		return none + tcp + "- {type: tls, address: '127.0.0.1:0', tls: {certificates: [{" + pair + "}]}}\n"
	}
	for _, c := range []struct{ name, file, want string }{
		{
			"two ports in use", none + "listeners:\n- {type: tcp, address: BUSY}\n- {type: quic, address: '127.0.0.1:0', tls: {certificates: [{cert: a.pem, key: a.key}]}}\n- {type: ws, address: TAKEN}\n",
			`7:24: listeners[0].address: cannot listen on "BUSY": ` + inUse + ` [listener "tcp"]` + "\n" +
				`9:23: listeners[2].address: cannot listen on "TAKEN": ` + inUse + ` [listener "ws"]`,
		},
		{"the admin port in use", strings.Replace(none, "'127.0.0.1:0'", "BUSY", 1) + tcp, "3:18: admin.address: BUSY is in use: stop what listens there or give admin.address another port"},
		{"no such address", none + "listeners: [{type: tcp, address: '203.0.113.7:0'}]", `6:34: listeners[0].address: cannot listen on "203.0.113.7:0": this host has no such address: use one of its own, or leave the host empty for all of them [listener "tcp"]`},
		{
			"no certificate", tls("cert: x.pem, key: x.key"),
			"8:67: listeners[1].tls.certificates[0].cert: cannot read D/x.pem: no such file or directory: correct the path, or put the file there\n" +
				"8:79: listeners[1].tls.certificates[0].key: cannot read D/x.key: no such file or directory: correct the path, or put the file there",
		},
		{"another's key", tls("cert: a.pem, key: b.key"), "8:79: listeners[1].tls.certificates[0].key: D/b.key does not belong to the certificate in D/a.pem: give the key that this was made with"},
		{"no mesh file", strings.Replace(none, "mesh.yaml", "none.yaml", 1) + tcp, "5:12: mesh_file: cannot read D/none.yaml: no such file or directory: correct the path, or put the file there"},
		{"a mistake in the mesh file", strings.Replace(none, "mesh.yaml", "bad.yaml", 1) + tcp, "BAD:2:9: pools[0].brokers: required field is missing"},
		{
			"etcd's password", "mesh: m\nid: e\n" + tcp + "store: {etcd: {endpoints: ['http://h'], username: u, password_file: secret}}\n",
			"5:69: store.etcd.password_file: cannot read D/secret: no such file or directory: correct the path, or put the file there",
		},
		{
			"NATS's authorities", "mesh: m\nid: e\n" + tcp + "store: {etcd: {endpoints: ['http://h']}, nats: {urls: ['nats://h'], tls: {ca: x.pem}}}\n",
			"5:79: store.nats.tls.ca: cannot read D/x.pem: no such file or directory: correct the path, or put the file there",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := in("edge.yaml", write.Replace(c.file))
			conf, err := config.LoadEdge(file)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = Run(ctx, conf, Options{Ready: func(Addresses) { cancel() }})
			if err == nil {
				t.Fatal("it runs")
			}
			got := strings.NewReplacer(file+":", "", filepath.Join(dir, "bad.yaml"), "BAD", dir, "D", taken[0], "BUSY", taken[1], "TAKEN").Replace(err.Error())
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// An expired certificate is a warning: the other listeners, and clients that do not look, are worth serving.
func TestAnExpiredCertificateIsAWarning(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir, "old", time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
	mesh := write(t, "mesh.yaml", "mesh: test\npools: [{name: default, brokers: [{id: b, address: '127.0.0.1:1'}]}]\n")
	conf := load(t, "store: none\nmesh_file: "+mesh, "")
	conf.Listeners[0].Type, conf.Listeners[0].TLS = config.TLS, &config.ServerTLS{
		Certificates: []config.Certificate{{Cert: filepath.Join(dir, "old.pem"), Key: filepath.Join(dir, "old.key")}},
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var log bytes.Buffer
	served := false
	err := Run(ctx, conf, Options{Log: zerolog.New(zerolog.SyncWriter(&log)), Ready: func(Addresses) { served = true; cancel() }})
	if err != nil || !served || !strings.Contains(log.String(), `listeners[0].tls.certificates[0].cert: `+filepath.Join(dir, "old.pem")+": expired on 2020-01-02T03:04:05Z") {
		t.Errorf("served %v, %v, log\n%s", served, err, &log)
	}
}
