package ws

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"unicode/utf8"

	gobwas "github.com/gobwas/ws"
)

// Open takes the frames apart that raw is made of, the next bytes of the connection, torn anywhere. It returns the payload of the data
// frames, moved together at the front of raw's own memory; rest is always empty. Control frames are heeded on the way: call Reply
// afterwards.
//
// err ends the reading side for good; payload before it is valid. It is io.EOF after a close frame, an *[Error] where the peer broke the
// rules, and on the client's side a [CloseError] after a close frame that tells of a failure. What the peer sends after that is ignored
// (RFC 6455 §7.1.7).
func (f *Frames) Open(raw []byte) (payload, rest []byte, err error) {
	n := 0
	for b := raw; len(b) > 0; {
		took := 0
		switch f.stage {
		case stageHeader:
			took, err = f.header(b)
		case stageData:
			took = int(min(f.left, uint64(len(b))))
			move(raw[n:], b[:took], f.key)
			n += took
			f.key = bits.RotateLeft32(f.key, -8*(took&3))
			if f.left -= uint64(took); f.left == 0 {
				f.stage = stageHeader
			}
		case stageControl:
			took, err = f.control(b)
		default:
			err = io.EOF
		}
		if err != nil {
			f.stop(err)
			break
		}
		b = b[took:]
	}
	return raw[:n], nil, err
}

// stop ends the reading side.
func (f *Frames) stop(err error) {
	f.stage, f.have, f.left, f.more = stageEnd, 0, 0, false
	release(&f.part)
	if e, ok := errors.AsType[*Error](err); ok {
		f.close(e.Code)
	}
}

// header reads a frame's header from the front of b, together with what came of it before.
func (f *Frames) header(b []byte) (took int, err error) {
	if f.have == 0 {
		if took, err = f.begin(b); took == 0 && err == nil {
			took = copy(f.head[:], b)
			f.have = uint8(took)
		}
		return took, err
	}
	had := int(f.have)
	f.have += uint8(copy(f.head[had:], b))
	took, err = f.begin(f.head[:f.have])
	if took == 0 && err == nil { // then b is used up
		return int(f.have) - had, nil
	}
	f.have = 0
	return took - had, err
}

// begin reads the header that h begins with, and returns its length, 0 if h is not all of it. All rules but one are checked on the
// first two bytes.
func (f *Frames) begin(h []byte) (n int, err error) {
	if len(h) < 2 {
		return 0, nil
	}
	masked := h[1]&0x80 != 0
	if h[0] != 0x80|byte(gobwas.OpBinary) || masked != (f.role == Server) || f.more {
		if err := f.check(h, masked); err != nil {
			return 0, err
		}
	}
	n = 2
	length := uint64(h[1] & 0x7f)
	switch {
	case length == 126 && len(h) >= 4:
		n, length = 4, uint64(binary.BigEndian.Uint16(h[2:]))
	case length == 127 && len(h) >= 10:
		n, length = 10, binary.BigEndian.Uint64(h[2:])
		if length>>63 != 0 { // §5.2: the most significant bit must be 0
			return 0, &Error{CodeProtocol, errLength}
		}
	case length >= 126:
		return 0, nil
	}
	f.key = 0
	if masked {
		if len(h) < n+4 {
			return 0, nil
		}
		f.key = binary.LittleEndian.Uint32(h[n:])
		n += 4
	}
	f.left = length
	op := gobwas.OpCode(h[0] & 0x0f)
	if !op.IsControl() {
		f.more = h[0]&0x80 == 0
		if length > 0 {
			f.stage = stageData
		}
		return n, nil
	}
	f.op = op
	if length == 0 {
		return n, f.heard(nil)
	}
	f.stage = stageControl
	return n, nil
}

var (
	errLength = errors.New("frame length above 2^63")
	errText   = errors.New("text message, MQTT needs binary ones")
	errCode   = errors.New("status code that may not be sent")
)

// check judges the first two bytes of a frame.
func (f *Frames) check(h []byte, masked bool) error {
	header := gobwas.Header{
		Fin:    h[0]&0x80 != 0,
		Rsv:    h[0] >> 4 & 7,
		OpCode: gobwas.OpCode(h[0] & 0x0f),
		Masked: masked,
		Length: int64(h[1] & 0x7f), // 126 and 127 stand for more: too much for a control frame either way
	}
	state := gobwas.StateServerSide
	if f.role == Client {
		state = gobwas.StateClientSide
	}
	if f.more {
		state = state.Set(gobwas.StateFragmented)
	}
	// §5.1 masked or not, §5.2 no RSV bits without an extension, no reserved opcode, §5.4 fragments in order, §5.5 control frames.
	if err := gobwas.CheckHeader(header, state); err != nil {
		return &Error{CodeProtocol, err}
	}
	if header.OpCode == gobwas.OpText { // [MQTT-6.0.0-1]
		return &Error{CodeUnsupported, errText}
	}
	return nil
}

// control reads a control frame's payload from the front of b, together with what came of it before.
func (f *Frames) control(b []byte) (took int, err error) {
	took = int(min(f.left, uint64(len(b))))
	f.left -= uint64(took)
	p := b[:took]
	if f.left > 0 || f.part != nil {
		if f.part == nil {
			f.part = controls.Get().(*control)
			f.part.n = 0
		}
		f.part.n += copy(f.part.b[f.part.n:], p)
		if f.left > 0 {
			return took, nil
		}
		p = f.part.bytes()
	}
	move(p, p, f.key)
	f.stage = stageHeader
	err = f.heard(p)
	release(&f.part)
	return took, err
}

// heard heeds a control frame.
func (f *Frames) heard(p []byte) error {
	switch f.op {
	case gobwas.OpPing:
		if !f.closing {
			release(&f.pong) // §5.5.3: the newest ping is answered
			f.pong, f.pongDue = hold(p), true
		}
		return nil
	case gobwas.OpPong: // nobody asked for it
		return nil
	}
	code := uint16(0) // §7.1.5: no status
	if len(p) > 0 {
		if len(p) == 1 {
			return &Error{CodeProtocol, errCode}
		}
		code = binary.BigEndian.Uint16(p)
		if !sendable(code) {
			return &Error{CodeProtocol, errCode}
		}
		if !utf8.Valid(p[2:]) { // §8.1
			return &Error{CodeInvalidData, gobwas.ErrProtocolInvalidUTF8}
		}
	}
	f.close(code) // §5.5.1: the answer echoes the code
	if f.role == Client && code > CodeGoingAway {
		return CloseError(code)
	}
	return io.EOF
}

// sendable reports whether a close frame may have the code: RFC 6455 §7.4, and the registry that §11.7 founded, which has gone on to 1014.
func sendable(code uint16) bool {
	switch code {
	case 1004, 1005, 1006:
		return false
	}
	return code >= 1000 && code <= 1014 || code >= 3000 && code <= 4999
}

// close makes a close frame due, unless there has been one. It replaces a pong.
func (f *Frames) close(code uint16) {
	if !f.closing {
		f.closing, f.closeDue, f.code = true, true, code
		f.pongDue = false
		release(&f.pong)
	}
}
