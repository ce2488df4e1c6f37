package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// childEnv makes the test binary a broker: name,listen,link listen,peer=address,… For tests that kill one.
const childEnv = "LIMPET_TEST_BROKER"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		child(strings.Split(args, ","))
		return
	}
	goleak.VerifyTestMain(m)
}

func child(args []string) {
	config := Config{Name: args[0], Listen: args[1], LinkListen: args[2], Peers: make(map[string]string), Logger: zerolog.Nop()}
	for _, arg := range args[3:] {
		name, address, _ := strings.Cut(arg, "=")
		config.Peers[name] = address
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	b, err := Start(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(b.Addr())
	<-terminated
	b.Close()
}

// patience is how long anything is waited for.
const patience = 15 * time.Second

// eventually polls until check returns "", and fails with what it last returned.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func logger(t *testing.T) zerolog.Logger {
	level := zerolog.Disabled
	if os.Getenv("LIMPET_TEST_LOG") != "" {
		level = zerolog.DebugLevel
	}
	return zerolog.New(zerolog.NewTestWriter(t)).Level(level)
}

// single starts a broker without peers.
func single(t *testing.T, edit ...func(*Config)) *Broker {
	t.Helper()
	config := Config{Name: "b1", Listen: "127.0.0.1:0", Logger: logger(t)}
	for _, f := range edit {
		f(&config)
	}
	b, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, b) })
	return b
}

func stop(t *testing.T, b *Broker) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// cluster starts b1, b2, … and waits until all links are up. Between each two is a wire that can be cut.
func cluster(t *testing.T, n int) (brokers []*Broker, wires map[string]*wire) {
	t.Helper()
	clients, links := make([]net.Listener, n), make([]net.Listener, n)
	for i := range n {
		clients[i], links[i] = listen(t), listen(t)
	}
	brokers, wires = make([]*Broker, n), make(map[string]*wire)
	configs := make([]Config, n)
	for i := range n {
		configs[i] = Config{Name: fmt.Sprintf("b%d", i+1), Peers: make(map[string]string), Logger: logger(t)}
		for j := range n {
			if j != i {
				w := newWire(t, links[j].Addr().String())
				wires[fmt.Sprintf("b%d→b%d", i+1, j+1)] = w
				configs[i].Peers[fmt.Sprintf("b%d", j+1)] = w.addr()
			}
		}
	}
	var starting sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		starting.Go(func() { brokers[i], errs[i] = start(configs[i], clients[i], links[i]) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, b := range brokers {
		t.Cleanup(func() { stop(t, b) })
	}
	linked(t, brokers...)
	return brokers, wires
}

// linked waits until all links of the brokers are up.
func linked(t *testing.T, brokers ...*Broker) {
	t.Helper()
	eventually(t, func() string {
		for _, b := range brokers {
			for _, p := range b.Peers() {
				if !p.Up {
					return fmt.Sprintf("%s has no link to %s", b.Name(), p.Name)
				}
			}
		}
		return ""
	})
}

// settled waits until the brokers have published everything that they have for each other.
func settled(t *testing.T, brokers ...*Broker) {
	t.Helper()
	eventually(t, func() string {
		for _, b := range brokers {
			for _, p := range b.Peers() {
				if !p.Up || p.Kept > 0 {
					return fmt.Sprintf("%s still has %d messages for %s", b.Name(), p.Kept, p.Name)
				}
			}
		}
		return ""
	})
}

// wire forwards TCP connections to an address until it is cut.
type wire struct {
	t      *testing.T
	ln     net.Listener
	target string
	work   sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

func newWire(t *testing.T, target string) *wire {
	w := &wire{t: t, ln: listen(t), target: target, conns: make(map[net.Conn]struct{})}
	w.work.Go(w.accept)
	t.Cleanup(func() {
		w.ln.Close()
		w.set(true)
		w.work.Wait()
	})
	return w
}

func (w *wire) addr() string { return w.ln.Addr().String() }

func (w *wire) accept() {
	for {
		a, err := w.ln.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", w.target)
		if err != nil || !w.add(a, b) {
			a.Close()
			if b != nil {
				b.Close()
			}
			continue
		}
		w.work.Go(func() { forward(a, b) })
		w.work.Go(func() { forward(b, a) })
	}
}

func (w *wire) add(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		if w.cut {
			return false
		}
		w.conns[c] = struct{}{}
	}
	return true
}

// set cuts the wire, and everything on it, or repairs it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.conns {
			c.Close()
		}
		clear(w.conns)
	}
}

func forward(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	_, _ = io.Copy(dst, src) // ends when either is closed
}

// rawClient speaks MQTT by the byte, for what client libraries do not do.
type rawClient struct {
	t *testing.T
	net.Conn
}

func dialRaw(t *testing.T, b *Broker) *rawClient {
	t.Helper()
	return dialAddress(t, b.Addr().String())
}

func dialAddress(t *testing.T, address string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &rawClient{t, conn}
}

func str(s string) string { return string(appendString(nil, s)) }

func id(n uint16) string { return string(binary.BigEndian.AppendUint16(nil, n)) }

// packet is one MQTT packet of less than 16 KiB.
func packet(head byte, parts ...string) []byte {
	body := strings.Join(parts, "")
	b := []byte{head, byte(len(body))}
	if len(body) > 127 {
		b = []byte{head, byte(len(body))&0x7f | 0x80, byte(len(body) >> 7)}
	}
	return append(b, body...)
}

// connectPacket is a CONNECT of MQTT 3.1.1, or 5 with the properties given, with keep-alive off.
func connectPacket(client string, flags byte, properties5 ...string) []byte {
	if len(properties5) == 0 {
		return packet(0x10, str("MQTT"), "\x04", string(flags), "\x00\x00", str(client))
	}
	p := strings.Join(properties5, "")
	return packet(0x10, str("MQTT"), "\x05", string(flags), "\x00\x00", string([]byte{byte(len(p))}), p, str(client))
}

const cleanFlag = 2

func (c *rawClient) write(packets ...[]byte) {
	c.t.Helper()
	if _, err := c.Write(bytes.Join(packets, nil)); err != nil {
		c.t.Fatal(err)
	}
}

// read returns the next packet.
func (c *rawClient) read() (head byte, body []byte, err error) {
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, nil, err
	}
	head = b[0]
	n := 0
	for shift := 0; ; shift += 7 {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return 0, nil, err
		}
		if n |= int(b[0]&0x7f) << shift; b[0] < 0x80 {
			break
		}
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c, body)
	return head, body, err
}

// expect reads one packet and fails unless it is this one.
func (c *rawClient) expect(want []byte) {
	c.t.Helper()
	head, body, err := c.read()
	if got := packet(head, string(body)); err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("got %q (%v), want %q", got, err, want)
	}
}

// expectHead reads one packet and fails unless its first byte is this one.
func (c *rawClient) expectHead(want byte) []byte {
	c.t.Helper()
	head, body, err := c.read()
	if err != nil || head != want {
		c.t.Fatalf("got %#x %q (%v), want %#x", head, body, err, want)
	}
	return body
}

// connect sends a MQTT 3.1.1 CONNECT and returns Session Present.
func (c *rawClient) connect(client string, flags byte) (present bool) {
	c.t.Helper()
	c.write(connectPacket(client, flags))
	body := c.expectHead(0x20)
	if len(body) != 2 || body[1] != 0 {
		c.t.Fatalf("CONNACK %x", body)
	}
	return body[0] == 1
}

func (c *rawClient) subscribe(packetID uint16, filter string, qos byte) {
	c.t.Helper()
	c.write(packet(0x82, id(packetID), str(filter), string([]byte{qos})))
	c.expect(packet(0x90, id(packetID), string([]byte{qos})))
}
