package listen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
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
				if want := AppendClose(nil, c.code); !bytes.Equal(answer, want) {
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
		if want := append(AppendPong(nil, make([]byte, 125)), "\x82\x03abc"...); !bytes.Equal(got, want) {
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

// A client sends pings, reads nothing, and goes on sending: Read goes on too.
func TestReadDoesNotWaitForAWriteThatIsStuck(t *testing.T) {
	l := startWith(t, Config{Transport: WS}, func(relay.Stream, relay.Origin, time.Time) {})
	c := raw(t, WS, l, nil)
	s := l.arrival(t).stream.(*wsStream)
	chunk := make([]byte, 1<<20)
	var written int
	var mu sync.Mutex
	stuck := make(chan error, 1)
	go func() {
		for {
			n, err := s.Write(chunk)
			mu.Lock()
			written += n
			mu.Unlock()
			if err != nil {
				stuck <- err
				return
			}
		}
	}()
	// Nobody reads: the write stops moving once the buffers of both ends are full.
	last := -1
	wait(t, "the write is stuck", func() bool {
		time.Sleep(20 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		still := written == last && !s.wire.TryLock()
		if written != last {
			last = written
		}
		return still
	})
	var in []byte
	for i := range 50 {
		in = append(in, clientFrame(true, 9, fmt.Append(nil, "ping ", i))...)
	}
	in = append(in, clientFrame(true, 2, []byte("payload"))...)
	send(t, c, in)
	_ = s.SetReadDeadline(time.Now().Add(patience))
	if got := readN(t, s, 7); string(got) != "payload" {
		t.Errorf("read %q", got)
	}
	// The client reads at last: complete messages, then the newest pong, where a frame ends.
	frames := &serverFrames{t: t, r: c}
	for {
		op, payload := frames.next()
		if op == 10 {
			if string(payload) != "ping 49" {
				t.Errorf("pong %q", payload)
			}
			break
		}
		if op != 2 || len(payload) != len(chunk) {
			t.Fatalf("opcode %d, %d bytes", op, len(payload))
		}
	}
	// Close ends a write that is stuck.
	go func() { _, _ = io.CopyN(io.Discard, c, 10) }()
	_ = s.Close()
	if err := receive(t, stuck, "end of the write"); err == nil {
		t.Error("no error")
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("Write after Close succeeded")
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

// With time that stands still unless everybody waits: a deadline ends a Read and the next one goes on in the middle of a frame.
func TestReadGoesOnAfterADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := net.Pipe()
		s := newStream(conn)
		frame := clientFrame(true, 2, []byte("abcdef"))
		go func() {
			_, _ = c.Write(frame[:3])
			time.Sleep(2 * time.Second)
			_, _ = c.Write(frame[3:])
		}()
		_ = s.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := s.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
		_ = s.SetReadDeadline(time.Time{})
		if got := readN(t, s, 6); string(got) != "abcdef" {
			t.Errorf("read %q", got)
		}
		if n, err := s.Read(nil); n != 0 || err != nil {
			t.Errorf("empty read: %d, %v", n, err)
		}
		_ = c.Close()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%v", err)
		}
		_ = s.Close()
	})
}

// A client that takes nothing cannot hold up Close for longer than the grace.
func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := net.Pipe() // without a buffer: nothing is taken unless it is read
		s := newStream(conn)
		begun := time.Now()
		_ = s.Close()
		if d := time.Since(begun); d != closeGrace {
			t.Errorf("took %v, want %v", d, closeGrace)
		}
		_ = c.Close()
	})
}

// A frame may claim any length; what it costs is what the reader of the stream provides.
func TestClaimedLengthCostsNothing(t *testing.T) {
	in := frameWith(true, 0, 2, true, 1<<62, nil)
	read, total := make([]byte, 4<<10), 0
	s := newStream(&endless{head: in, size: 256 << 20})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for {
		n, err := s.Read(read)
		total += n
		if err != nil {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if total != 256<<20 {
		t.Errorf("read %d bytes", total)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
		t.Errorf("allocated %d bytes", grown)
	}
}

// endless is a connection that delivers head and then size bytes.
type endless struct {
	net.Conn
	head []byte
	size int
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.head) > 0 {
		n := copy(p, e.head)
		e.head = e.head[n:]
		return n, nil
	}
	if e.size == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.size)
	e.size -= n
	return n, nil
}

func BenchmarkStreamEcho(b *testing.B) {
	for _, transport := range []string{TCP, WS} {
		b.Run(transport, func(b *testing.B) {
			l := start(b, Config{Transport: transport})
			c := dial(b, l.Addr())
			out, back := make([]byte, 128), 128
			if transport == WS {
				upgradeRaw(b, c)
				out, back = clientFrame(true, 2, out), len(AppendBinaryHeader(nil, 128))+128
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
