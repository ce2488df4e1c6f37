package listen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"pgregory.net/rapid"
)

// seen is what a client's bytes amount to.
type seen struct {
	payload  []byte
	controls []string // opcode and payload of the control frames, in order
	code     uint16   // of the error, 0 = none
	between  bool
}

// feed gives b to r in pieces that cut chooses, each in memory of its own, as sockets do.
func feed(r *FrameReader, b []byte, cut func(left int) int) (s seen) {
	for len(b) > 0 && s.code == 0 {
		n := cut(len(b))
		piece := bytes.Clone(b[:n])
		b = b[n:]
		for len(piece) > 0 {
			took, payload, ev, err := r.Next(piece)
			if err != nil {
				s.code = err.(*FrameError).Code
				break
			}
			if took == 0 {
				panic("no progress")
			}
			switch ev {
			case FrameData:
				s.payload = append(s.payload, payload...)
			case FramePing, FramePong, FrameClose:
				s.controls = append(s.controls, string("?9A8"[ev-FrameData])+string(payload))
			}
			piece = piece[took:]
		}
	}
	s.between = r.Between()
	return s
}

func whole(left int) int { return left }

// naive reads the same with everything in memory, by gobwas/ws's reader.
func naive(b []byte) (s seen) {
	r := bytes.NewReader(b)
	state := ws.StateServerSide
	for {
		start := r.Len()
		if start >= 2 { // gobwas would wait for the whole header before it judges
			at := len(b) - start
			h := ws.Header{Fin: b[at]&0x80 != 0, Rsv: b[at] >> 4 & 7, OpCode: ws.OpCode(b[at] & 15), Masked: b[at+1]&0x80 != 0, Length: int64(b[at+1] & 0x7f)}
			if ws.CheckHeader(h, state) != nil {
				s.code = 1002
				return s
			}
			if h.OpCode == ws.OpText {
				s.code = 1003
				return s
			}
		}
		h, err := ws.ReadHeader(r)
		if errors.Is(err, ws.ErrHeaderLengthMSB) {
			if start >= 2+8+4 { // it judges before the mask has come
				s.code = 1002
			}
			return s
		}
		if err != nil {
			s.between = err == io.EOF && start == 0 && !state.Fragmented()
			return s
		}
		payload, _ := io.ReadAll(io.LimitReader(r, h.Length))
		ws.Cipher(payload, h.Mask, 0)
		if h.OpCode.IsControl() {
			if int64(len(payload)) < h.Length {
				return s
			}
			if h.OpCode == ws.OpClose && len(payload) > 0 {
				code, text := ws.ParseCloseFrameData(payload)
				if len(payload) == 1 || code >= 5000 || ws.CheckCloseFrameData(code, text) != nil {
					s.code = 1002
					if len(payload) > 1 && code < 5000 && ws.CheckCloseFrameData(code, "") == nil && !utf8.ValidString(text) {
						s.code = 1007
					}
					return s
				}
			}
			s.controls = append(s.controls, map[ws.OpCode]string{ws.OpPing: "9", ws.OpPong: "A", ws.OpClose: "8"}[h.OpCode]+string(payload))
			if h.OpCode == ws.OpClose {
				s.between = true
				return s
			}
			continue
		}
		s.payload = append(s.payload, payload...)
		if int64(len(payload)) < h.Length {
			return s
		}
		if state = state.Clear(ws.StateFragmented); !h.Fin {
			state = state.Set(ws.StateFragmented)
		}
	}
}

func equalSeen(a, b seen) bool {
	return bytes.Equal(a.payload, b.payload) && strings.Join(a.controls, "|") == strings.Join(b.controls, "|") && a.code == b.code && (a.code != 0 || a.between == b.between)
}

func TestFrameReaderRules(t *testing.T) {
	data := clientFrame(true, 2, []byte("abc"))
	start, middle, end := clientFrame(false, 2, []byte("ab")), clientFrame(false, 0, nil), clientFrame(true, 0, []byte("c"))
	ping := clientFrame(true, 9, []byte("p"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		in   []byte
		want seen
	}{
		"nothing":                    {nil, seen{between: true}},
		"one message":                {data, seen{payload: []byte("abc"), between: true}},
		"two messages":               {join(data, data), seen{payload: []byte("abcabc"), between: true}},
		"empty message":              {clientFrame(true, 2, nil), seen{between: true}},
		"fragments":                  {join(start, middle, end), seen{payload: []byte("abc"), between: true}},
		"ping between fragments":     {join(start, ping, middle, end), seen{payload: []byte("abc"), controls: []string{"9p"}, between: true}},
		"fragments without end":      {join(start, middle), seen{payload: []byte("ab")}},
		"cut in the payload":         {data[:7], seen{payload: []byte("a")}},
		"cut in the header":          {data[:3], seen{}},
		"16-bit length":              {clientFrame(true, 2, make([]byte, 126)), seen{payload: make([]byte, 126), between: true}},
		"64-bit length":              {clientFrame(true, 2, make([]byte, 1<<16)), seen{payload: make([]byte, 1<<16), between: true}},
		"more than it needs":         {append([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, 'a'), seen{payload: []byte("a"), between: true}},
		"2^63-1 claimed":             {frameWith(true, 0, 2, true, math.MaxInt64, []byte("abc")), seen{payload: []byte("abc")}},
		"2^63 claimed":               {frameWith(true, 0, 2, true, 1<<63, nil), seen{code: 1002}},
		"ping":                       {ping, seen{controls: []string{"9p"}, between: true}},
		"ping without payload":       {join(clientFrame(true, 9, nil), data), seen{payload: []byte("abc"), controls: []string{"9"}, between: true}},
		"largest ping":               {clientFrame(true, 9, make([]byte, 125)), seen{controls: []string{"9" + string(make([]byte, 125))}, between: true}},
		"oversized ping":             {clientFrame(true, 9, make([]byte, 126)), seen{code: 1002}},
		"pong":                       {clientFrame(true, 10, []byte("p")), seen{controls: []string{"Ap"}, between: true}},
		"fragmented ping":            {clientFrame(false, 9, nil), seen{code: 1002}},
		"close":                      {join(clientFrame(true, 8, []byte("\x03\xe8bye")), []byte("whatever")), seen{controls: []string{"8\x03\xe8bye"}, between: true}},
		"close without a code":       {clientFrame(true, 8, nil), seen{controls: []string{"8"}, between: true}},
		"close between fragments":    {join(start, clientFrame(true, 8, nil)), seen{payload: []byte("ab"), controls: []string{"8"}, between: true}},
		"close with half a code":     {clientFrame(true, 8, []byte{3}), seen{code: 1002}},
		"close with a reserved code": {clientFrame(true, 8, []byte{3, 0xed}), seen{code: 1002}},
		"close with a private code":  {clientFrame(true, 8, []byte{0x13, 0x87}), seen{controls: []string{"8\x13\x87"}, between: true}},
		"close with code 5000":       {clientFrame(true, 8, []byte{0x13, 0x88}), seen{code: 1002}},
		"close with code 65535":      {clientFrame(true, 8, []byte("\xff\xff\xff")), seen{code: 1002}},
		"close with an unknown code": {clientFrame(true, 8, []byte{0x07, 0xd0}), seen{code: 1002}}, // 2000
		"close with ill-formed text": {clientFrame(true, 8, []byte("\x03\xe8\xff")), seen{code: 1007}},
		"text":                       {clientFrame(true, 1, []byte("abc")), seen{code: 1003}},
		"text behind a message":      {join(data, clientFrame(true, 1, nil)), seen{payload: []byte("abc"), code: 1003}},
		"unmasked":                   {frameWith(true, 0, 2, false, 3, []byte("abc")), seen{code: 1002}},
		"unmasked ping":              {frameWith(true, 0, 9, false, 0, nil), seen{code: 1002}},
		"compressed (RSV1)":          {frameWith(true, 4, 2, true, 3, []byte("abc")), seen{code: 1002}},
		"RSV2":                       {frameWith(true, 2, 2, true, 3, []byte("abc")), seen{code: 1002}},
		"RSV3 on a ping":             {frameWith(true, 1, 9, true, 0, nil), seen{code: 1002}},
		"reserved opcode 3":          {clientFrame(true, 3, nil), seen{code: 1002}},
		"reserved opcode 11":         {clientFrame(true, 11, nil), seen{code: 1002}},
		"continuation of nothing":    {end, seen{code: 1002}},
		"message within a message":   {join(start, data), seen{payload: []byte("ab"), code: 1002}},
		"two bytes are enough":       {[]byte{0x82, 0x05}, seen{code: 1002}},
	} {
		t.Run(name, func(t *testing.T) {
			for how, cut := range map[string]func(int) int{"whole": whole, "byte by byte": func(int) int { return 1 }} {
				var r FrameReader
				got := feed(&r, c.in, cut)
				if !equalSeen(got, c.want) {
					t.Errorf("%s: got %+v, want %+v", how, got, c.want)
				}
				if got.code != 0 { // final: the rest is swallowed
					if n, _, ev, err := r.Next([]byte("more")); n != 4 || ev != FrameMore || err != nil {
						t.Errorf("%s: after the error: %d, %d, %v", how, n, ev, err)
					}
				}
			}
			if n := naive(bytes.Clone(c.in)); !equalSeen(n, c.want) {
				t.Errorf("the reference got %+v", n)
			}
		})
	}
}

// Whatever the frames, the pieces they come in, the pings between them and the moment at which the state moves to another reader:
// the payload is the same.
func TestAnyFragmentationGivesTheSamePayload(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "payload")
		pings := 0
		var in []byte
		for rest, first := payload, true; ; {
			for rapid.IntRange(0, 3).Draw(t, "ping") == 0 {
				in = append(in, clientFrame(true, 9, rest[:min(len(rest), 125)])...)
				pings++
			}
			n := rapid.IntRange(0, len(rest)).Draw(t, "fragment")
			fin := rapid.Bool().Draw(t, "fin") || n == len(rest)
			op := byte(0)
			if first {
				op = 2
			}
			in = append(in, clientFrame(fin, op, rest[:n])...)
			first = fin
			if rest = rest[n:]; len(rest) == 0 && fin {
				break
			}
		}
		var r FrameReader
		var got []byte
		for len(in) > 0 {
			n := rapid.IntRange(1, len(in)).Draw(t, "segment")
			if rapid.Bool().Draw(t, "small") {
				n = min(n, 3)
			}
			s := feed(&r, in[:n], whole)
			if s.code != 0 {
				t.Fatalf("error %d", s.code)
			}
			got = append(got, s.payload...)
			pings -= len(s.controls)
			in = in[n:]
			if rapid.Bool().Draw(t, "move") {
				b, err := r.AppendBinary(nil)
				if err != nil {
					t.Fatal(err)
				}
				r = FrameReader{}
				if err := r.UnmarshalBinary(b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(got, payload) || pings != 0 || !r.Between() {
			t.Fatalf("got %d bytes of %d, %d pings missing, between %v", len(got), len(payload), pings, r.Between())
		}
	})
}

func TestDamagedStateIsRefused(t *testing.T) {
	var r FrameReader
	feed(&r, clientFrame(false, 2, []byte("abcdef"))[:9], whole)
	good, _ := r.AppendBinary(nil)
	for i := range good {
		for _, v := range []byte{0xff, 0x80, 7} {
			b := bytes.Clone(good)
			b[i] = v
			var s FrameReader
			if err := s.UnmarshalBinary(b); err == nil {
				feed(&s, clientFrame(true, 2, make([]byte, 300)), whole) // what passes must work
			}
		}
		var s FrameReader
		if err := s.UnmarshalBinary(good[:i]); err == nil {
			t.Errorf("%d bytes of %d pass", i, len(good))
		}
		if s != (FrameReader{}) {
			t.Error("a refused state was taken over in part")
		}
	}
}

func TestFramesOfOurs(t *testing.T) {
	for _, size := range []int{0, 1, 125, 126, 0xffff, 0x10000} {
		b := append(AppendBinaryHeader(nil, size), make([]byte, size)...)
		h, err := ws.ReadHeader(bytes.NewReader(b))
		if err != nil || ws.CheckHeader(h, ws.StateClientSide) != nil || h.Length != int64(size) || !h.Fin || h.OpCode != ws.OpBinary || len(b)-size > maxFrameHeader {
			t.Errorf("%d: %+v, %v", size, h, err)
		}
	}
	if got := AppendPong(nil, []byte("xy")); string(got) != "\x8a\x02xy" {
		t.Errorf("pong %q", got)
	}
	if got := AppendClose(nil, 0); string(got) != "\x88\x00" {
		t.Errorf("close %q", got)
	}
	if got := AppendClose([]byte("x"), 1000); string(got) != "x\x88\x02\x03\xe8" {
		t.Errorf("close %q", got)
	}
}

func FuzzWSFrames(f *testing.F) {
	f.Add(clientFrame(true, 2, []byte("abc")), uint64(0))
	f.Add(bytes.Join([][]byte{clientFrame(false, 2, []byte("ab")), clientFrame(true, 9, []byte("p")), clientFrame(true, 0, []byte("c"))}, nil), uint64(0x0102030405))
	f.Add(clientFrame(true, 8, []byte("\x03\xe8bye")), uint64(1))
	f.Add(clientFrame(true, 8, []byte("\x03\xe8\xff")), uint64(1))
	f.Add(frameWith(true, 0, 2, true, math.MaxInt64, []byte("abc")), uint64(3))
	f.Add(frameWith(true, 0, 2, true, 1<<63, nil), uint64(7))
	f.Add(frameWith(true, 4, 2, false, 3, []byte("abc")), uint64(0))
	f.Add(clientFrame(true, 1, nil), uint64(2))
	f.Add(clientFrame(true, 2, make([]byte, 300)), uint64(90))
	f.Fuzz(func(t *testing.T, b []byte, cuts uint64) {
		want := naive(bytes.Clone(b))
		var r FrameReader
		state := cuts
		got := feed(&r, b, func(left int) int {
			state = state*6364136223846793005 + cuts | 1
			return 1 + int(state>>40)%min(left, 1+int(cuts%97))
		})
		if !equalSeen(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		moved, _ := r.AppendBinary(nil)
		var s FrameReader
		if err := s.UnmarshalBinary(moved); err != nil {
			t.Fatal(err)
		}
		_ = s.UnmarshalBinary(b) // whatever it is
		feed(&s, b, whole)
	})
}

func BenchmarkFrameReader(bench *testing.B) {
	for name, size := range map[string]int{"64B": 64, "1KiB": 1 << 10, "16KiB": 16 << 10} {
		bench.Run(name, func(b *testing.B) {
			frame := clientFrame(true, 2, make([]byte, size))
			var r FrameReader
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				// Unmasking in place makes noise of it, and again the payload: the header stays.
				for rest := frame; len(rest) > 0; {
					n, _, _, err := r.Next(rest)
					if err != nil {
						b.Fatal(err)
					}
					rest = rest[n:]
				}
			}
		})
	}
}

func TestFrameReaderDoesNotAllocate(t *testing.T) {
	frames := bytes.Join([][]byte{clientFrame(false, 2, make([]byte, 500)), clientFrame(true, 9, []byte("ping")), clientFrame(true, 0, make([]byte, 70_000))}, nil)
	var r FrameReader
	out := binary.BigEndian.AppendUint64(nil, 0)
	if n := testing.AllocsPerRun(100, func() {
		for rest := frames; len(rest) > 0; {
			n, p, ev, err := r.Next(rest)
			if err != nil {
				t.Fatal(err)
			}
			if ev == FramePing {
				out = AppendPong(out[:0], p)
			}
			rest = rest[n:]
		}
		out = AppendBinaryHeader(out[:0], 70_000)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
