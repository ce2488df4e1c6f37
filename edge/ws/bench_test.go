package ws

import (
	"bytes"
	"fmt"
	"testing"
)

func BenchmarkOpen(b *testing.B) {
	for from, p := range peers {
		for _, size := range []int{16, 100, 1 << 10, 16 << 10} {
			b.Run(fmt.Sprintf("%s/%d", from, size), func(b *testing.B) {
				frame := p.frame(true, 2, make([]byte, size))
				head := bytes.Clone(frame[:len(frame)-size])
				f := New(p.role())
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					copy(frame, head) // what was there is overwritten
					if payload, _, err := f.Open(frame); len(payload) != size || err != nil {
						b.Fatal(len(payload), err)
					}
				}
			})
		}
		// As a loop reads while much comes: 16 KiB of messages of 100 bytes.
		b.Run(from+"/many", func(b *testing.B) {
			frame := p.frame(true, 2, make([]byte, 100))
			all := bytes.Repeat(frame, 16<<10/len(frame))
			buf := make([]byte, len(all))
			f := New(p.role())
			b.SetBytes(int64(len(all)))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, all)
				if _, _, err := f.Open(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSeal(b *testing.B) {
	for name, role := range map[string]Role{"server": Server, "client": Client} {
		for _, size := range []int{16, 100, 1 << 10, 16 << 10} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				f := New(role)
				p := make([]byte, size)
				out := make([]byte, 0, size+2*MaxHeader)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					f.Seal(out, p)
				}
			})
		}
	}
}

func BenchmarkPing(b *testing.B) {
	frame := peer(Client).frame(true, 9, []byte("keep-alive"))
	head := bytes.Clone(frame)
	f := New(Server)
	out := make([]byte, 0, MaxReply)
	b.ReportAllocs()
	for b.Loop() {
		copy(frame, head)
		_, _, _ = f.Open(frame)
		out = f.Reply(out[:0])
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	for from, p := range peers {
		frames := join(p.frame(false, 2, make([]byte, 500)), p.frame(true, 9, []byte("ping")), p.frame(true, 0, make([]byte, 70_000)))
		in := make([]byte, len(frames))
		f := New(p.role())
		out := make([]byte, 0, 100_000)
		if n := testing.AllocsPerRun(100, func() {
			copy(in, frames)
			for _, part := range [][]byte{in[:1], in[1:510], in[510:]} {
				if _, _, err := f.Open(part); err != nil {
					t.Fatal(err)
				}
				out = f.Seal(f.Reply(out[:0]), in[:70_000])
			}
		}); n > 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", from, n)
		}
	}
}
