package listen

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what should happen at once.
const patience = 30 * time.Second

// Certificates are valid in fake time too, which begins in 2000.
var notBefore, notAfter = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)

// authority signs certificates for tests.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), key: newKey(t), pool: x509.NewCertPool()}
	der := sign(t, &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: notBefore, NotAfter: notAfter,
	}, nil, a.key, a.key)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	a.file = filepath.Join(a.dir, "ca.pem")
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate for a server with names, or for a client with a common name.
func (a *authority) issue(t testing.TB, cn string, names ...string) KeyPair {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: cn}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   notBefore, NotAfter: notAfter,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	id := template.SerialNumber.String()
	kp := KeyPair{Cert: filepath.Join(a.dir, id+".pem"), Key: filepath.Join(a.dir, id+".key")}
	writePEM(t, kp.Cert, "CERTIFICATE", sign(t, template, a.cert, key, a.key))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, kp.Key, "PRIVATE KEY", der)
	return kp
}

// server is a TLSConfig with one certificate for localhost.
func (a *authority) server(t testing.TB) *TLSConfig {
	t.Helper()
	return &TLSConfig{Certificates: []KeyPair{a.issue(t, "server", "localhost", "127.0.0.1", "::1")}}
}

// client trusts a.
func (a *authority) client() *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "localhost"}
}

func load(t testing.TB, kp KeyPair) tls.Certificate {
	t.Helper()
	c, err := tls.LoadX509KeyPair(kp.Cert, kp.Key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type rejection struct {
	origin relay.Origin
	reason Reason
	err    error
}

type arrival struct {
	stream   relay.Stream
	origin   relay.Origin
	accepted time.Time
}

// served is a listener in use.
type served struct {
	*Listener
	arrivals   chan arrival // handed over, in this order
	rejections chan rejection
	cancel     context.CancelFunc
	returned   chan struct{}
}

// start opens cfg and serves it; every connection echoes until its end.
func start(t testing.TB, cfg Config) *served { return startWith(t, cfg, echo) }

func startWith(t testing.TB, cfg Config, h Handler) *served {
	t.Helper()
	s := prepare(&cfg)
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.run(t, h, func(ctx context.Context, h Handler) {
		if err := l.Serve(ctx, h); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func prepare(cfg *Config) *served {
	s := &served{
		arrivals: make(chan arrival, 1000), rejections: make(chan rejection, 1000), returned: make(chan struct{}),
	}
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	cfg.OnReject = func(o relay.Origin, r Reason, err error) { s.rejections <- rejection{o, r, err} }
	return s
}

func (s *served) run(t testing.TB, h Handler, serve func(context.Context, Handler)) {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.returned)
		serve(ctx, func(stream relay.Stream, o relay.Origin, accepted time.Time) {
			s.arrivals <- arrival{stream, o, accepted}
			h(stream, o, accepted)
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-s.returned
		<-s.Done()
	})
}

func echo(s relay.Stream, _ relay.Origin, _ time.Time) {
	_, _ = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
	_ = s.CloseWrite()
	_ = s.Close()
}

func (s *served) arrival(t testing.TB) arrival {
	t.Helper()
	return receive(t, s.arrivals, "arrival")
}

// rejected waits for a rejection with that reason.
func (s *served) rejected(t testing.TB, want Reason) rejection {
	t.Helper()
	r := receive(t, s.rejections, "rejection")
	if r.reason != want {
		t.Fatalf("rejected with %q (%v), want %q", r.reason, r.err, want)
	}
	if r.err == nil {
		t.Fatalf("rejected with %q, but without an error", r.reason)
	}
	return r
}

func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
		panic("unreachable")
	}
}

// wait polls until ok.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func dial(t testing.TB, addr net.Addr) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func send(t testing.TB, w io.Writer, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// echoed sends b and expects it back.
func echoed(t testing.TB, c io.ReadWriter, b []byte) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(b); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read: %v", err)
	}
	wg.Wait()
	if !bytes.Equal(got, b) {
		t.Fatalf("echo of %d bytes differs", len(b))
	}
}

// ended expects the end of the connection and returns what came before it.
func ended(t testing.TB, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("the connection was not closed; read %q", b)
	}
	return b
}

// noise is n bytes that repeat nowhere near.
func noise(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
