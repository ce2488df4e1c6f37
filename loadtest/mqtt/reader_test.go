package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
)

// readAll reads b in pieces of n bytes and returns what each packet said, in words.
func readAll(r *Reader, b []byte, n int) (said []string, err error) {
	var p Packet
	for len(b) > 0 {
		piece := bytes.Clone(b[:min(n, len(b))]) // its own memory: what is borrowed too long is overwritten below
		b = b[len(piece):]
		in := piece
		for {
			rest, ok, err := r.Next(in, &p)
			if err != nil {
				return said, err
			}
			if !ok {
				break
			}
			said = append(said, words(&p))
			in = rest
		}
		for i := range piece {
			piece[i] = 0xee
		}
	}
	return said, nil
}

// words says what is in a packet.
func words(p *Packet) string {
	s := fmt.Sprintf("%v id=%d code=%#02x codes=%x reason=%q reference=%q", p.Kind, p.ID, p.Code, p.Codes, p.Reason, p.ServerReference)
	switch p.Kind {
	case CONNACK:
		s += fmt.Sprintf(" %+v", p.Connack)
	case PUBLISH:
		m := p.Publish
		s += fmt.Sprintf(" %s %q id=%d qos=%d retain=%v dup=%v", m.Topic, m.Payload, m.ID, m.QoS, m.Retain, m.Dup)
	}
	return s
}

// one reads a single packet, whole.
func one(v Version, b []byte) (*Packet, error) {
	r := Reader{Version: v}
	var p Packet
	rest, ok, err := r.Next(b, &p)
	if err == nil && (!ok || len(rest) > 0) {
		err = fmt.Errorf("ok %v, %d bytes left", ok, len(rest))
	}
	return &p, err
}

func TestConnack(t *testing.T) {
	plain := Connack{ReceiveMaximum: 65_535, MaximumQoS: 2}
	for _, c := range []struct {
		v    Version
		in   string
		want func(*Connack)
	}{
		{V311, "20 02 00 00", func(*Connack) {}},
		{V311, "20 02 01 00", func(k *Connack) { k.SessionPresent = true }},
		{V311, "20 02 00 05", func(k *Connack) { k.Code = 5 }},
		{V31, "20 02 77 00", func(*Connack) {}},              // the byte is reserved there
		{V5, "20 02 00 01", func(k *Connack) { k.Code = 1 }}, // a server of 3.1.1
		{V5, "20 03 00 00 00", func(*Connack) {}},
		{V5, "20 03 00 87 00", func(k *Connack) { k.Code = 0x87 }},
		{
			V5, "20 21 01 00 1e 11 00000009 21 000a 24 01 27 00001000 12 0002 6964 13 001e 1f 0001 72 22 000a",
			func(k *Connack) {
				*k = Connack{
					SessionPresent: true, HasExpiry: true, Expiry: 9, ReceiveMaximum: 10, MaximumQoS: 1, MaximumPacketSize: 4096,
					AssignedID: []byte("id"), HasKeepAlive: true, KeepAlive: 30, Reason: []byte("r"),
				}
			},
		},
		{V5, "20 08 00 9c 05 1c 0002 6232", func(k *Connack) { k.Code, k.ServerReference = 0x9c, []byte("b2") }},
		{V5, "20 13 00 00 10 25 00 28 01 29 00 2a 01 1a 0000 26 0000 0000", func(*Connack) {}},
	} {
		want := plain
		c.want(&want)
		p, err := one(c.v, unhex(t, c.in))
		if err != nil || !reflect.DeepEqual(p.Connack, want) {
			t.Errorf("%v %s:\n got %+v, %v\nwant %+v", c.v, c.in, p.Connack, err, want)
		}
	}
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		v    Version
		in   string
		want string
	}{
		{V311, "30 04 0001 74 6d", `PUBLISH id=0 code=0x00 codes= reason="" reference="" t "m" id=0 qos=0 retain=false dup=false`},
		{V311, "3d 06 0001 74 1234 6d", `PUBLISH id=4660 code=0x00 codes= reason="" reference="" t "m" id=4660 qos=2 retain=true dup=true`},
		{V5, "32 13 0001 74 0001 0b 0b 8001 0b 01 26 0001 61 0000 6d6d", `PUBLISH id=1 code=0x00 codes= reason="" reference="" t "mm" id=1 qos=1 retain=false dup=false`},
		{V311, "40 02 0007", `PUBACK id=7 code=0x00 codes= reason="" reference=""`},
		{V5, "40 03 0007 10", `PUBACK id=7 code=0x10 codes= reason="" reference=""`},
		{V5, "50 08 0007 87 04 1f 0001 72", `PUBREC id=7 code=0x87 codes= reason="r" reference=""`},
		{V5, "62 02 0007", `PUBREL id=7 code=0x00 codes= reason="" reference=""`},
		{V5, "70 04 0007 92 00", `PUBCOMP id=7 code=0x92 codes= reason="" reference=""`},
		{V311, "90 04 0001 02 80", `SUBACK id=1 code=0x02 codes=0280 reason="" reference=""`},
		{V5, "90 04 0001 00 87", `SUBACK id=1 code=0x87 codes=87 reason="" reference=""`},
		{V311, "b0 02 0001", `UNSUBACK id=1 code=0x00 codes= reason="" reference=""`},
		{V5, "b0 04 0001 00 11", `UNSUBACK id=1 code=0x11 codes=11 reason="" reference=""`},
		{V311, "d0 00", `PINGRESP id=0 code=0x00 codes= reason="" reference=""`},
		{V5, "e0 00", `DISCONNECT id=0 code=0x00 codes= reason="" reference=""`},
		{V311, "e0 02 8e 00", `DISCONNECT id=0 code=0x8e codes= reason="" reference=""`}, // not in the specification, but mochi says it
		{V5, "e0 07 9c 05 1c 0002 6232", `DISCONNECT id=0 code=0x9c codes= reason="" reference="b2"`},
		{V5, "f0 06 18 04 15 0001 61", `AUTH id=0 code=0x18 codes= reason="" reference=""`},
	} {
		p, err := one(c.v, unhex(t, c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
		} else if got := words(p); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.in, got, c.want)
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, c := range []struct {
		why string
		v   Version
		in  string
	}{
		{"kind 0", V5, "00 00"},
		{"flags of CONNACK", V5, "21 03 00 00 00"},
		{"flags of PUBREL", V5, "60 02 0001"},
		{"length of five bytes", V5, "30 ff ff ff ff 01"},
		{"CONNACK: flags", V5, "20 03 02 00 00"},
		{"CONNACK: session present with a refusal", V5, "20 03 01 87 00"},
		{"CONNACK: cut", V5, "20 01 00"},
		{"CONNACK: too long", V311, "20 03 00 00 00"},
		{"CONNACK: no properties", V5, "20 02 00 00"},
		{"CONNACK: Receive Maximum 0", V5, "20 06 00 00 03 21 0000"},
		{"CONNACK: Maximum QoS 2", V5, "20 05 00 00 02 24 02"},
		{"CONNACK: property twice", V5, "20 09 00 00 06 21 0001 21 0001"},
		{"CONNACK: property of PUBLISH", V5, "20 06 00 00 03 23 0001"},
		{"CONNACK: unknown property", V5, "20 05 00 00 02 04 00"},
		{"CONNACK: properties cut", V5, "20 06 00 00 04 21 0001"},
		{"CONNACK: property cut", V5, "20 05 00 00 02 21 00"},
		{"PUBLISH: QoS 3", V311, "36 05 0001 74 0001"},
		{"PUBLISH: DUP at QoS 0", V311, "38 03 0001 74"},
		{"PUBLISH: packet ID 0", V311, "32 05 0001 74 0000"},
		{"PUBLISH: no topic", V5, "30 03 0000 00"},
		{"PUBLISH: alias without topic", V5, "30 06 0000 03 23 0001"},
		{"PUBLISH: wildcard", V311, "30 03 0001 23"},
		{"PUBLISH: not UTF-8", V311, "30 04 0002 c328"},
		{"PUBLISH: surrogate", V311, "30 05 0003 eda080"},
		{"PUBLISH: U+0000", V311, "30 04 0002 6100"},
		{"PUBLISH: U+0000 after others", V311, "30 05 0003 c3a900"},
		{"PUBLISH: topic cut", V311, "30 03 0005 74"},
		{"PUBLISH: subscription ID 0", V5, "30 06 0001 74 02 0b 00"},
		{"PUBACK: packet ID 0", V5, "40 02 0000"},
		{"PUBACK: cut", V5, "40 01 00"},
		{"PUBACK: reason in 3.1.1", V311, "40 03 0001 00"},
		{"SUBACK: no code", V5, "90 03 0001 00"},
		{"UNSUBACK: code in 3.1.1", V311, "b0 03 0001 00"},
		{"PINGRESP: body", V5, "d0 01 00"},
		{"DISCONNECT: too long", V5, "e0 03 00 00 00"},
		{"AUTH in 3.1.1", V311, "f0 00"},
	} {
		if p, err := one(c.v, unhex(t, c.in)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", c.why, p.Kind, err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	r := Reader{Version: V5, Max: 100}
	var p Packet
	in := unhex(t, "30 63")
	if _, _, err := r.Next(in, &p); !errors.Is(err, ErrTooLarge) {
		t.Errorf("101 bytes: %v", err)
	}
	r = Reader{Version: V5, Max: 100}
	if _, _, err := r.Next(unhex(t, "30 62"), &p); err != nil {
		t.Errorf("100 bytes: %v", err)
	}
}

// stream is some packets in a row, of all sizes that matter to a Reader.
func stream(v Version) (b []byte) {
	for _, n := range []int{0, 1, 5, 120, 127, 128, 129, 300, 5000, 20_000} {
		p := Publish{Topic: []byte("topic"), Payload: bytes.Repeat([]byte{'x'}, n), QoS: 1, ID: uint16(n + 1)}
		b = AppendPublish(b, v, &p)
		b = AppendAck(b, v, PUBREC, uint16(n+1), 0x87)
		b = AppendPingreq(b)
	}
	return b
}

// TestPieces: however the stream is cut, the packets are the same.
func TestPieces(t *testing.T) {
	for _, v := range []Version{V311, V5} {
		b := stream(v)
		r := Reader{Version: v}
		want, err := readAll(&r, b, len(b))
		if err != nil || len(want) != 30 {
			t.Fatalf("%d packets, %v", len(want), err)
		}
		for _, n := range []int{1, 2, 3, 7, 64, 1000, 4096} {
			r := Reader{Version: v}
			got, err := readAll(&r, b, n)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("in pieces of %d: %v\n got %.300q\nwant %.300q", n, err, got, want)
			}
			if r.Pending() {
				t.Errorf("in pieces of %d: something is left", n)
			}
		}
	}
}

// TestNothingFromAClaim: a packet that claims to be huge costs what came of it.
func TestNothingFromAClaim(t *testing.T) {
	r := Reader{Version: V5, Max: MaxPacket + 5}
	var p Packet
	if _, ok, err := r.Next(unhex(t, "30 ff ff ff 7f 0001"), &p); ok || err != nil {
		t.Fatal(ok, err)
	}
	if n := cap(*r.partial); n > keepPartial { // one from the pool
		t.Errorf("a buffer of %d bytes for 7", n)
	}
	r.Release()
	if r.Pending() {
		t.Error("pending after Release")
	}
}

func TestNames(t *testing.T) {
	if got := fmt.Sprint(V31, V311, V5, Version(9), PUBREL, AUTH, Kind(0)); got != "3.1 3.1.1 5 version 9 PUBREL AUTH kind 0" {
		t.Error(got)
	}
}

// TestAllocations: neither writing nor reading allocates, whole packets or cut ones.
func TestAllocations(t *testing.T) {
	b := stream(V5)
	buf := make([]byte, 0, len(b))
	m := Publish{Topic: []byte("topic"), Payload: make([]byte, 100), QoS: 1, ID: 1}
	r := Reader{Version: V5}
	var p Packet
	for name, fn := range map[string]func(){
		"write": func() {
			buf = AppendAck(AppendPublish(buf[:0], V5, &m), V5, PUBACK, 1, 0)
		},
		"read": func() {
			for in := b; len(in) > 0; {
				in, _, _ = r.Next(in, &p)
			}
		},
		"read pieces": func() {
			for i := 0; i < len(b); i += 1000 {
				for in, ok := b[i:min(i+1000, len(b))], true; ok; {
					in, ok, _ = r.Next(in, &p)
				}
			}
		},
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
