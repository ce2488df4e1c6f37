package tls13

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for linkname
)

type layer = Layer

var (
	_ layer = (*Records)(nil)
	_ layer = (*Stdlib)(nil)
)

var suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

// crypto/tls has no setting for the suites of TLS 1.3, but keeps these two for whoever needs one.
//
//go:linkname defaultSuites crypto/tls.defaultCipherSuitesTLS13
var defaultSuites []uint16

//go:linkname defaultSuitesNoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultSuitesNoAES []uint16

// only lets crypto/tls use one suite until the test ends.
func only(t testing.TB, id uint16) {
	a, b := defaultSuites, defaultSuitesNoAES
	defaultSuites, defaultSuitesNoAES = []uint16{id}, []uint16{id}
	t.Cleanup(func() { defaultSuites, defaultSuitesNoAES = a, b })
}

func forSuites(t *testing.T, f func(t *testing.T, id uint16)) {
	for _, id := range suites {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) { f(t, id) })
	}
}

// authority signs the certificates of the tests.
type authority struct {
	pool *x509.CertPool
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var ca = sync.OnceValue(func() *authority {
	a := &authority{pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.pool.AddCert(a.cert)
	return a
})

var (
	localhost = sync.OnceValue(func() tls.Certificate { return ca().issue("localhost") })
	device    = sync.OnceValue(func() tls.Certificate { return ca().issue("device") })
)

func (a *authority) issue(name string) tls.Certificate {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Records of tls.Conn are as long as what is written, so that tests decide about it.
func serverConfig() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{localhost()}, DynamicRecordSizingDisabled: true}
}

func clientConfig() *tls.Config {
	return &tls.Config{RootCAs: ca().pool, ServerName: "localhost", DynamicRecordSizingDisabled: true}
}

// A pipe is one direction of a connection in memory, without a bound.
type pipe struct {
	mu     sync.Mutex
	more   sync.Cond
	b      []byte
	closed bool
}

func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.b) == 0 {
		if p.closed {
			return 0, io.EOF
		}
		p.more.Wait()
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	p.b = append(p.b, b...)
	p.more.Broadcast()
	return len(b), nil
}

func (p *pipe) close() {
	p.mu.Lock()
	p.closed = true
	p.more.Broadcast()
	p.mu.Unlock()
}

func (p *pipe) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.b)
}

type memConn struct{ in, out *pipe }

func newPipe() *pipe {
	p := new(pipe)
	p.more.L = &p.mu
	return p
}

func memPipe() (a, b *memConn) {
	x, y := newPipe(), newPipe()
	return &memConn{x, y}, &memConn{y, x}
}

func (c *memConn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *memConn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *memConn) Close() error                     { c.in.close(); c.out.close(); return nil }
func (c *memConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *memConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

// A driver does for a layer what a loop would do, but blocks.
type driver struct {
	*Handover
	layer layer
	conn  net.Conn
	rest  []byte
	have  []byte // payload that was not asked for yet
	buf   []byte
	err   error
	cache Cache
}

func newDriver(h *Handover, conn net.Conn) *driver {
	d := &driver{Handover: h, conn: conn, buf: make([]byte, 32<<10)}
	if h.Records != nil {
		h.Records.Bind(&d.cache)
		d.layer = h.Records
	} else {
		d.layer = h.Stdlib
	}
	return d
}

func (d *driver) open(raw []byte) []byte {
	payload, rest, err := d.layer.Open(append(d.rest, raw...))
	payload = bytes.Clone(payload) // Stdlib and Records may write over it
	d.rest, d.err = bytes.Clone(rest), err
	if out := d.layer.Reply(nil); len(out) > 0 {
		_, _ = d.conn.Write(out)
	}
	return payload
}

func (d *driver) Read(b []byte) (int, error) {
	if d.Rest != nil {
		d.have, d.Rest = d.open(d.Rest), nil
	}
	for len(d.have) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		n, err := d.conn.Read(d.buf)
		if err != nil {
			return 0, err
		}
		d.have = d.open(d.buf[:n])
	}
	n := copy(b, d.have)
	d.have = d.have[n:]
	return n, nil
}

func (d *driver) Write(b []byte) (int, error) {
	_, err := d.conn.Write(d.layer.Seal(nil, b))
	return len(b), err
}

// A link is a connection between us and a tls.Conn.
type link struct {
	us   *driver
	peer *tls.Conn
	ends [2]*memConn // ours, the peer's
}

// connect shakes hands, as a server or as a client.
func connect(t testing.TB, asClient bool, policy Policy, server, client *tls.Config) *link {
	t.Helper()
	a, b := memPipe()
	t.Cleanup(func() { _ = a.Close() })
	l := &link{ends: [2]*memConn{a, b}}
	done := make(chan error, 1)
	var h *Handover
	var err error
	if asClient {
		l.peer = tls.Server(b, server)
		go func() { done <- l.peer.Handshake() }()
		h, err = Client(context.Background(), a, client, policy)
	} else {
		l.peer = tls.Client(b, client)
		go func() { done <- l.peer.Handshake() }()
		h, err = NewServer(server, policy).Handshake(context.Background(), a)
	}
	if err != nil {
		t.Fatalf("our handshake: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatalf("the peer's handshake: %v", err)
	}
	if (h.Records == nil) == (h.Stdlib == nil) || (h.Records == nil) == (h.Why == "") {
		t.Fatalf("Records %t, Stdlib %t, why %q", h.Records != nil, h.Stdlib != nil, h.Why)
	}
	l.us = newDriver(h, a)
	return l
}

// twins are the two ends of a connection without a handshake.
func twins(t testing.TB, id uint16) (server, client *Records) {
	t.Helper()
	s, err := suiteOf(id)
	if err != nil {
		t.Fatal(err)
	}
	a, b := make([]byte, s.secretSize()), make([]byte, s.secretSize())
	_, _ = rand.Read(a)
	_, _ = rand.Read(b)
	server, err1 := New(Secrets{Suite: id, Read: a, Write: b})
	client, err2 := New(Secrets{Suite: id, Client: true, Read: b, Write: a})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	server.Bind(new(Cache))
	client.Bind(new(Cache))
	return server, client
}

// craft seals a record of any type, with padding, and without any of Seal's rules.
func craft(r *Records, kind byte, p []byte, padding int) []byte {
	inner := append(append(bytes.Clone(p), kind), make([]byte, padding)...)
	return craftInner(r, inner)
}

func craftInner(r *Records, inner []byte) []byte {
	n := len(inner) + tagSize
	record := []byte{typeApplication, 3, 3, byte(n >> 8), byte(n)}
	e := r.cache.get(&r.out, r.suite)
	record = append(record, e.aead.Seal(nil, r.out.nonce(&e.nonce), inner, record)...)
	r.out.seq++
	return record
}

func random(n int, seed uint64) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	b := make([]byte, n)
	_, _ = mrand.NewChaCha8(key).Read(b)
	return b
}

func alertOf(err error) int {
	var a tls.AlertError
	if errors.As(err, &a) {
		return int(a)
	}
	return -1
}
