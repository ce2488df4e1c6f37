package mqtt

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzConnect: no input panics, bytes behind the packet change nothing, a prefix never says something else than the whole,
// and what is accepted is well-formed and survives being written and read again.
func FuzzConnect(f *testing.F) {
	for _, c := range connects {
		f.Add(unhex(f, c.hex))
	}
	for _, c := range badConnects {
		f.Add(unhex(f, c.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 4096
		c, err := ParseConnect(b, limit)
		final := kindOf(err)
		if err != nil && err != ErrShort && final == 0 {
			t.Fatalf("an error that is none of ours: %v", err)
		}
		whole := len(b)
		if err == nil {
			whole = c.Size
			if c.Size > limit || c.Size > len(b) {
				t.Fatalf("size %d of %d bytes, limit %d", c.Size, len(b), limit)
			}
			again, err := ParseConnect(b[:c.Size], limit)
			if err != nil || !reflect.DeepEqual(again, c) {
				t.Fatalf("without what is behind it: %+v, %v, not %+v", again, err, c)
			}
		}
		for n := 0; n < whole; n += 1 + n/64 {
			_, err := ParseConnect(b[:n], limit)
			if err != ErrShort && (err == nil || kindOf(err) != final) {
				t.Fatalf("first %d bytes: %v; whole: %v", n, err, final)
			}
		}
		if err != nil {
			return
		}
		if !wellFormed(c.ClientID) || len(c.ClientID) == 0 && (c.Version == V31 || c.Version == V311 && !c.CleanStart) {
			t.Fatalf("client ID %q was accepted", c.ClientID)
		}
		if c.WillQoS > 2 || !c.Will && (c.WillQoS > 0 || c.WillRetain || c.WillDelay > 0) || c.Version != V5 && c.HasPassword && !c.HasUsername {
			t.Fatalf("inconsistent: %+v", c)
		}
		w := AppendConnect(nil, &c)
		back, err := ParseConnect(w, len(w))
		c.Size = len(w)
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("written %x, read %+v, %v, not %+v", w, back, err, c)
		}
	})
}

func FuzzConnack(f *testing.F) {
	for _, c := range connacks {
		f.Add(unhex(f, c.hex), byte(c.version))
	}
	f.Fuzz(func(t *testing.T, b []byte, version byte) {
		v := Version(version)
		c, err := ParseConnack(b, v)
		final := kindOf(err)
		if err != nil && err != ErrShort && final == 0 {
			t.Fatalf("an error that is none of ours: %v", err)
		}
		whole := len(b)
		if err == nil {
			whole = c.Size
			if c.Size > len(b) || c.Size > MaxConnack || !wellFormed(c.AssignedClientID) {
				t.Fatalf("%d bytes: %+v", len(b), c)
			}
			if v != V5 && (c.AssignedClientID != nil || c.HasSessionExpiry || c.HasServerKeepAlive) || v == V31 && c.SessionPresent {
				t.Fatalf("more than version %v has: %+v", v, c)
			}
			again, err := ParseConnack(b[:c.Size], v)
			if err != nil || !reflect.DeepEqual(again, c) {
				t.Fatalf("without what is behind it: %+v, %v, not %+v", again, err, c)
			}
		}
		for n := 0; n < whole; n += 1 + n/64 {
			_, err := ParseConnack(b[:n], v)
			if err != ErrShort && (err == nil || kindOf(err) != final) {
				t.Fatalf("first %d bytes: %v; whole: %v", n, err, final)
			}
		}
	})
}

func FuzzDisconnect(f *testing.F) {
	for _, h := range []string{"e000", "e00104", "e0029c00", "e014001211000000782600016b0001761f0003627965", "e007040511ffffffff", "e00c000a11000000011100000001"} {
		f.Add(unhex(f, h), byte(V5))
		f.Add(unhex(f, h), byte(V311))
	}
	f.Fuzz(func(t *testing.T, b []byte, version byte) {
		d, err := ParseDisconnect(b, Version(version))
		if err != nil {
			if kindOf(err) == 0 || d != (Disconnect{}) {
				t.Fatalf("%+v, %v", d, err)
			}
			return
		}
		// What is one whole packet for the parser is one for the scanner.
		hs, _, ok := naive(b)
		if !ok || len(hs) == 0 || hs[len(hs)-1].at != len(b) || hs[len(hs)-1].ev&End == 0 || len(hs) > 2 {
			t.Fatalf("accepted, but not one packet: %v", hs)
		}
		if Version(version) != V5 && d != (Disconnect{}) || !d.HasSessionExpiry && d.SessionExpiry > 0 {
			t.Fatalf("version %d: %+v", version, d)
		}
		for n := range b {
			if _, err := ParseDisconnect(b[:n], Version(version)); err == nil {
				t.Fatalf("the first %d bytes of %x were a packet too", n, b)
			}
		}
	})
}

// FuzzScanner tears a stream and compares Step and Skip with a reader that has all of it.
func FuzzScanner(f *testing.F) {
	var stream []byte
	for _, c := range connects {
		stream = append(stream, unhex(f, c.hex)...)
	}
	f.Add(stream, []byte{1, 1, 1, 7, 200}, uint16(1<<CONNECT))
	f.Add(unhex(f, "c000c000e000"), []byte{3}, uint16(1<<DISCONNECT))
	f.Add(unhex(f, "3b800100"), []byte{}, uint16(0))
	f.Add(unhex(f, "30ffffff7f00"), []byte{4}, uint16(0xffff))
	f.Add(unhex(f, "c00030ffffffff00"), []byte{2, 1, 1, 1}, uint16(1<<PUBLISH))
	f.Add(append(unhex(f, "328808"), bytes.Repeat([]byte{0xe0}, 1040)...), []byte{255, 255}, uint16(1<<DISCONNECT|1<<PUBLISH))
	f.Fuzz(func(t *testing.T, stream, cuts []byte, mask uint16) {
		compare(t, tear(stream, cuts), mask)
	})
}

// FuzzScannerState: every state that is taken is one that can be written, and from which the scanner goes on soundly.
func FuzzScannerState(f *testing.F) {
	f.Add(unhex(f, "300500000007"), unhex(f, "00000000000000e000"))
	f.Add(unhex(f, "300300003fff"), unhex(f, "ff7f"))
	f.Add(unhex(f, "e08000000000"), unhex(f, "c000"))
	f.Fuzz(func(t *testing.T, state, p []byte) {
		var s Scanner
		if s.UnmarshalBinary(state) != nil {
			return
		}
		if b, _ := s.MarshalBinary(); !bytes.Equal(b, state) {
			t.Fatalf("%x was taken and written as %x", state, b)
		}
		stepped, skipped := s, s
		_, _, stepErr := step(t, &stepped, [][]byte{p})
		_, _, _, skipErr := stops(t, &skipped, [][]byte{p}, 1<<DISCONNECT)
		if stepErr != skipErr || stepped != skipped {
			t.Fatalf("from %x over %x: Step %+v, %v; Skip %+v, %v", state, p, stepped, stepErr, skipped, skipErr)
		}
		if s.Remaining() > MaxRemainingLength {
			t.Fatalf("%+v", s)
		}
	})
}
