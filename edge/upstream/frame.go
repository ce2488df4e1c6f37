package upstream

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gobwas/ws"
)

const (
	// maxFrameHead is the longest header of a frame that a client sends: 2 bytes, 8 of length, 4 of mask. RFC 6455 §5.2.
	maxFrameHead = 14
	// maxControl bounds the payload of a control frame. RFC 6455 §5.5.
	maxControl = ws.MaxControlFramePayloadSize
)

// A frameDecoder takes the payload out of a server's frames while they arrive, torn anywhere. It holds a header or a control
// frame at most, never a message.
type frameDecoder struct {
	head [10]byte // of the frame that is arriving: a server's has no mask
	have int      // bytes of head; 0 between frames
	left uint64   // payload bytes to come, once head is whole
	open bool     // head is whole
	more bool     // within a fragmented message

	ctl    [maxControl]byte
	ctlLen int
}

// decode strips the frames from p, the next bytes of the connection, in place: p[:n] is the payload of the data frames in it.
// Every whole control frame goes to control, whose error ends the decoding, as does a broken rule.
// What stands before the place of the error is in p[:n] all the same.
func (d *frameDecoder) decode(p []byte, control func(op ws.OpCode, payload []byte) error) (n int, err error) {
	for i := 0; i < len(p); {
		if !d.open {
			d.head[d.have] = p[i]
			d.have++
			i++
			if d.have < d.headLen() {
				continue
			}
			if err := d.begin(); err != nil {
				return n, err
			}
		}
		k := int(min(d.left, uint64(len(p)-i)))
		if d.op().IsControl() {
			d.ctlLen += copy(d.ctl[d.ctlLen:], p[i:i+k])
		} else {
			n += copy(p[n:], p[i:i+k])
		}
		i += k
		d.left -= uint64(k)
		if d.left == 0 {
			op, payload := d.op(), d.ctl[:d.ctlLen]
			d.open, d.have, d.ctlLen = false, 0, 0
			if op.IsControl() {
				if err := control(op, payload); err != nil {
					return n, err
				}
			}
		}
	}
	return n, nil
}

// torn reports whether the connection's end now would cut a frame or a message.
func (d *frameDecoder) torn() bool { return d.have > 0 || d.more }

func (d *frameDecoder) op() ws.OpCode { return ws.OpCode(d.head[0] & 0x0f) }

// headLen is how long the header is, as far as its first bytes tell.
func (d *frameDecoder) headLen() int {
	if d.have < 2 {
		return 2
	}
	switch d.head[1] & 0x7f {
	case 126:
		return 4
	case 127:
		return 10
	}
	return 2
}

// begin judges a header that is whole.
func (d *frameDecoder) begin() error {
	switch length := d.head[1] & 0x7f; length {
	case 126:
		d.left = uint64(binary.BigEndian.Uint16(d.head[2:]))
	case 127:
		d.left = binary.BigEndian.Uint64(d.head[2:])
		if d.left>>63 != 0 { // §5.2: the most significant bit MUST be 0
			return fmt.Errorf("%w: frame length with its highest bit set", ErrWebSocket)
		}
	default:
		d.left = uint64(length)
	}
	header := ws.Header{
		Fin:    d.head[0]&0x80 != 0,
		Rsv:    d.head[0] & 0x70 >> 4,
		OpCode: d.op(),
		Masked: d.head[1]&0x80 != 0,
		Length: int64(d.left),
	}
	state := ws.StateClientSide
	if d.more {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(header, state); err != nil { // §5.1, §5.2, §5.4, §5.5
		return fmt.Errorf("%w: %w", ErrWebSocket, err)
	}
	if header.OpCode == ws.OpText { // [MQTT-6.0.0-1]
		return errNotBinary
	}
	if !header.OpCode.IsControl() {
		d.more = !header.Fin
	}
	d.open = true
	return nil
}

// errNotBinary has a close code of its own.
var errNotBinary = fmt.Errorf("%w: a text frame where MQTT wants binary ones", ErrWebSocket)

// closeCode is the status that tells the broker what it did wrong. RFC 6455 §7.4.1.
func closeCode(err error) ws.StatusCode {
	if errors.Is(err, errNotBinary) {
		return ws.StatusUnsupportedData
	}
	return ws.StatusProtocolError
}

// appendFrame appends one whole frame with p as its payload, masked with a fresh key that nobody can foresee (§5.3, §10.3:
// the payload comes from strangers).
func appendFrame(dst []byte, op ws.OpCode, p []byte) []byte {
	dst = append(dst, 0x80|byte(op)) // FIN
	switch n := len(p); {
	case n < 126:
		dst = append(dst, 0x80|byte(n))
	case n <= 0xffff:
		dst = append(dst, 0x80|126)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	default:
		dst = append(dst, 0x80|127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	rand.Read(dst[at:]) // never fails: crypto/rand
	dst = append(dst, p...)
	ws.Cipher(dst[at+4:], [4]byte(dst[at:]), 0)
	return dst
}
