package ws

import (
	"encoding/binary"
	"slices"

	gobwas "github.com/gobwas/ws"
)

// Seal appends p as a binary message to dst. A client cuts p into frames of at most MaxSealed bytes, each a message of its own and masked
// with a key of its own: an MQTT packet may span several messages [MQTT-6.0.0-2]. Nothing is appended for an empty p, nor once a close
// frame is due or gone (RFC 6455 §5.5.1). p must not overlap what is appended.
func (f *Frames) Seal(dst, p []byte) []byte {
	if f.closing {
		return dst
	}
	for len(p) > 0 {
		n := len(p)
		if f.role == Client {
			n = min(n, MaxSealed-MaxHeader)
		}
		f.spoken = true
		dst = f.frame(dst, gobwas.OpBinary, p[:n])
		p = p[n:]
	}
	return dst
}

// SealHeader is Seal without the payload: the caller sends size bytes of it behind what is appended, from where they are. It is for
// servers only, which mask nothing.
func (f *Frames) SealHeader(dst []byte, size int) []byte {
	if f.role != Server {
		panic("ws: the payload of a client must be masked")
	}
	if f.closing || size == 0 {
		return dst
	}
	f.spoken = true
	return appendHeader(dst, gobwas.OpBinary, size, 0)
}

// Reply appends the control frame that is due, if any: the answer to a close frame or to a broken rule, else to the newest ping.
func (f *Frames) Reply(dst []byte) []byte {
	switch {
	case f.closeDue:
		f.closeDue = false
		if f.code == 0 {
			return f.frame(dst, gobwas.OpClose, nil)
		}
		return f.frame(dst, gobwas.OpClose, []byte{byte(f.code >> 8), byte(f.code)})
	case f.pongDue:
		f.pongDue = false
		dst = f.frame(dst, gobwas.OpPong, f.pong.bytes())
		release(&f.pong)
	}
	return dst
}

// Due reports whether Reply has something to append.
func (f *Frames) Due() bool { return f.closeDue || f.pongDue }

// End appends a close frame, unless one has gone out. One that the peer was owed is that one.
//
// A client that is closed without a single word in MQTT is one that came with something else, or with nothing in time: its connection has
// not "fulfilled its purpose" (RFC 6455 §7.4.1).
func (f *Frames) End(dst []byte) []byte {
	code := CodeNormal
	if f.role == Server && !f.spoken {
		code = CodePolicy
	}
	f.close(code)
	return f.Reply(dst)
}

// frame appends a whole frame.
func (f *Frames) frame(dst []byte, op gobwas.OpCode, p []byte) []byte {
	dst = slices.Grow(dst, MaxHeader+len(p))
	if f.role == Server {
		return append(appendHeader(dst, op, len(p), 0), p...)
	}
	key := newKey()
	dst = binary.LittleEndian.AppendUint32(appendHeader(dst, op, len(p), 0x80), key)
	at := len(dst)
	dst = dst[:at+len(p)]
	move(dst[at:], p, key)
	return dst
}

// appendHeader appends the header of a whole message, up to the masking key.
func appendHeader(b []byte, op gobwas.OpCode, size int, mask byte) []byte {
	first := 0x80 | byte(op) // FIN
	switch {
	case size < 126:
		return append(b, first, mask|byte(size))
	case size <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, first, mask|126), uint16(size))
	default:
		return binary.BigEndian.AppendUint64(append(b, first, mask|127), uint64(size))
	}
}

// wide is from where vector instructions are worth a second pass.
const wide = 256

// move copies src to dst, with key over it (RFC 6455 §5.3): the key's lowest byte meets the first one. dst is at least as long; it may
// overlap src if it does not begin behind it.
func move(dst, src []byte, key uint32) {
	if len(src) >= wide || key == 0 {
		copy(dst, src)
		if key != 0 {
			gobwas.Cipher(dst[:len(src)], [4]byte{byte(key), byte(key >> 8), byte(key >> 16), byte(key >> 24)}, 0)
		}
		return
	}
	// A word is read before any byte is written that a later one is read from: dst is never ahead.
	w := uint64(key) | uint64(key)<<32
	for len(src) >= 32 && len(dst) >= 32 {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^w)
		binary.LittleEndian.PutUint64(dst[8:], binary.LittleEndian.Uint64(src[8:])^w)
		binary.LittleEndian.PutUint64(dst[16:], binary.LittleEndian.Uint64(src[16:])^w)
		binary.LittleEndian.PutUint64(dst[24:], binary.LittleEndian.Uint64(src[24:])^w)
		src, dst = src[32:], dst[32:]
	}
	for len(src) >= 8 && len(dst) >= 8 {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^w)
		src, dst = src[8:], dst[8:]
	}
	for i, c := range src {
		dst[i] = c ^ byte(key)
		key = key>>8 | key<<24
	}
}
