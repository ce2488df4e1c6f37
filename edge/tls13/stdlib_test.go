package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"unsafe"
)

// versions runs a test with Stdlib over TLS 1.2 and 1.3.
func versions(t *testing.T, f func(t *testing.T, l *link)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			roles(t, func(t *testing.T, asClient bool) {
				server := serverConfig()
				server.MaxVersion = version
				f(t, connect(t, asClient, Crypto, server, clientConfig()))
			})
		})
	}
}

// brought takes all that the peer has sent so far.
func (l *link) brought() []byte {
	p := l.ends[0].in
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.b
	p.b = nil
	return append(l.us.rest, b...)
}

// TestStdlibTorn: records torn byte by byte and all at once; payload and rest stay in the caller's memory.
func TestStdlibTorn(t *testing.T) {
	versions(t, func(t *testing.T, l *link) {
		var want []byte
		for n := 1; n < 5000; n = n*2 + 1 {
			want = append(want, random(n, uint64(n))...)
			if _, err := l.peer.Write(want[len(want)-n:]); err != nil {
				t.Fatal(err)
			}
		}
		_ = l.peer.CloseWrite()
		wire := l.brought()

		var got, buf []byte
		var err error
		for i := 0; i < len(wire) && err == nil; i++ {
			buf = append(buf, wire[i])
			var p, rest []byte
			p, rest, err = l.us.layer.Open(buf)
			for _, part := range [][]byte{p, rest} {
				if len(part) > 0 && (uintptr(unsafe.Pointer(&part[0]))-uintptr(unsafe.Pointer(&buf[0]))) > uintptr(len(buf)-len(part)) {
					t.Fatal("payload or rest is not in raw")
				}
			}
			if len(rest) > MaxRest {
				t.Fatalf("rest of %d bytes", len(rest))
			}
			got = append(got, p...)
			buf = bytes.Clone(rest)
		}
		if err != io.EOF || !bytes.Equal(got, want) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(want), err)
		}
		if _, _, err := l.us.layer.Open(nil); err != ErrClosed {
			t.Fatal(err)
		}
		// The other direction goes on, until its own end.
		if _, err := l.us.Write([]byte("yet")); err != nil {
			t.Fatal(err)
		}
		_, _ = l.us.conn.Write(l.us.layer.End([]byte{}))
		if b, err := io.ReadAll(l.peer); err != nil || string(b) != "yet" {
			t.Fatalf("%q, %v", b, err)
		}
		if out := l.us.layer.End(l.us.layer.Seal(l.us.layer.Reply(nil), []byte("more"))); len(out) != 0 {
			t.Fatalf("%d bytes behind the end", len(out))
		}
	})
}

func TestStdlibRefuses(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"forged":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"too long": func([]byte) []byte { return []byte{23, 3, 3, 0xff, 0xff} },
		"HTTP":     func([]byte) []byte { return []byte("GET / HTTP/1.1\r\n\r\n" + strings.Repeat("x", 1<<15)) },
	} {
		versions(t, func(t *testing.T, l *link) {
			_, _ = l.peer.Write([]byte("good"))
			good := l.brought()
			_, _ = l.peer.Write([]byte("bad"))
			p, rest, err := l.us.layer.Open(append(good, spoil(l.brought())...))
			if string(p) != "good" || len(rest) != 0 || err == nil || err == io.EOF {
				t.Fatalf("%s: %q, rest %d, %v", name, p, len(rest), err)
			}
			alert := l.us.layer.Reply(nil)
			if len(alert) == 0 {
				t.Fatalf("%s: no alert", name)
			}
			_, _ = l.us.conn.Write(alert)
			if _, err := l.peer.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "remote error") {
				t.Fatalf("%s: the peer hears %v", name, err)
			}
			if out := l.us.layer.End(l.us.layer.Seal(nil, []byte("more"))); len(out) != 0 {
				t.Fatalf("%s: %d bytes behind the alert", name, len(out))
			}
		})
	}
}

// TestStdlibAnswersKeyUpdates: what Read has to write comes out of Reply, or ahead of the next payload.
func TestStdlibAnswersKeyUpdates(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		only(t, id)
		// Own records at the one end, those of crypto/tls at the other.
		a, b := memPipe()
		type result struct {
			h   *Handover
			err error
		}
		server := make(chan result, 1)
		go func() {
			h, err := NewServer(serverConfig(), Crypto).Handshake(t.Context(), a)
			server <- result{h, err}
		}()
		h, err := Client(t.Context(), b, clientConfig(), Own)
		s := <-server
		if err := errors.Join(err, s.err); err != nil {
			t.Fatal(err)
		}
		own, std := h.Records, s.h.Stdlib
		for i := range 8 {
			wire := own.appendUpdate(nil, true)
			wire = own.Seal(wire, []byte("payload"))
			got, _, err := std.Open(wire)
			if err != nil || string(got) != "payload" {
				t.Fatalf("%q, %v", got, err)
			}
			var answer []byte
			if i%2 == 0 {
				answer = std.Reply(answer)
			}
			answer = std.Seal(answer, []byte("answer"))
			got, _, err = own.Open(answer)
			if err != nil || string(got) != "answer" || own.in.seq != 1 {
				t.Fatalf("%q, %v, sequence %d", got, err, own.in.seq)
			}
		}
	})
}

// TestStdlibIsSilentAfterItsEnd: crypto/tls would answer a KeyUpdate.
func TestStdlibIsSilentAfterItsEnd(t *testing.T) {
	ln := listen(t)
	conns := make(chan net.Conn, 1)
	go func() {
		c, _ := net.Dial("tcp", ln.Addr().String())
		conns <- c
	}()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far := <-conns
	defer far.Close()
	peers := make(chan *Handover, 1)
	go func() {
		h, _ := Client(t.Context(), far, clientConfig(), Own)
		peers <- h
	}()
	us, err := NewServer(serverConfig(), Crypto).Handshake(t.Context(), near)
	peer := <-peers
	if err != nil || peer == nil || peer.Records == nil {
		t.Fatal(us, peer, err)
	}
	question := peer.Records.appendUpdate(nil, true)
	if _, _, err := us.Stdlib.Open(append(question, peer.Records.Seal(nil, []byte("before"))...)); err != nil {
		t.Fatal(err)
	}
	if out := us.Stdlib.Reply(nil); len(out) == 0 {
		t.Fatal("a KeyUpdate is not answered")
	}
	if out := us.Stdlib.End(nil); len(out) == 0 {
		t.Fatal("no close_notify")
	}
	question = peer.Records.appendUpdate(nil, true)
	got, _, err := us.Stdlib.Open(append(question, peer.Records.Seal(nil, []byte("behind"))...))
	if err != nil || string(got) != "behind" {
		t.Fatalf("%q, %v", got, err)
	}
	for what, out := range map[string][]byte{"Reply": us.Stdlib.Reply(nil), "Seal": us.Stdlib.Seal(nil, []byte("x")), "End": us.Stdlib.End(nil)} {
		if len(out) > 0 {
			t.Errorf("%s says %d bytes after the end", what, len(out))
		}
	}
}
