package mqtt

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// cursor walks the body of a packet that is there as a whole. Its methods report false where the packet ends too early.
type cursor struct{ rest []byte }

func (c *cursor) take(n int) ([]byte, bool) {
	if n > len(c.rest) {
		return nil, false
	}
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b, true
}

func (c *cursor) u8() (byte, bool) {
	b, ok := c.take(1)
	if !ok {
		return 0, false
	}
	return b[0], true
}

func (c *cursor) u16() (uint16, bool) {
	b, ok := c.take(2)
	if !ok {
		return 0, false
	}
	return binary.BigEndian.Uint16(b), true
}

func (c *cursor) u32() (uint32, bool) {
	b, ok := c.take(4)
	if !ok {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// field reads a string or binary field: two bytes of length, then as many bytes. Never nil when ok.
func (c *cursor) field() ([]byte, bool) {
	n, ok := c.u16()
	if !ok {
		return nil, false
	}
	return c.take(int(n))
}

// uvarint reads a variable byte integer (MQTT 5 §1.5.5). n is its length, 0 while b is too short to tell,
// and −1 if a fifth byte would follow.
func uvarint(b []byte) (v uint32, n int) {
	for i := 0; i < 4; i++ {
		if i == len(b) {
			return 0, 0
		}
		v |= uint32(b[i]&0x7F) << (7 * i)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, -1
}

func appendUvarint(dst []byte, v int) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func appendField(dst, f []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(f)))
	return append(dst, f...)
}

// wellFormed checks a UTF-8 encoded string: no surrogates, no overlong forms [MQTT-1.5.3-1 | 1.5.4-1],
// and no U+0000 [MQTT-1.5.3-2 | 1.5.4-2]. Other control characters are only discouraged: they pass.
func wellFormed(s []byte) bool { return utf8.Valid(s) && bytes.IndexByte(s, 0) < 0 }

// fixedHeader reads the first two to five bytes of a packet that must be of type want with flags 0, else the error is of kind wrong.
// The body is b[start:end] once b is that long. A remaining length in more bytes than it needs passes, as it
// does at brokers: some clients reserve four bytes and fill them in later.
func fixedHeader(b []byte, want PacketType, wrong ErrorKind, v Version) (start, end int, err error) {
	if len(b) == 0 {
		return 0, 0, ErrShort
	}
	if b[0] != byte(want)<<4 { // the flags are 0 in all that is read here [MQTT-2.2.2-2 | 2.1.3-1]
		return 0, 0, failNumber(wrong, v, "first byte", int(b[0]))
	}
	length, n := uvarint(b[1:])
	if n < 0 {
		return 0, 0, fail(BadRemainingLength, v, "more than four bytes")
	}
	if n == 0 {
		return 0, 0, ErrShort
	}
	return 1 + n, 1 + n + int(length), nil
}
