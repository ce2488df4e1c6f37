package listen

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
)

// certificatesOfAllKinds have keys of all kinds, for the name "a.example".
func certificatesOfAllKinds(t testing.TB) (all []*tls.Certificate) {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := []crypto.Signer{rsaKey}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range append(keys, ed) {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example"}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf})
	}
	return all
}

// What a client supports is found as crypto/tls finds it.
func TestSupports(t *testing.T) {
	all := certificatesOfAllKinds(t)
	schemes := []tls.SignatureScheme{
		tls.PKCS1WithSHA256, tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512,
		tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512, tls.Ed25519,
	}
	some := 0
	for _, versions := range [][]uint16{{tls.VersionTLS13}, {tls.VersionTLS13, tls.VersionTLS12}, {tls.VersionTLS12}} {
		for mask := range 1 << len(schemes) {
			if mask == 0 {
				continue // no client of TLS 1.3 (RFC 8446 §4.2.3)
			}
			hello := &tls.ClientHelloInfo{
				ServerName:        "a.example",
				CipherSuites:      []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
				SupportedCurves:   []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521},
				SupportedPoints:   []uint8{0},
				SupportedVersions: versions,
			}
			for i, s := range schemes {
				if mask>>i&1 != 0 {
					hello.SignatureSchemes = append(hello.SignatureSchemes, s)
				}
			}
			for _, c := range all {
				want := hello.SupportsCertificate(c) == nil
				if got := supports(hello, c); got != want {
					t.Fatalf("%T, versions %x, schemes %v: %v, crypto/tls says %v", c.PrivateKey, versions, hello.SignatureSchemes, got, want)
				}
				if want {
					some++
				}
			}
		}
	}
	if some == 0 {
		t.Error("nothing was ever supported")
	}
}

// Among several certificates of a name the first is chosen that the client can verify, and that allocates nothing.
func TestChoiceAllocatesNothing(t *testing.T) {
	all := certificatesOfAllKinds(t)
	p := &policy{all: all, names: map[string][]*tls.Certificate{"a.example": all}, wild: map[string][]*tls.Certificate{"example": all[:2]}}
	hello := &tls.ClientHelloInfo{ServerName: "a.example", SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}}
	if c, err := p.choose(hello); err != nil || c != all[2] {
		t.Errorf("chosen: %T, %v", c.PrivateKey, err)
	}
	for _, name := range []string{"a.example", "b.example", "foreign", ""} {
		hello.ServerName = name
		if n := testing.AllocsPerRun(100, func() { _, _ = p.choose(hello) }); n != 0 {
			t.Errorf("%q: %v allocations", name, n)
		}
	}
}
