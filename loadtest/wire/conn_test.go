package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// readAll reads as the engine does: a buffer only after Wait.
func readAll(c Conn, size int) ([]byte, error) {
	var all []byte
	for {
		if err := c.Wait(); err != nil {
			return all, err
		}
		b := make([]byte, size)
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err != nil {
			return all, err
		}
	}
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewPCG(seed, seed)
	for i := range b {
		b[i] = byte(r.Uint64())
	}
	return b
}

// TestEcho sends writes of all sizes, and has them back whole, whatever buffer they are read with.
func TestEcho(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		d := newDialer(t, Config{})
		ep := serve(t, kind, echo)
		for _, size := range []int{97, 4096, 64 << 10} {
			c := dial(t, d, ep)
			var sent []byte
			for i, n := range []int{1, 125, 126, 127, 16 << 10, 16<<10 - 8, 65535, 65536, 300_000, 3} {
				sent = append(sent, noise(n, uint64(i))...)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				rest := sent
				for _, n := range []int{1, 125, 126, 127, 16 << 10, 16<<10 - 8, 65535, 65536, 300_000, 3} {
					if m, err := c.Write(rest[:n]); err != nil || m != n {
						t.Errorf("Write: %d of %d, %v", m, n, err)
						return
					}
					rest = rest[n:]
				}
			})
			got := make([]byte, 0, len(sent))
			for len(got) < len(sent) {
				if err := c.Wait(); err != nil {
					t.Fatalf("after %d bytes: Wait: %v", len(got), err)
				}
				b := make([]byte, min(size, len(sent)-len(got)))
				n, err := c.Read(b)
				if err != nil {
					t.Fatalf("after %d bytes: Read: %v", len(got), err)
				}
				got = append(got, b[:n]...)
			}
			wg.Wait()
			if !bytes.Equal(got, sent) {
				t.Errorf("buffer of %d: %d bytes came back changed", size, len(got))
			}
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
}

// TestCloseLosesNothing: what was written before Close arrives although the peer writes meanwhile, and the end is in order.
func TestCloseLosesNothing(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		type outcome struct {
			got []byte
			err error
		}
		out := make(chan outcome, 1)
		d := newDialer(t, Config{})
		ep := serve(t, kind, func(s served) {
			_ = s.SetReadDeadline(time.Now().Add(patience))
			_, _ = s.Write(noise(100_000, 1)) // unread at the client when it closes
			got, err := io.ReadAll(s)
			out <- outcome{got, err}
		})
		sent := noise(50_000, 2)
		c := dial(t, d, ep)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		o := <-out
		if o.err != nil || !bytes.Equal(o.got, sent) {
			t.Errorf("the server read %d of %d bytes, and then %v, want the end in order", len(o.got), len(sent), o.err)
		}
		if err := errors.Join(c.Close(), c.Abort()); err != nil {
			t.Errorf("Close and Abort again: %v", err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("Write after Close: no error")
		}
	})
}

// TestAbort: the peer sees anything but an end in order.
func TestAbort(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		out := make(chan error, 1)
		d := newDialer(t, Config{})
		ep := serve(t, kind, func(s served) {
			_ = s.SetReadDeadline(time.Now().Add(patience))
			_, _ = io.CopyN(s, s, int64(len("hello")))
			_, err := io.ReadAll(s)
			out <- err
		})
		c := dial(t, d, ep)
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, len("hello"))); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error, 1)
		go func() { waited <- c.Wait() }() // Abort ends what blocks
		if err := c.Abort(); err != nil {
			t.Errorf("Abort: %v", err)
		}
		if err := <-waited; err != nil && Reason(err) != "cancelled" {
			t.Errorf("Wait: %v (%s), want cancelled", err, Reason(err))
		}
		err := <-out
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server saw %v, want a reset", err)
		}
		if kind == TCP || kind == TLS {
			if Reason(err) != "reset" {
				t.Errorf("the server saw %v (%s), want a reset", err, Reason(err))
			}
		}
		if _, err := c.Read(make([]byte, 1)); Reason(err) != "cancelled" {
			t.Errorf("Read after Abort: %v (%q)", err, Reason(err))
		}
	})
}

// TestPeerCloses: what was sent before the end is read, then io.EOF.
func TestPeerCloses(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		sent := noise(70_000, 3)
		d := newDialer(t, Config{})
		ep := serve(t, kind, func(s served) {
			_, _ = io.ReadFull(s, make([]byte, 1))
			_, _ = s.Write(sent)
			_ = s.Close()
		})
		c := dial(t, d, ep)
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(c, 1000)
		if !bytes.Equal(got, sent) || !errors.Is(err, io.EOF) || Reason(err) != "closed" {
			t.Errorf("%d of %d bytes, and then %v (%s)", len(got), len(sent), err, Reason(err))
		}
		if err := c.Close(); err != nil && Reason(err) == "other" {
			t.Errorf("Close: %v", err)
		}
	})
}

// TestCloseIsBounded: a peer that neither reads nor ends costs Linger, also while a Write is stuck.
func TestCloseIsBounded(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		done := make(chan struct{})
		d := newDialer(t, Config{Linger: -1})
		ep := serve(t, kind, func(served) { <-done })
		defer close(done) // before the server waits for its handlers
		c, err := d.Dial(t.Context(), ep)
		if err != nil {
			t.Fatal(err)
		}
		stuck := make(chan error, 1)
		go func() {
			for {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					stuck <- err
					return
				}
			}
		}()
		closed := make(chan struct{})
		go func() { _ = c.Close(); close(closed) }()
		for range 2 {
			select {
			case <-closed:
				closed = nil
			case err := <-stuck:
				if err == nil {
					t.Error("the stuck Write ended without an error")
				}
			case <-time.After(patience):
				t.Fatal("Close or Write hangs")
			}
		}
		_ = c.Abort()
	})
}

// TestReadDeadline: it ends Wait and Read, and reading can go on after it.
func TestReadDeadline(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		d := newDialer(t, Config{})
		c := dial(t, d, serve(t, kind, echo))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 9)); n != 1 || err != nil { // and with it the tickets of TLS, for which Wait may return
			t.Fatal(err)
		}
		for name, read := range map[string]func() error{"Wait": c.Wait, "Read": func() error { _, err := c.Read(make([]byte, 9)); return err }} {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if err := read(); Reason(err) != "timeout" {
				t.Errorf("%s: %v (%q), want timeout", name, err, Reason(err))
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 9)
		if n, err := c.Read(b); err != nil || n != 1 || b[0] != 'x' {
			t.Errorf("after the deadlines: %q, %v", b[:n], err)
		}
	})
}

// TestResumption: all clients after the first resume, through the shared ticket, unless it is switched off.
func TestResumption(t *testing.T) {
	forAll(t, func(t *testing.T, kind Transport) {
		ep := serve(t, kind, echo)
		for _, off := range []bool{false, true} {
			d := newDialer(t, Config{NoResume: off})
			for i := range 4 {
				c := dial(t, d, ep)
				if want := kind.Encrypted() && !off && i > 0; c.Resumed() != want {
					t.Errorf("client %d, NoResume %v: Resumed %v, want %v", i, off, c.Resumed(), want)
				}
				if _, err := c.Write([]byte("x")); err != nil { // the ticket comes before the answer
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			want := Stats{}
			if kind.Encrypted() {
				want.Handshakes = 4
			}
			if kind.Encrypted() && !off {
				want.Resumed = 3
			}
			if got := d.Stats(); got != want {
				t.Errorf("NoResume %v: %+v, want %+v", off, got, want)
			}
		}
	})
}

// TestNoAllocations: a message there and back allocates nothing of ours in steady state.
func TestNoAllocations(t *testing.T) {
	for _, kind := range []Transport{TCP, TLS, WS, WSS} { // QUIC's are quic-go's
		t.Run(kind.String(), func(t *testing.T) {
			allocations(t, kind)
		})
	}
}

func allocations(t *testing.T, kind Transport) {
	theirs := 0.0
	if kind.Encrypted() {
		theirs = 2 // crypto/tls allocates a reader for each record that it reads, and the server's is one of them
	}
	d := newDialer(t, Config{})
	// The echo must not allocate either: AllocsPerRun counts the whole process.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ep := serveRaw(t, kind, l)
	c := dial(t, d, ep)
	message := noise(200, 1)
	b := make([]byte, 4096)
	if got := testing.AllocsPerRun(500, func() {
		if _, err := c.Write(message); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(message); {
			if err := c.Wait(); err != nil {
				t.Fatal(err)
			}
			m, err := c.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	}); got > theirs && !raceEnabled {
		t.Errorf("%v allocations per message, want %v", got, theirs)
	}
}

// TestManyAtOnce dials from many goroutines through every transport, with one dialer.
func TestManyAtOnce(t *testing.T) {
	var all []*Endpoint
	for _, kind := range Transports() {
		all = append(all, serve(t, kind, echo))
	}
	d := newDialer(t, Config{})
	chooser := RoundRobin(all)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			ep := chooser.Next()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, err := d.Dial(ctx, ep)
			if err != nil {
				t.Errorf("%v: %v", ep, err)
				return
			}
			defer c.Abort()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			sent := noise(1000, uint64(i))
			got := make([]byte, len(sent))
			if _, err := c.Write(sent); err != nil {
				t.Errorf("%v: %v", ep, err)
			}
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%v: came back changed, %v", ep, err)
			}
			if err := c.Close(); err != nil {
				t.Errorf("%v: Close: %v", ep, err)
			}
		})
	}
	wg.Wait()
	d.quicMu.Lock()
	sockets := len(d.quic)
	d.quicMu.Unlock()
	if sockets != 1 {
		t.Errorf("%d UDP sockets, want one for all QUIC clients", sockets)
	}
}
