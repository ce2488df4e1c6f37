package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// The opcodes of WebSocket frames (RFC 6455 §11.8).
const (
	opContinuation = 0x0
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// Bits of a frame's first two bytes (RFC 6455 §5.2).
const (
	frameFin      = 0x80
	frameReserved = 0x70
	frameOpcode   = 0x0f
	frameControl  = 0x08 // of the opcode
	frameMask     = 0x80
	frameLength   = 0x7f
	length16      = 126 // instead of the length: it follows in two bytes
	length64      = 127 // … in eight
)

const (
	maxControl    = 125       // bytes of a control frame's payload (RFC 6455 §5.5)
	maxHeader     = 2 + 8     // of a frame that is not masked
	maxSentHeader = 2 + 8 + 4 // of one that is
)

// unframer takes the frames off a server's stream. It keeps a partial header, and the payload of a partial control frame; the payload
// of data frames stays in the caller's buffer, however long a frame says that it is.
type unframer struct {
	header     [maxHeader]byte
	have       uint8 // bytes in header
	inPayload  bool
	opcode     byte   // of the frame whose payload is next
	fragmented bool   // the message goes on in a continuation frame
	left       uint64 // bytes of the payload still to come
	control    []byte // payload of the current control frame so far
}

// take moves the payload of data frames to the front of p, and returns its length. onControl gets every complete control frame, with a
// borrowed payload. An error ends the stream; the payload before it counts.
func (u *unframer) take(p []byte, onControl func(opcode byte, payload []byte) error) (n int, err error) {
	for i := 0; i < len(p) || u.inPayload && u.left == 0; {
		if !u.inPayload {
			u.header[u.have] = p[i]
			u.have++
			i++
			if u.inPayload, err = u.parse(); err != nil {
				return n, err
			}
			if !u.inPayload {
				continue
			}
			u.have = 0
		}
		m := int(min(u.left, uint64(len(p)-i)))
		if u.opcode&frameControl != 0 {
			u.control = append(u.control, p[i:i+m]...) // at most maxControl
		} else {
			n += copy(p[n:], p[i:i+m])
		}
		i, u.left = i+m, u.left-uint64(m)
		if u.left > 0 {
			break
		}
		u.inPayload = false
		if u.opcode&frameControl != 0 {
			payload := u.control
			u.control = nil // rare, and not kept by idle connections
			if err := onControl(u.opcode, payload); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// parse looks at the header's first u.have bytes, and tells whether they are all of it.
func (u *unframer) parse() (complete bool, err error) {
	h := u.header[:u.have]
	switch len(h) {
	case 1:
		return false, u.checkFirst(h[0])
	case 2:
		if h[1]&frameMask != 0 {
			return false, badFrame("a masked frame from the server") // RFC 6455 §5.1
		}
		if h[0]&frameControl != 0 && h[1]&frameLength > maxControl {
			return false, badFrame("a control frame of more than 125 bytes") // RFC 6455 §5.5
		}
	}
	switch length := h[1] & frameLength; {
	case length < length16:
		u.left = uint64(length)
	case length == length16 && len(h) == 2+2:
		u.left = uint64(binary.BigEndian.Uint16(h[2:]))
		if u.left < length16 {
			return false, badFrame("a length in more bytes than needed") // RFC 6455 §5.2
		}
	case length == length64 && len(h) == 2+8:
		u.left = binary.BigEndian.Uint64(h[2:])
		if u.left>>16 == 0 || u.left>>63 != 0 {
			return false, badFrame("a length in more bytes than needed, or beyond 2^63")
		}
	default:
		return false, nil
	}
	u.begin(h[0])
	return true, nil
}

// checkFirst judges flags and opcode.
func (u *unframer) checkFirst(b byte) error {
	if b&frameReserved != 0 {
		return badFrame("a reserved bit is set, without an extension") // RFC 6455 §5.2
	}
	switch opcode := b & frameOpcode; opcode {
	case opContinuation:
		if !u.fragmented {
			return badFrame("a continuation of nothing") // RFC 6455 §5.4
		}
	case opBinary:
		if u.fragmented {
			return badFrame("a new message within a fragmented one")
		}
	case opClose, opPing, opPong:
		if b&frameFin == 0 {
			return badFrame("a fragmented control frame") // RFC 6455 §5.5
		}
	default:
		return badFrame(fmt.Sprintf("opcode %#x, which MQTT does not use", opcode)) // text: [MQTT-6.0.0-1]
	}
	return nil
}

// begin enters the payload of a frame.
func (u *unframer) begin(first byte) {
	u.opcode = first & frameOpcode
	if u.opcode&frameControl == 0 {
		u.fragmented = first&frameFin == 0
	}
}

func badFrame(why string) error { return fmt.Errorf("%w: %s", ErrWebSocket, why) }

// appendHeader appends the header of an unfragmented frame from a client (RFC 6455 §5.2). mask's bytes are used from the lowest.
func appendHeader(b []byte, opcode byte, length int, mask uint32) []byte {
	b = append(b, frameFin|opcode)
	switch {
	case length < length16:
		b = append(b, frameMask|byte(length))
	case length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, frameMask|length16), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, frameMask|length64), uint64(length))
	}
	return binary.LittleEndian.AppendUint32(b, mask)
}

// maskInto writes src, masked, to dst, which has its length (RFC 6455 §5.3), and returns the mask for the byte after it.
func maskInto(dst, src []byte, mask uint32) uint32 {
	wide := uint64(mask)<<32 | uint64(mask)
	for len(src) >= 8 {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^wide)
		dst, src = dst[8:], src[8:]
	}
	for i, b := range src {
		dst[i] = b ^ byte(mask)
		mask = bits.RotateLeft32(mask, -8)
	}
	return mask
}
