package listen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gobwas/ws"
)

// A FrameError says how a client broke RFC 6455, or MQTT's rules for WebSocket.
type FrameError struct {
	Code uint16 // status code for the close frame (RFC 6455 §7.4.1)
	Text string
}

func (e *FrameError) Error() string {
	return fmt.Sprintf("listen: WebSocket error %d: %s", e.Code, e.Text)
}

// Transport names the layer whose rules were broken.
func (e *FrameError) Transport() string { return "ws" }

// Status codes that we send.
const (
	closeNormal      = uint16(ws.StatusNormalClosure)           // 1000
	closeProtocol    = uint16(ws.StatusProtocolError)           // 1002
	closeUnsupported = uint16(ws.StatusUnsupportedData)         // 1003
	closeInvalidData = uint16(ws.StatusInvalidFramePayloadData) // 1007
	closePolicy      = uint16(ws.StatusPolicyViolation)         // 1008
)

// FrameEvent is what FrameReader.Next has found.
type FrameEvent uint8

// The events.
const (
	FrameMore  FrameEvent = iota // nothing: all bytes are used up
	FrameData                    // payload of a binary message
	FramePing                    // a ping with its payload, to be answered with a pong
	FramePong                    // a pong
	FrameClose                   // a close frame with its payload, to be answered with one; what follows is ignored
)

const (
	maxFrameHeader  = ws.MaxHeaderSize // 14
	maxControl      = ws.MaxControlFramePayloadSize
	maxControlFrame = 2 + maxControl // as a server sends it: without a mask
)

// FrameReader reads the frames of a WebSocket client, bytes in, payload out. It keeps no payload: what a frame carries is unmasked
// in place and given back at once, so a frame may claim any length. The zero value is at the start of a connection; a copy is an
// independent reader in the same state.
//
//	byte      0                1           2 .. 9          .. 13
//	     +---------------+---------------+---------------+--------------+---------
//	     | FIN RSV opcode| MASK  length7 | length 16/64  | masking key  | payload
//	     +---------------+---------------+---------------+--------------+---------
type FrameReader struct {
	left  uint64     // payload bytes of this frame still to come
	mask  [4]byte    // of this frame
	at    uint8      // place in the mask of the next payload byte, 0..3
	stage frameStage // what the next byte is
	op    ws.OpCode  // of the control frame being read
	open  bool       // a fragmented message is open: its continuation must come (§5.4)
	n     uint8      // bytes in buf
	buf   [maxControl]byte
}

type frameStage uint8

const (
	stageHeader  frameStage = iota // buf collects a header
	stageData                      // payload of a binary message
	stageControl                   // buf collects the payload of a control frame
	stageEnd                       // after a close frame or an error: the rest is ignored (§7.1.7)
)

// Next reads from the front of b. It returns how many bytes it took, what it found and, for all events but FrameMore, the payload:
// for FrameData a part of b[:n], for the others memory of its own that the next call overwrites. Call it again with b[n:] until it
// returns FrameMore. An error is a *FrameError and is final.
func (r *FrameReader) Next(b []byte) (n int, payload []byte, ev FrameEvent, err error) {
	for n < len(b) {
		switch r.stage {
		case stageHeader:
			took, err := r.header(b[n:])
			n += took
			if err != nil {
				*r = FrameReader{stage: stageEnd}
				return n, nil, FrameMore, err
			}
			if r.stage == stageControl && r.left == 0 {
				payload, ev, err = r.control()
				return n, payload, ev, err
			}
		case stageData:
			end := n + int(min(r.left, uint64(len(b)-n)))
			payload = b[n:end]
			ws.Cipher(payload, r.mask, int(r.at))
			r.at = (r.at + uint8(len(payload)&3)) & 3
			if r.left -= uint64(len(payload)); r.left == 0 {
				r.stage = stageHeader
			}
			return end, payload, FrameData, nil
		case stageControl:
			took := copy(r.buf[r.n:uint64(r.n)+r.left], b[n:])
			n += took
			r.n += uint8(took)
			if r.left -= uint64(took); r.left == 0 {
				payload, ev, err = r.control()
				return n, payload, ev, err
			}
		default:
			return len(b), nil, FrameMore, nil
		}
	}
	return n, nil, FrameMore, nil
}

// Between reports whether the client is between two messages: a connection that ends elsewhere was cut.
func (r *FrameReader) Between() bool {
	return r.stage == stageEnd || r.stage == stageHeader && r.n == 0 && !r.open
}

// header takes bytes of a frame's header, and moves on when it is whole. All rules are checked on the first two bytes.
func (r *FrameReader) header(b []byte) (took int, err error) {
	if r.n < 2 {
		took = copy(r.buf[r.n:2], b)
		if r.n += uint8(took); r.n < 2 {
			return took, nil
		}
		if err := r.check(); err != nil {
			return took, err
		}
	}
	need := 2 + 4
	switch r.buf[1] & 0x7f {
	case 126:
		need += 2
	case 127:
		need += 8
	}
	more := copy(r.buf[r.n:need], b[took:])
	took += more
	if r.n += uint8(more); int(r.n) < need {
		return took, nil
	}
	switch length := r.buf[1] & 0x7f; length {
	case 126:
		r.left = uint64(binary.BigEndian.Uint16(r.buf[2:]))
	case 127:
		r.left = binary.BigEndian.Uint64(r.buf[2:])
		if r.left>>63 != 0 { // §5.2: the most significant bit must be 0
			return took, &FrameError{closeProtocol, "frame length above 2^63"}
		}
	default:
		r.left = uint64(length)
	}
	copy(r.mask[:], r.buf[need-4:need])
	r.at, r.n = 0, 0
	op, fin := ws.OpCode(r.buf[0]&0x0f), r.buf[0]&0x80 != 0
	switch {
	case op.IsControl():
		r.op, r.stage = op, stageControl
	default:
		r.open = !fin
		if r.left > 0 {
			r.stage = stageData
		}
	}
	return took, nil
}

// check judges the first two bytes of a frame.
func (r *FrameReader) check() error {
	h := ws.Header{
		Fin:    r.buf[0]&0x80 != 0,
		Rsv:    r.buf[0] >> 4 & 7,
		OpCode: ws.OpCode(r.buf[0] & 0x0f),
		Masked: r.buf[1]&0x80 != 0,
		Length: int64(r.buf[1] & 0x7f), // 126 and 127 stand for more: too much for a control frame either way
	}
	state := ws.StateServerSide
	if r.open {
		state = state.Set(ws.StateFragmented)
	}
	// §5.1 masked, §5.2 no RSV bits without an extension, no reserved opcode, §5.4 fragments in order, §5.5 control frames.
	if err := ws.CheckHeader(h, state); err != nil {
		return &FrameError{closeProtocol, err.Error()}
	}
	if h.OpCode == ws.OpText { // [MQTT-6.0.0-1]
		return &FrameError{closeUnsupported, "text message, MQTT needs binary ones"}
	}
	return nil
}

// control ends a control frame.
func (r *FrameReader) control() ([]byte, FrameEvent, error) {
	p := r.buf[:r.n]
	ws.Cipher(p, r.mask, 0)
	r.n, r.stage = 0, stageHeader
	switch r.op {
	case ws.OpPing:
		return p, FramePing, nil
	case ws.OpPong:
		return p, FramePong, nil
	}
	r.stage = stageEnd
	if len(p) == 0 {
		return p, FrameClose, nil
	}
	code, text := ws.ParseCloseFrameData(p) // code 0 for a single byte
	if code > ws.StatusRangePrivate.Max {   // §7.4.2 gives nobody what is above 4999
		return nil, FrameMore, &FrameError{closeProtocol, "status code above 4999"}
	}
	switch err := ws.CheckCloseFrameData(code, text); {
	case errors.Is(err, ws.ErrProtocolInvalidUTF8): // §8.1
		return nil, FrameMore, &FrameError{closeInvalidData, err.Error()}
	case err != nil:
		return nil, FrameMore, &FrameError{closeProtocol, err.Error()}
	}
	return p, FrameClose, nil
}

// frameStateSize is the size of a FrameReader written out, without what buf holds.
const frameStateSize = 1 + 8 + 4 + 5

// AppendBinary appends the reader's state, so that another process can go on in the middle of a frame.
func (r *FrameReader) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, 1) // version
	b = binary.BigEndian.AppendUint64(b, r.left)
	b = append(b, r.mask[:]...)
	open := byte(0)
	if r.open {
		open = 1
	}
	b = append(b, r.at, byte(r.stage), byte(r.op), open, r.n)
	return append(b, r.buf[:r.n]...), nil
}

// UnmarshalBinary takes over a state that AppendBinary wrote.
func (r *FrameReader) UnmarshalBinary(b []byte) error {
	if len(b) < frameStateSize || b[0] != 1 {
		return errors.New("listen: unknown state of a frame reader")
	}
	s := FrameReader{
		left:  binary.BigEndian.Uint64(b[1:]),
		mask:  [4]byte(b[9:13]),
		at:    b[13],
		stage: frameStage(b[14]),
		op:    ws.OpCode(b[15]),
		open:  b[16] == 1,
		n:     b[17],
	}
	rest := b[frameStateSize:]
	valid := s.at < 4 && b[16] <= 1 && len(rest) == int(s.n)
	switch s.stage {
	case stageHeader:
		valid = valid && s.n < maxFrameHeader && s.left == 0
	case stageData:
		valid = valid && s.n == 0 && s.left > 0 && s.left>>63 == 0
	case stageControl:
		valid = valid && s.op.IsControl() && !s.op.IsReserved() && s.left > 0 && s.left <= maxControl && s.left+uint64(s.n) <= maxControl
	case stageEnd:
		valid = valid && s.n == 0
	default:
		valid = false
	}
	if !valid {
		return errors.New("listen: damaged state of a frame reader")
	}
	copy(s.buf[:], rest)
	*r = s
	return nil
}

// appendFrameHeader appends the header of a whole message as a server sends it: final and unmasked (§5.1).
func appendFrameHeader(b []byte, op ws.OpCode, size int) []byte {
	b = append(b, 0x80|byte(op))
	switch {
	case size < 126:
		return append(b, byte(size))
	case size <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, 126), uint16(size))
	default:
		return binary.BigEndian.AppendUint64(append(b, 127), uint64(size))
	}
}

// AppendBinaryHeader appends the header of a binary frame with size bytes of payload, which must follow it.
func AppendBinaryHeader(b []byte, size int) []byte { return appendFrameHeader(b, ws.OpBinary, size) }

// AppendPong appends the answer to a ping with that payload.
func AppendPong(b, payload []byte) []byte {
	return append(appendFrameHeader(b, ws.OpPong, len(payload)), payload...)
}

// AppendClose appends a close frame with a status code; 0 = without one.
func AppendClose(b []byte, code uint16) []byte {
	if code == 0 {
		return appendFrameHeader(b, ws.OpClose, 0)
	}
	return binary.BigEndian.AppendUint16(slices.Grow(appendFrameHeader(b, ws.OpClose, 2), 2), code)
}
