package listen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
)

// raw is a client of a WebSocket listener that may break every rule.
func raw(t testing.TB, transport string, l *served, ca *authority) net.Conn {
	t.Helper()
	var c net.Conn = dial(t, l.Addr())
	if transport == WSS {
		c = tls.Client(c, ca.client())
	}
	upgradeRaw(t, c)
	return c
}

func TestClientsThatBreakTheRulesAreTold(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{WS, WSS} {
		ends := make(chan error, 1)
		var got bytes.Buffer
		l := startWith(t, config(t, transport, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
			got.Reset()
			_, err := io.Copy(&got, struct{ io.Reader }{s})
			_, again := s.Read(make([]byte, 1))
			if err == nil {
				err = io.EOF
			}
			if !errors.Is(again, err) {
				t.Errorf("%v, and then %v", err, again)
			}
			ends <- err
			_ = s.Close()
		})
		for name, c := range map[string]struct {
			frame []byte
			code  uint16
		}{
			"unmasked":         {frameWith(true, 0, 2, false, 3, []byte("abc")), 1002},
			"compressed":       {frameWith(true, 4, 2, true, 3, []byte("abc")), 1002},
			"text":             {clientFrame(true, 1, []byte("abc")), 1003},
			"reserved opcode":  {clientFrame(true, 5, []byte("abc")), 1002},
			"oversized ping":   {clientFrame(true, 9, make([]byte, 126)), 1002},
			"ill-formed close": {clientFrame(true, 8, []byte{1}), 1002},
			"UTF-8":            {clientFrame(true, 8, []byte("\x03\xe8\xff")), 1007},
			"in order":         {clientFrame(true, 8, []byte("\x03\xe9going away")), 1001},
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				conn := raw(t, transport, l, ca)
				send(t, conn, append(clientFrame(true, 2, []byte("before")), c.frame...))
				answer := ended(t, conn)
				if want := []byte{0x88, 2, byte(c.code >> 8), byte(c.code)}; !bytes.Equal(answer, want) {
					t.Errorf("answered %q, want %q", answer, want)
				}
				err := receive(t, ends, "end")
				var te relay.TransportError
				if c.code == 1001 {
					if err != io.EOF {
						t.Errorf("ended with %v", err)
					}
				} else if !errors.As(err, &te) || te.Transport() != "ws" {
					t.Errorf("ended with %v", err)
				}
				if got.String() != "before" {
					t.Errorf("read %q", got.String())
				}
				_ = conn.Close()
			})
		}
	}
}

func TestPingsAreAnswered(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{WS, WSS} {
		l := start(t, config(t, transport, ca))
		c := raw(t, transport, l, ca)
		send(t, c, clientFrame(true, 9, []byte("first")))
		if got := readN(t, c, 7); string(got) != "\x8a\x05first" {
			t.Errorf("answered %q", got)
		}
		// In the middle of a fragmented message, and of a packet; an unasked pong is ignored.
		send(t, c, bytes.Join([][]byte{clientFrame(false, 2, []byte("ab")), clientFrame(true, 10, []byte("pong")), clientFrame(true, 9, make([]byte, 125)), clientFrame(true, 0, []byte("c"))}, nil))
		got := readN(t, c, 127+5)
		if want := "\x8a\x7d" + string(make([]byte, 125)) + "\x82\x03abc"; string(got) != want {
			t.Errorf("answered %q", got)
		}
		_ = c.Close()
	}
}

func TestWhereAConnectionWasCut(t *testing.T) {
	ends := make(chan error, 1)
	l := startWith(t, Config{Transport: WS}, func(s relay.Stream, _ relay.Origin, _ time.Time) {
		_, err := io.ReadAll(s)
		ends <- err
		_ = s.Close()
	})
	for name, c := range map[string]struct {
		sent []byte
		want error
	}{
		"between messages": {clientFrame(true, 2, []byte("abc")), nil},
		"in a frame":       {clientFrame(true, 2, []byte("abc"))[:7], io.ErrUnexpectedEOF},
		"in a message":     {clientFrame(false, 2, []byte("abc")), io.ErrUnexpectedEOF},
	} {
		conn := raw(t, WS, l, nil).(*net.TCPConn)
		send(t, conn, c.sent)
		_ = conn.CloseWrite()
		if err := receive(t, ends, "end"); err != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		_ = conn.Close()
	}
}

// serverFrames reads frames as a client does.
type serverFrames struct {
	t testing.TB
	r io.Reader
}

func (f *serverFrames) next() (op byte, payload []byte) {
	f.t.Helper()
	h := readN(f.t, f.r, 2)
	if h[0]&0xf0 != 0x80 || h[1]&0x80 != 0 {
		f.t.Fatalf("header %x", h)
	}
	n := int(h[1])
	switch n {
	case 126:
		b := readN(f.t, f.r, 2)
		n = int(b[0])<<8 | int(b[1])
	case 127:
		b := readN(f.t, f.r, 8)
		n = int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
	}
	return h[0] & 15, readN(f.t, f.r, n)
}

// Every Write is one message, for small ones in one segment with its header.
func TestOneMessagePerWrite(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{WS, WSS} {
		l := startWith(t, config(t, transport, ca), func(relay.Stream, relay.Origin, time.Time) {})
		c := raw(t, transport, l, ca)
		s := l.arrival(t).stream
		var wg sync.WaitGroup
		sizes := []int{1, 0, 125, 126, 4000, 16 << 10, 70_000, 1 << 20}
		wg.Go(func() {
			for _, n := range sizes {
				if got, err := s.Write(bytes.Repeat([]byte{byte(n)}, n)); got != n || err != nil {
					t.Errorf("%d: %d, %v", n, got, err)
				}
			}
		})
		frames := &serverFrames{t: t, r: c}
		for _, n := range sizes {
			if n == 0 {
				continue // nothing to say, no frame
			}
			if op, p := frames.next(); op != 2 || len(p) != n || p[n-1] != byte(n) {
				t.Errorf("%s: opcode %d, %d bytes, want %d", transport, op, len(p), n)
			}
		}
		wg.Wait()
		_ = s.Close()
		if b := ended(t, c); string(b) != "\x88\x02\x03\xe8" {
			t.Errorf("last words %q", b)
		}
	}
}

// A client that is closed before anything was said to it in MQTT reads that this is not how it was meant.
func TestCloseBeforeAWord(t *testing.T) {
	ca := newAuthority(t)
	for _, transport := range []string{WS, WSS} {
		for how, end := range map[string]func(relay.Stream){
			"Close":                 func(s relay.Stream) { _ = s.Close() },
			"CloseWrite, and Close": func(s relay.Stream) { _, _ = s.CloseWrite(), s.Close() },
		} {
			for said, want := range map[string]string{"": "\x88\x02\x03\xf0", "word": "\x82\x04word\x88\x02\x03\xe8"} {
				l := startWith(t, config(t, transport, ca), func(s relay.Stream, _ relay.Origin, _ time.Time) {
					_, _ = s.Write([]byte(said))
					end(s)
				})
				c := raw(t, transport, l, ca)
				if got := ended(t, c); string(got) != want {
					t.Errorf("%s, %s after %q: read %q, want %q", transport, how, said, got, want)
				}
				_ = c.Close()
			}
		}
	}
}

func BenchmarkStreamEcho(b *testing.B) {
	for _, transport := range []string{TCP, WS} {
		b.Run(transport, func(b *testing.B) {
			l := start(b, Config{Transport: transport})
			c := dial(b, l.Addr())
			out, back := make([]byte, 128), 128
			if transport == WS {
				upgradeRaw(b, c)
				out, back = clientFrame(true, 2, out), 2+2+128
			}
			_ = c.SetDeadline(time.Time{})
			in := make([]byte, back)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, in); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.Close()
		})
	}
}
