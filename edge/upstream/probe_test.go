package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pires/go-proxyproto"

	"github.com/limpet-mesh/limpet/registry"
)

// probed is what a broker saw of a probe: the PROXY header, if one was asked for, and then every byte.
type probed struct {
	header *proxyproto.Header
	bytes  string
}

// serveProbed is a broker that answers a CONNECT with answer and reports what it read when the probe is over.
func serveProbed(t *testing.T, proxy bool, answer string) (address string, seen <-chan probed) {
	ch := make(chan probed, 1)
	return serve(t, "127.0.0.1:0", func(c net.Conn) {
		r := bufio.NewReader(c)
		var p probed
		if proxy {
			var err error
			if p.header, err = proxyproto.Read(r); err != nil {
				t.Errorf("the header: %v", err)
			}
		}
		p.bytes = readMQTT(r, c, answer)
		ch <- p
	}), ch
}

// readMQTT reads a CONNECT, answers it, and reads the rest.
func readMQTT(r io.Reader, w io.Writer, answer string) string {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return ""
	}
	body := make([]byte, head[1])
	io.ReadFull(r, body)
	io.WriteString(w, answer)
	rest, _ := io.ReadAll(r)
	return string(head) + string(body) + string(rest)
}

const (
	connectProbe = "\x10\x11\x00\x04MQTT\x04\x02\x00\x1e\x00\x05probe"
	disconnect   = "\xe0\x00"
)

// introduced checks that a probe's header, if there is one, names loopback addresses with the command PROXY: RabbitMQ does not survive LOCAL.
func introduced(t *testing.T, h *proxyproto.Header) {
	t.Helper()
	if h == nil {
		return
	}
	from, to, ok := h.TCPAddrs()
	if !ok || !h.Command.IsProxy() || !from.IP.IsLoopback() || from.Port == 0 || !to.IP.IsLoopback() || to.Port == 0 {
		t.Errorf("header %+v, want the probe's own addresses", h)
	}
}

func TestProbeTCP(t *testing.T) {
	d := newDialer(t, nil)
	for _, mode := range []registry.ProxyProtocol{registry.ProxyNone, registry.ProxyV1, registry.ProxyV2} {
		address, seen := serveProbed(t, mode != registry.ProxyNone, "")
		b := tcpBroker(address)
		b.Proxy = mode
		if err := d.ProbeTCP(within(t, patience), b); err != nil {
			t.Errorf("%q: %v", mode, err)
			continue
		}
		got := <-seen
		if got.bytes != "" {
			t.Errorf("%q: the probe sent % x", mode, got.bytes)
		}
		introduced(t, got.header)
	}
	b := tcpBroker(closedPort(t, "127.0.0.1"))
	if err := d.ProbeTCP(within(t, patience), b); !Refused(err) {
		t.Errorf("a closed port: %v", err)
	}
}

func TestProbeMQTT(t *testing.T) {
	d := newDialer(t, nil)
	for _, c := range []struct {
		name, answer, sent string
		reason             string // "" = alive
	}{
		{"accepted", "\x20\x02\x00\x00", connectProbe + disconnect, ""},
		{"session present", "\x20\x02\x01\x00", connectProbe + disconnect, ""},
		{"not authorized", "\x20\x02\x00\x05", connectProbe, ""},
		{"server unavailable", "\x20\x02\x00\x03", connectProbe, ""},
		{"MQTT 5 only", "\x20\x03\x00\x84\x00", connectProbe, ""},
		{"closes", "", "", ReasonMQTT},
		{"half an answer", "\x20\x02", "", ReasonMQTT},
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n", "", ReasonMQTT},
		{"another packet", "\xd0\x00\x00\x00", "", ReasonMQTT},
		{"empty CONNACK", "\x20\x00\x00\x00", "", ReasonMQTT},
	} {
		for _, mode := range []registry.ProxyProtocol{registry.ProxyNone, registry.ProxyV2} {
			address, seen := serveProbed(t, mode != registry.ProxyNone, c.answer)
			if c.sent == "" { // a broker that does not wait for more
				address = serve(t, "127.0.0.1:0", func(conn net.Conn) {
					r := bufio.NewReader(conn)
					r.Peek(len(connectProbe))
					r.Discard(r.Buffered())
					io.WriteString(conn, c.answer)
				})
			}
			b := tcpBroker(address)
			b.Proxy = mode
			err := d.ProbeMQTT(within(t, patience), b, "probe")
			if Reason(err) != c.reason {
				t.Errorf("%s, %q: %v (reason %q), want %q", c.name, mode, err, Reason(err), c.reason)
				continue
			}
			if err != nil {
				if !errors.Is(err, ErrConnack) || !strings.Contains(err.Error(), "b1") {
					t.Errorf("%s: %v", c.name, err)
				}
				continue
			}
			got := <-seen
			if got.bytes != c.sent {
				t.Errorf("%s, %q: the probe sent % x, want % x", c.name, mode, got.bytes, c.sent)
			}
			introduced(t, got.header)
		}
	}
}

func TestProbeMQTTEverywhere(t *testing.T) {
	ca := newAuthority(t)
	d := newDialer(t, nil)
	seen := make(chan string, 1)

	address := serveTLS(t, "127.0.0.1", ca.serverConfig(t), func(c *tls.Conn) { seen <- readMQTT(c, c, "\x20\x02\x00\x00") })
	b := tlsBroker(address, registry.BrokerTLS{CA: ca.file})
	if err := d.ProbeMQTT(within(t, patience), b, "probe"); err != nil {
		t.Errorf("tls: %v", err)
	} else if got := <-seen; got != connectProbe+disconnect {
		t.Errorf("tls: the probe sent % x", got)
	}
	if err := d.ProbeTCP(within(t, patience), b); err != nil {
		t.Errorf("tls, tcp probe: %v", err)
	} else if got := <-seen; got != "" {
		t.Errorf("tls, tcp probe: sent % x", got)
	}

	server := serveWS(t, mqttOnly, func(ctx context.Context, c *websocket.Conn) {
		nc := websocket.NetConn(ctx, c, websocket.MessageBinary)
		seen <- readMQTT(nc, nc, "\x20\x02\x00\x00")
	})
	server.Start()
	defer server.Close()
	if err := d.ProbeMQTT(within(t, patience), wsBroker(hostOf(server)), "probe"); err != nil {
		t.Errorf("ws: %v", err)
	} else if got := <-seen; got != connectProbe+disconnect {
		t.Errorf("ws: the probe sent % x", got)
	}
}

func TestProbeMQTTEndsInTime(t *testing.T) {
	d := newDialer(t, nil)
	silent := tcpBroker(serve(t, "127.0.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) }))
	if err := d.ProbeMQTT(within(t, 100*time.Millisecond), silent, "probe"); Reason(err) != ReasonTimeout {
		t.Errorf("silent: %v (reason %s)", err, Reason(err))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	ended := make(chan error, 1)
	waiting := tcpBroker(serve(t, "127.0.0.1:0", func(c net.Conn) {
		c.Read(make([]byte, 1))
		cancel()
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}))
	if err := d.ProbeMQTT(ctx, waiting, "probe"); Reason(err) != ReasonCanceled {
		t.Errorf("canceled: %v (reason %s)", err, Reason(err))
	}
	if err := <-ended; err != nil {
		t.Errorf("the broker saw %v, want the connection closed at once", err)
	}
}

func TestProbeMQTTClientID(t *testing.T) {
	d := newDialer(t, nil)
	for _, id := range []string{"", strings.Repeat("x", 65536)} {
		if err := d.ProbeMQTT(within(t, patience), tcpBroker("127.0.0.1:1"), id); !errors.Is(err, ErrConfig) {
			t.Errorf("client ID of %d bytes: %v", len(id), err)
		}
	}
}
