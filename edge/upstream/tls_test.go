package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/registry"
)

// authority signs certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate for names and addresses, as files and ready for use.
func (a *authority) issue(t testing.TB, cn string, hosts ...string) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "EC PRIVATE KEY", keyDER)
	if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, pair
}

// serverConfig is that of a broker with a certificate for 127.0.0.1, ::1 and mq.example.
func (a *authority) serverConfig(t testing.TB) *tls.Config {
	_, _, pair := a.issue(t, "broker", "127.0.0.1", "::1", "mq.example")
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// serveTLS is serve behind TLS. Handshakes that fail are not handled.
func serveTLS(t testing.TB, host string, config *tls.Config, handle func(*tls.Conn)) string {
	return serve(t, host+":0", func(c net.Conn) {
		tc := tls.Server(c, config)
		if tc.Handshake() == nil {
			handle(tc)
		}
	})
}

func tlsBroker(address string, set registry.BrokerTLS) *registry.Broker {
	return &registry.Broker{ID: "b1", Address: address, Transport: registry.TransportTLS, TLS: set}
}

func TestDialTLS(t *testing.T) {
	ca := newAuthority(t)
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		address := serveTLS(t, host, ca.serverConfig(t), func(c *tls.Conn) { echo(c) })
		s, err := newDialer(t, nil).Dial(within(t, patience), tlsBroker(address, registry.BrokerTLS{CA: ca.file}), nil)
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, s)
		s.Close()
	}
}

// The header goes in clear before the handshake, in one piece with the ClientHello, and says what the client's TLS was.
func TestDialTLSWithHeader(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	seen := make(chan *proxyproto.Header, 1)
	address := serve(t, "127.0.0.1:0", func(c net.Conn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Errorf("the header: %v", err)
		}
		if r.Buffered() == 0 {
			t.Error("the ClientHello came in a segment of its own")
		}
		seen <- h
		tc := tls.Server(readerConn{c, r}, config)
		if err := tc.Handshake(); err != nil {
			t.Errorf("handshake behind the header: %v", err)
			return
		}
		echo(tc)
	})
	o := &relay.Origin{Client: addrPort("192.0.2.7:50000"), Server: addrPort("192.0.2.1:8883"), TLS: &relay.TLS{Version: tls.VersionTLS13, ServerName: "mq.example"}}
	b := tlsBroker(address, registry.BrokerTLS{CA: ca.file})
	s, err := newDialer(t, nil).Dial(within(t, patience), b, AppendProxy(nil, registry.ProxyV2, o))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := <-seen
	if h.SourceAddr.String() != "192.0.2.7:50000" || tlvsOf(t, h)[proxyproto.PP2_TYPE_AUTHORITY] != "mq.example" {
		t.Errorf("header %+v", h)
	}
	exchange(t, s)
}

// readerConn reads what a bufio.Reader holds of it.
type readerConn struct {
	net.Conn
	r io.Reader
}

func (c readerConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func TestDialTLSName(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	names := make(chan string, 10)
	config := ca.serverConfig(t)
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- h.ServerName
		return nil, nil
	}
	address := serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) { echo(c) })
	_, port, _ := net.SplitHostPort(address)
	dns := &fakeDNS{}
	dns.set("mq.example", "127.0.0.1")
	dns.set("mq.example.", "127.0.0.1")
	dns.set("other.example", "127.0.0.1")
	d := newDialer(t, dns)
	for _, c := range []struct {
		name, host, serverName, ca, sni string
		wrong                           string // what the error must say; "" = success
	}{
		{"IP address, no SNI", "127.0.0.1", "", ca.file, "", ""},
		{"name of the address", "mq.example", "", ca.file, "mq.example", ""},
		{"rooted name", "mq.example.", "", ca.file, "mq.example", ""},
		{"name configured", "127.0.0.1", "mq.example", ca.file, "mq.example", ""},
		{"wrong name", "other.example", "", ca.file, "other.example", "other.example"},
		{"wrong name configured", "127.0.0.1", "other.example", ca.file, "other.example", "other.example"},
		{"wrong authority", "127.0.0.1", "", other.file, "", "unknown authority"},
		{"the system's authorities", "127.0.0.1", "", "", "", "certificate"},
	} {
		b := tlsBroker(net.JoinHostPort(c.host, port), registry.BrokerTLS{CA: c.ca, ServerName: c.serverName})
		s, err := d.Dial(within(t, patience), b, nil)
		if got := <-names; got != c.sni {
			t.Errorf("%s: SNI %q, want %q", c.name, got, c.sni)
		}
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.wrong != "" && err == nil:
			t.Errorf("%s: accepted", c.name)
		case err != nil && (Reason(err) != ReasonTLS || !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %v (reason %s), want it to say %q", c.name, err, Reason(err), c.wrong)
		}
		if s != nil {
			s.Close()
		}
	}
}

func TestDialTLSClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool()
	cns := make(chan string, 1)
	address := serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) {
		cns <- c.ConnectionState().PeerCertificates[0].Subject.CommonName
		echo(c)
	})
	cert, key, _ := ca.issue(t, "edge-1")
	d := newDialer(t, nil)
	s, err := d.Dial(within(t, patience), tlsBroker(address, registry.BrokerTLS{CA: ca.file, Cert: cert, Key: key}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if cn := <-cns; cn != "edge-1" {
		t.Errorf("the broker saw %q", cn)
	}
	exchange(t, s)
	s.Close()

	// Without one the broker says no, in TLS 1.3 only after the handshake: a probe that talks notices.
	b := tlsBroker(address, registry.BrokerTLS{CA: ca.file})
	if err := d.ProbeMQTT(within(t, patience), b, "probe"); err == nil || Reason(err) != ReasonMQTT {
		t.Errorf("without a certificate: %v (reason %s)", err, Reason(err))
	}
}

func TestDialTLSResumes(t *testing.T) {
	ca := newAuthority(t)
	resumed := make(chan bool, 2)
	address := serveTLS(t, "127.0.0.1", ca.serverConfig(t), func(c *tls.Conn) {
		resumed <- c.ConnectionState().DidResume
		echo(c)
	})
	d := newDialer(t, nil)
	for _, want := range []bool{false, true} {
		s, err := d.Dial(within(t, patience), tlsBroker(address, registry.BrokerTLS{CA: ca.file}), nil)
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, s) // reads the ticket
		s.Close()
		if got := <-resumed; got != want {
			t.Errorf("resumed: %v, want %v", got, want)
		}
	}
}

// A broker that accepts and says nothing, or is no TLS server, costs the deadline and no more.
func TestDialTLSSlowOrForeign(t *testing.T) {
	ca := newAuthority(t)
	set := registry.BrokerTLS{CA: ca.file}
	silent := serve(t, "127.0.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) })
	_, err := newDialer(t, nil).Dial(within(t, 100*time.Millisecond), tlsBroker(silent, set), nil)
	if Reason(err) != ReasonTimeout {
		t.Errorf("silent: %v (reason %s)", err, Reason(err))
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	ended := make(chan error, 1)
	waiting := serve(t, "127.0.0.1:0", func(c net.Conn) {
		c.Read(make([]byte, 1)) // the ClientHello is here
		cancel()
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	_, err = newDialer(t, nil).Dial(ctx, tlsBroker(waiting, set), nil)
	if Reason(err) != ReasonCanceled {
		t.Errorf("canceled: %v (reason %s)", err, Reason(err))
	}
	if err := <-ended; err != nil {
		t.Errorf("the broker saw %v, want the connection closed at once", err)
	}

	for name, handle := range map[string]func(net.Conn){
		"closes":    func(c net.Conn) { c.Read(make([]byte, 1)) },
		"is no TLS": func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") },
	} {
		_, err = newDialer(t, nil).Dial(within(t, patience), tlsBroker(serve(t, "127.0.0.1:0", handle), set), nil)
		if Reason(err) != ReasonTLS {
			t.Errorf("%s: %v (reason %s)", name, err, Reason(err))
		}
	}
}

func TestTLSFilesErrors(t *testing.T) {
	ca := newAuthority(t)
	cert, key, _ := ca.issue(t, "edge-1")
	_, foreign, _ := ca.issue(t, "edge-2")
	dir := t.TempDir()
	missing, empty, huge := filepath.Join(dir, "missing.pem"), filepath.Join(dir, "empty.pem"), filepath.Join(dir, "huge.pem")
	if err := errors.Join(os.WriteFile(empty, []byte("not PEM"), 0o600), os.WriteFile(huge, nil, 0o600), os.Truncate(huge, maxPEM+1)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		set  registry.BrokerTLS
		want []string
	}{
		{"no CA file", registry.BrokerTLS{CA: missing}, []string{"tls.ca", missing, "no such file", "check the path"}},
		{"a folder", registry.BrokerTLS{CA: dir}, []string{"tls.ca", dir}},
		{"no PEM", registry.BrokerTLS{CA: empty}, []string{"tls.ca", empty, "no certificate"}},
		{"too large", registry.BrokerTLS{CA: huge}, []string{"tls.ca", huge, "larger than"}},
		{"no certificate file", registry.BrokerTLS{Cert: missing, Key: key}, []string{"tls.cert", missing}},
		{"no key file", registry.BrokerTLS{Cert: cert, Key: missing}, []string{"tls.key", missing}},
		{"certificate alone", registry.BrokerTLS{Cert: cert}, []string{"tls.cert", cert, "tls.key"}},
		{"key alone", registry.BrokerTLS{Key: key}, []string{"tls.key", key, "tls.cert"}},
		{"another's key", registry.BrokerTLS{Cert: cert, Key: foreign}, []string{cert, foreign, "does not match"}},
	} {
		_, err := newDialer(t, nil).Dial(within(t, patience), tlsBroker("127.0.0.1:1", c.set), nil)
		if !errors.Is(err, ErrConfig) || Reason(err) != ReasonConfig {
			t.Errorf("%s: %v (reason %s)", c.name, err, Reason(err))
			continue
		}
		for _, part := range c.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", c.name, err, part)
			}
		}
		if strings.Count(err.Error(), missing) > 1 {
			t.Errorf("%s: %q names the file twice", c.name, err)
		}
	}
}

// Changed files take effect without a restart; files that became unusable do not take a working broker away.
func TestTLSFilesReload(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	replace := func(content []byte) {
		t.Helper()
		stamp := time.Now()
		if info, err := os.Stat(file); err == nil {
			stamp = info.ModTime().Add(time.Second) // whatever the file system's clock resolves
		}
		if err := errors.Join(os.WriteFile(file, content, 0o600), os.Chtimes(file, stamp, stamp)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(file string) []byte {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	address := serveTLS(t, "127.0.0.1", next.serverConfig(t), func(c *tls.Conn) { echo(c) })
	b := tlsBroker(address, registry.BrokerTLS{CA: file})
	d := newDialer(t, nil)
	dial := func() error {
		for _, e := range d.tls.entries {
			e.checked = e.checked.Add(-tlsRecheck) // as if the time had passed
		}
		s, err := d.Dial(within(t, patience), b, nil)
		if err == nil {
			s.Close()
		}
		return err
	}
	replace(read(old.file))
	if err := dial(); Reason(err) != ReasonTLS {
		t.Fatalf("the old authority: %v", err)
	}
	replace(read(next.file))
	if err := dial(); err != nil {
		t.Errorf("the new authority: %v", err)
	}
	first := d.tls.entries[tlsKey{address, b.TLS}].config
	if err := dial(); err != nil || d.tls.entries[tlsKey{address, b.TLS}].config != first {
		t.Errorf("files that did not change: %v, or built anew", err)
	}
	replace([]byte("half a fi"))
	if err := dial(); err != nil {
		t.Errorf("a broken file: %v, want the old configuration", err)
	}
	replace(read(old.file))
	if err := dial(); Reason(err) != ReasonTLS {
		t.Errorf("the old authority again: %v", err)
	}
}
