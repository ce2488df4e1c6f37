package mqtt

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzReader: whatever comes, in whatever pieces, the packets are the same, and nothing is read beyond them.
func FuzzReader(f *testing.F) {
	for _, v := range []Version{V31, V311, V5} {
		f.Add(byte(v), byte(3), stream(v)[:2000])
	}
	f.Add(byte(V5), byte(1), unhex(f, "20 21 01 00 1e 11 00000009 21 000a 24 01 27 00001000 12 0002 6964 13 001e 1f 0001 72 22 000a"))
	f.Add(byte(V5), byte(2), unhex(f, "32 13 0001 74 0001 0b 0b 8001 0b 01 26 0001 61 0000 6d6d e0 07 9c 05 1c 0002 6232"))
	f.Add(byte(V311), byte(5), unhex(f, "90 04 0001 02 80 b0 02 0001 62 02 0001 d0 00"))
	f.Fuzz(func(t *testing.T, version, piece byte, b []byte) {
		whole := Reader{Version: Version(version), Max: 1 << 16}
		want, wantErr := readAll(&whole, b, len(b)+1)
		cut := Reader{Version: Version(version), Max: 1 << 16}
		got, gotErr := readAll(&cut, b, 1+int(piece))
		if !reflect.DeepEqual(got, want) || (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("in pieces of %d:\n got %q, %v\nwant %q, %v", 1+int(piece), got, gotErr, want, wantErr)
		}
		if gotErr == nil && whole.Pending() != cut.Pending() {
			t.Fatal("one of them waits for more")
		}
		whole.Release()
		cut.Release()
	})
}

// FuzzPublish: what is written is read.
func FuzzPublish(f *testing.F) {
	f.Add(byte(V5), "t", []byte("m"), byte(1), uint16(7), true, false)
	f.Add(byte(V311), "a/b", []byte{}, byte(2), uint16(65_535), false, true)
	f.Fuzz(func(t *testing.T, version byte, topic string, payload []byte, qos byte, id uint16, retain, dup bool) {
		v := V311
		if version == byte(V5) {
			v = V5
		}
		in := Publish{Topic: []byte(topic), Payload: payload, QoS: qos % 3, Retain: retain}
		if in.QoS > 0 {
			in.ID, in.Dup = max(id, 1), dup
		}
		size, err := PublishSize(v, &in)
		if err != nil {
			return
		}
		b := AppendPublish(nil, v, &in)
		if len(b) != size {
			t.Fatalf("%d bytes, PublishSize says %d", len(b), size)
		}
		r := Reader{Version: v, Max: size}
		var p Packet
		rest, ok, err := r.Next(b, &p)
		if err != nil {
			if c := (cursor{b: AppendPublish(nil, V311, &Publish{Topic: in.Topic})[2:]}); len(topic) > 0 && len(topic) < 100 && c.text() != nil && !c.bad &&
				!bytes.ContainsAny(in.Topic, "+#") {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		m := p.Publish
		if !ok || len(rest) > 0 || !bytes.Equal(m.Topic, in.Topic) || !bytes.Equal(m.Payload, in.Payload) || m.ID != in.ID || m.QoS != in.QoS ||
			m.Retain != in.Retain || m.Dup != in.Dup {
			t.Fatalf("%+v became %+v, %v, %d bytes left", in, m, ok, len(rest))
		}
	})
}

// FuzzConnect: what Check lets pass is one packet that no Reader finds fault with.
func FuzzConnect(f *testing.F) {
	f.Add(byte(5), "id", "user", []byte("pw"), "will", byte(1), uint32(9), uint16(3))
	f.Fuzz(func(t *testing.T, version byte, id, user string, password []byte, will string, qos byte, expiry uint32, maximum uint16) {
		c := Connect{
			Version: Version(version), ID: id, User: user, HasUser: user != "", Password: password, HasPassword: len(password) > 0,
			Expiry: expiry, ReceiveMaximum: maximum,
		}
		if will != "" {
			c.Will = &Will{Topic: will, Payload: password, QoS: qos}
		}
		if c.Check() != nil {
			return
		}
		p, err := one(c.Version, c.Append(nil))
		if err != nil || p.Kind != CONNECT {
			t.Fatalf("%+v: %v, %v", c, p.Kind, err)
		}
	})
}
