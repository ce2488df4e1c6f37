package mqtt

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// happening is an event at its place in the stream.
type happening struct {
	at        int // bytes of the stream up to and including the one that caused it
	ev        Event
	typ       PacketType
	flags     byte
	remaining uint32
	boundary  bool
}

// naive finds the packets of a stream with the whole stream at hand. ok is false if it breaks off at a malformed header;
// good is how many bytes come before the one that is wrong.
func naive(b []byte) (hs []happening, good int, ok bool) {
	for i := 0; i < len(b); {
		first := b[i]
		if first>>4 == 0 {
			return hs, i, false
		}
		length, j := 0, i+1
		for shift := 0; ; shift += 7 {
			if j == len(b) {
				return hs, len(b), true
			}
			if shift == 21 && b[j] > 127 {
				return hs, j, false
			}
			length += int(b[j]%128) << shift
			j++
			if b[j-1] < 128 {
				break
			}
		}
		h := happening{at: j, ev: Header, typ: PacketType(first / 16), flags: first % 16, remaining: uint32(length)}
		if length == 0 {
			h.ev, h.boundary = Header|End, true
		}
		hs = append(hs, h)
		i = j + length
		if length > 0 && i <= len(b) {
			hs = append(hs, happening{at: i, ev: End, typ: h.typ, flags: h.flags, boundary: true})
		}
	}
	return hs, len(b), true
}

// failer is what *testing.T and *rapid.T have in common, as far as it is needed here.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// step runs s over the pieces and collects what is not Body.
func step(t failer, s *Scanner, pieces [][]byte) (hs []happening, good int, err error) {
	at := 0
	for _, p := range pieces {
		for len(p) > 0 {
			n, ev, err := s.Step(p)
			at += n
			if err != nil {
				return hs, at, err
			}
			if n < 1 || n > len(p) {
				t.Fatalf("Step consumed %d of %d bytes", n, len(p))
			}
			if s.AtHeader() != (ev&Header != 0) {
				t.Fatalf("at %d: AtHeader %v after event %b", at, s.AtHeader(), ev)
			}
			if ev == Body && n < len(p) {
				t.Fatalf("at %d: Step stopped for nothing", at)
			}
			if ev != Body {
				hs = append(hs, happening{at, ev, s.Type(), s.Flags(), s.Remaining(), s.Boundary()})
			}
			p = p[n:]
		}
	}
	return hs, at, nil
}

// stops runs Skip over the pieces and collects where it stopped, and how many packets ended.
func stops(t failer, s *Scanner, pieces [][]byte, mask uint16) (hs []happening, ended, good int, err error) {
	at := 0
	for _, p := range pieces {
		for len(p) > 0 {
			n, e, err := s.Skip(p, mask)
			at += n
			ended += e
			if err != nil {
				return hs, ended, at, err
			}
			if n < 1 || n > len(p) {
				t.Fatalf("Skip consumed %d of %d bytes", n, len(p))
			}
			stopped := s.AtHeader() && mask>>s.Type()&1 == 1
			if n < len(p) && !stopped {
				t.Fatalf("at %d: Skip stopped for nothing", at)
			}
			if stopped {
				ev := Header
				if s.Boundary() {
					ev |= End
				}
				hs = append(hs, happening{at, ev, s.Type(), s.Flags(), s.Remaining(), s.Boundary()})
			}
			p = p[n:]
		}
	}
	return hs, ended, at, nil
}

// compare demands that every way to scan the stream, torn as it is, tells the same as the naive reader.
func compare(t failer, pieces [][]byte, mask uint16) {
	t.Helper()
	stream := bytes.Join(pieces, nil)
	want, wantGood, wantOK := naive(stream)

	var s Scanner
	got, good, err := step(t, &s, pieces)
	if (err == nil) != wantOK || good != wantGood || !equal(got, want) {
		t.Fatalf("Step over %x\n got %v, %d, %v\nwant %v, %d, %v", pieces, got, good, err, want, wantGood, wantOK)
	}

	var wantStops []happening
	wantEnded := 0
	for _, h := range want {
		if h.ev&Header != 0 && mask>>h.typ&1 == 1 {
			wantStops = append(wantStops, h)
		}
		if h.ev&End != 0 {
			wantEnded++
		}
	}
	var k Scanner
	gotStops, ended, good, err := stops(t, &k, pieces, mask)
	if (err == nil) != wantOK || good != wantGood || ended != wantEnded || !equal(gotStops, wantStops) {
		t.Fatalf("Skip(%016b) over %x\n got %v, %d ended, %d, %v\nwant %v, %d ended, %d, %v", mask, pieces, gotStops, ended, good, err, wantStops, wantEnded, wantGood, wantOK)
	}
	if s != k {
		t.Fatalf("over %x Step left %+v, Skip left %+v", pieces, s, k)
	}
	if !wantOK { // broken for good, at the same place
		for _, s := range []*Scanner{&s, &k} {
			if n, _, err := s.Step(stream[good:]); n != 0 || err == nil {
				t.Fatalf("a broken scanner went on: %d, %v", n, err)
			}
			if n, e, err := s.Skip(stream[good:], 0); n != 0 || e != 0 || err == nil {
				t.Fatalf("a broken scanner skipped on: %d, %d, %v", n, e, err)
			}
		}
	}

	var r Scanner
	b, err := s.MarshalBinary()
	if err != nil || len(b) > 16 {
		t.Fatalf("state of %d bytes, %v", len(b), err)
	}
	if err := r.UnmarshalBinary(b); err != nil || r != s {
		t.Fatalf("state %x of %+v came back as %+v, %v", b, s, r, err)
	}
}

func equal(a, b []happening) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// tear cuts b where cuts, read as distances, say; the rest is the last piece.
func tear(b []byte, cuts []byte) (pieces [][]byte) {
	for _, c := range cuts {
		n := min(int(c), len(b))
		pieces = append(pieces, b[:n])
		b = b[n:]
	}
	return append(pieces, b)
}

func TestScannerEvents(t *testing.T) {
	// CONNECT whole, two PINGREQs, a PUBLISH of 200 bytes (length in two bytes), DISCONNECT.
	stream := unhex(t, "100d 0004'MQTT' 04 02 003c 0001'a' c000 c000 3bc801")
	stream = append(stream, make([]byte, 200)...)
	stream = append(stream, 0xe0, 0x00)
	want := []happening{
		{2, Header, CONNECT, 0, 13, false},
		{15, End, CONNECT, 0, 0, true},
		{17, Header | End, PINGREQ, 0, 0, true},
		{19, Header | End, PINGREQ, 0, 0, true},
		{22, Header, PUBLISH, 0xb, 200, false},
		{222, End, PUBLISH, 0xb, 0, true},
		{224, Header | End, DISCONNECT, 0, 0, true},
	}
	var s Scanner
	if !s.Boundary() || s.AtHeader() || s.Type() != 0 || s.Remaining() != 0 {
		t.Errorf("zero value: %+v", s)
	}
	got, _, err := step(t, &s, [][]byte{stream})
	if err != nil || !equal(got, want) {
		t.Fatalf("whole:\n got %v, %v\nwant %v", got, err, want)
	}
	s = Scanner{}
	got, _, err = step(t, &s, tear(stream, bytes.Repeat([]byte{1}, len(stream))))
	if err != nil || !equal(got, want) {
		t.Fatalf("byte by byte:\n got %v, %v\nwant %v", got, err, want)
	}

	s = Scanner{}
	n, ended, err := s.Skip(stream, 1<<PUBLISH|1<<DISCONNECT)
	if n != 22 || ended != 3 || err != nil || !s.AtHeader() || s.Type() != PUBLISH || s.Remaining() != 200 {
		t.Fatalf("first stop: %d, %d, %v, %+v", n, ended, err, s)
	}
	n, ended, err = s.Skip(stream[22:], 1<<PUBLISH|1<<DISCONNECT)
	if n != 202 || ended != 2 || err != nil || !s.AtHeader() || s.Type() != DISCONNECT || !s.Boundary() {
		t.Fatalf("second stop: %d, %d, %v, %+v", n, ended, err, s)
	}
	if n, ended, err = s.Skip(nil, 1<<DISCONNECT); n != 0 || ended != 0 || err != nil || !s.AtHeader() {
		t.Fatalf("nothing: %d, %d, %v, %+v", n, ended, err, s)
	}
	if n, ended, err = s.Skip([]byte{0xc0}, 1<<DISCONNECT); n != 1 || ended != 0 || err != nil || s.AtHeader() || s.Boundary() || s.Type() != PINGREQ {
		t.Fatalf("half a header: %d, %d, %v, %+v", n, ended, err, s)
	}
}

func TestScannerLengths(t *testing.T) {
	for _, tt := range []struct {
		hex  string
		want uint32
		kind ErrorKind
		good int
	}{
		{"3000", 0, 0, 2},
		{"307f", 127, 0, 2},
		{"308001", 128, 0, 3},
		{"30ff7f", 16383, 0, 3},
		{"30808001", 16384, 0, 4},
		{"30ffff7f", 2097151, 0, 4},
		{"3080808001", 2097152, 0, 5},
		{"30ffffff7f", 268435455, 0, 5},
		{"3080808000", 0, 0, 5},
		{"308500", 5, 0, 3},
		{"30ffffffff7f", 0, BadRemainingLength, 4},
		{"308080808000", 0, BadRemainingLength, 4},
		{"00", 0, BadPacketType, 0},
		{"0f00", 0, BadPacketType, 0},
		{"c00000", 0, BadPacketType, 2},
	} {
		b := unhex(t, tt.hex)
		for _, pieces := range [][][]byte{{b}, tear(b, bytes.Repeat([]byte{1}, len(b)))} {
			compare(t, pieces, 0)
			var s Scanner
			_, good, err := step(t, &s, pieces)
			if kindOf(err) != tt.kind || good != tt.good || s.Remaining() != tt.want {
				t.Errorf("%s: %v at %d, remaining %d", tt.hex, err, good, s.Remaining())
			}
		}
	}
}

// TestScannerLargestPacket: 256 MiB pass without being there.
func TestScannerLargestPacket(t *testing.T) {
	for _, skip := range []bool{false, true} {
		var s Scanner
		piece := make([]byte, 1<<20)
		stream := unhex(t, "30ffffff7f")
		ended := 0
		for total := 0; total < 5+MaxRemainingLength; {
			p := stream
			if total > 0 {
				p = piece[:min(len(piece), 5+MaxRemainingLength-total)]
			}
			total += len(p)
			if skip {
				n, e, err := s.Skip(p, 0)
				if n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				ended += e
			} else {
				n, ev, err := s.Step(p)
				if n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				if ev&End != 0 {
					ended++
				}
			}
			if want := 5 + MaxRemainingLength - total; int(s.Remaining()) != want {
				t.Fatalf("after %d bytes %d remain, want %d", total, s.Remaining(), want)
			}
		}
		if ended != 1 || !s.Boundary() {
			t.Errorf("skip %v: %d packets, %+v", skip, ended, s)
		}
	}
}

// TestScannerHoweverTorn: events do not depend on how the bytes arrive.
func TestScannerHoweverTorn(t *testing.T) {
	packet := rapid.Custom(func(t *rapid.T) []byte {
		b := []byte{rapid.ByteRange(0x10, 0xff).Draw(t, "first")}
		length := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 5), rapid.IntRange(120, 135), rapid.IntRange(16380, 16390)).Draw(t, "length")
		b = appendUvarint(b, length)
		if pad := 5 - len(b); rapid.IntRange(0, 9).Draw(t, "overlong") == 0 && pad > 0 {
			b[len(b)-1] |= 0x80
			for range pad - 1 {
				b = append(b, 0x80)
			}
			b = append(b, 0)
		}
		return append(b, bytes.Repeat([]byte{rapid.Byte().Draw(t, "body")}, length)...)
	})
	rapid.Check(t, func(t *rapid.T) {
		stream := bytes.Join(rapid.SliceOfN(packet, 0, 8).Draw(t, "packets"), nil)
		if rapid.Bool().Draw(t, "with a tail") {
			stream = append(stream, rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "tail")...)
		}
		mask := rapid.Uint16().Draw(t, "mask")
		cuts := rapid.SliceOf(rapid.Byte()).Draw(t, "cuts")
		compare(t, tear(stream, cuts), mask)
		compare(t, [][]byte{stream}, mask)
	})
}

// TestScannerTravels: a scanner that is stored and restored between any two bytes goes on as if nothing had been.
func TestScannerTravels(t *testing.T) {
	stream := unhex(t, "100d 0004'MQTT' 04 02 003c 0001'a' c000 30808000 3285808000 'hello' e000")
	want, _, _ := naive(stream)
	var got []happening
	var s Scanner
	for i, c := range stream {
		b, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		s = Scanner{state: 99}
		if err := s.UnmarshalBinary(b); err != nil {
			t.Fatalf("before byte %d: %x: %v", i, b, err)
		}
		_, ev, err := s.Step([]byte{c})
		if err != nil {
			t.Fatal(err)
		}
		if ev != Body {
			got = append(got, happening{i + 1, ev, s.Type(), s.Flags(), s.Remaining(), s.Boundary()})
		}
	}
	if !equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
}

func TestScannerStateIsChecked(t *testing.T) {
	for _, h := range []string{
		"", "00", "0000000000", "00000000000000",
		"100600000000", // no such state
		"008000000000", // a header without a packet
		"000500000001", // a body without a packet
		"0f0500000001", // of type 0
		"100500000000", // a body that is over
		"100510000000", // longer than there can be
		"100000000001", // between packets with bytes to come
		"100100000001", // a length before its bytes
		"100200000080", // more than one byte can say
		"100400200000", // more than three bytes can say
		"108200000001", // a header that is complete and is not
	} {
		s := Scanner{first: 0x30, left: 7, state: inBody}
		if err := s.UnmarshalBinary(unhex(t, h)); err != ErrScannerState {
			t.Errorf("%q: %v, %+v", h, err, s)
		}
		if s != (Scanner{first: 0x30, left: 7, state: inBody}) {
			t.Errorf("%q: the scanner was changed: %+v", h, s)
		}
	}
}
