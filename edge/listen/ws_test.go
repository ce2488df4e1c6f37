package listen

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// clientFrame is a frame as a client sends it: masked.
func clientFrame(fin bool, op byte, payload []byte) []byte {
	return frameWith(fin, 0, op, true, uint64(len(payload)), payload)
}

func frameWith(fin bool, rsv, op byte, masked bool, length uint64, payload []byte) []byte {
	b := []byte{rsv<<4 | op, 0}
	if fin {
		b[0] |= 0x80
	}
	switch {
	case length < 126:
		b[1] = byte(length)
	case length <= 0xffff:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(length))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, length)
	}
	if !masked {
		return append(b, payload...)
	}
	b[1] |= 0x80
	mask := [4]byte{0x12, 0x34, 0x56, byte(length)}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

const goodUpgrade = "GET /mqtt HTTP/1.1\r\nHost: broker.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"

func upgradeRaw(t testing.TB, c io.ReadWriter) {
	t.Helper()
	send(t, c, []byte(goodUpgrade))
	var head []byte
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		head = append(head, readN(t, c, 1)...)
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
		t.Fatalf("answer %q", head)
	}
}

func readN(t testing.TB, r io.Reader, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if got, err := io.ReadFull(r, b); err != nil {
		t.Fatalf("read %q and then %v, want %d bytes", b[:got], err, n)
	}
	return b
}
