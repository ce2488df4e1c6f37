package ws

import (
	"encoding/binary"
	"errors"

	gobwas "github.com/gobwas/ws"
)

// MaxState bounds what AppendState appends.
const MaxState = stateSize + MaxHeader + 2*maxControl

const (
	stateVersion = 1
	// stateSize is what a state takes without head, part and pong: version, role, stage, opcode, flags, three lengths, code, key, left.
	stateSize = 8 + 2 + 4 + 8
)

// Bits of a state's flags.
const (
	flagMore = 1 << iota
	flagSpoken
	flagPongDue
	flagCloseDue
	flagClosing
	flagsEnd
)

var errState = errors.New("ws: damaged or unknown state")

// AppendState appends all that f knows, at most MaxState bytes, so that another process can go on in the middle of a frame.
func (f *Frames) AppendState(b []byte) []byte {
	flags := byte(0)
	for i, set := range []bool{f.more, f.spoken, f.pongDue, f.closeDue, f.closing} {
		if set {
			flags |= 1 << i
		}
	}
	part, pong := f.part.bytes(), f.pong.bytes()
	b = append(b, stateVersion, byte(f.role), byte(f.stage), byte(f.op), flags, f.have, byte(len(part)), byte(len(pong)))
	b = binary.BigEndian.AppendUint16(b, f.code)
	b = binary.BigEndian.AppendUint32(b, f.key)
	b = binary.BigEndian.AppendUint64(b, f.left)
	b = append(b, f.head[:f.have]...)
	return append(append(b, part...), pong...)
}

// ReadState returns what AppendState wrote to b, which must hold nothing else.
func ReadState(b []byte) (Frames, error) {
	if len(b) < stateSize || b[0] != stateVersion || b[4] >= flagsEnd {
		return Frames{}, errState
	}
	flags, have, nPart, nPong := b[4], int(b[5]), int(b[6]), int(b[7])
	f := Frames{
		role: Role(b[1]), stage: stage(b[2]), op: gobwas.OpCode(b[3]), have: b[5],
		code: binary.BigEndian.Uint16(b[8:]), key: binary.BigEndian.Uint32(b[10:]), left: binary.BigEndian.Uint64(b[14:]),
		more: flags&flagMore != 0, spoken: flags&flagSpoken != 0, pongDue: flags&flagPongDue != 0,
		closeDue: flags&flagCloseDue != 0, closing: flags&flagClosing != 0,
	}
	b = b[stateSize:]
	if have >= MaxHeader || nPart > maxControl || nPong > maxControl || len(b) != have+nPart+nPong || !f.lawful(nPart, nPong) {
		return Frames{}, errState
	}
	copy(f.head[:], b[:have])
	if begun := f; have > 0 { // what is kept is not all of a header, and breaks no rule so far
		if n, err := begun.begin(f.head[:have]); n != 0 || err != nil {
			return Frames{}, errState
		}
	}
	f.part, f.pong = hold(b[have:have+nPart]), hold(b[have+nPart:])
	return f, nil
}

// lawful reports whether Open, Reply and End can have led to f, with so many bytes of control frames in hand.
func (f *Frames) lawful(part, pong int) bool {
	switch {
	case f.role > Client,
		f.closeDue && !f.closing,
		f.pongDue && f.closing,
		pong > 0 && !f.pongDue,
		f.code != 0 && !sendable(f.code):
		return false
	}
	switch f.stage {
	case stageHeader:
		return f.left == 0 && part == 0
	case stageData:
		return f.left > 0 && f.left>>63 == 0 && f.have == 0 && part == 0
	case stageControl:
		known := f.op == gobwas.OpPing || f.op == gobwas.OpPong || f.op == gobwas.OpClose
		return known && f.left > 0 && f.left <= uint64(maxControl-part) && f.have == 0
	case stageEnd:
		return f.left == 0 && f.have == 0 && part == 0 && !f.more
	}
	return false
}
