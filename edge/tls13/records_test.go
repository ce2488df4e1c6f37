package tls13

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

func TestSizes(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		data := random(maxPlaintext, 1)
		step := 1
		if raceEnabled || id != suites[0] {
			step = 101
		}
		var wire []byte
		for n := 1; n <= maxPlaintext; n += step {
			wire = client.Seal(wire[:0], data[:n])
			if len(wire) != n+Overhead {
				t.Fatalf("%d bytes became %d", n, len(wire))
			}
			got, rest, err := server.Open(wire)
			if err != nil || len(rest) != 0 || !bytes.Equal(got, data[:n]) {
				t.Fatalf("%d bytes: got %d, rest %d, %v", n, len(got), len(rest), err)
			}
		}
	})
}

func TestSealSplitsAndOpenJoins(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		for _, n := range []int{maxPlaintext, maxPlaintext + 1, 3 * maxPlaintext, 100_000} {
			data := random(n, 2)
			wire := server.Seal([]byte("ahead"), data)
			if want := 5 + n + (n+maxPlaintext-1)/maxPlaintext*Overhead; len(wire) != want {
				t.Fatalf("%d bytes became %d, want %d", n, len(wire), want)
			}
			raw := wire[5:]
			got, rest, err := client.Open(raw)
			if err != nil || len(rest) != 0 || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: got %d, rest %d, %v", n, len(got), len(rest), err)
			}
			if start := uintptr(unsafe.Pointer(&got[0])); start < uintptr(unsafe.Pointer(&raw[0])) ||
				start+uintptr(n) > uintptr(unsafe.Pointer(&raw[0]))+uintptr(len(raw)) {
				t.Fatal("payload is not in raw")
			}
		}
	})
}

// TestTorn: any cut of a stream gives the same payload.
func TestTorn(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		var wire, want []byte
		for i, n := range []int{1, 100, 0, 17, 5000, 1, 1} {
			p := random(n, uint64(i))
			want = append(want, p...)
			wire = append(wire, craft(client, typeApplication, p, i*7)...)
			switch i {
			case 2:
				wire = client.appendUpdate(wire, true)
			case 3: // a KeyUpdate in pieces
				for _, b := range []byte{typeKeyUpdate, 0, 0, 1} {
					wire = append(wire, craft(client, typeHandshake, []byte{b}, 0)...)
				}
				wire = append(wire, craft(client, typeHandshake, []byte{0}, 3)...)
				client.cache.drop(&client.out)
				client.out.next(client.suite)
			}
		}
		wire = client.End(wire)
		for name, cut := range map[string]func(left int) int{
			"bytes": func(int) int { return 1 }, "whole": func(left int) int { return left }, "sevens": func(left int) int { return min(left, 7) },
		} {
			r, _, err := ReadState(server.AppendState(nil))
			if err != nil {
				t.Fatal(err)
			}
			var got, buf []byte
			for in := wire; len(in) > 0 && err == nil; {
				n := cut(len(in))
				var p, rest []byte
				p, rest, err = r.Open(append(buf, in[:n]...))
				got = append(got, p...)
				buf = bytes.Clone(rest)
				in = in[n:]
			}
			if err != io.EOF || !bytes.Equal(got, want) {
				t.Fatalf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
			if reply := r.Reply(nil); len(reply) == 0 {
				t.Fatalf("%s: the KeyUpdate was not answered", name)
			}
			if _, _, err := r.Open(nil); err != ErrClosed {
				t.Fatalf("%s: after the end: %v", name, err)
			}
		}
	})
}

func message(kind byte, n int) []byte {
	return append([]byte{kind, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
}

// refusals are what ends a connection, with the alert for it. from is the peer, who seals.
var refusals = []struct {
	name       string
	toClient   bool
	make       func(from *Records) []byte
	alert      int
	incomplete bool // the error comes before the record is whole
}{
	{name: "forged", make: func(r *Records) []byte { b := r.Seal(nil, []byte("x")); b[7] ^= 1; return b }, alert: alertBadRecordMAC},
	{name: "forged tag", make: func(r *Records) []byte { b := r.Seal(nil, []byte("x")); b[len(b)-1] ^= 1; return b }, alert: alertBadRecordMAC},
	{name: "too short", make: func(*Records) []byte { return []byte{23, 3, 3, 0, 3, 1, 2, 3} }, alert: alertBadRecordMAC},
	{name: "empty", make: func(*Records) []byte { return []byte{23, 3, 3, 0, 0} }, alert: alertBadRecordMAC},
	{name: "replayed", make: func(r *Records) []byte { b := r.Seal(nil, []byte("x")); return append(b, b...) }, alert: alertBadRecordMAC},
	{name: "left out", make: func(r *Records) []byte { r.Seal(nil, []byte("x")); return r.Seal(nil, []byte("y")) }, alert: alertBadRecordMAC},
	{name: "version", make: func(r *Records) []byte { b := r.Seal(nil, []byte("x")); b[2] = 1; return b }, alert: alertProtocolVersion},
	{name: "long", make: func(*Records) []byte { return []byte{23, 3, 3, 0x41, 1} }, alert: alertRecordOverflow, incomplete: true},
	{name: "long inside", make: func(r *Records) []byte { return craft(r, 23, make([]byte, maxPlaintext+1), 0) }, alert: alertRecordOverflow},
	{name: "long padding", make: func(r *Records) []byte { return craft(r, 23, make([]byte, maxPlaintext), 1) }, alert: alertRecordOverflow},
	{name: "without a type", make: func(r *Records) []byte { return craftInner(r, make([]byte, 9)) }, alert: alertUnexpectedMessage},
	{name: "of nothing", make: func(r *Records) []byte { return craftInner(r, nil) }, alert: alertUnexpectedMessage},
	{name: "unknown type", make: func(r *Records) []byte { return craft(r, 99, []byte("x"), 0) }, alert: alertUnexpectedMessage},
	{name: "protected CCS", make: func(r *Records) []byte { return craft(r, 20, []byte{1}, 0) }, alert: alertUnexpectedMessage},
	{name: "plain CCS", make: func(*Records) []byte { return []byte{20, 3, 3, 0, 1, 1} }, alert: alertUnexpectedMessage},
	{name: "plain alert", make: func(*Records) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, alert: alertUnexpectedMessage},
	{name: "HTTP", make: func(*Records) []byte { return []byte("GET / HTTP/1.1\r\n") }, alert: alertUnexpectedMessage},
	{name: "torn alert", make: func(r *Records) []byte { return craft(r, 21, []byte{1}, 0) }, alert: alertUnexpectedMessage},
	{name: "two alerts", make: func(r *Records) []byte { return craft(r, 21, []byte{1, 0, 1, 0}, 0) }, alert: alertUnexpectedMessage},
	{name: "no handshake", make: func(r *Records) []byte { return craft(r, 22, nil, 0) }, alert: alertUnexpectedMessage},
	{name: "ClientHello", make: func(r *Records) []byte { return craft(r, 22, message(1, 50), 0) }, alert: alertUnexpectedMessage},
	{name: "HelloRequest", make: func(r *Records) []byte { return craft(r, 22, []byte{0}, 0) }, alert: alertUnexpectedMessage},
	{name: "ticket to a server", make: func(r *Records) []byte { return craft(r, 22, message(4, 50), 0) }, alert: alertUnexpectedMessage},
	{name: "CertificateRequest", toClient: true, make: func(r *Records) []byte { return craft(r, 22, message(13, 50), 0) }, alert: alertUnexpectedMessage},
	{name: "long ticket", toClient: true, make: func(r *Records) []byte { return craft(r, 22, []byte{4, 1, 0, 1}, 0) }, alert: alertInternalError},
	{name: "short ticket", toClient: true, make: func(r *Records) []byte { return craft(r, 22, message(4, 12), 0) }, alert: alertDecodeError},
	{name: "KeyUpdate 2", make: func(r *Records) []byte { return craft(r, 22, []byte{24, 0, 0, 1, 2}, 0) }, alert: alertIllegalParameter},
	{name: "long KeyUpdate", make: func(r *Records) []byte { return craft(r, 22, []byte{24, 0, 0, 2, 0, 0}, 0) }, alert: alertDecodeError},
	{name: "empty KeyUpdate", make: func(r *Records) []byte { return craft(r, 22, []byte{24, 0, 0, 0}, 0) }, alert: alertDecodeError},
	{name: "behind KeyUpdate", make: func(r *Records) []byte { return craft(r, 22, []byte{24, 0, 0, 1, 0, 24}, 0) }, alert: alertUnexpectedMessage},
	{
		name: "inside KeyUpdate",
		make: func(r *Records) []byte {
			return append(craft(r, 22, []byte{24, 0, 0}, 0), craft(r, 23, []byte("x"), 0)...)
		},
		alert: alertUnexpectedMessage,
	},
	{
		name: "inside a ticket", toClient: true,
		make: func(r *Records) []byte {
			return append(craft(r, 22, message(4, 50)[:20], 0), craft(r, 21, []byte{1, 0}, 0)...)
		},
		alert: alertUnexpectedMessage,
	},
	{name: "old key", make: func(r *Records) []byte {
		b := craft(r, 22, []byte{24, 0, 0, 1, 0}, 0) // and no new key
		return append(b, r.Seal(nil, []byte("x"))...)
	}, alert: alertBadRecordMAC},
	{name: "useless", make: func(r *Records) (b []byte) {
		for range maxUseless + 1 {
			b = append(b, craft(r, 23, nil, 5)...)
		}
		return b
	}, alert: alertUnexpectedMessage},
	{name: "useless updates", make: func(r *Records) (b []byte) {
		for range maxUseless + 1 {
			b = r.appendUpdate(b, true)
		}
		return b
	}, alert: alertUnexpectedMessage},
	{name: "user_canceled for ever", make: func(r *Records) (b []byte) {
		for range maxUseless + 1 {
			b = append(b, craft(r, 21, []byte{1, alertUserCanceled}, 0)...)
		}
		return b
	}, alert: alertUnexpectedMessage},
	{name: "tickets for ever", toClient: true, make: func(r *Records) []byte {
		return craft(r, 22, bytes.Repeat(message(4, 50), maxUseless+1), 0)
	}, alert: alertUnexpectedMessage},
}

func TestRefusals(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		for _, c := range refusals {
			t.Run(c.name, func(t *testing.T) {
				us, peer := twins(t, id)
				if c.toClient {
					us, peer = peer, us
				}
				in := peer.Seal(nil, []byte("valid"))
				in = append(in, c.make(peer)...)
				payload, rest, err := us.Open(in)
				e, ok := errors.AsType[*Error](err)
				if !ok || e.Remote || alertOf(err) != c.alert || e.Why == "" || e.Transport() != "tls" {
					t.Fatalf("%v (alert %d), want alert %d", err, alertOf(err), c.alert)
				}
				if !strings.HasPrefix(string(payload), "valid") || len(rest) != 0 {
					t.Fatalf("payload %q, rest %d bytes", payload, len(rest))
				}
				// The peer hears of it, once, and nothing after it.
				out := us.Reply(nil)
				_, _, err = peer.Open(bytes.Clone(out))
				if e, ok := errors.AsType[*Error](err); !ok || !e.Remote || alertOf(err) != c.alert {
					t.Fatalf("the peer hears %v, want alert %d", err, c.alert)
				}
				if out := us.End(us.Seal(us.Reply(nil), []byte("more"))); len(out) != 0 {
					t.Fatalf("%d bytes behind the alert", len(out))
				}
				if _, _, err := us.Open(in); err != ErrClosed {
					t.Fatalf("reading on: %v", err)
				}
			})
		}
	})
}

func TestUselessRecordsAreCountedInARow(t *testing.T) {
	server, client := twins(t, suites[0])
	var wire []byte
	for range 5 {
		for range maxUseless - 2 {
			wire = append(wire, craft(client, typeApplication, nil, 0)...)
		}
		wire = client.appendUpdate(wire, false)
		wire = append(wire, craft(client, typeAlert, []byte{2, alertUserCanceled}, 0)...)
		wire = client.Seal(wire, []byte("x"))
	}
	if got, _, err := server.Open(wire); err != nil || string(got) != "xxxxx" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestCloseNotifyBothWays(t *testing.T) {
	server, client := twins(t, suites[0])
	wire := client.End(client.Seal(nil, []byte("last")))
	if out := client.End(client.Seal(nil, []byte("more"))); len(out) != 0 {
		t.Fatalf("%d bytes behind close_notify", len(out))
	}
	wire = append(wire, "ignored (RFC 8446 §6.1)"...)
	got, rest, err := server.Open(wire)
	if string(got) != "last" || len(rest) != 0 || err != io.EOF {
		t.Fatalf("%q, rest %q, %v", got, rest, err)
	}
	// The other direction goes on.
	got, _, err = client.Open(server.End(server.Seal(nil, []byte("yet"))))
	if string(got) != "yet" || err != io.EOF {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestAlertOfThePeer(t *testing.T) {
	server, client := twins(t, suites[0])
	for _, level := range []byte{1, 2} { // of no meaning
		server, _, _ := ReadState(server.AppendState(nil))
		client, _, _ := ReadState(client.AppendState(nil))
		wire := client.appendUpdate(nil, true)
		_, _, err := server.Open(append(wire, craft(client, typeAlert, []byte{level, 40}, 0)...))
		if e, ok := errors.AsType[*Error](err); !ok || !e.Remote || alertOf(err) != 40 || !strings.Contains(err.Error(), "handshake failure") {
			t.Fatalf("got %v", err)
		}
		if out := server.End(server.Seal(server.Reply(nil), []byte("x"))); len(out) != 0 {
			t.Fatalf("%d bytes in answer to a fatal alert", len(out))
		}
	}
}

func TestTicketsAreSkipped(t *testing.T) {
	server, client := twins(t, suites[1])
	two := append(message(4, 200), message(4, maxTicket)...)
	var wire []byte
	for piece := range slices.Chunk(two, 9000) {
		wire = append(wire, craft(server, typeHandshake, piece, 0)...)
	}
	wire = append(wire, craft(server, typeHandshake, append(message(4, 13), 24, 0, 0, 1, 1), 0)...)
	server.cache.drop(&server.out)
	server.out.next(server.suite)
	wire = server.Seal(wire, []byte("data"))
	got, _, err := client.Open(wire)
	if string(got) != "data" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if got, _, err = server.Open(client.Seal(nil, []byte("answer"))); string(got) != "answer" || err != nil || server.in.seq != 1 {
		t.Fatalf("%q, %v, sequence %d", got, err, server.in.seq)
	}
}

// TestKeysAreReplaced: after 2^23 records we change our key, and ask the peer to change his.
func TestKeysAreReplaced(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		server.out.seq, client.in.seq = updateAfter-2, updateAfter-2
		oldOut, oldIn := server.out.secret, client.out.secret
		for i := range 5 {
			want := fmt.Sprint("message ", i)
			got, _, err := client.Open(server.Seal(nil, []byte(want)))
			if err != nil || string(got) != want {
				t.Fatalf("%q, %v", got, err)
			}
			got, _, err = server.Open(client.Seal(nil, []byte(want))) // asks in passing
			if err != nil || string(got) != want {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if server.out.secret == oldOut || server.out.seq > 5 {
			t.Fatalf("our key is the old one, sequence %d", server.out.seq)
		}
		if client.out.secret == oldIn {
			t.Fatal("the peer, whose own limit was reached in our reading, has not updated")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, s := range []Secrets{
		{Suite: 0x1304, Read: make([]byte, 32), Write: make([]byte, 32)},
		{Suite: 0xc02b, Read: make([]byte, 32), Write: make([]byte, 32)},
		{Suite: suites[0], Read: make([]byte, 48), Write: make([]byte, 48)},
		{Suite: suites[1], Read: make([]byte, 48), Write: make([]byte, 32)},
		{Suite: suites[2], Read: nil, Write: make([]byte, 32)},
	} {
		if r, err := New(s); r != nil || !errors.Is(err, ErrSuite) {
			t.Fatalf("suite %x: %v", s.Suite, err)
		}
	}
}

func TestReadStateRefuses(t *testing.T) {
	server, _ := twins(t, suites[0])
	good := server.AppendState(nil)
	for n := range good {
		if _, _, err := ReadState(good[:n]); !errors.Is(err, ErrState) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	for at, value := range map[int]byte{0: 2, 1: 4, 5: 5, 10: 1} {
		bad := bytes.Clone(good)
		bad[at] = value
		if _, _, err := ReadState(bad); !errors.Is(err, ErrState) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
}

func TestRecordsAreSmall(t *testing.T) {
	if n := unsafe.Sizeof(Records{}); n > 240 {
		t.Errorf("%d bytes", n)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	secret := bytes.Repeat([]byte("Q"), 32)
	s := Secrets{Suite: suites[0], Read: secret, Write: secret}
	r, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{r, *r, s, &s, Handover{Records: r}, &Handover{Records: r}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			out := fmt.Sprintf(verb, v)
			for _, leak := range []string{"QQ", "81 81", "5151", "0x51"} {
				if strings.Contains(out, leak) {
					t.Fatalf("%s of %T shows %s", verb, v, out)
				}
			}
		}
	}
}

func TestWipe(t *testing.T) {
	server, client := twins(t, suites[0])
	cache := server.cache
	if _, _, err := server.Open(client.Seal(nil, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	server.Seal(nil, []byte("x"))
	server.Wipe()
	if server.in != (half{}) || server.out != (half{}) || cache.Tick() != 0 {
		t.Fatal("something is left")
	}
	if out := server.End(server.Seal(server.Reply(nil), []byte("x"))); len(out) != 0 {
		t.Fatal("it still writes")
	}
	if _, _, err := server.Open([]byte("xxxxxxxx")); err != ErrClosed {
		t.Fatal(err)
	}
}

// TestStateMoves writes both ends out and reads them back at every cut of torn traffic with everything in it.
func TestStateMoves(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		server, client := twins(t, id)
		move := func(r *Records) *Records {
			b := r.AppendState([]byte{7})
			if want := 31 + 2*r.suite.secretSize(); len(b) != want {
				t.Fatalf("the state has %d bytes, want %d", len(b), want)
			}
			next, rest, err := ReadState(append(b[1:], "behind"...))
			if err != nil || string(rest) != "behind" {
				t.Fatal(rest, err)
			}
			if next.is(isClient) != r.is(isClient) {
				t.Fatal("the role has changed")
			}
			r.Wipe()
			return next
		}
		var want, got, back []byte
		for round := range 20 {
			p := random(50*round+1, uint64(round))
			want = append(want, p...)
			wire := client.Seal(nil, p[:len(p)/2])
			wire = client.appendUpdate(wire, round%2 == 0)
			wire = append(wire, craft(client, typeHandshake, []byte{24, 0}, 0)...)
			wire = append(wire, craft(client, typeHandshake, []byte{0, 1, 1}, 0)...)
			client.out.next(client.suite)
			client = move(client)
			wire = client.Seal(wire, p[len(p)/2:])
			var rest []byte
			for piece := range slices.Chunk(wire, 1+len(wire)/9) {
				payload, left, err := server.Open(append(rest, piece...))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, payload...)
				rest = bytes.Clone(left)
				server = move(server)
			}
			payload, _, err := client.Open(server.Seal(nil, []byte("y")))
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, payload...)
		}
		if !bytes.Equal(got, want) || string(back) != strings.Repeat("y", 20) {
			t.Fatalf("%d of %d bytes, %q", len(got), len(want), back)
		}
		// What is owed moves too: an alert is written by the heir.
		_, _, _ = server.Open([]byte{23, 3, 3, 0xff, 0xff})
		server = move(server)
		if _, _, err := client.Open(server.Reply(nil)); alertOf(err) != alertRecordOverflow {
			t.Fatal(err)
		}
	})
}

func FuzzReadState(f *testing.F) {
	server, client := twins(f, suites[0])
	f.Add(server.AppendState(nil), []byte("x"))
	f.Add(client.AppendState(nil), client.Seal(nil, []byte("y")))
	f.Fuzz(func(t *testing.T, state, raw []byte) {
		r, rest, err := ReadState(state)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
			return
		}
		if again := r.AppendState(nil); !bytes.Equal(again, state[:len(state)-len(rest)]) {
			t.Fatalf("%x became %x", state, again)
		}
		_, _, _ = r.Open(raw)
		r.End(r.Seal(r.Reply(nil), []byte("x")))
	})
}
