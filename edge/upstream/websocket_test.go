package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	gobwas "github.com/gobwas/ws"
	"github.com/pires/go-proxyproto"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/ws"
	"github.com/limpet-mesh/limpet/registry"
)

func wsBroker(address string) *registry.Broker {
	return &registry.Broker{ID: "b1", Address: address, Transport: registry.TransportWS}
}

// serveWS is an HTTP server that upgrades with another library than ours; handle's context ends with the test's patience.
func serveWS(t testing.TB, options *websocket.AcceptOptions, handle func(context.Context, *websocket.Conn)) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, options)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		handle(ctx, c)
	}))
	return s
}

var mqttOnly = &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}}

// echoWS sends back every message, and closes when the client does.
func echoWS(ctx context.Context, c *websocket.Conn) {
	nc := websocket.NetConn(ctx, c, websocket.MessageBinary)
	io.Copy(nc, nc)
	nc.Close()
}

func hostOf(s *httptest.Server) string { return s.Listener.Addr().String() }

func TestDialWS(t *testing.T) {
	// The server would compress if it were asked to.
	options := &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, CompressionMode: websocket.CompressionContextTakeover}
	requests := make(chan *http.Request, 1)
	server := serveWS(t, options, echoWS)
	inner := server.Config.Handler
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		inner.ServeHTTP(w, r)
	})
	server.Start()
	defer server.Close()
	b := wsBroker(hostOf(server))
	b.Path = "/mqtt/v1?tenant=a"
	s, err := newDialer(t, nil).Dial(within(t, patience), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := <-requests
	if r.RequestURI != b.Path || r.Host != b.Address || r.Header.Get("Sec-WebSocket-Extensions") != "" || r.Header.Get("Origin") != "" {
		t.Errorf("request for %s at %s with %v", r.RequestURI, r.Host, r.Header)
	}
	exchange(t, s)
}

func TestDialWSSWithHeader(t *testing.T) {
	ca := newAuthority(t)
	config := ca.serverConfig(t)
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool()
	type facts struct{ client, sni, host, path string }
	seen := make(chan facts, 1)
	server := serveWS(t, mqttOnly, echoWS)
	inner := server.Config.Handler
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- facts{r.RemoteAddr, r.TLS.ServerName, r.Host, r.URL.Path}
		inner.ServeHTTP(w, r)
	})
	server.Listener = tls.NewListener(&proxyproto.Listener{Listener: server.Listener}, config)
	server.Start()
	defer server.Close()
	cert, key, _ := ca.issue(t, "edge-1")
	b := wsBroker(hostOf(server))
	b.Transport, b.Proxy = registry.TransportWSS, registry.ProxyV2
	b.TLS = registry.BrokerTLS{CA: ca.file, Cert: cert, Key: key, ServerName: "mq.example"}
	o := &relay.Origin{Client: addrPort("192.0.2.7:50000"), Server: addrPort("192.0.2.1:8084")}
	s, err := newDialer(t, nil).Dial(within(t, patience), b, AppendProxy(nil, b.Proxy, o))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, port, _ := net.SplitHostPort(b.Address)
	if got, want := <-seen, (facts{"192.0.2.7:50000", "mq.example", "mq.example:" + port, "/mqtt"}); got != want {
		t.Errorf("the broker saw %+v, want %+v", got, want)
	}
	exchange(t, s)
}

// frame is a server's frame: unmasked.
func frame(first byte, payload string) string {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return string(b) + payload
}

const (
	finText   = 0x81
	finBinary = 0x82
	finClose  = 0x88
	finPing   = 0x89
	finPong   = 0x8a
)

func closeFrame(code uint16, reason string) string {
	return frame(finClose, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// dialScript connects to a server that upgrades and then sends bytes; what the client sends comes out of the channel at its end.
func dialScript(t *testing.T, bytes string) (relay.Stream, <-chan string) {
	t.Helper()
	sent := make(chan string, 1)
	address := serveScript(t, goodUpgrade+bytes, func(c net.Conn, r *bufio.Reader) {
		c.(*net.TCPConn).CloseWrite()
		var all strings.Builder
		for {
			h, err := gobwas.ReadHeader(r)
			if err != nil {
				break
			}
			if !h.Masked || h.Length > 1<<20 {
				t.Errorf("the client sent %+v", h)
				break
			}
			p := make([]byte, h.Length)
			io.ReadFull(r, p)
			gobwas.Cipher(p, h.Mask, 0)
			fmt.Fprintf(&all, "%x:%s;", h.OpCode, p)
		}
		sent <- all.String()
	})
	s, err := newDialer(t, nil).Dial(within(t, patience), wsBroker(address), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return s, sent
}

// What a server may send and what becomes of it: the payload read, the error at its end, and what is sent back.
func TestFramesFromTheBroker(t *testing.T) {
	const (
		normal   = "8:\x03\xe8;" // close frames with their codes
		protocol = "8:\x03\xea;"
		refused  = "8:\x03\xeb;"
	)
	for _, c := range []struct {
		name, bytes, payload string
		err                  error // nil = io.EOF
		reply                string
	}{
		{"nothing", "", "", nil, ""},
		{"one message", frame(finBinary, "hello"), "hello", nil, ""},
		{"several, one empty", frame(finBinary, "a") + frame(finBinary, "") + frame(finBinary, "b"), "ab", nil, ""},
		{"fragments", frame(0x02, "a") + frame(0x00, "b") + frame(0x80, "c"), "abc", nil, ""},
		{"long", frame(finBinary, strings.Repeat("x", 126)) + frame(finBinary, strings.Repeat("y", 70_000)), strings.Repeat("x", 126) + strings.Repeat("y", 70_000), nil, ""},
		{"ping", frame(finBinary, "a") + frame(finPing, "are you there") + frame(finBinary, "b"), "ab", nil, "a:are you there;"},
		{"ping among fragments", frame(0x02, "a") + frame(finPing, "") + frame(0x80, "b"), "ab", nil, "a:;"},
		{"pong unasked", frame(finPong, "x") + frame(finBinary, "a"), "a", nil, ""},
		{"close", frame(finBinary, "a") + closeFrame(1000, "bye"), "a", nil, normal},
		{"close without a code", frame(finClose, ""), "", nil, "8:;"},
		{"going away", closeFrame(1001, ""), "", nil, "8:\x03\xe9;"},
		{"data behind a close", closeFrame(1000, "") + frame(finBinary, "late"), "", nil, normal},
		{"close with a failure", frame(finBinary, "a") + closeFrame(1011, "oops"), "a", ws.CloseError(1011), "8:\x03\xf3;"},
		{"close with a code of its own", closeFrame(4001, ""), "", ws.CloseError(4001), "8:\x0f\xa1;"},
		{"close with a code that may not travel", closeFrame(1006, ""), "", &ws.Error{Code: ws.CodeProtocol}, protocol},
		{"close with half a code", frame(finClose, "x"), "", &ws.Error{Code: ws.CodeProtocol}, protocol},
		{"text", frame(finText, "a"), "", &ws.Error{Code: ws.CodeUnsupported}, refused},
		{"compressed", frame(finBinary, "a") + frame(finBinary|0x40, "\x4a\x04\x00"), "a", gobwas.ErrProtocolNonZeroRsv, protocol},
		{"masked", "\x82\x81\x00\x00\x00\x00a", "", gobwas.ErrProtocolMaskUnexpected, protocol},
		{"reserved opcode", frame(0x83, "a"), "", gobwas.ErrProtocolOpCodeReserved, protocol},
		{"continuation of nothing", frame(0x80, "a"), "", gobwas.ErrProtocolContinuationUnexpected, protocol},
		{"message within a message", frame(0x02, "a") + frame(finBinary, "b"), "a", gobwas.ErrProtocolContinuationExpected, protocol},
		{"fragmented ping", frame(0x09, "a"), "", gobwas.ErrProtocolControlNotFinal, protocol},
		{"long ping", frame(finPing, strings.Repeat("x", 126)), "", gobwas.ErrProtocolControlPayloadOverflow, protocol},
		{"huge ping", "\x89\x7f\x00\x00\x00\x00\xff\xff\xff\xff", "", gobwas.ErrProtocolControlPayloadOverflow, protocol},
		{"length beyond 63 bits", "\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "", &ws.Error{Code: ws.CodeProtocol}, protocol},
		{"cut in a header", frame(finBinary, "a") + "\x82", "a", io.ErrUnexpectedEOF, ""},
		{"cut in a payload", "\x82\x05abc", "abc", io.ErrUnexpectedEOF, ""},
		{"cut in a message", frame(0x02, "a"), "a", io.ErrUnexpectedEOF, ""},
	} {
		s, sent := dialScript(t, c.bytes)
		got, err := io.ReadAll(s)
		want := c.err // io.ReadAll makes nil of io.EOF
		if string(got) != c.payload || !sameError(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %.40q, %v; want %.40q, %v", c.name, got, err, c.payload, want)
		}
		if n, again := s.Read(make([]byte, 10)); n != 0 || (want == nil && again != io.EOF) || (want != nil && !sameError(again, want)) {
			t.Errorf("%s: read after the end: %d, %v", c.name, n, again)
		}
		if werr := func() error { _, err := s.Write([]byte("x")); return err }(); strings.HasPrefix(c.reply, "8:") != errors.Is(werr, net.ErrClosed) {
			t.Errorf("%s: a write behind the reply %q: %v", c.name, c.reply, werr)
		}
		s.Close()
		reply := c.reply
		if !strings.HasPrefix(reply, "8:") {
			reply += "2:x;" // that write
		}
		if got := <-sent; got != reply {
			t.Errorf("%s: the client sent %q, want %q", c.name, got, reply)
		}
	}
}

// sameError is errors.Is; of a broken rule, the code counts.
func sameError(err, want error) bool {
	if w, ok := want.(*ws.Error); ok {
		e, ok := errors.AsType[*ws.Error](err)
		return ok && e.Code == w.Code && Reason(err) == ReasonWebSocket
	}
	return errors.Is(err, want)
}

func TestCloseWriteSendsOneCloseFrame(t *testing.T) {
	s, sent := dialScript(t, frame(finBinary, "in flight")+closeFrame(1000, ""))
	if err := errors.Join(s.CloseWrite(), s.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after CloseWrite: %v", err)
	}
	if got, err := io.ReadAll(s); string(got) != "in flight" || err != nil {
		t.Errorf("%q, %v: the broker's bytes must arrive", got, err)
	}
	s.Close()
	if got := <-sent; got != "8:\x03\xe8;" {
		t.Errorf("the client sent %q, want one close frame", got)
	}
}

// A read deadline can pass anywhere, even within a header, and be moved.
func TestReadDeadlineMoves(t *testing.T) {
	steps := make(chan string)
	address := serveScript(t, goodUpgrade, func(c net.Conn, _ *bufio.Reader) {
		for step := range steps {
			io.WriteString(c, step)
		}
	})
	defer close(steps)
	s, err := newDialer(t, nil).Dial(within(t, patience), wsBroker(address), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []byte
	b := make([]byte, 100)
	for _, c := range []byte(frame(finBinary, "hello") + frame(finPing, "?") + frame(finBinary, strings.Repeat("x", 200))) {
		steps <- string([]byte{c})
		for {
			s.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
			n, err := s.Read(b)
			got = append(got, b[:n]...)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := "hello" + strings.Repeat("x", 200); string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}
