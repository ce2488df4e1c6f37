package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate writes a self-signed certificate and its key.
func certificate(t *testing.T, cert, key string, from, until time.Time) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	der, err = x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	now := time.Now()
	certificate(t, in("a.pem"), in("a.key"), now.Add(-time.Hour), now.Add(time.Hour))
	certificate(t, in("b.pem"), in("b.key"), now.Add(-time.Hour), now.Add(time.Hour))
	certificate(t, in("old.pem"), in("old.key"), now.Add(-time.Hour), time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
	certificate(t, in("new.pem"), in("new.key"), time.Date(2999, 1, 2, 3, 4, 5, 0, time.UTC), now.Add(time.Hour))
	write(t, in("secret"), "hush\n")
	write(t, in("empty"), "")
	write(t, in("blank"), "\n\n")
	write(t, in("text"), "not PEM")
	write(t, in("big"), strings.Repeat("x", MaxFile+1))
	write(t, in("mesh.yaml"), "mesh: m\npools: [{name: default, brokers: [{id: b, address: 'h:1'}]}, {name: other, brokers: [{id: b, address: 'h:1'}]}]")
	write(t, in("bad.yaml"), "mesh: m\npools: [{name: default}]\n")

	server := func(pair string) string {
		return "mesh: m\nid: e\nstore: none\nmesh_file: mesh.yaml\nlisteners:\n- type: tls\n  tls: {certificates: [{" + pair + "}]}\n"
	}
	client := "mesh: m\nid: e\nlisteners: [{type: tcp}]\nstore:\n"
	for _, c := range []struct{ name, file, want string }{
		{"all well", server("cert: a.pem, key: a.key"), ""},
		{"all well, with a store", client + "  etcd: {endpoints: ['https://h'], username: u, password_file: secret, tls: {ca: a.pem, cert: a.pem, key: a.key}}\n  nats: {urls: ['nats://h'], credentials: secret, tls: {ca: b.pem}}", ""},
		{"no file", server("cert: x.pem, key: x.key"), "7:31: listeners[0].tls.certificates[0].cert: cannot read D/x.pem: no such file or directory: correct the path, or put the file there\n7:43: listeners[0].tls.certificates[0].key: cannot read D/x.key: no such file or directory: correct the path, or put the file there"},
		{"a folder", server("cert: ., key: a.key"), "7:31: listeners[0].tls.certificates[0].cert: cannot read D: is a directory"},
		{"too large", server("cert: a.pem, key: big"), "7:43: listeners[0].tls.certificates[0].key: cannot read D/big: more than 1048576 bytes"},
		{"no PEM", server("cert: text, key: a.key"), "7:31: listeners[0].tls.certificates[0].cert: D/text: expected a certificate in PEM form"},
		{"other key", server("cert: a.pem, key: b.key"), "7:43: listeners[0].tls.certificates[0].key: D/b.key does not belong to the certificate in D/a.pem: give the key that this was made with"},
		{"key not PEM", server("cert: a.pem, key: text"), "7:43: listeners[0].tls.certificates[0].key: D/text: expected a private key in PEM form, without a password"},
		{"swapped", server("cert: a.key, key: a.pem"), "7:31: listeners[0].tls.certificates[0].cert: D/a.key is the key, and D/a.pem the certificate: swap them"},
		{"expired", server("cert: old.pem, key: old.key"), "7:31: listeners[0].tls.certificates[0].cert: D/old.pem: expired on 2020-01-02T03:04:05Z"},
		{"not valid yet", server("cert: new.pem, key: new.key"), "7:31: listeners[0].tls.certificates[0].cert: D/new.pem: not valid before 2999-01-02T03:04:05Z"},
		{"client CA", strings.Replace(server("cert: a.pem, key: a.key"), "}]}", "}], client_ca: text, client_auth: require}", 1), "7:63: listeners[0].tls.client_ca: D/text: expected certificates in PEM form"},
		{
			"clients of stores", client + "  etcd: {endpoints: ['https://h'], username: u, password_file: empty, tls: {ca: x}}\n  nats: {urls: ['nats://h'], username: u, password_file: blank, tls: {cert: a.pem, key: b.key}}",
			"5:64: store.etcd.password_file: D/empty is empty\n5:81: store.etcd.tls.ca: cannot read D/x: no such file or directory: correct the path, or put the file there\n6:58: store.nats.password_file: D/blank: expected text in the first line\n6:89: store.nats.tls.key: D/b.key does not belong to the certificate in D/a.pem: give the key that this was made with",
		},
		{"mesh file missing", "mesh: m\nid: e\nstore: none\nmesh_file: x.yaml\nlisteners: [{type: tcp}]", "4:12: mesh_file: cannot read D/x.yaml: no such file or directory: correct the path, or put the file there"},
		{"mesh file wrong", "mesh: m\nid: e\nstore: none\nmesh_file: bad.yaml\nlisteners: [{type: tcp}]", "BAD:2:9: pools[0].brokers: required field is missing"},
		{"another mesh", "mesh: n\nid: e\nstore: none\nmesh_file: mesh.yaml\nlisteners: [{type: tcp}]", `1:7: mesh: expected "m" as in D/mesh.yaml, found "n"`},
		{"no such pool", "mesh: m\nid: e\nstore: none\nmesh_file: mesh.yaml\nlisteners: [{type: tcp, pool: defalt}]", `5:31: listeners[0].pool: expected a pool of D/mesh.yaml (default, other), found "defalt": did you mean "default"?`},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := in("edge.yaml")
			e, err := ParseEdge(name, []byte(c.file))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, err := range e.CheckFiles() {
				var one *Error
				if !errors.As(err, &one) || one.Pos == (Pos{}) {
					t.Errorf("no position: %v", err)
				}
				s := strings.TrimPrefix(err.Error(), name+":")
				s = strings.ReplaceAll(s, in("bad.yaml"), "BAD")
				got = append(got, strings.ReplaceAll(s, dir, "D"))
			}
			if s := strings.Join(got, "\n"); s != c.want {
				t.Errorf("got\n%s\nwant\n%s", s, c.want)
			}
		})
	}
}

func TestReadSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for text, want := range map[string]string{"hush": "hush", " hush \r\nmore": "hush", "": "", "\nhush": ""} {
		write(t, file, text)
		got, err := ReadSecret(file)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := ReadSecret(file + "x"); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}
