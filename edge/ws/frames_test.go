package ws

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"testing"
	"unsafe"

	gobwas "github.com/gobwas/ws"
	"pgregory.net/rapid"
)

func TestRules(t *testing.T) {
	const normal, protocol, refused, invalid = "8:\x03\xe8;", "8:\x03\xea;", "8:\x03\xeb;", "8:\x03\xef;"
	for from, p := range peers {
		masked := Role(p) == Client
		frame := func(fin bool, op byte, payload string) []byte { return p.frame(fin, op, []byte(payload)) }
		data, ping := frame(true, 2, "abc"), frame(true, 9, "p")
		start, middle, end := frame(false, 2, "ab"), frame(false, 0, ""), frame(true, 0, "c")
		head := len(data) - 3
		long, longer := string(make([]byte, 126)), string(make([]byte, 1<<16))
		failure := "EOF" // what a client's words are of no interest for
		if !masked {
			failure = "closed "
		}
		closed := func(code int) string {
			if masked {
				return failure
			}
			return fmt.Sprint(failure, code)
		}
		for name, c := range map[string]struct {
			in   []byte
			want seen
		}{
			"nothing":                    {nil, seen{}},
			"one message":                {data, seen{payload: "abc"}},
			"two messages":               {join(data, data), seen{payload: "abcabc"}},
			"empty message":              {frame(true, 2, ""), seen{}},
			"fragments":                  {join(start, middle, end), seen{payload: "abc"}},
			"ping between fragments":     {join(start, ping, middle, end), seen{payload: "abc", replies: "a:p;"}},
			"fragments without end":      {join(start, middle), seen{payload: "ab", within: true}},
			"cut in the payload":         {data[:head+1], seen{payload: "a", within: true}},
			"cut in the header":          {data[:1], seen{within: true}},
			"cut behind the header":      {data[:head], seen{within: true}},
			"cut in a ping":              {ping[:len(ping)-1], seen{within: true}},
			"16-bit length":              {frame(true, 2, long), seen{payload: long}},
			"64-bit length":              {frame(true, 2, longer), seen{payload: longer}},
			"more than it needs":         {lengthened(masked), seen{payload: "a"}},
			"2^63-1 claimed":             {frameWith(true, 0, 2, masked, math.MaxInt64, []byte("abc")), seen{payload: "abc", within: true}},
			"2^63 claimed":               {frameWith(true, 0, 2, masked, 1<<63, nil), seen{end: "1002", replies: protocol}},
			"ping":                       {ping, seen{replies: "a:p;"}},
			"ping without payload":       {join(frame(true, 9, ""), data), seen{payload: "abc", replies: "a:;"}},
			"largest ping":               {frame(true, 9, long[:125]), seen{replies: "a:" + long[:125] + ";"}},
			"oversized ping":             {frame(true, 9, long), seen{end: "1002", replies: protocol}},
			"huge ping":                  {frame(true, 9, longer), seen{end: "1002", replies: protocol}},
			"pong":                       {frame(true, 10, "p"), seen{}},
			"fragmented ping":            {frame(false, 9, ""), seen{end: "1002", replies: protocol}},
			"close":                      {join(frame(true, 8, "\x03\xe8bye"), []byte("whatever")), seen{end: "EOF", replies: normal}},
			"close, and data behind it":  {join(data, frame(true, 8, "\x03\xe9"), data), seen{payload: "abc", end: "EOF", replies: "8:\x03\xe9;"}},
			"close without a code":       {frame(true, 8, ""), seen{end: "EOF", replies: "8:;"}},
			"close between fragments":    {join(start, frame(true, 8, "")), seen{payload: "ab", end: "EOF", replies: "8:;"}},
			"close with a failure":       {frame(true, 8, "\x03\xf3oops"), seen{end: closed(1011), replies: "8:\x03\xf3;"}},
			"close with half a code":     {frame(true, 8, "\x03"), seen{end: "1002", replies: protocol}},
			"close with a reserved code": {frame(true, 8, "\x03\xed"), seen{end: "1002", replies: protocol}},
			"close with a local code":    {frame(true, 8, "\x03\xee"), seen{end: "1002", replies: protocol}}, // 1006
			"close with a younger code":  {frame(true, 8, "\x03\xf4"), seen{end: closed(1012), replies: "8:\x03\xf4;"}},
			"close with a private code":  {frame(true, 8, "\x13\x87"), seen{end: closed(4999), replies: "8:\x13\x87;"}},
			"close with code 5000":       {frame(true, 8, "\x13\x88"), seen{end: "1002", replies: protocol}},
			"close with code 65535":      {frame(true, 8, "\xff\xff\xff"), seen{end: "1002", replies: protocol}},
			"close with an unknown code": {frame(true, 8, "\x07\xd0"), seen{end: "1002", replies: protocol}}, // 2000
			"close with ill-formed text": {frame(true, 8, "\x03\xe8\xff"), seen{end: "1007", replies: invalid}},
			"text":                       {frame(true, 1, "abc"), seen{end: "1003", replies: refused}},
			"text behind a message":      {join(data, frame(true, 1, "")), seen{payload: "abc", end: "1003", replies: refused}},
			"the other's mask":           {frameWith(true, 0, 2, !masked, 3, []byte("abc")), seen{end: "1002", replies: protocol}},
			"the other's mask on a ping": {frameWith(true, 0, 9, !masked, 0, nil), seen{end: "1002", replies: protocol}},
			"compressed (RSV1)":          {frameWith(true, 4, 2, masked, 3, []byte("abc")), seen{end: "1002", replies: protocol}},
			"RSV2":                       {frameWith(true, 2, 2, masked, 3, []byte("abc")), seen{end: "1002", replies: protocol}},
			"RSV3 on a ping":             {frameWith(true, 1, 9, masked, 0, nil), seen{end: "1002", replies: protocol}},
			"reserved opcode 3":          {frame(true, 3, ""), seen{end: "1002", replies: protocol}},
			"reserved opcode 11":         {frame(true, 11, ""), seen{end: "1002", replies: protocol}},
			"continuation of nothing":    {end, seen{end: "1002", replies: protocol}},
			"message within a message":   {join(start, data), seen{payload: "ab", end: "1002", replies: protocol}},
			"two bytes are enough":       {frame(true, 3, "12345")[:2], seen{end: "1002", replies: protocol}},
		} {
			t.Run(name+" "+from, func(t *testing.T) {
				for how, cut := range map[string]func(int) int{"whole": whole, "byte by byte": single} {
					f := New(p.role())
					if got := feed(t, &f, c.in, cut); got != c.want {
						t.Errorf("%s: got %+v, want %+v", how, got, c.want)
					}
					if c.want.end != "" { // final: the rest is swallowed
						if payload, rest, err := f.Open([]byte("more")); len(payload)+len(rest) > 0 || err != io.EOF {
							t.Errorf("%s: after the end: %q, %q, %v", how, payload, rest, err)
						}
						if b := f.End(f.Seal(f.Reply(nil), []byte("more"))); !f.Closing() || len(b) > 0 {
							t.Errorf("%s: %q is sent behind a close frame", how, b)
						}
					}
				}
				if n := reference(p.role(), c.in); n != c.want {
					t.Errorf("the reference got %+v", n)
				}
			})
		}
	}
}

// lengthened is a frame with the payload "a" and a length in more bytes than it needs.
func lengthened(masked bool) []byte {
	if masked {
		return append([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, 'a')
	}
	return append([]byte{0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1}, 'a')
}

// Whatever the frames, the pieces that they come in and the pings between them: the payload is the same.
func TestAnyFragmentationGivesTheSamePayload(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := peer(rapid.IntRange(0, 1).Draw(t, "role"))
		payload := rapid.SliceOfN(rapid.Byte(), 0, 1200).Draw(t, "payload")
		var in []byte
		for rest, first := payload, true; ; {
			for rapid.IntRange(0, 3).Draw(t, "ping") == 0 {
				in = append(in, p.frame(true, 9, rest[:min(len(rest), 125)])...)
			}
			n := rapid.IntRange(0, len(rest)).Draw(t, "fragment")
			fin := rapid.Bool().Draw(t, "fin") || n == len(rest)
			op := byte(0)
			if first {
				op = 2
			}
			in = append(in, p.frame(fin, op, rest[:n])...)
			first = fin
			if rest = rest[n:]; len(rest) == 0 && fin {
				break
			}
		}
		f := New(p.role())
		var got []byte
		for len(in) > 0 {
			n := rapid.IntRange(1, len(in)).Draw(t, "segment")
			if rapid.Bool().Draw(t, "small") {
				n = min(n, 3)
			}
			b, _, err := f.Open(bytes.Clone(in[:n]))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b...)
			in = in[n:]
			if rapid.Bool().Draw(t, "move") {
				if f, err = ReadState(f.AppendState(nil)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(got, payload) || f.EOF() != io.EOF {
			t.Fatalf("got %d bytes of %d, %v", len(got), len(payload), f.EOF())
		}
	})
}

// A state that is written out and read back anywhere goes on as if nothing had been.
func TestStateMovesAtEveryByte(t *testing.T) {
	for from, p := range peers {
		payload := make([]byte, 300)
		for i := range payload {
			payload[i] = byte(i)
		}
		in := join(
			p.frame(false, 2, payload[:70]), p.frame(true, 9, nil), p.frame(true, 9, payload[:125]), p.frame(true, 10, payload[:3]),
			p.frame(false, 0, nil), p.frame(true, 0, payload[70:]), p.frame(true, 8, []byte("\x03\xe9bye")))
		for replies, reply := range map[string]bool{"at once": true, "after all": false} {
			f := New(p.role())
			var got, out []byte
			move := func(at int) {
				b := f.AppendState([]byte("x"))
				if len(b) > 1+MaxState {
					t.Errorf("a state of %d bytes", len(b))
				}
				g, err := ReadState(b[1:])
				if err != nil {
					t.Fatalf("%s, byte %d: %v", from, at, err)
				}
				if again := g.AppendState([]byte("x")); !bytes.Equal(again, b) {
					t.Errorf("%s, byte %d: %x became %x", from, at, b, again)
				}
				f = g
			}
			for i := range in {
				move(i)
				b, _, err := f.Open(bytes.Clone(in[i : i+1]))
				if (err != nil) != (i == len(in)-1) {
					t.Fatalf("%s, byte %d: %v", from, i, err)
				}
				got = append(got, b...)
				move(i)
				if reply {
					out = f.Reply(out)
				}
			}
			move(len(in))
			out = f.Reply(out)
			want := "a:;a:" + string(payload[:125]) + ";8:\x03\xe9;"
			if !reply {
				want = "8:\x03\xe9;"
			}
			if sent := controlsIn(t, p.role(), out); !bytes.Equal(got, payload) || sent != want {
				t.Errorf("%s, replies %s: %d bytes of payload, sent %q", from, replies, len(got), sent)
			}
		}
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	for _, p := range peers {
		for _, cut := range []int{1, 3, 9} {
			for _, op := range []byte{2, 9} {
				f := New(p.role())
				feed(t, &f, p.frame(op == 9, op, []byte("abcdefgh"))[:cut], whole)
				good := f.AppendState(nil)
				for i := range good {
					for _, v := range []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 16, 24, 32, 64, 125, 126, 127, 128, 0x82, 0x88, 0x8a, 0xfe, 0xff} {
						b := bytes.Clone(good)
						b[i] = v
						if f, err := ReadState(b); err == nil {
							feed(t, &f, p.frame(true, op, make([]byte, 300)), whole) // what passes must work
						}
					}
					if f, err := ReadState(good[:i]); err == nil || f != (Frames{}) {
						t.Errorf("%d bytes of %d pass", i, len(good))
					}
				}
				if _, err := ReadState(append(good, 0)); err == nil {
					t.Error("more than a state passes")
				}
			}
		}
	}
}

// Frames of ours are read back by another library, whatever their length, and no two masks are the same.
func TestSeal(t *testing.T) {
	masks := make(map[[4]byte]bool)
	for _, role := range []Role{Server, Client} {
		f := New(role)
		for _, n := range []int{0, 1, 125, 126, 127, 255, 256, MaxSealed - MaxHeader, MaxSealed - MaxHeader + 1, 65535, 65536, 100_000} {
			p := bytes.Repeat([]byte{byte(n), 1, 2}, n/3+1)[:n]
			kept := bytes.Clone(p)
			b := f.Seal([]byte("x"), p)
			if !bytes.Equal(p, kept) || b[0] != 'x' {
				t.Errorf("%d: sealing changed what it was given", n)
			}
			var got []byte
			frames := 0
			for r := bytes.NewReader(b[1:]); r.Len() > 0; frames++ {
				h, err := gobwas.ReadHeader(r)
				if err != nil || !h.Fin || h.Rsv != 0 || h.OpCode != gobwas.OpBinary || h.Masked != (role == Client) || h.Length > int64(r.Len()) {
					t.Fatalf("%d: %+v, %v", n, h, err)
				}
				if h.Masked {
					if masks[h.Mask] {
						t.Errorf("mask %x was used before", h.Mask)
					}
					masks[h.Mask] = true
				}
				part := make([]byte, h.Length)
				_, _ = io.ReadFull(r, part)
				gobwas.Cipher(part, h.Mask, 0)
				got = append(got, part...)
			}
			if want := (n + MaxSealed - MaxHeader - 1) / (MaxSealed - MaxHeader); !bytes.Equal(got, p) || role == Client && frames != want || role == Server && frames > 1 {
				t.Errorf("role %d, %d bytes: %d in %d frames", role, n, len(got), frames)
			}
			if role == Server {
				if joined := append(f.SealHeader([]byte("x"), n), p...); !bytes.Equal(joined, b) {
					t.Errorf("%d: SealHeader says %x", n, joined[:len(joined)-n])
				}
			}
			// The other side of ours.
			other := New(1 - role)
			if payload, _, err := other.Open(b[1:]); !bytes.Equal(payload, p) || err != nil {
				t.Errorf("%d: opened as %d bytes, %v", n, len(payload), err)
			}
		}
	}
}

func TestLastWords(t *testing.T) {
	for name, c := range map[string]struct {
		role Role
		do   func(f *Frames)
		want string
	}{
		"a server without a word":    {Server, func(*Frames) {}, "8:\x03\xf0;"},
		"a server after a word":      {Server, func(f *Frames) { f.Seal(nil, []byte("x")) }, "8:\x03\xe8;"},
		"a server after a header":    {Server, func(f *Frames) { f.SealHeader(nil, 1) }, "8:\x03\xe8;"},
		"a server after no word":     {Server, func(f *Frames) { f.Seal(f.SealHeader(nil, 0), nil) }, "8:\x03\xf0;"},
		"a client":                   {Client, func(*Frames) {}, "8:\x03\xe8;"},
		"twice":                      {Client, func(f *Frames) { f.End(nil) }, ""},
		"an answer that is due":      {Client, func(f *Frames) { _, _, _ = f.Open([]byte("\x88\x02\x0f\xa1")) }, "8:\x0f\xa1;"},
		"a rule that was broken":     {Client, func(f *Frames) { _, _, _ = f.Open([]byte("\x81\x00")) }, "8:\x03\xeb;"},
		"an answer that was sent":    {Client, func(f *Frames) { _, _, _ = f.Open([]byte("\x88\x00")); f.Reply(nil) }, ""},
		"a pong that is due":         {Client, func(f *Frames) { _, _, _ = f.Open([]byte("\x89\x01p")) }, "8:\x03\xe8;"},
		"pings, and only the newest": {Client, func(f *Frames) { _, _, _ = f.Open([]byte("\x89\x011\x89\x012")) }, "a:2;8:\x03\xe8;"},
	} {
		f := New(c.role)
		c.do(&f)
		var out []byte
		if c.want != "" && c.want[0] == 'a' {
			out = f.Reply(out)
		}
		out = f.End(out)
		if got := controlsIn(t, c.role, out); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if !f.Closing() {
			t.Errorf("%s: not closing", name)
		}
		// Pings are not answered any more; the peer's close frame ends reading, and has had its answer.
		in := []byte("\x89\x01p\x88\x00")
		if c.role == Server {
			in = join(peer(Client).frame(true, 9, []byte("p")), peer(Client).frame(true, 8, nil))
		}
		if _, _, err := f.Open(in); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
		if b := f.End(f.Reply(f.Seal(nil, []byte("x")))); len(b) > 0 {
			t.Errorf("%s: %q behind the close frame", name, b)
		}
	}
}

func TestSize(t *testing.T) {
	if size := unsafe.Sizeof(Frames{}); size > 64 {
		t.Errorf("%d bytes for each connection", size)
	}
	f := New(Server)
	feed(t, &f, join(peer(Client).frame(true, 9, []byte("ping")), peer(Client).frame(true, 2, []byte("data"))), single)
	if f.part != nil || f.pong != nil {
		t.Error("a control frame is held that nobody waits for")
	}
}

// The other half of the word loop and of the vector instructions: every length, every offset, over itself.
func TestMove(t *testing.T) {
	const key = 0x04030201
	src := make([]byte, 700)
	for i := range src {
		src[i] = byte(i * 7)
	}
	for n := range 600 {
		for _, ahead := range []int{0, 1, 3, 7, 8, 14, 31} {
			buf := bytes.Clone(src)
			move(buf, buf[ahead:ahead+n], key)
			for i := range n {
				if want := src[ahead+i] ^ byte(i%4+1); buf[i] != want {
					t.Fatalf("%d bytes from %d: byte %d is %x, want %x", n, ahead, i, buf[i], want)
				}
			}
			if !bytes.Equal(buf[n:], src[n:]) {
				t.Fatalf("%d bytes from %d: more was written", n, ahead)
			}
		}
	}
}

// Torn anywhere, a peer's bytes amount to the same, and to what another library's reader makes of them; a state read back goes on.
func FuzzFrames(f *testing.F) {
	for _, p := range peers {
		frame := func(fin bool, op byte, payload string) []byte { return p.frame(fin, op, []byte(payload)) }
		client := Role(p) == Client
		f.Add(client, frame(true, 2, "abc"), uint64(0))
		f.Add(client, join(frame(false, 2, "ab"), frame(true, 9, "p"), frame(true, 0, "c")), uint64(0x0102030405))
		f.Add(client, frame(true, 8, "\x03\xe8bye"), uint64(1))
		f.Add(client, frame(true, 8, "\x03\xe8\xff"), uint64(1))
		f.Add(client, frame(true, 8, "\x03\xf4"), uint64(1))
		f.Add(client, frameWith(true, 0, 2, client, math.MaxInt64, []byte("abc")), uint64(3))
		f.Add(client, frameWith(true, 0, 2, client, 1<<63, nil), uint64(7))
		f.Add(client, frameWith(true, 4, 2, false, 3, []byte("abc")), uint64(0))
		f.Add(client, frame(true, 1, ""), uint64(2))
		f.Add(client, frame(true, 2, string(make([]byte, 300))), uint64(90))
		f.Add(client, join(frame(true, 9, ""), frame(true, 9, string(make([]byte, 125))), frame(true, 10, "x")), uint64(5))
	}
	f.Fuzz(func(t *testing.T, client bool, b []byte, cuts uint64) {
		role := Client
		if client {
			role = Server
		}
		want := reference(role, b)
		one := New(role)
		if got := feed(t, &one, b, single); got != want {
			t.Fatalf("byte by byte: got %+v, want %+v", got, want)
		}
		// In larger pieces several pings share a pong.
		r := New(role)
		random := cuts
		got := feed(t, &r, b, func(left int) int {
			random = random*6364136223846793005 + cuts | 1
			return 1 + int(random>>40)%min(left, 1+int(cuts%97))
		})
		if got.payload != want.payload || got.end != want.end || got.within != want.within {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		moved, err := ReadState(r.AppendState(nil))
		if err != nil {
			t.Fatal(err)
		}
		if a, b := feed(t, &moved, b, whole), feed(t, &r, b, whole); a != b {
			t.Fatalf("moved: %+v, here: %+v", a, b)
		}
		if s, err := ReadState(b); err == nil { // whatever it is
			feed(t, &s, b, whole)
		}
	})
}
