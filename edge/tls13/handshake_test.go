package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func roles(t *testing.T, f func(t *testing.T, asClient bool)) {
	t.Run("server", func(t *testing.T) { f(t, false) })
	t.Run("client", func(t *testing.T) { f(t, true) })
}

// echo sends p both ways, and fails if it does not arrive.
func (l *link) echo(t *testing.T, p []byte) {
	t.Helper()
	if _, err := l.peer.Write(p); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := io.ReadFull(l.us, got); err != nil || !bytes.Equal(got, p) {
		t.Fatalf("to us, %d bytes: %v", len(p), err)
	}
	if _, err := l.us.Write(p); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l.peer, got); err != nil || !bytes.Equal(got, p) {
		t.Fatalf("to the peer, %d bytes: %v", len(p), err)
	}
}

// TestWithCryptoTLS runs every record size both ways, against tls.Conn.
func TestWithCryptoTLS(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		only(t, id)
		roles(t, func(t *testing.T, asClient bool) {
			for _, policy := range []Policy{Own, Crypto} {
				l := connect(t, asClient, policy, serverConfig(), clientConfig())
				if l.us.State.CipherSuite != id || (policy == Own) != (l.us.Records != nil) {
					t.Fatalf("suite %x, why %q", l.us.State.CipherSuite, l.us.Why)
				}
				step := 211
				if id == suites[0] && !asClient && !raceEnabled {
					step = 1
				}
				p := random(maxPlaintext, 3)
				for n := 1; n <= maxPlaintext; n += step {
					l.echo(t, p[:n])
				}
				l.echo(t, random(200_000, 4))
				l.echo(t, p)
				// The end in order, both ways.
				_, _ = l.us.conn.Write(l.us.layer.End(nil))
				if _, err := l.peer.Read(p); err != io.EOF {
					t.Fatalf("the peer hears %v", err)
				}
				_ = l.peer.CloseWrite()
				if _, err := l.us.Read(p); err != io.EOF {
					t.Fatalf("we hear %v", err)
				}
			}
		})
	})
}

// TestKeyUpdatesWithCryptoTLS: ours, with a question or without one, and tls.Conn's answer.
func TestKeyUpdatesWithCryptoTLS(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		only(t, id)
		roles(t, func(t *testing.T, asClient bool) {
			l := connect(t, asClient, Own, serverConfig(), clientConfig())
			for i := range 10 {
				_, _ = l.us.conn.Write(l.us.Records.appendUpdate(nil, i%3 != 0))
				l.echo(t, random(1000+i, uint64(i)))
			}
			if l.us.Records.in.seq > 2 {
				t.Fatalf("the peer has not changed its key: sequence %d", l.us.Records.in.seq)
			}
		})
	})
}

// TestWhatCryptoTLSHolds compares secrets and sequence numbers with those in the tls.Conn: what is assumed about its inside is
// looked at here for every release of Go.
func TestWhatCryptoTLSHolds(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		only(t, id)
		for _, c := range []struct {
			name     string
			asClient bool
			change   func(server, client *tls.Config)
			written  uint64 // records under our last key
		}{
			{"server", false, func(_, _ *tls.Config) {}, 1},
			{"server without tickets", false, func(s, _ *tls.Config) { s.SessionTicketsDisabled = true }, 0},
			{"server with client certificates", false, func(s, c *tls.Config) {
				s.ClientAuth, s.ClientCAs, c.Certificates = tls.RequireAndVerifyClientCert, ca().pool, []tls.Certificate{device()}
			}, 1},
			{"server asking again", false, func(s, _ *tls.Config) { s.CurvePreferences = []tls.CurveID{tls.CurveP521} }, 1},
			{"client", true, func(_, _ *tls.Config) {}, 0},
			{"client with certificate", true, func(s, c *tls.Config) {
				s.ClientAuth, s.ClientCAs, c.Certificates = tls.RequireAndVerifyClientCert, ca().pool, []tls.Certificate{device()}
			}, 0},
		} {
			t.Run(c.name, func(t *testing.T) {
				server, client := serverConfig(), clientConfig()
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1) // else it asks for no ticket
				c.change(server, client)
				a, b := memPipe()
				w := &wire{conn: a, client: c.asClient, capture: true}
				ours, theirs := tls.Server(w, w.watch(server)), tls.Client(b, client)
				if c.asClient {
					ours, theirs = tls.Client(w, w.watch(client)), tls.Server(b, server)
				}
				go func() { _, _ = theirs.Write([]byte("at once")) }() // shakes hands too
				h, err := w.handshake(context.Background(), ours)
				if err != nil || h.Records == nil {
					t.Fatal(h, err)
				}
				if h.Records.out.seq != c.written {
					t.Errorf("%d records were counted, want %d", h.Records.out.seq, c.written)
				}
				conn := reflect.ValueOf(ours).Elem()
				for name, mine := range map[string]*half{"in": &h.Records.in, "out": &h.Records.out} {
					hc := conn.FieldByName(name)
					if secret := hc.FieldByName("trafficSecret").Bytes(); !bytes.Equal(secret, mine.secret[:h.Records.suite.secretSize()]) {
						t.Errorf("%s: the secrets differ", name)
					}
					var seq uint64
					for _, b := range hc.FieldByName("seq").Bytes() {
						seq = seq<<8 | uint64(b)
					}
					if seq != mine.seq {
						t.Errorf("%s: sequence %d, crypto/tls has %d", name, mine.seq, seq)
					}
				}
				for _, name := range []string{"rawInput", "hand"} {
					if buf := conn.FieldByName(name); int64(buf.FieldByName("buf").Len()) != buf.FieldByName("off").Int() {
						t.Errorf("crypto/tls has read more than its own: %s", name)
					}
				}
				// What was read beyond is ours.
				d := newDriver(h, a)
				buf := make([]byte, 100)
				if n, err := d.Read(buf); err != nil || string(buf[:n]) != "at once" {
					t.Errorf("%q, %v", buf[:n], err)
				}
				// The dropped tls.Conn is cut off.
				before := a.out.len()
				if _, err := ours.Write([]byte("late")); !errors.Is(err, errCut) {
					t.Errorf("a late write: %v", err)
				}
				_ = ours.Close()
				if a.out.len() != before || a.in.closed {
					t.Error("the dropped tls.Conn reaches the socket")
				}
			})
		}
	})
}

// TestFallback: whatever is odd stays with crypto/tls, and works.
func TestFallback(t *testing.T) {
	roles(t, func(t *testing.T, asClient bool) {
		server, client := serverConfig(), clientConfig()
		server.MaxVersion = tls.VersionTLS12
		for _, policy := range []Policy{Own, Crypto} {
			l := connect(t, asClient, policy, server, client)
			if want := map[Policy]string{Own: "TLS 1.2", Crypto: "policy"}[policy]; l.us.Why != want || l.us.Stdlib == nil {
				t.Fatalf("why %q, want %q", l.us.Why, want)
			}
			for _, n := range []int{1, 100, maxPlaintext, 100_000} {
				l.echo(t, random(n, 5))
			}
		}
	})
	for name, spoil := range map[string]func(w *wire){
		"key log":        func(w *wire) { w.learn(0, []byte("00 "+strings.Repeat("00", 32))) },
		"cipher suite":   func(w *wire) { w.secrets[1] = secret{n: 20} },
		"sequence":       func(w *wire) { w.sent = append(w.sent, w.sent[:30]...) },
		"long handshake": func(w *wire) { w.odd = "long handshake" },
	} {
		a, b := memPipe()
		w := &wire{conn: a, capture: true}
		config := w.watch(serverConfig())
		config.VerifyConnection = func(tls.ConnectionState) error { return nil }
		peer := tls.Client(b, clientConfig())
		go func() { _ = peer.Handshake() }()
		conn := tls.Server(w, config)
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		spoil(w)
		h, err := w.handshake(context.Background(), conn) // has nothing more to do than to hand over
		if err != nil || h.Stdlib == nil || h.Why != name {
			t.Fatalf("%s: %+v, %v", name, h, err)
		}
		(&link{us: newDriver(h, a), peer: peer}).echo(t, []byte("still works"))
	}
}

// TestFIPS: where Go's FIPS 140-3 mode is on, nonces are crypto/tls's business.
func TestFIPS(t *testing.T) {
	if os.Getenv("TLS13_FIPS") == "" {
		for _, mode := range []string{"on", "only"} {
			cmd := exec.Command(os.Args[0], "-test.run", "^TestFIPS$")
			cmd.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TLS13_FIPS=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", mode, err, out)
			}
		}
		return
	}
	roles(t, func(t *testing.T, asClient bool) {
		l := connect(t, asClient, Own, serverConfig(), clientConfig())
		if l.us.Stdlib == nil || l.us.Why != "FIPS 140" {
			t.Fatal(l.us.Why)
		}
		l.echo(t, []byte("x"))
	})
}

func TestClientCertificates(t *testing.T) {
	roles(t, func(t *testing.T, asClient bool) {
		server, client := serverConfig(), clientConfig()
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca().pool
		client.Certificates = []tls.Certificate{device()}
		l := connect(t, asClient, Own, server, client)
		if got := l.us.State.PeerCertificates; l.us.Records == nil || len(got) != 1 || len(l.us.State.VerifiedChains) != 1 {
			t.Fatalf("why %q, %d certificates", l.us.Why, len(got))
		}
		l.echo(t, random(5000, 6))
	})
	// Without one: refused, and the client is told why.
	a, b := memPipe()
	server := serverConfig()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca().pool
	told := make(chan error, 1)
	go func() {
		_, err := tls.Client(b, clientConfig()).Read(make([]byte, 1))
		told <- err
	}()
	if h, err := NewServer(server, Own).Handshake(context.Background(), a); err == nil || h != nil {
		t.Fatal(h, err)
	}
	if err := <-told; err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Fatal(err)
	}
}

// resume connects with a client's ticket cache, and reads the ticket.
func resume(t *testing.T, s *Server, client *tls.Config) (resumed bool, h *Handover) {
	t.Helper()
	a, b := memPipe()
	defer a.Close()
	peer := tls.Client(b, client)
	done := make(chan error, 1)
	go func() { done <- peer.Handshake() }()
	h, err := s.Handshake(context.Background(), a)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	l := &link{us: newDriver(h, a), peer: peer}
	l.echo(t, []byte("the ticket comes ahead"))
	if peer.ConnectionState().DidResume != h.State.DidResume {
		t.Fatal("the two do not agree")
	}
	return h.State.DidResume, h
}

// TestResumption: tickets must work although each connection has a configuration of its own.
func TestResumption(t *testing.T) {
	plain := serverConfig()
	withKeys := serverConfig()
	withKeys.SetSessionTicketKeys([][32]byte{{1}})
	mutual := serverConfig()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, ca().pool
	for name, base := range map[string]*tls.Config{
		"keys of its own": plain, "keys given": withKeys, "client certificates": mutual,
		"GetConfigForClient": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return plain, nil }},
		"GetConfigForClient without an answer": {
			Certificates:       plain.Certificates,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil },
		},
	} {
		for _, policy := range []Policy{Own, Crypto} {
			t.Run(name, func(t *testing.T) {
				s := NewServer(base, policy)
				client := clientConfig()
				client.ClientSessionCache = tls.NewLRUClientSessionCache(10)
				client.Certificates = []tls.Certificate{device()}
				for i := range 5 {
					if got, h := resume(t, s, client); got != (i > 0) || (h.Records != nil) != (policy == Own) {
						t.Fatalf("connection %d: resumed %t, why %q", i, got, h.Why)
					} else if name == "client certificates" && len(h.State.PeerCertificates) != 1 {
						t.Fatal("the certificate is lost")
					}
				}
			})
		}
	}
}

// TestReload: what GetConfigForClient returns is replaced; tickets and key log are not lost.
func TestReload(t *testing.T) {
	var current atomic.Pointer[tls.Config]
	current.Store(serverConfig())
	s := NewServer(&tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName != "localhost" {
			return nil, errors.New("unknown name")
		}
		return current.Load(), nil
	}}, Own)
	client := clientConfig()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(10)
	resume(t, s, client)
	current.Store(&tls.Config{Certificates: []tls.Certificate{ca().issue("localhost")}, NextProtos: []string{"mqtt"}})
	client.NextProtos = []string{"mqtt"}
	if resumed, h := resume(t, s, client); !resumed || h.Records == nil || h.State.NegotiatedProtocol != "mqtt" {
		t.Fatalf("resumed %t, why %q, protocol %q", resumed, h.Why, h.State.NegotiatedProtocol)
	}
	// A full handshake shows the new certificate.
	var shown string
	fresh := clientConfig()
	fresh.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0].SerialNumber.String()
		return nil
	}
	resume(t, s, fresh)
	if want := current.Load().Certificates[0].Leaf.SerialNumber.String(); shown != want {
		t.Fatalf("certificate %s, want %s", shown, want)
	}
	// Its error is the handshake's.
	a, b := memPipe()
	stranger := clientConfig()
	stranger.ServerName = "elsewhere"
	go func() { _ = tls.Client(b, stranger).Handshake() }()
	if _, err := s.Handshake(context.Background(), a); err == nil || !strings.Contains(err.Error(), "unknown name") {
		t.Fatal(err)
	}
}

// TestKeyLogIsPassedOn: who asks for a key log gets it as before.
func TestKeyLogIsPassedOn(t *testing.T) {
	roles(t, func(t *testing.T, asClient bool) {
		var log bytes.Buffer
		server, client := serverConfig(), clientConfig()
		if asClient {
			client.KeyLogWriter = &log
		} else {
			server.KeyLogWriter = &log
		}
		l := connect(t, asClient, Own, server, client)
		if n := strings.Count(log.String(), "_TRAFFIC_SECRET"); l.us.Records == nil || n != 4 {
			t.Fatalf("why %q, %d lines", l.us.Why, n)
		}
	})
}

// TestContext: its end closes the socket and ends the handshake.
func TestContext(t *testing.T) {
	roles(t, func(t *testing.T, asClient bool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		a, _ := memPipe()
		var err error
		if asClient {
			_, err = Client(ctx, a, clientConfig(), Own)
		} else {
			_, err = NewServer(serverConfig(), Own).Handshake(ctx, a)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatal("the socket is open")
		}
	})
}

// TestPipelined: everything a client can send in one piece arrives in one piece; the layer gets what is its own.
func TestPipelined(t *testing.T) {
	for _, policy := range []Policy{Own, Crypto} {
		for _, piece := range []int{1, 100, 5000, 1 << 20} {
			a, b := memPipe()
			relayed, far := memPipe()
			want := random(40_000, 7)
			go func() { // what the client sends, in pieces
				buf := make([]byte, piece)
				for {
					n, err := far.Read(buf)
					if err != nil {
						return
					}
					_, _ = b.Write(buf[:n])
				}
			}()
			go func() { _, _ = io.Copy(far, b) }()
			go func() {
				c := tls.Client(relayed, clientConfig())
				_, _ = c.Write(want)
				_ = c.CloseWrite()
			}()
			h, err := NewServer(serverConfig(), policy).Handshake(context.Background(), a)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(newDriver(h, a))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("pieces of %d: %d of %d bytes, %v", piece, len(got), len(want), err)
			}
			_ = a.Close()
			_ = far.Close()
		}
	}
}
