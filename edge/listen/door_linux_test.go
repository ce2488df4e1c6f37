package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/mqtt"
	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
)

// guest owns a session of the tests: it goes to an echo.
type guest struct {
	origin relay.Origin
	broker netip.AddrPort
	closed chan relay.Summary
}

func (*guest) Preamble([]byte) (int, error) { return 0, nil }
func (g *guest) Route(relay.Conn, relay.Query) (relay.Answer, bool) {
	return relay.Answer{Target: &relay.Target{Addrs: []netip.AddrPort{g.broker}}}, true
}
func (*guest) Accepted(relay.Conn, mqtt.Connack, time.Duration) {}
func (*guest) Goodbye(relay.Conn, mqtt.Disconnect)              {}
func (*guest) BrokerEnded(relay.Conn)                           {}
func (g *guest) Closed(s relay.Summary)                         { g.closed <- s }

var (
	hello311   = []byte("\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02c1")
	connack311 = []byte{0x20, 2, 0, 0}
)

// echoBroker accepts CONNECTs of hello311's length and sends back what follows.
func echoBroker(t *testing.T) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.ReadFull(c, make([]byte, len(hello311))); err == nil {
					c.Write(connack311)
					io.Copy(c, c)
				}
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// door is a listener whose clients a loop accepts.
type doorway struct {
	*served
	guests chan *guest
	stop   func() // the loop
}

func startDoor(t *testing.T, cfg Config) *doorway {
	t.Helper()
	d := &doorway{served: prepare(&cfg), guests: make(chan *guest, 100)}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.Listener = l
	loop, err := relay.NewLoop(relay.LoopConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	broker := echoBroker(t)
	if _, err := loop.Open(l.RawTCP(), &relay.Limits{ConnectTimeout: cfg.HandshakeTimeout}, l.Door(func(o relay.Origin) relay.Owner {
		g := &guest{o, broker, make(chan relay.Summary, 1)}
		d.guests <- g
		return g
	})); err != nil {
		t.Fatal(err)
	}
	l.LetGo()
	d.stop = func() {
		cancel()
		if ended != nil {
			if err := <-ended; err != nil {
				t.Error(err)
			}
			ended = nil
		}
	}
	t.Cleanup(func() {
		d.stop()
		_ = l.Close()
	})
	return d
}

// Every transport of a door, with both record layers: the origin is known, bytes pass both ways, and the end is told.
func TestDoor(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, transport := range []string{TLS, WS, WSS} {
		for name, policy := range map[string]tls13.Policy{"tls.Conn": tls13.Crypto, "own records": tls13.Own} {
			t.Run(transport+" "+name, func(t *testing.T) {
				t.Parallel()
				cfg := config(t, transport, ca)
				cfg.TLSRecords = policy
				d := startDoor(t, cfg)
				c := connect(t, transport, d.Addr(), ca)
				send(t, c, hello311)
				got := make([]byte, len(connack311))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, connack311) {
					t.Fatalf("%x, %v", got, err)
				}
				echoed(t, c, noise(t, 200_000))
				g := receive(t, d.guests, "guest")
				o := g.origin
				if o.Transport != transport || o.Listener != "test" || !o.Client.IsValid() || o.Client != o.Peer || o.Server.Port() == 0 || (o.TLS != nil) != (transport != WS) {
					t.Errorf("origin %+v", o)
				}
				if o.TLS != nil && (o.TLS.Version != tls.VersionTLS13 || o.TLS.Cipher == "") {
					t.Errorf("TLS %+v", o.TLS)
				}
				c.close()
				if s := receive(t, g.closed, "end"); s.Bytes[relay.Client] != uint64(len(hello311)+200_000) || s.Connack == 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// Who does not come in: why, and what the client is told.
func TestDoorRefuses(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	upgrade := func(path string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
	}
	for _, c := range []struct {
		name, transport, says string
		end                   bool // the client closes then
		reason                Reason
		answer                string
	}{
		{"MQTT", TLS, string(hello311), false, ReasonTLSHandshake, ""},
		{"a PROXY header", TLS, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", false, ReasonProxyUntrusted, ""},
		{"half a record, and no more", TLS, "\x16\x03\x01\x02\x00\x01", false, ReasonTimeout, ""},
		{"half a record, and the end", TLS, "\x16\x03\x01\x02\x00\x01", true, ReasonClientGone, ""},
		{"another path", WS, upgrade("/else"), false, ReasonWSPath, "HTTP/1.1 404 "},
		{"MQTT for WebSocket", WS, string(hello311), false, ReasonWSUpgrade, "HTTP/1.1 400 "},
		{"half a request", WS, "GET /mqtt HTTP/1.1\r\n", false, ReasonTimeout, ""},
		{"more than a request", WS, upgrade("/mqtt") + "\x82\x80", false, ReasonWSUpgrade, "HTTP/1.1 400 "},
		{"HTTP without TLS", WSS, upgrade("/mqtt"), false, ReasonTLSHandshake, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, c.transport, ca)
			cfg.HandshakeTimeout = 300 * time.Millisecond
			d := startDoor(t, cfg)
			conn := dial(t, d.Addr())
			send(t, conn, []byte(c.says))
			if c.end {
				_ = conn.CloseWrite()
			}
			r := d.rejected(t, c.reason)
			if r.origin.Transport != c.transport || !r.origin.Client.IsValid() {
				t.Errorf("origin %+v", r.origin)
			}
			if got, _ := io.ReadAll(conn); !strings.HasPrefix(string(got), c.answer) {
				t.Errorf("the client got %q, want %q", got, c.answer)
			}
		})
	}
}

// A trusted peer's PROXY header comes before TLS, in the same segment or not.
func TestDoorReadsProxyHeaders(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cfg := config(t, TLS, ca)
	cfg.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	d := startDoor(t, cfg)
	raw := dial(t, d.Addr())
	send(t, raw, []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\n"))
	c := tls.Client(raw, ca.client())
	send(t, c, hello311)
	if _, err := io.ReadFull(c, make([]byte, len(connack311))); err != nil {
		t.Fatal(err)
	}
	if g := receive(t, d.guests, "guest"); g.origin.Client.String() != "192.0.2.1:1111" || g.origin.Server.String() != "192.0.2.2:2222" {
		t.Errorf("%+v", g.origin)
	}
}

// At the bound of handshakes the oldest silent one makes room; the end of the loop ends those under way.
func TestDoorBounds(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cfg := config(t, TLS, ca)
	cfg.MaxHandshakes, cfg.HandshakeTimeout = 1, 2*time.Second
	d := startDoor(t, cfg)
	silent := dial(t, d.Addr())
	send(t, silent, []byte("\x16"))
	c := connect(t, TLS, d.Addr(), ca)
	d.rejected(t, ReasonOverload)
	send(t, c, hello311)
	g := receive(t, d.guests, "guest")
	late := dial(t, d.Addr())
	send(t, late, []byte("\x16"))
	wait(t, "the handshake is under way", func() bool { _, room := d.queue.room(); return !room })
	d.stop()
	d.rejected(t, ReasonShutdown)
	if s := receive(t, g.closed, "end"); s.Reason != relay.ReasonShutdown {
		t.Errorf("%+v", s)
	}
}
