package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
	"github.com/limpet-mesh/limpet/loadtest/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(mirrorEnv) != "" {
		mirrorMain()
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long anything that a test waits for may take.
const patience = 20 * time.Second

// driver is one way to carry a client's bytes.
type driver struct {
	name      string
	loops     int
	transport wire.Transport
}

var drivers = []driver{{"loop", 1, wire.TCP}, {"stream", -1, wire.TCP}, {"tls", -1, wire.TLS}}

// rig is a client under test and the listener that it connects to.
type rig struct {
	*testing.T
	engine *Engine
	client *Client
	told   recorder
	con    mqtt.Connect
	ep     *wire.Endpoint
	ln     net.Listener
	stop   func() // ends the engine and waits
	stale  bool   // connections may come that end before their CONNECT
}

// certificate is httptest's, for 127.0.0.1.
func certificate(t testing.TB) *tls.Config {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates}
}

func newDialer(t testing.TB, cfg wire.Config) *wire.Dialer {
	t.Helper()
	if cfg.TLS == nil {
		cfg.TLS = &tls.Config{InsecureSkipVerify: true}
	}
	d, err := wire.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// startEngine runs an engine until the test ends, or stop is called.
func startEngine(t testing.TB, cfg Config) (e *Engine, stop func()) {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the engine does not end")
		}
	}
	t.Cleanup(stop)
	return e, stop
}

func newRig(t *testing.T, d driver, cfg Config, dial wire.Config) *rig {
	t.Helper()
	r := &rig{T: t, told: make(recorder, 1000), con: mqtt.Connect{Version: mqtt.V5, ID: "c1", Clean: true}}
	cfg.Loops, cfg.Dialer = d.loops, newDialer(t, dial)
	r.engine, r.stop = startEngine(t, cfg)
	r.client = &Client{Handler: r.told}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.ln = ln
	if d.transport == wire.TLS {
		r.ln = tls.NewListener(ln, certificate(t))
	}
	t.Cleanup(func() { ln.Close() })
	r.ep = &wire.Endpoint{Transport: d.transport, Host: "127.0.0.1", Addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	return r
}

func (r *rig) open() {
	r.Helper()
	if err := r.engine.Open(r.client, r.ep, &r.con); err != nil {
		r.Fatal(err)
	}
}

// accept takes the client's connection, up to its CONNECT.
func (r *rig) accept() *peer {
	r.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := r.ln.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	select {
	case c := <-accepted:
		r.Cleanup(func() { c.Close() })
		p := &peer{T: r.T, Conn: c, reader: mqtt.Reader{Version: r.con.Version}, buf: make([]byte, 64<<10)}
		if r.stale {
			if _, err := p.next(); err != nil {
				return r.accept()
			}
			return p
		}
		p.expect(mqtt.CONNECT)
		return p
	case <-time.After(patience):
		r.Fatal("no connection")
		return nil
	}
}

// connect opens the client and accepts it.
func (r *rig) connect(connack ...byte) *peer {
	r.Helper()
	r.open()
	p := r.accept()
	if connack == nil {
		connack = []byte{0x20, 3, 0, 0, 0}
		if r.con.Version != mqtt.V5 {
			connack = []byte{0x20, 2, 0, 0}
		}
	}
	p.send(connack...)
	r.told.expect(r.T, fmt.Sprintf("connack %v", connack[2]&1 == 1))
	return p
}

// resume is connect with Session Present.
func (r *rig) resume() *peer {
	r.Helper()
	if r.con.Version != mqtt.V5 {
		return r.connect(0x20, 2, 1, 0)
	}
	return r.connect(0x20, 3, 1, 0, 0)
}

func (r *rig) publish(token uint64, topic, payload string, qos byte) {
	r.Helper()
	if err := r.client.Publish(token, []byte(topic), []byte(payload), qos, false); err != nil {
		r.Fatal(err)
	}
}

// recorder is a Handler that writes down what it is told, one word after another.
type recorder chan string

func (r recorder) OnConnack(_ *Client, _ int64, a *mqtt.Connack) {
	r <- fmt.Sprintf("connack %v", a.SessionPresent)
}

func (r recorder) OnPublish(_ *Client, _ int64, p *mqtt.Publish) {
	s := fmt.Sprintf("publish %s %s %d", p.Topic, p.Payload, p.QoS)
	if p.Dup {
		s += " dup"
	}
	r <- s
}

func (r recorder) OnAcked(_ *Client, _ int64, token uint64, code byte) {
	r <- fmt.Sprintf("acked %d %#02x", token, code)
}

func (r recorder) OnClosed(_ *Client, _ int64, c Cause) {
	c.Err = nil
	r <- "closed " + c.String()
}

func (r recorder) expect(t testing.TB, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-r:
			if got != w {
				t.Fatalf("told %q, want %q", got, w)
			}
		case <-time.After(patience):
			t.Fatalf("told nothing, want %q", w)
		}
	}
}

// nothing fails if anything was told that nobody expected.
func (r recorder) nothing(t testing.TB) {
	t.Helper()
	select {
	case got := <-r:
		t.Fatalf("told %q, want nothing", got)
	default:
	}
}

// peer is the server's end of one connection.
type peer struct {
	*testing.T
	net.Conn
	reader mqtt.Reader
	buf    []byte
	in     []byte
	packet mqtt.Packet
}

func (p *peer) send(b ...byte) {
	p.Helper()
	if err := p.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		p.Fatal(err)
	}
	if _, err := p.Write(b); err != nil {
		p.Fatal(err)
	}
}

func (p *peer) sendPublish(topic, payload string, qos byte, id uint16, dup bool) {
	p.Helper()
	p.send(mqtt.AppendPublish(nil, p.reader.Version, &mqtt.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: qos, ID: id, Dup: dup})...)
}

func (p *peer) sendAck(k mqtt.Kind, id uint16, code byte) {
	p.Helper()
	p.send(mqtt.AppendAck(nil, p.reader.Version, k, id, code)...)
}

// next reads a packet.
func (p *peer) next() (*mqtt.Packet, error) {
	for {
		rest, ok, err := p.reader.Next(p.in, &p.packet)
		p.in = rest
		if err != nil || ok {
			return &p.packet, err
		}
		if err := p.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
		n, err := p.Read(p.buf)
		if n == 0 {
			return nil, err
		}
		p.in = p.buf[:n]
	}
}

func (p *peer) must() *mqtt.Packet {
	p.Helper()
	got, err := p.next()
	if err != nil {
		p.Fatal(err)
	}
	return got
}

func (p *peer) expect(k mqtt.Kind) *mqtt.Packet {
	p.Helper()
	got, err := p.next()
	if err != nil {
		p.Fatalf("waiting for %v: %v", k, err)
	}
	if got.Kind != k {
		p.Fatalf("got %v %x, want %v", got.Kind, got.Raw, k)
	}
	return got
}

func (p *peer) expectAck(k mqtt.Kind, id uint16, code byte) {
	p.Helper()
	if got := p.expect(k); got.ID != id || got.Code != code {
		p.Fatalf("%v of %d with %#02x, want %d with %#02x", k, got.ID, got.Code, id, code)
	}
}

// expectPublish reads a PUBLISH and returns its packet ID.
func (p *peer) expectPublish(topic, payload string, qos byte, dup bool) uint16 {
	p.Helper()
	m := p.expect(mqtt.PUBLISH).Publish
	if string(m.Topic) != topic || !bytes.Equal(m.Payload, []byte(payload)) || m.QoS != qos || m.Dup != dup {
		p.Fatalf("PUBLISH %s %.50q QoS %d DUP %v, want %s %.50q %d %v", m.Topic, m.Payload, m.QoS, m.Dup, topic, payload, qos, dup)
	}
	return m.ID
}

// expectEnd reads to the end and says how it came: eof or reset.
func (p *peer) expectEnd(want string) {
	p.Helper()
	for {
		k, err := p.next()
		switch {
		case err == nil:
			p.Fatalf("got %v, want the end", k.Kind)
		case errors.Is(err, io.EOF) && want == "eof", errors.Is(err, syscall.ECONNRESET) && want == "reset":
			return
		default:
			p.Fatalf("it ended with %v, want %s", err, want)
		}
	}
}

// silent fails if the peer's socket has anything to read within a moment; what comes later is not seen, so a silence that is broken
// cannot pass on a machine that is quick enough.
func (p *peer) silent() {
	p.Helper()
	if err := p.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		p.Fatal(err)
	}
	n, err := p.Read(p.buf)
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		p.Fatalf("%x, %v came, want nothing", p.buf[:n], err)
	}
}

// refusing is an address that nobody listens on.
func refusing(t testing.TB) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// reset closes the transport with RST.
func reset(c net.Conn) {
	if over, ok := c.(*tls.Conn); ok {
		c = over.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}
