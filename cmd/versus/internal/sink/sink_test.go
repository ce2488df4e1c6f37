//go:build linux

package sink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// run starts a sink of two brokers, and returns it with their addresses.
func run(t *testing.T, p Protocol) (*Sink, []string) {
	t.Helper()
	s, err := Listen(2, p)
	if err != nil {
		t.Fatal(err)
	}
	addresses := s.Addresses()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s, addresses
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func expect(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%x (%v), want %x", got[:n], err, want)
	}
}

// connectPacket is a CONNECT of MQTT 3.1.1.
func connectPacket(id string) []byte {
	return append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 60, 0, byte(len(id))}, id...)
}

// publish is a PUBLISH of QoS 0 with n bytes behind its topic.
func publish(n int) []byte {
	body := append([]byte{0, 1, 't'}, bytes.Repeat([]byte("x"), n)...)
	b := []byte{0x30}
	for l := len(body); ; l >>= 7 {
		if l < 0x80 {
			b = append(b, byte(l))
			break
		}
		b = append(b, byte(l)|0x80)
	}
	return append(b, body...)
}

var (
	proxyV2  = []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x12\x34\x07\x5b")
	accepted = []byte{0x20, 2, 0, 0}
	present  = []byte{0x20, 2, 1, 0}
)

func TestEverythingComesBack(t *testing.T) {
	for name, header := range map[string][]byte{"no header": nil, "v1": []byte("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"), "v2": proxyV2} {
		for _, step := range []int{1, 7, 1 << 20} { // bytes of a write
			s, addresses := run(t, MQTT)
			c := dial(t, addresses[0])
			said := append(append(bytes.Clone(header), connectPacket("a")...), 0xc0, 0) // PINGREQ
			want := append(bytes.Clone(accepted), 0xd0, 0)
			for _, n := range []int{0, 1, 100, 200, 20_000} {
				said, want = append(said, publish(n)...), append(want, publish(n)...)
			}
			go func() {
				for ; len(said) > 0; said = said[min(step, len(said)):] {
					if _, err := c.Write(said[:min(step, len(said))]); err != nil {
						t.Error(name, err)
						return
					}
				}
			}()
			expect(t, c, want)
			if got := s.Counts(); got.Connects != 1 || got.Publishes != 5 || got.Faults != 0 || got.Proxied == 1 != (header != nil) {
				t.Errorf("%s, %d bytes a write: %+v", name, step, got)
			}
		}
	}
}

func TestHomes(t *testing.T) {
	s, addresses := run(t, MQTT)
	for i, visit := range []struct {
		broker int
		want   []byte
	}{{0, accepted}, {0, present}, {1, accepted}, {0, present}} {
		c := dial(t, addresses[visit.broker])
		if _, err := c.Write(connectPacket("a")); err != nil {
			t.Fatal(i, err)
		}
		expect(t, c, visit.want)
	}
	if got := s.Counts(); got.Home != 2 || got.Strayed != 1 {
		t.Errorf("%+v", got)
	}
}

func TestNonsenseIsCounted(t *testing.T) {
	s, addresses := run(t, MQTT)
	for _, nonsense := range []string{"\x30\xff\xff\xff\xff\xff", "\xf0\x00", "\x10\x02ab"} {
		c := dial(t, addresses[0])
		if _, err := io.WriteString(c, nonsense); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%q was answered", nonsense)
		}
	}
	if got := s.Counts().Faults; got != 3 {
		t.Errorf("%d faults, want 3", got)
	}
}

// frame is a binary frame of a client, masked.
func frame(b []byte) []byte {
	key := [4]byte{1, 2, 3, 4}
	head := []byte{0x82, 0x80 | 126, 0, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(len(b)))
	b = bytes.Clone(b)
	for i := range b {
		b[i] ^= key[i&3]
	}
	return append(append(head, key[:]...), b...)
}

func TestWebSocket(t *testing.T) {
	for _, step := range []int{1, 1 << 20} {
		s, addresses := run(t, WebSocket)
		c := dial(t, addresses[0])
		said := bytes.Clone(proxyV2)
		said = append(said, "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"...)
		said = append(said, frame(connectPacket("a"))...)
		p := publish(300)
		said = append(said, frame(p[:100])...) // a packet in two frames
		said = append(said, frame(append(bytes.Clone(p[100:]), publish(5)...))...)
		go func() {
			for ; len(said) > 0; said = said[min(step, len(said)):] {
				if _, err := c.Write(said[:min(step, len(said))]); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		r := bufio.NewReader(c)
		answer, err := http.ReadResponse(r, nil)
		if err != nil || answer.StatusCode != http.StatusSwitchingProtocols || !strings.HasPrefix(answer.Header.Get("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
			t.Fatalf("%v %v", answer, err)
		}
		expect(t, r, append([]byte{0x82, 4}, accepted...))
		var back []byte
		for want := append(bytes.Clone(p), publish(5)...); !bytes.Equal(back, want); {
			head := make([]byte, 2)
			if _, err := io.ReadFull(r, head); err != nil {
				t.Fatalf("%v after %d bytes", err, len(back))
			}
			n := int(head[1])
			if n == 126 {
				if _, err := io.ReadFull(r, head); err != nil {
					t.Fatal(err)
				}
				n = int(binary.BigEndian.Uint16(head))
			}
			payload := make([]byte, n)
			if _, err := io.ReadFull(r, payload); err != nil {
				t.Fatal(err)
			}
			if back = append(back, payload...); len(back) > len(want) {
				t.Fatalf("%d bytes came back, want %d", len(back), len(want))
			}
		}
		if got := s.Counts(); got.Publishes != 2 || got.Proxied != 1 || got.Faults != 0 {
			t.Errorf("%+v", got)
		}
	}
}
