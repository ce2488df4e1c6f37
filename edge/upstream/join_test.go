package upstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"
	"github.com/pires/go-proxyproto"
	"github.com/rs/zerolog"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/tls13"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/registry"
)

func newJoiner(t testing.TB, policy tls13.Policy) *Dialer {
	return NewDialer(DialerConfig{Resolver: running(t, ResolverConfig{}), Log: zerolog.Nop(), TLSRecords: policy})
}

// driven is a relay.Stream over the layers of a connection: what a loop does, in goroutines.
type driven struct {
	*net.TCPConn
	layers        []relay.Layer
	payload, rest []byte
	readErr       error

	mu  sync.Mutex // the layers, and the order of out
	out chan []byte
	end sync.WaitGroup
}

func drive(t testing.TB, w relay.Wrapped) *driven {
	s := &driven{TCPConn: w.Conn, layers: w.Layers, out: make(chan []byte, 1000)}
	s.end.Go(func() {
		for b := range s.out {
			if _, err := s.TCPConn.Write(b); err != nil {
				return // reading fails too
			}
		}
	})
	t.Cleanup(func() {
		s.TCPConn.Close()
		close(s.out)
		s.end.Wait()
	})
	s.open(bytes.Clone(w.Rest))
	return s
}

// send passes on p from the layer i; mu is held.
func (s *driven) send(i int, p []byte) {
	for i--; i >= 0 && len(p) > 0; i-- {
		p = s.layers[i].Seal(nil, p)
	}
	if len(p) > 0 {
		s.out <- p
	}
}

func (s *driven) open(raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.payload, s.rest, s.readErr = s.layers[0].Open(raw)
	if len(s.layers) > 1 && len(s.payload) > 0 {
		var err error
		if s.payload, _, err = s.layers[1].Open(s.payload); err != nil {
			s.readErr = err
		}
	}
	for i, l := range s.layers {
		s.send(i, l.Reply(nil))
	}
}

func (s *driven) Read(p []byte) (int, error) {
	for len(s.payload) == 0 {
		if s.readErr != nil {
			return 0, s.readErr
		}
		raw := make([]byte, len(s.rest)+4096)
		have := copy(raw, s.rest)
		n, err := s.TCPConn.Read(raw[have:])
		if err != nil {
			return 0, err
		}
		s.open(raw[:have+n])
	}
	n := copy(p, s.payload)
	s.payload = s.payload[n:]
	return n, nil
}

func (s *driven) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send(len(s.layers), p)
	return len(p), nil
}

func (s *driven) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.layers) - 1
	s.send(last, s.layers[last].End(nil))
	return nil
}

// TestJoin carries bytes both ways through the layers of every kind of broker, behind a PROXY header.
func TestJoin(t *testing.T) {
	const own, std, frames = "*tls13.Records", "*tls13.Stdlib", "*ws.Frames"
	for _, c := range []struct {
		over    registry.Transport
		policy  tls13.Policy
		version uint16
		want    string
	}{
		{registry.TransportTLS, tls13.Crypto, tls.VersionTLS13, std},
		{registry.TransportTLS, tls13.Own, tls.VersionTLS13, own},
		{registry.TransportTLS, tls13.Crypto, tls.VersionTLS12, std},
		{registry.TransportTLS, tls13.Own, tls.VersionTLS12, std},
		{registry.TransportWS, tls13.Own, 0, frames},
		{registry.TransportWSS, tls13.Crypto, tls.VersionTLS13, std + " " + frames},
		{registry.TransportWSS, tls13.Own, tls.VersionTLS13, own + " " + frames},
		{registry.TransportWSS, tls13.Own, tls.VersionTLS12, std + " " + frames},
	} {
		t.Run(fmt.Sprintf("%s %s policy %d", c.over, tls.VersionName(c.version), c.policy), func(t *testing.T) {
			ca := newAuthority(t)
			config := ca.serverConfig(t)
			config.MaxVersion = c.version
			b := &registry.Broker{ID: "b1", Transport: c.over, Proxy: registry.ProxyV2}
			clients := make(chan string, 1)
			if c.over == registry.TransportTLS {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				b.Address = l.Addr().String()
				serveOn(t, tls.NewListener(&proxyproto.Listener{Listener: l}, config), func(c net.Conn) {
					clients <- c.RemoteAddr().String()
					echo(c)
				})
			} else {
				server := serveWS(t, mqttOnly, echoWS)
				server.Listener = &proxyproto.Listener{Listener: server.Listener}
				if c.over == registry.TransportWSS {
					server.Listener = tls.NewListener(server.Listener, config)
				}
				server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
					clients <- c.RemoteAddr().String()
					return ctx
				}
				server.Start()
				t.Cleanup(server.Close)
				b.Address = hostOf(server)
			}
			if c.over != registry.TransportWS {
				b.TLS = registry.BrokerTLS{CA: ca.file}
			}
			d := newJoiner(t, c.policy)
			o := &relay.Origin{Client: addrPort("192.0.2.7:50000"), Server: addrPort("192.0.2.1:8883")}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			w, err := d.Join(ctx, b, AppendProxy(nil, b.Proxy, o))
			if err != nil {
				t.Fatal(err)
			}
			cancel() // is of no meaning any more
			var kinds []string
			for _, l := range w.Layers {
				kinds = append(kinds, fmt.Sprintf("%T", l))
			}
			if got := strings.Join(kinds, " "); got != c.want {
				t.Errorf("layers %s, want %s", got, c.want)
			}
			s := drive(t, w)
			if _, err := s.Write([]byte("hello")); err != nil { // both servers look at the header when they first read
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			if got := <-clients; got != o.Client.String() {
				t.Errorf("the broker saw a client at %s, want %s", got, o.Client)
			}
			exchange(t, s)
		})
	}
}

// A dial's deadline ends with it, and the timers of the socket are those of every connection to a broker.
func TestJoinLeavesTheSocketReady(t *testing.T) {
	ca := newAuthority(t)
	address := serveTLS(t, "127.0.0.1", ca.serverConfig(t), func(c *tls.Conn) { echo(c) })
	_, port, _ := net.SplitHostPort(address)
	dns := &fakeDNS{}
	dns.set("mq.example", "::1", "127.0.0.1") // nobody is at the first
	d := newDialer(t, dns)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	w, err := d.Join(ctx, tlsBroker("mq.example:"+port, registry.BrokerTLS{CA: ca.file}), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := w.Conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { checkTimers(t, int(fd)) })
	s := drive(t, w)
	<-ctx.Done()
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
		t.Errorf("after the dial's deadline: %v", err)
	}
}

// stuttering is the broker's end of a TCP connection: from hold on what is written waits for let.
type stuttering struct {
	net.Conn
	mu      sync.Mutex
	holding bool
	held    []byte
}

func (c *stuttering) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holding {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *stuttering) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = true
}

// let sends n of the bytes that wait.
func (c *stuttering) let(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Conn.Write(c.held[:n])
	c.held = c.held[n:]
}

// What was read behind the TLS handshake, session tickets for one, is the first that the layers are to open. crypto/tls resumes with them,
// our own records do not keep them.
func TestJoinKeepsTheRestOfTLS(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	for _, policy := range []tls13.Policy{tls13.Crypto, tls13.Own} {
		resumed := make(chan bool, 2)
		address := serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) { // in one segment with its Finished: the ticket
			resumed <- c.ConnectionState().DidResume
			echo(c)
		})
		d := newJoiner(t, policy)
		for i := range 2 {
			w, err := d.Join(within(t, patience), tlsBroker(address, registry.BrokerTLS{CA: ca.file}), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(w.Rest) == 0 {
				t.Error("no rest: the ticket was to be one")
			}
			exchange(t, drive(t, w))
			if got, want := <-resumed, i == 1 && policy == tls13.Crypto; got != want {
				t.Errorf("connection %d, policy %d: resumed %t, want %t", i, policy, got, want)
			}
		}
	}
}

// What a broker sends behind its answer to the upgrade, in the same record and in a piece of the next, is not lost: a ping is answered,
// a frame's header waits for what it belongs to.
func TestJoinTakesInWhatFollowsTheUpgrade(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		over    registry.Transport
		policy  tls13.Policy
		version uint16
	}{
		{registry.TransportWS, tls13.Crypto, 0},
		{registry.TransportWSS, tls13.Crypto, tls.VersionTLS12},
		{registry.TransportWSS, tls13.Crypto, tls.VersionTLS13},
		{registry.TransportWSS, tls13.Own, tls.VersionTLS13},
	} {
		config := ca.serverConfig(t)
		config.MaxVersion = c.version
		const piece = 100
		joined := make(chan struct{})
		address := serve(t, "127.0.0.1:0", func(raw net.Conn) {
			wire := &stuttering{Conn: raw}
			var conn net.Conn = wire
			if c.over == registry.TransportWSS {
				conn = tls.Server(wire, config)
			}
			r := bufio.NewReader(conn)
			request := readRequest(r)
			wire.hold()
			message := frame(finBinary, strings.Repeat("m", 300))
			const cut = 3 // within its header
			io.WriteString(conn, strings.ReplaceAll(goodUpgrade, "{accept}", acceptKey(request))+frame(finPing, "there?")+message[:cut])
			first := len(wire.held)
			io.WriteString(conn, message[cut:])
			if c.over == registry.TransportWSS {
				first += piece // of the second record
			}
			wire.let(first)
			h, err := gobwas.ReadHeader(r)
			if err != nil || h.OpCode != gobwas.OpPong || h.Length != 6 {
				t.Errorf("the ping was answered with %+v, %v", h, err)
			}
			io.CopyN(io.Discard, r, h.Length)
			<-joined
			wire.let(len(wire.held))
			io.Copy(io.Discard, r)
		})
		b := &registry.Broker{ID: "b1", Address: address, Transport: c.over}
		if c.over == registry.TransportWSS {
			b.TLS.CA = ca.file
		}
		w, err := newJoiner(t, c.policy).Join(within(t, patience), b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(w.Rest) != piece && c.over == registry.TransportWSS {
			t.Errorf("%s: a rest of %d bytes, want %d", c.over, len(w.Rest), piece)
		}
		close(joined)
		s := drive(t, w)
		s.SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, 300)
		if _, err := io.ReadFull(s, got); err != nil || string(got) != strings.Repeat("m", 300) {
			t.Errorf("%s: %.20q, %v", c.over, got, err)
		}
	}
}

// TestJoinRefuses names brokers that there is nothing to be had from, each by its reason.
func TestJoinRefuses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	config := ca.serverConfig(t)
	strict := ca.serverConfig(t)
	strict.ClientAuth, strict.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool()
	over := func(transport registry.Transport, ca *authority, address string) *registry.Broker {
		b := &registry.Broker{ID: "b1", Address: address, Transport: transport}
		if transport != registry.TransportWS {
			b.TLS.CA = ca.file
		}
		return b
	}
	// script answers an upgrade, in one piece, and then ends its writing.
	script := func(answer string) func(net.Conn) {
		return func(c net.Conn) {
			request := readRequest(bufio.NewReader(c))
			io.WriteString(c, strings.ReplaceAll(answer, "{accept}", acceptKey(request)))
			c.(interface{ CloseWrite() error }).CloseWrite()
			io.Copy(io.Discard, c)
		}
	}
	plain := func(answer string) string { return serve(t, "127.0.0.1:0", script(answer)) }
	secure := func(answer string) string {
		return serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) { script(answer)(c) })
	}
	const notFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
	closed := func() string { return closedPort(t, "127.0.0.1") }
	echoTLS := serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) { echo(c) })
	type refusal struct {
		name   string
		broker *registry.Broker
		reason string
		want   string // what the error must say
	}
	cases := []refusal{
		{"plain TCP", tcpBroker("127.0.0.1:1"), ReasonConfig, "plain TCP"},
		{"malformed", over(registry.TransportTLS, ca, "127.0.0.1"), ReasonConfig, ""},
		{"nobody there", over(registry.TransportTLS, ca, closed()), ReasonRefused, "127.0.0.1"},
		{"another's certificate", over(registry.TransportTLS, other, echoTLS), ReasonTLS, "unknown authority"},
		{"another's certificate, wss", over(registry.TransportWSS, other, echoTLS), ReasonTLS, "unknown authority"},
		{"no TLS", over(registry.TransportTLS, ca, serve(t, "127.0.0.1:0", func(c net.Conn) { io.WriteString(c, notFound) })), ReasonTLS, ""},
		{"no client certificate, wss", over(registry.TransportWSS, ca, serveTLS(t, "127.0.0.1", strict, func(*tls.Conn) {})), ReasonWebSocket, "certificate required"},
		{"record that does not open, wss", over(registry.TransportWSS, ca, serve(t, "127.0.0.1:0", func(c net.Conn) {
			if tls.Server(c, config).Handshake() == nil {
				c.Write(append([]byte{23, 3, 3, 0, 30}, make([]byte, 30)...))
				io.Copy(io.Discard, c)
			}
		})), ReasonWebSocket, "bad record MAC"},
		{"cut off, wss", over(registry.TransportWSS, ca, serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) { c.NetConn().Close() })), ReasonWebSocket, ""},
	}
	for _, c := range []struct{ name, answer, want string }{
		{"upgrade refused", notFound, "status 404"},
		{"upgrade cut short", goodUpgrade[:60], ""},
		{"upgrade without end", "HTTP/1.1 101 " + strings.Repeat("x", 2*maxUpgrade), "16 KiB"},
		{"MQTT ahead of the CONNECT", goodUpgrade + frame(finBinary, "\x20\x02\x00\x00"), "4 bytes ahead of the CONNECT"},
		{"much ahead of the CONNECT", goodUpgrade + frame(finBinary, strings.Repeat("x", 10_000)), "ahead of the CONNECT"},
		{"closed behind the upgrade", goodUpgrade + closeFrame(1000, ""), "EOF"},
		{"failed behind the upgrade", goodUpgrade + closeFrame(1011, ""), "1011"},
		{"masked frame", goodUpgrade + "\x82\x81\x00\x00\x00\x00a", "behind the answer"},
	} {
		cases = append(cases,
			refusal{c.name + ", ws", over(registry.TransportWS, nil, plain(c.answer)), ReasonWebSocket, c.want},
			refusal{c.name + ", wss", over(registry.TransportWSS, ca, secure(c.answer)), ReasonWebSocket, c.want})
	}
	for _, policy := range []tls13.Policy{tls13.Crypto, tls13.Own} {
		d := newJoiner(t, policy)
		for _, c := range cases {
			w, err := d.Join(within(t, patience), c.broker, nil)
			if err == nil || w.Conn != nil || w.Layers != nil {
				t.Errorf("%s (policy %d): accepted, or something is left: %v, %v", c.name, policy, w, err)
				continue
			}
			if Reason(err) != c.reason || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s (policy %d): %v (reason %s), want %s and %q", c.name, policy, err, Reason(err), c.reason, c.want)
			}
		}
	}
}

// Behind TLS the broker is told which rule it broke before the connection is closed.
func TestJoinSaysWhyItLeaves(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	for _, policy := range []tls13.Policy{tls13.Crypto, tls13.Own} {
		last := make(chan string, 1)
		address := serveTLS(t, "127.0.0.1", config, func(c *tls.Conn) {
			r := bufio.NewReader(c)
			io.WriteString(c, strings.ReplaceAll(goodUpgrade, "{accept}", acceptKey(readRequest(r)))+frame(finText, "x"))
			h, err := gobwas.ReadHeader(r)
			p := make([]byte, h.Length)
			io.ReadFull(r, p)
			gobwas.Cipher(p, h.Mask, 0)
			last <- fmt.Sprintf("%x:%x %v", h.OpCode, p, err)
		})
		b := tlsBroker(address, registry.BrokerTLS{CA: ca.file})
		b.Transport = registry.TransportWSS
		_, err := newJoiner(t, policy).Join(within(t, patience), b, nil)
		if broken, ok := errors.AsType[*ws.Error](err); !ok || broken.Code != ws.CodeUnsupported {
			t.Errorf("%v", err)
		}
		if got := <-last; got != "8:03eb <nil>" {
			t.Errorf("the broker was told %s", got)
		}
	}
}

// A broker that falls silent at any step costs the deadline and no more, and a caller that gives up need not wait for it.
func TestJoinEndsWithItsContext(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	for name, c := range map[string]struct {
		over   registry.Transport
		handle func(c net.Conn, silent func())
	}{
		"TLS": {registry.TransportTLS, func(c net.Conn, silent func()) {
			c.Read(make([]byte, 1))
			silent()
			io.Copy(io.Discard, c)
		}},
		"the upgrade": {registry.TransportWS, func(c net.Conn, silent func()) {
			readRequest(bufio.NewReader(c))
			silent()
			io.Copy(io.Discard, c)
		}},
		"the upgrade inside of TLS": {registry.TransportWSS, func(c net.Conn, silent func()) {
			tc := tls.Server(c, config)
			readRequest(bufio.NewReader(tc))
			io.WriteString(tc, "HTTP/1.1 101 ")
			silent()
			io.Copy(io.Discard, c)
		}},
	} {
		b := &registry.Broker{ID: "b1", Transport: c.over}
		if c.over != registry.TransportWS {
			b.TLS.CA = ca.file
		}
		for _, policy := range []tls13.Policy{tls13.Crypto, tls13.Own} {
			d := newJoiner(t, policy)
			b.Address = serve(t, "127.0.0.1:0", func(conn net.Conn) { c.handle(conn, func() {}) })
			if _, err := d.Join(within(t, 100*time.Millisecond), b, nil); Reason(err) != ReasonTimeout {
				t.Errorf("%s: %v (reason %s), want a timeout", name, err, Reason(err))
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			gone := make(chan struct{})
			b.Address = serve(t, "127.0.0.1:0", func(conn net.Conn) {
				c.handle(conn, cancel)
				close(gone)
			})
			if _, err := d.Join(ctx, b, nil); Reason(err) != ReasonCanceled {
				t.Errorf("%s: %v (reason %s), want it canceled", name, err, Reason(err))
			}
			<-gone // the broker saw the connection's end
			cancel()
		}
	}
}
