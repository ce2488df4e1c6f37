package mqtt

import "testing"

func BenchmarkAppendPublish(b *testing.B) {
	m := Publish{Topic: []byte("devices/1/state"), Payload: make([]byte, 100), QoS: 1, ID: 1}
	buf := make([]byte, 0, 200)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendPublish(buf[:0], V5, &m)
	}
}

func BenchmarkReadPublish(b *testing.B) {
	in := AppendPublish(nil, V5, &Publish{Topic: []byte("devices/1/state"), Payload: make([]byte, 100), QoS: 1, ID: 1})
	r := Reader{Version: V5}
	var p Packet
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := r.Next(in, &p); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
