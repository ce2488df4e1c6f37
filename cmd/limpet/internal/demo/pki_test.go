package demo

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestPKI(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	// As a client does that has only the file.
	pem, err := os.ReadFile(p.ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) || !roots.Equal(p.roots) {
		t.Fatal("the CA's file and the pool are not the same")
	}
	verify := func(name string, at time.Time) error {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		return err
	}
	for _, name := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "::1", "localhost"} {
		if err := verify(name, time.Time{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"127.0.0.4", "example.com"} {
		if verify(name, time.Time{}) == nil {
			t.Errorf("%s: verified", name)
		}
	}
	if err := verify("localhost", time.Now().Add(30*24*time.Hour)); err != nil {
		t.Errorf("in a month: %v", err)
	}
	if _, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Errorf("key of type %T", pair.PrivateKey)
	}
	if pair.Leaf.IsCA {
		t.Error("the server's certificate can sign others")
	}
	if info, err := os.Stat(p.key); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
}
