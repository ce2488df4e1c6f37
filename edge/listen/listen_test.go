package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/quic-go/quic-go"
)

// client is the other end of a stream.
type client struct {
	io.ReadWriter
	finish func() error // no more to say
	close  func()
}

// connect dials transport as programs do that have nothing of ours in them.
func connect(t testing.TB, transport string, addr net.Addr, ca *authority) client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	switch transport {
	case TCP:
		c := dial(t, addr)
		return client{c, c.CloseWrite, func() { _ = c.Close() }}
	case TLS:
		c := tls.Client(dial(t, addr), ca.client())
		if err := c.HandshakeContext(ctx); err != nil {
			t.Fatalf("handshake: %v", err)
		}
		return client{c, c.CloseWrite, func() { _ = c.Close() }}
	case WS, WSS:
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.client(), DisableKeepAlives: true}}
		c, _, err := websocket.Dial(ctx, transport+"://"+addr.String()+"/mqtt", &websocket.DialOptions{
			Subprotocols: []string{"mqtt"}, HTTPClient: web, CompressionMode: websocket.CompressionContextTakeover,
		})
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		c.SetReadLimit(-1)
		t.Cleanup(func() { _ = c.CloseNow() })
		nc := websocket.NetConn(ctx, c, websocket.MessageBinary)
		return client{nc, func() error { return c.Close(websocket.StatusNormalClosure, "") }, func() { _ = c.CloseNow() }}
	case QUIC:
		conf := ca.client()
		conf.NextProtos = []string{"mqtt"}
		c, err := quic.DialAddr(ctx, addr.String(), conf, nil)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
		s, err := c.OpenStreamSync(ctx)
		if err != nil {
			t.Fatalf("open stream: %v", err)
		}
		return client{s, s.Close, func() { _ = c.CloseWithError(0, "") }}
	}
	t.Fatalf("transport %q", transport)
	return client{}
}

// config is a minimal one.
func config(t testing.TB, transport string, ca *authority) Config {
	cfg := Config{Transport: transport}
	if cfg.secure() {
		cfg.TLS = ca.server(t)
	}
	return cfg
}

var transports = []string{TCP, TLS, WS, WSS, QUIC}

func TestEveryTransportCarriesBytes(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range transports {
		for _, host := range []string{"127.0.0.1", "::1", ""} {
			t.Run(transport+"/"+host, func(t *testing.T) {
				cfg := config(t, transport, ca)
				cfg.Address = net.JoinHostPort(host, "0")
				l := start(t, cfg)
				addr := l.Addr()
				if host == "" { // all addresses of both families: as an IPv4 client
					ap := addrPort(addr)
					addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ap.Port()))
				}
				before := time.Now()
				c := connect(t, transport, addr, ca)
				echoed(t, c, []byte("hello"))
				echoed(t, c, noise(t, 300_000))
				a := l.arrival(t)
				if a.accepted.Before(before) || a.accepted.After(time.Now()) {
					t.Errorf("accepted at %v", a.accepted)
				}
				o := a.origin
				if o.Listener != "test" || o.Transport != transport || o.Client != o.Peer || o.UniqueID != nil {
					t.Errorf("origin %+v", o)
				}
				if want := netip.MustParseAddr(strings.Replace(host, "", "", 1) + map[bool]string{true: "127.0.0.1"}[host == ""]); o.Client.Addr() != want {
					t.Errorf("client %v, want %v", o.Client, want)
				}
				if transport != QUIC && o.Server.Port() != addrPort(addr).Port() {
					t.Errorf("server %v, want %v", o.Server, addr)
				}
				if cfg.secure() {
					if o.TLS == nil || o.TLS.Version != tls.VersionTLS13 || o.TLS.ServerName != "localhost" || o.TLS.Cipher == "" || o.TLS.Verified {
						t.Errorf("TLS %+v", o.TLS)
					}
				} else if o.TLS != nil {
					t.Errorf("TLS %+v", o.TLS)
				}
				if err := c.finish(); err != nil {
					t.Errorf("finish: %v", err)
				}
				ended(t, c)
			})
		}
	}
}

func TestHalfClose(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			got := make(chan string, 1)
			// The server has said all that it will; what the client says still arrives.
			l := startWith(t, config(t, transport, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
				b := make([]byte, 1)
				_, _ = io.ReadFull(s, b)
				_, _ = s.Write([]byte("bye"))
				if err := s.CloseWrite(); err != nil {
					t.Errorf("CloseWrite: %v", err)
				}
				if _, err := s.Write([]byte("more")); err == nil {
					t.Error("Write after CloseWrite succeeded")
				}
				rest, err := io.ReadAll(s)
				if err != nil {
					t.Errorf("read: %v", err)
				}
				got <- string(b) + string(rest)
				_ = s.Close()
			})
			if transport == WS || transport == WSS {
				// A client library answers the close frame by itself and sends nothing after it; the raw protocol may.
				var c net.Conn = dial(t, l.Addr())
				if transport == WSS {
					c = tls.Client(c, ca.client())
				}
				upgradeRaw(t, c)
				send(t, c, clientFrame(true, 2, []byte("a")))
				if b := readN(t, c, 2+3+4); string(b) != "\x82\x03bye\x88\x02\x03\xe8" {
					t.Fatalf("read %q", b)
				}
				send(t, c, clientFrame(true, 2, []byte("bc")))
				send(t, c, clientFrame(true, 8, []byte{3, 232}))
			} else {
				c := connect(t, transport, l.Addr(), ca)
				send(t, c, []byte("a"))
				if b := ended(t, c); string(b) != "bye" {
					t.Fatalf("read %q", b)
				}
				send(t, c, []byte("bc"))
				if err := c.finish(); err != nil {
					t.Fatal(err)
				}
			}
			if b := receive(t, got, "end of stream"); b != "abc" {
				t.Errorf("server read %q", b)
			}
		})
	}
}

func TestClosingTheListenerLeavesConnectionsAlone(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			l := start(t, config(t, transport, ca))
			c := connect(t, transport, l.Addr(), ca)
			echoed(t, c, []byte("before"))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if transport == QUIC {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				conf := ca.client()
				conf.NextProtos = []string{"mqtt"}
				wait(t, "new connections are refused", func() bool {
					c, err := quic.DialAddr(ctx, l.Addr().String(), conf, nil)
					if err == nil {
						_ = c.CloseWithError(0, "")
					}
					te, ok := errors.AsType[*quic.TransportError](err)
					return ok && te.ErrorCode == quic.ConnectionRefused
				})
			} else {
				receive(t, l.Done(), "release of the socket")
				if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
					_ = c.Close()
					t.Error("a new connection was accepted")
				}
			}
			echoed(t, c, []byte("after"))
			select {
			case <-l.returned:
				t.Error("Serve returned while its handler was at work")
			default:
			}
			c.close()
			receive(t, l.returned, "return of Serve")
			receive(t, l.Done(), "release of the socket")
		})
	}
}

// Clients whose connection stands are served, although nobody has accepted them yet.
func TestCloseServesTheKernelsQueue(t *testing.T) {
	cfg := Config{Transport: WS, MaxHandshakes: 1}
	l := start(t, cfg)
	silent := dial(t, l.Addr()) // takes the only place
	wait(t, "the place is taken", func() bool { return l.queue.length() == 1 })
	var queued []net.Conn
	for range 10 {
		queued = append(queued, dial(t, l.Addr()))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range queued {
		upgradeRaw(t, c)
		_ = c.Close()
	}
	_ = silent.Close()
	receive(t, l.returned, "return of Serve")
	if n := len(l.arrivals); n != len(queued) {
		t.Errorf("%d were handed over", n)
	}
}

func TestCloseWithoutServe(t *testing.T) {
	l, err := Open(Config{Transport: TCP, Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	receive(t, l.Done(), "release of the socket")
	if err := l.Serve(t.Context(), nil); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
}

// A handler may hand a stream over and return; then Serve does not wait for it, and cancelling it does not touch it.
func TestHandOver(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			l := startWith(t, config(t, transport, ca), func(relay.Stream, relay.Origin, time.Time) {})
			c := connect(t, transport, l.Addr(), ca)
			if transport == QUIC {
				send(t, c, []byte("x")) // else the stream does not exist
			}
			s := l.arrival(t).stream
			l.cancel()
			receive(t, l.returned, "return of Serve")
			done := make(chan struct{})
			go func() {
				defer close(done)
				echo(s, relay.Origin{}, time.Time{})
			}()
			if transport == QUIC {
				readN(t, c, 1)
			}
			echoed(t, c, []byte("still here"))
			c.close()
			receive(t, done, "end of the stream")
		})
	}
}

func TestCancelCutsHandshakes(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{TLS, WS, WSS} {
		t.Run(transport, func(t *testing.T) {
			l := start(t, config(t, transport, ca))
			c := dial(t, l.Addr())
			wait(t, "the handshake has begun", func() bool { return l.queue.length() == 1 })
			l.cancel()
			receive(t, l.returned, "return of Serve")
			ended(t, c)
			l.rejected(t, ReasonShutdown)
		})
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	ca := newAuthority(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	takenUDP, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = takenUDP.Close() }()
	one, other := ca.issue(t, "one", "one"), ca.issue(t, "other", "other")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing.pem")
	pair := func(kp ...KeyPair) *TLSConfig { return &TLSConfig{Certificates: kp} }

	for name, c := range map[string]struct {
		cfg  Config
		kind error
		says []string
	}{
		"transport":         {Config{Transport: "udp", Address: ":0"}, ErrConfig, []string{`"udp"`, "tcp, tls"}},
		"no port":           {Config{Transport: TCP, Address: "127.0.0.1"}, ErrConfig, []string{"host:port"}},
		"bare IPv6":         {Config{Transport: TCP, Address: "::1:1883"}, ErrConfig, []string{"brackets"}},
		"in use":            {Config{Transport: TCP, Address: taken.Addr().String()}, ErrBind, []string{taken.Addr().String(), "in use", "another port"}},
		"in use, UDP":       {Config{Transport: QUIC, Address: takenUDP.LocalAddr().String(), TLS: ca.server(t)}, ErrBind, []string{"in use"}},
		"not ours":          {Config{Transport: TCP, Address: "203.0.113.7:0"}, ErrBind, []string{"no such address"}},
		"no such port":      {Config{Transport: TCP, Address: "127.0.0.1:mqttt"}, ErrBind, []string{"mqttt"}},
		"no certificate":    {Config{Transport: TLS, Address: "127.0.0.1:0"}, ErrConfig, []string{"needs a certificate"}},
		"no certificates":   {Config{Transport: WSS, Address: "127.0.0.1:0", TLS: pair()}, ErrConfig, []string{"no certificate"}},
		"needless":          {Config{Transport: WS, Address: "127.0.0.1:0", TLS: pair(one)}, ErrConfig, []string{`did you mean "wss"`}},
		"missing file":      {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{missing, one.Key})}, ErrCertificate, []string{missing, "no such file"}},
		"missing key":       {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{one.Cert, missing})}, ErrCertificate, []string{missing}},
		"key not named":     {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{one.Cert, ""})}, ErrConfig, []string{"key file"}},
		"directory":         {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{ca.dir, one.Key})}, ErrCertificate, []string{ca.dir, "directory"}},
		"mismatch":          {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{one.Cert, other.Key})}, ErrCertificate, []string{one.Cert, other.Key, "does not belong"}},
		"swapped":           {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{one.Key, one.Cert})}, ErrCertificate, []string{"swap"}},
		"empty":             {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(KeyPair{empty, one.Key})}, ErrCertificate, []string{empty}},
		"second bad":        {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: pair(one, KeyPair{empty, one.Key})}, ErrCertificate, []string{empty}},
		"TLS 1.1":           {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: &TLSConfig{Certificates: []KeyPair{one}, MinVersion: tls.VersionTLS11}}, ErrConfig, []string{"TLS 1.1"}},
		"auth without CA":   {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: &TLSConfig{Certificates: []KeyPair{one}, ClientAuth: ClientAuthRequire}}, ErrConfig, []string{"authorities"}},
		"CA without auth":   {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: &TLSConfig{Certificates: []KeyPair{one}, ClientCAs: ca.file}}, ErrConfig, []string{"request or require"}},
		"CA is a key":       {Config{Transport: TLS, Address: "127.0.0.1:0", TLS: &TLSConfig{Certificates: []KeyPair{one}, ClientCAs: one.Key, ClientAuth: ClientAuthRequest}}, ErrCertificate, []string{one.Key}},
		"PROXY on QUIC":     {Config{Transport: QUIC, Address: "127.0.0.1:0", TLS: pair(one), ProxyFrom: []netip.Prefix{netip.MustParsePrefix("::/0")}}, ErrConfig, []string{"QUIC"}},
		"PROXY from no one": {Config{Transport: TCP, Address: "127.0.0.1:0", ProxyFrom: make([]netip.Prefix, 1)}, ErrConfig, []string{"source 1"}},
		"path":              {Config{Transport: WS, Address: "127.0.0.1:0", WebSocket: WebSocket{Path: "mqtt"}}, ErrConfig, []string{`"mqtt"`}},
		"origin":            {Config{Transport: WS, Address: "127.0.0.1:0", WebSocket: WebSocket{Origins: []string{"example.com"}}}, ErrConfig, []string{"https://app.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Name = "front door"
			l, err := Open(c.cfg)
			if err == nil {
				_ = l.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, c.kind) {
				t.Errorf("%v is no %v", err, c.kind)
			}
			for _, s := range append(c.says, "front door") {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
	if err := bindError(":80", os.NewSyscallError("bind", syscall.EACCES)); !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Error(err)
	}
}

// flaky is a net.Listener whose first accepts fail.
type flaky struct {
	net.Listener
	failures int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return f.Listener.Accept()
}

func TestAcceptErrorsPass(t *testing.T) {
	var told []error
	cfg := Config{Transport: TCP, OnAcceptError: func(err error) { told = append(told, err) }}
	s := prepare(&cfg)
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.run(t, echo, func(ctx context.Context, h Handler) {
		l.begin()
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		l.serve(ctx, &flaky{l.tcp, 3}, h)
	})
	c := dial(t, l.Addr())
	echoed(t, c, []byte("in after all"))
	if len(told) != 3 || !errors.Is(told[0], syscall.EMFILE) {
		t.Errorf("told of %v", told)
	}
	_ = c.Close()
}

func TestReasons(t *testing.T) {
	seen := make(map[Reason]bool)
	for _, r := range Reasons() {
		if r == "" || seen[r] {
			t.Errorf("%q twice or empty", r)
		}
		seen[r] = true
	}
	for err, want := range map[error]Reason{
		failed(ReasonTLSHandshake, fmt.Errorf("x: %w", os.ErrDeadlineExceeded)): ReasonTimeout,
		failed(ReasonTLSHandshake, fmt.Errorf("x: %w", io.EOF)):                 ReasonClientGone,
		failed(ReasonTLSHandshake, fmt.Errorf("x: %w", errProxyUntrusted)):      ReasonProxyUntrusted,
		failed(ReasonTLSHandshake, errors.New("x")):                             ReasonTLSHandshake,
		syscall.ECONNRESET:       ReasonClientGone,
		errors.New("unforeseen"): ReasonClientGone,
	} {
		if got := reasonOf(err); got != want || !seen[got] {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
