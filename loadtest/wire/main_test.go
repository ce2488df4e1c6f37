package wire

import (
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
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"
)

// patience is far more than anything here takes.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	goleak.VerifyTestMain(m)
}

// authority is a certificate for 127.0.0.1, ::1, localhost and edge.test, and the pool that trusts it.
var authority = sync.OnceValues(func() (*tls.Config, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "wire test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost", "edge.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
})

func serverTLS() *tls.Config { cfg, _ := authority(); return cfg.Clone() }
func clientTLS() *tls.Config { _, pool := authority(); return &tls.Config{RootCAs: pool} }

// served is what a test server has of one client.
type served interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
}

// serve runs handle for each client of a real server of another's making. All of it ends with the test.
func serve(t testing.TB, kind Transport, handle func(served)) *Endpoint {
	t.Helper()
	if kind == QUIC {
		return serveQUIC(t, handle)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, kind, l, handle)
}

func serveOn(t testing.TB, kind Transport, l net.Listener, handle func(served)) *Endpoint {
	t.Helper()
	address := l.Addr()
	if kind.Encrypted() {
		cfg := serverTLS()
		if kind == WSS {
			cfg.NextProtos = []string{"http/1.1"}
		}
		l = tls.NewListener(l, cfg)
	}
	var wg sync.WaitGroup
	if kind == WS || kind == WSS {
		ctx, cancel := context.WithCancel(context.Background())
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			wg.Add(1)
			defer wg.Done()
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}})
			if err != nil {
				return
			}
			ws.SetReadLimit(-1)
			defer ws.CloseNow()
			handle(websocket.NetConn(ctx, ws, websocket.MessageBinary))
		})}
		wg.Go(func() { _ = server.Serve(l) })
		t.Cleanup(func() { cancel(); _ = server.Close(); wg.Wait() })
	} else {
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					if c, ok := conn.(*tls.Conn); ok && c.Handshake() != nil {
						return
					}
					handle(conn)
				})
			}
		})
		t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	}
	return endpoint(t, kind, address.(*net.TCPAddr).AddrPort())
}

func serveQUIC(t testing.TB, handle func(served)) *Endpoint {
	t.Helper()
	cfg := serverTLS()
	cfg.NextProtos = []string{"mqtt"}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: udp}
	l, err := transport.Listen(cfg, &quic.Config{MaxIdleTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() {
				if stream, err := conn.AcceptStream(ctx); err == nil {
					handle(stream)
					_ = stream.Close()
					select { // the client ends the connection
					case <-conn.Context().Done():
					case <-ctx.Done():
					}
				}
			})
		}
	})
	t.Cleanup(func() { cancel(); _ = transport.Close(); _ = udp.Close(); wg.Wait() })
	return endpoint(t, QUIC, udp.LocalAddr().(*net.UDPAddr).AddrPort())
}

func endpoint(t testing.TB, kind Transport, a netip.AddrPort) *Endpoint {
	t.Helper()
	target, err := Parse(kind.String()+"://"+a.String(), TCP)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Resolve(t.Context(), "ip", target)
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func newDialer(t testing.TB, cfg Config) *Dialer {
	t.Helper()
	if cfg.TLS == nil {
		cfg.TLS = clientTLS()
	}
	if cfg.Linger == 0 {
		cfg.Linger = patience
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing the dialer: %v", err)
		}
	})
	return d
}

func dial(t testing.TB, d *Dialer, ep *Endpoint) Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), ep)
	if err != nil {
		t.Fatalf("dial %v: %v", ep, err)
	}
	t.Cleanup(func() { _ = c.Abort() })
	if err := errors.Join(c.SetReadDeadline(time.Now().Add(patience)), c.SetWriteDeadline(time.Now().Add(patience))); err != nil {
		t.Fatal(err)
	}
	return c
}

// echo is a handler.
func echo(c served) { _, _ = io.Copy(c, c) }

// forAll runs test for each transport.
func forAll(t *testing.T, test func(t *testing.T, kind Transport)) {
	for _, kind := range Transports() {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}
