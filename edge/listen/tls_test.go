package listen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/limpet-mesh/limpet/edge/relay"
)

// shake dials TLS with conf and returns both sides' view.
func shake(t testing.TB, l *served, conf *tls.Config) (tls.ConnectionState, *relay.TLS) {
	t.Helper()
	c := tls.Client(dial(t, l.Addr()), conf)
	if err := c.Handshake(); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	if l.cfg.Transport == WSS {
		upgradeRaw(t, c)
	} else {
		echoed(t, c, []byte("x")) // TLS 1.3: the ticket has come with it
	}
	cs := c.ConnectionState()
	_ = c.Close()
	return cs, l.arrival(t).origin.TLS
}

// refused dials TLS with conf and expects that it fails.
func refused(t testing.TB, l *served, conf *tls.Config) error {
	t.Helper()
	c := tls.Client(dial(t, l.Addr()), conf)
	err := c.Handshake()
	if err == nil { // TLS 1.3: the client is done before the server has seen its certificate
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not refused: %v", err)
	}
	l.rejected(t, ReasonTLSHandshake)
	return err
}

func TestForeignALPNNeverFails(t *testing.T) {
	ca := newAuthority(t)
	tcp, web := start(t, config(t, TLS, ca)), start(t, config(t, WSS, ca))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, c := range []struct {
			l      *served
			offers []string
			want   string
		}{
			{tcp, nil, ""},
			{tcp, []string{"mqtt"}, "mqtt"},
			{tcp, []string{"x-amzn-mqtt-ca"}, "x-amzn-mqtt-ca"},
			{tcp, []string{"h2", "http/1.1"}, ""},
			{tcp, []string{"of-my-own"}, ""},
			{tcp, []string{"of-my-own", "mqtt"}, "mqtt"},
			{tcp, []string{"x-amzn-mqtt-ca", "mqtt"}, "x-amzn-mqtt-ca"},
			{web, nil, ""},
			{web, []string{"http/1.1"}, "http/1.1"},
			{web, []string{"h2", "http/1.1"}, "http/1.1"},
			{web, []string{"h2"}, ""},
			{web, []string{"mqtt"}, ""},
		} {
			conf := ca.client()
			conf.NextProtos, conf.MaxVersion = c.offers, version
			cs, o := shake(t, c.l, conf)
			if cs.NegotiatedProtocol != c.want || o.ALPN != c.want || o.Version != version {
				t.Errorf("%s, %s, %q: agreed on %q, told %+v; want %q", c.l.cfg.Transport, tls.VersionName(version), c.offers, cs.NegotiatedProtocol, o, c.want)
			}
		}
	}
}

func TestOldVersionsAreRefused(t *testing.T) {
	ca := newAuthority(t)
	l := start(t, config(t, TLS, ca))
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		conf := ca.client()
		conf.MinVersion, conf.MaxVersion = version, version
		if err := refused(t, l, conf); !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
	cfg := config(t, TLS, ca)
	cfg.TLS.MinVersion = tls.VersionTLS13
	strict := start(t, cfg)
	conf := ca.client()
	conf.MaxVersion = tls.VersionTLS12
	refused(t, strict, conf)
	if cs, _ := shake(t, strict, ca.client()); cs.Version != tls.VersionTLS13 {
		t.Errorf("version %x", cs.Version)
	}
}

func TestCertificateBySNI(t *testing.T) {
	ca := newAuthority(t)
	cfg := config(t, TLS, ca)
	cfg.TLS.Certificates = []KeyPair{
		ca.issue(t, "default", "localhost"),
		ca.issue(t, "wild", "*.example.com"),
		ca.issue(t, "exact", "mqtt.example.com", "also.example.com"),
		ca.issue(t, "upper", "UPPER.example.org"),
	}
	l := start(t, cfg)
	for sni, want := range map[string]string{
		"localhost": "default", "mqtt.example.com": "exact", "also.example.com": "exact", "MQTT.Example.com": "exact", "other.example.com": "wild",
		"a.b.example.com": "default", "example.com": "default", "foreign.test": "default", "upper.example.org": "upper", "": "default",
	} {
		conf := &tls.Config{ServerName: sni, InsecureSkipVerify: true}
		cs, o := shake(t, l, conf)
		if got := cs.PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q: certificate %q, want %q", sni, got, want)
		}
		if !strings.EqualFold(o.ServerName, sni) {
			t.Errorf("%q: told %q", sni, o.ServerName)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	good, bad := load(t, ca.issue(t, "device-1")), load(t, foreign.issue(t, "device-1"))
	with := func(c ...tls.Certificate) *tls.Config {
		conf := ca.client()
		// Also where the server names other authorities: crypto/tls would show nothing.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(c) == 0 {
				return &tls.Certificate{}, nil
			}
			return &c[0], nil
		}
		return conf
	}
	none := start(t, config(t, TLS, ca))
	cfg := config(t, TLS, ca)
	cfg.TLS.ClientCAs, cfg.TLS.ClientAuth = ca.file, ClientAuthRequest
	request := start(t, cfg)
	cfg.TLS.ClientAuth = ClientAuthRequire
	require := start(t, cfg)

	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		limit := func(c *tls.Config) *tls.Config {
			c.MaxVersion = version
			return c
		}
		for name, c := range map[string]struct {
			l    *served
			conf *tls.Config
			cn   string
		}{
			"none, one shown":   {none, with(good), ""},
			"request, without":  {request, with(), ""},
			"request, good one": {request, with(good), "device-1"},
			"require, good one": {require, with(good), "device-1"},
		} {
			_, o := shake(t, c.l, limit(c.conf))
			if o.CommonName != c.cn || o.Verified != (c.cn != "") {
				t.Errorf("%s: %+v, want %q", name, o, c.cn)
			}
		}
		refused(t, request, limit(with(bad)))
		refused(t, require, limit(with(bad)))
		refused(t, require, limit(with()))
	}
}

func TestNoTLSAtAll(t *testing.T) {
	ca := newAuthority(t)
	l := start(t, config(t, TLS, ca))
	c := dial(t, l.Addr())
	send(t, c, []byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"))
	ended(t, c)
	l.rejected(t, ReasonTLSHandshake)
	c = dial(t, l.Addr())
	_ = c.Close() // a balancer's health check
	l.rejected(t, ReasonClientGone)
}

// tickets is a client's session cache that tells whether it has one.
type tickets struct {
	tls.ClientSessionCache
	puts atomic.Int32
}

func newTickets() *tickets { return &tickets{ClientSessionCache: tls.NewLRUClientSessionCache(8)} }

func (c *tickets) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		c.puts.Add(1)
	}
	c.ClientSessionCache.Put(key, s)
}

// A ticket resumes a session whatever ALPN name the configuration was made for, after a Reload, and, with shared keys, elsewhere.
func TestSessionResumption(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TLS, WSS} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(transport+"/"+tls.VersionName(version), func(t *testing.T) {
				cfg := config(t, transport, ca)
				l, other := start(t, cfg), start(t, cfg)
				resumes := func(l *served, conf *tls.Config) bool {
					cs, o := shake(t, l, conf)
					if o.ServerName != "localhost" || o.Cipher == "" {
						t.Errorf("told %+v", o)
					}
					return cs.DidResume
				}
				conf := ca.client()
				cache := newTickets()
				conf.ClientSessionCache, conf.MaxVersion, conf.NextProtos = cache, version, []string{"mqtt", "http/1.1"}
				if resumes(l, conf) {
					t.Error("resumed out of nothing")
				}
				// The upgrade's answer comes behind the ticket, and the echo too: the client has it by now.
				if cache.puts.Load() == 0 {
					t.Fatal("no ticket")
				}
				if !resumes(l, conf) {
					t.Error("not resumed")
				}
				foreign := conf.Clone()
				foreign.NextProtos = nil
				if !resumes(l, foreign) {
					t.Error("not resumed without ALPN")
				}
				if err := l.Reload(*cfg.TLS); err != nil {
					t.Fatal(err)
				}
				if !resumes(l, conf) {
					t.Error("not resumed after Reload")
				}
				conf.ClientSessionCache = newTickets()
				shake(t, l, conf)
				if resumes(other, conf) {
					t.Error("resumed elsewhere without shared keys")
				}

				keys := [][32]byte{{1}, {2}}
				l.SetTicketKeys(nil) // nothing happens
				l.SetTicketKeys(keys[1:])
				other.SetTicketKeys(keys) // has rotated already
				conf.ClientSessionCache = newTickets()
				shake(t, l, conf)
				if !resumes(other, conf) {
					t.Error("not resumed elsewhere with shared keys")
				}
				l.SetTicketKeys([][32]byte{{3}})
				if resumes(l, conf) {
					t.Error("resumed with keys that were withdrawn")
				}
			})
		}
	}
}

// A resumed session brings its client certificate along; the authorities of today must still vouch for it.
func TestResumptionChecksClientCertificatesAgain(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := config(t, TLS, ca)
		cfg.TLS.ClientCAs, cfg.TLS.ClientAuth = ca.file, ClientAuthRequest
		l := start(t, cfg)
		conf := ca.client()
		conf.MaxVersion, conf.ClientSessionCache = version, newTickets()
		conf.Certificates = []tls.Certificate{load(t, ca.issue(t, "device-1"))}
		shake(t, l, conf)
		if cs, o := shake(t, l, conf); !cs.DidResume || o.CommonName != "device-1" || !o.Verified {
			t.Fatalf("%s: resumed %v, %+v", tls.VersionName(version), cs.DidResume, o)
		}
		replaced := *cfg.TLS
		replaced.ClientCAs = next.file
		if err := l.Reload(replaced); err != nil {
			t.Fatal(err)
		}
		conf.Certificates = nil // what it has in its pocket must not pass; it could not show it again either
		if cs, o := shake(t, l, conf); cs.DidResume || o.CommonName != "" || o.Verified {
			t.Errorf("%s: resumed %v, %+v, though its authority is gone", tls.VersionName(version), cs.DidResume, o)
		}
	}
}

func TestReloadIsAllOrNothing(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TLS, WSS, QUIC} {
		cfg := config(t, transport, ca)
		l := start(t, cfg)
		shows := func() string {
			if transport == QUIC {
				c, _ := quicDial(t, l, ca.client())
				defer func() { _ = c.CloseWithError(0, "") }()
				return c.ConnectionState().TLS.PeerCertificates[0].Subject.CommonName
			}
			cs, _ := shake(t, l, ca.client())
			return cs.PeerCertificates[0].Subject.CommonName
		}
		fresh := TLSConfig{Certificates: []KeyPair{ca.issue(t, "renewed", "localhost")}}
		broken := fresh
		broken.Certificates = append(slices.Clone(fresh.Certificates), KeyPair{"/does/not/exist", "/neither"})
		if err := l.Reload(broken); !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), "/does/not/exist") {
			t.Errorf("%s: %v", transport, err)
		}
		if cn := shows(); cn != "server" {
			t.Errorf("%s: shows %q after a failed reload", transport, cn)
		}
		if err := l.Reload(fresh); err != nil {
			t.Fatal(err)
		}
		if cn := shows(); cn != "renewed" {
			t.Errorf("%s: shows %q after reload", transport, cn)
		}
	}
	if err := start(t, Config{Transport: TCP}).Reload(TLSConfig{}); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
}

// A PROXY header, a ClientHello and what follows may share segments in every way.
func TestTLSInSmallPieces(t *testing.T) {
	ca := newAuthority(t)
	l := start(t, config(t, TLS, ca))
	raw := dial(t, l.Addr())
	c := tls.Client(dribble{raw}, ca.client())
	echoed(t, c, bytes.Repeat([]byte("drop by drop"), 20))
}

// dribble writes byte by byte.
type dribble struct{ net.Conn }

func (d dribble) Write(p []byte) (n int, err error) {
	for i := range p {
		if _, err = d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

var _ io.Writer = dribble{}
