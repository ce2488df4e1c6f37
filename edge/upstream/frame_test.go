package upstream

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// decodeAll runs bytes through a decoder in pieces of the given sizes, over and over.
func decodeAll(all []byte, sizes []byte) (payload []byte, controls string, torn bool, err error) {
	var d frameDecoder
	for i := 0; len(all) > 0 && err == nil; i++ {
		k := len(all)
		if len(sizes) > 0 {
			k = min(int(sizes[i%len(sizes)])+1, len(all))
		}
		piece := bytes.Clone(all[:k])
		all = all[k:]
		var n int
		n, err = d.decode(piece, func(op ws.OpCode, p []byte) error {
			controls += fmt.Sprintf("%x:%x;", op, p)
			return nil
		})
		payload = append(payload, piece[:n]...)
	}
	return payload, controls, d.torn(), err
}

// The decoder gives the same however the bytes are torn, and the same as the library's own reader, which buffers.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(finBinary, "hello")+frame(finPing, "?")+frame(finBinary, "")), []byte{0})
	f.Add([]byte(frame(0x02, "a")+frame(finClose, "\x03\xe8")+frame(0x80, "b")), []byte{1, 0})
	f.Add([]byte(frame(finBinary, string(make([]byte, 300)))), []byte{2})
	f.Add([]byte("\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x01x"), []byte{9})
	f.Add([]byte(frame(finText, "a")), []byte{0})
	f.Add([]byte("\x82\xff"), []byte{0})
	f.Fuzz(func(t *testing.T, all, sizes []byte) {
		payload, controls, torn, err := decodeAll(all, nil)
		if len(payload) > len(all) {
			t.Fatalf("%d bytes out of %d", len(payload), len(all))
		}
		p2, c2, torn2, err2 := decodeAll(all, sizes)
		if !bytes.Equal(payload, p2) || controls != c2 || torn != torn2 || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("whole: %q %s %v %v\ntorn: %q %s %v %v", payload, controls, torn, err, p2, c2, torn2, err2)
		}
		p3, c3, ok := reference(all)
		if ok != (err == nil && !torn) {
			t.Fatalf("reference says %v, decoder %v (torn %v)", ok, err, torn)
		}
		if ok && (!bytes.Equal(payload, p3) || controls != c3) {
			t.Fatalf("reference: %q %s\ndecoder: %q %s", p3, c3, payload, controls)
		}
	})
}

// reference reads the same with wsutil, and reports whether all was whole and lawful.
func reference(all []byte) (payload []byte, controls string, ok bool) {
	control := func(h ws.Header, r io.Reader) error {
		p, err := io.ReadAll(r)
		if err == nil && int64(len(p)) < h.Length {
			err = io.ErrUnexpectedEOF
		}
		controls += fmt.Sprintf("%x:%x;", h.OpCode, p)
		return err
	}
	src := bytes.NewReader(all)
	r := &wsutil.Reader{Source: src, State: ws.StateClientSide, OnIntermediate: control}
	for {
		if src.Len() == 0 {
			return payload, controls, !r.State.Fragmented()
		}
		h, err := r.NextFrame()
		if err != nil || h.OpCode == ws.OpText {
			return nil, "", false
		}
		if h.OpCode.IsControl() {
			if control(h, r) != nil {
				return nil, "", false
			}
			continue
		}
		p, err := io.ReadAll(r)
		if err != nil {
			return nil, "", false
		}
		payload = append(payload, p...)
	}
}

// Frames of ours are read back by the library, whatever their length, and no two masks are the same.
func TestAppendFrame(t *testing.T) {
	masks := make(map[[4]byte]bool)
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 100_000} {
		p := bytes.Repeat([]byte{byte(n)}, n)
		b := appendFrame([]byte("x"), ws.OpBinary, p)
		if len(b) > 1+maxFrameHead+n {
			t.Errorf("%d bytes for %d", len(b), n)
		}
		r := bytes.NewReader(b[1:])
		h, err := ws.ReadHeader(r)
		if err != nil || !h.Fin || h.OpCode != ws.OpBinary || !h.Masked || h.Length != int64(n) {
			t.Fatalf("%d: %+v, %v", n, h, err)
		}
		if masks[h.Mask] {
			t.Errorf("mask %x was used before", h.Mask)
		}
		masks[h.Mask] = true
		got := b[len(b)-r.Len():]
		ws.Cipher(got, h.Mask, 0)
		if !bytes.Equal(got, p) {
			t.Errorf("%d: another payload", n)
		}
	}
}

func BenchmarkDecodeFrames(b *testing.B) {
	message := frame(finBinary, string(make([]byte, 100)))
	all := bytes.Repeat([]byte(message), 16<<10/len(message))
	buf := make([]byte, len(all))
	b.SetBytes(int64(len(all)))
	b.ReportAllocs()
	var d frameDecoder
	for b.Loop() {
		copy(buf, all)
		if _, err := d.decode(buf, nil); err != nil {
			b.Fatal(err)
		}
	}
}
