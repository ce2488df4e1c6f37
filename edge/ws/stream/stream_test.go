package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gobwas "github.com/gobwas/ws"
	"go.uber.org/goleak"

	"github.com/limpet-mesh/limpet/edge/relay"
	"github.com/limpet-mesh/limpet/edge/ws"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ relay.Stream = (*Stream)(nil)

var roles = map[string]ws.Role{"server": ws.Server, "client": ws.Client}

// patience is how long a test waits for what should happen at once.
const patience = 30 * time.Second

// other is the other end of a stream, by another library.
type other struct {
	net.Conn
	t    testing.TB
	role ws.Role // the stream's
}

// pair returns a stream and its other end; a Write to either waits until it is read.
func pair(t testing.TB, role ws.Role, early []byte) (*Stream, *other) {
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return New(here, role, early), &other{there, t, role}
}

// frame is what the other end sends.
func (o *other) frame(op gobwas.OpCode, payload string) []byte {
	f := gobwas.NewFrame(op, true, []byte(payload))
	if o.role == ws.Server {
		f = gobwas.MaskFrame(f)
	}
	return gobwas.MustCompileFrame(f)
}

// next reads a frame, as opcode and payload.
func (o *other) next() string {
	o.t.Helper()
	h, err := gobwas.ReadHeader(o)
	if err != nil || !h.Fin || h.Masked != (o.role == ws.Client) || h.Length > 1<<20 {
		o.t.Fatalf("frame %+v, %v", h, err)
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(o, payload); err != nil {
		o.t.Fatalf("frame %+v, %v", h, err)
	}
	gobwas.Cipher(payload, h.Mask, 0)
	return fmt.Sprintf("%x:%s", byte(h.OpCode), payload)
}

// The other end sends pings, reads nothing, and goes on sending: Read goes on too. The newest ping is answered where a frame ends.
func TestReadDoesNotWaitForAWriteThatIsStuck(t *testing.T) {
	for name, role := range roles {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, o := pair(t, role, nil)
				message := bytes.Repeat([]byte("d"), 100_000)
				wrote := make(chan error, 1)
				go func() {
					_, err := s.Write(message)
					wrote <- err
				}()
				synctest.Wait() // nobody reads
				go func() {
					for i := range 50 {
						_, _ = o.Write(o.frame(gobwas.OpPing, fmt.Sprint("ping ", i)))
					}
					_, _ = o.Write(o.frame(gobwas.OpBinary, "payload"))
				}()
				b := make([]byte, 100)
				if n, err := s.Read(b); string(b[:n]) != "payload" || err != nil {
					t.Errorf("read %q, %v", b[:n], err)
				}
				var got int
				for got < len(message) {
					frame := o.next()
					if frame[:2] != "2:" {
						t.Fatalf("%.20q in the middle of a message", frame)
					}
					got += len(frame) - 2
				}
				if frame := o.next(); frame != "a:ping 49" {
					t.Errorf("answered %q", frame)
				}
				if err := <-wrote; err != nil {
					t.Error(err)
				}
				go func() {
					_, err := s.Write(message)
					wrote <- err
				}()
				synctest.Wait()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if err := <-wrote; err == nil {
					t.Error("Close did not end a write that is stuck")
				}
				if _, err := s.Write([]byte("x")); err == nil {
					t.Error("a write after Close succeeded")
				}
			})
		})
	}
}

// With time that stands still unless everybody waits: a deadline ends a Read and the next one goes on in the middle of a frame.
func TestReadGoesOnAfterADeadline(t *testing.T) {
	for _, role := range roles {
		synctest.Test(t, func(t *testing.T) {
			s, o := pair(t, role, nil)
			frame := o.frame(gobwas.OpBinary, "abcdef")
			go func() {
				_, _ = o.Write(frame[:1])
				time.Sleep(2 * time.Second)
				_, _ = o.Write(frame[1:])
			}()
			_ = s.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := s.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d, %v", n, err)
			}
			_ = s.SetReadDeadline(time.Time{})
			b := make([]byte, 6)
			if _, err := io.ReadFull(s, b); string(b) != "abcdef" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
			if n, err := s.Read(nil); n != 0 || err != nil {
				t.Errorf("empty read: %d, %v", n, err)
			}
			_ = o.Close()
			if _, err := s.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%v", err)
			}
			_ = s.Close()
		})
	}
}

// An end that takes nothing cannot hold up Close for longer than the grace, and a server hears nothing of it.
func TestCloseIsBounded(t *testing.T) {
	for role, want := range map[ws.Role]time.Duration{ws.Server: closeGrace, ws.Client: 0} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := pair(t, role, nil)
			begun := time.Now()
			_ = s.Close()
			if d := time.Since(begun); d != want {
				t.Errorf("took %v, want %v", d, want)
			}
		})
	}
}

// A pong waits no longer for an end that takes nothing than it may, or than the caller would.
func TestPongIsBounded(t *testing.T) {
	for _, c := range []struct{ deadline, want time.Duration }{{0, controlTimeout}, {time.Second, time.Second}, {time.Hour, controlTimeout}} {
		synctest.Test(t, func(t *testing.T) {
			s, o := pair(t, ws.Server, nil)
			begun := time.Now()
			if c.deadline > 0 {
				_ = s.SetWriteDeadline(begun.Add(c.deadline))
			}
			in := append(o.frame(gobwas.OpPing, "x"), o.frame(gobwas.OpBinary, "y")...)
			go func() { _, _ = o.Write(in) }()
			b := make([]byte, 100)
			if n, err := s.Read(b); string(b[:n]) != "y" || err != nil || time.Since(begun) != c.want {
				t.Errorf("%q, %v after %v, want %v", b[:n], err, time.Since(begun), c.want)
			}
			if _, err := s.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a write behind a pong that was cut: %v", err)
			}
		})
	}
}

// A deadline for writes that has passed long ago does not keep pongs from being sent, and is back afterwards.
func TestPongDespiteAnOldDeadline(t *testing.T) {
	for _, role := range roles {
		synctest.Test(t, func(t *testing.T) {
			s, o := pair(t, role, nil)
			if err := s.SetWriteDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				_, err := s.Read(make([]byte, 10))
				read <- err
			}()
			_, _ = o.Write(o.frame(gobwas.OpPing, "x"))
			if got := o.next(); got != "a:x" {
				t.Errorf("%q instead of a pong", got)
			}
			_, _ = o.Write(o.frame(gobwas.OpBinary, "x"))
			if err := <-read; err != nil {
				t.Error(err)
			}
			begun := time.Now()
			for range 2 {
				if _, err := s.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > 0 {
					t.Errorf("write: %v after %v, want the old deadline to hold, and a write that failed to be the last", err, time.Since(begun))
				}
			}
		})
	}
}

// What came with the upgrade is read first, torn as it may be.
func TestEarlyBytes(t *testing.T) {
	for _, role := range roles {
		frame := (&other{role: role}).frame(gobwas.OpBinary, "early")
		for cut := range len(frame) + 1 {
			s, o := pair(t, role, frame[:cut])
			go func() {
				_, _ = o.Write(frame[cut:])
				_ = o.Close()
			}()
			if got, err := io.ReadAll(s); string(got) != "early" || err != nil {
				t.Fatalf("%d bytes early: %q, %v", cut, got, err)
			}
			_ = s.Close()
		}
	}
}

func TestCloseWrite(t *testing.T) {
	for _, role := range roles {
		s, o := pair(t, role, nil)
		_ = o.SetDeadline(time.Now().Add(patience))
		heard := make(chan string, 1)
		go func() {
			heard <- o.next() + " " + o.next()
			_, _ = o.Write(append(o.frame(gobwas.OpBinary, "in flight"), o.frame(gobwas.OpClose, "\x03\xe8")...))
			_, _ = io.Copy(io.Discard, o)
			close(heard)
		}()
		p := []byte("word")
		if n, err := s.Write(p); n != 4 || string(p) != "word" || err != nil {
			t.Errorf("%d, %q, %v", n, p, err)
		}
		if err := errors.Join(s.CloseWrite(), s.CloseWrite()); err != nil {
			t.Error(err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write behind a close frame: %v", err)
		}
		if got, err := io.ReadAll(s); string(got) != "in flight" || err != nil {
			t.Errorf("%q, %v: what the other end still says must arrive", got, err)
		}
		_ = s.Close()
		if got := <-heard; got != "2:word 8:\x03\xe8" {
			t.Errorf("sent %q", got)
		}
		<-heard
	}
}

// A frame may claim any length; what it costs is what the reader of the stream provides.
func TestClaimedLengthCostsNothing(t *testing.T) {
	read, total := make([]byte, 4<<10), 0
	s := New(&endless{head: []byte("\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00abcd"), size: 256 << 20}, ws.Server, nil)
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
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 128<<10 {
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

// What a client writes leaves in whole frames, none longer than a TLS record; what a server writes is one message, its header and
// beginning in one piece.
func TestPieces(t *testing.T) {
	p := make([]byte, 3*ws.MaxSealed)
	const payload = ws.MaxSealed - ws.MaxHeader
	for role, want := range map[ws.Role][]int{
		ws.Client: {payload + 8, payload + 8, payload + 8, 3*ws.MaxSealed - 3*payload + 6}, // lengths in 2 bytes, and in the header's second
		ws.Server: {ws.MaxSealed, 2*ws.MaxSealed + 4},
	} {
		var got pieces
		s := New(&got, role, nil)
		if n, err := s.Write(p); n != len(p) || err != nil || !slices.Equal(got.sizes, want) {
			t.Errorf("role %d: %d, %v, in pieces of %d, want %d", role, n, err, got.sizes, want)
		}
	}
}

type pieces struct {
	net.Conn
	sizes []int
}

func (c *pieces) Write(p []byte) (int, error) {
	c.sizes = append(c.sizes, len(p))
	return len(p), nil
}

func BenchmarkWrite(b *testing.B) {
	for name, role := range roles {
		for _, n := range []int{100, 16_000} {
			b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
				s := New(sink{}, role, nil)
				p := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					_, _ = s.Write(p)
				}
			})
		}
	}
}

type sink struct{ net.Conn }

func (sink) Write(p []byte) (int, error) { return len(p), nil }
