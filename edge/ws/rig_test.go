package ws

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"unicode/utf8"

	gobwas "github.com/gobwas/ws"
)

// A peer makes frames as a client (masked) or a server does.
type peer Role

var peers = map[string]peer{"from a client": peer(Client), "from a server": peer(Server)}

// role is our side.
func (p peer) role() Role { return 1 - Role(p) }

func (p peer) frame(fin bool, op byte, payload []byte) []byte {
	return frameWith(fin, 0, op, Role(p) == Client, uint64(len(payload)), payload)
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

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// seen is what a peer's bytes amount to.
type seen struct {
	payload string
	replies string // our control frames in order, each as opcode:payload;
	end     string // of the reading side: "" = none, "EOF", "closed 1011", or the code of a broken rule
	within  bool   // a frame or a message
}

// feed gives b to f in pieces that cut chooses, each in memory of its own, as sockets do, and takes the replies after each.
func feed(t testing.TB, f *Frames, b []byte, cut func(left int) int) (s seen) {
	t.Helper()
	for len(b) > 0 && s.end == "" {
		raw := bytes.Clone(b[:cut(len(b))])
		b = b[len(raw):]
		payload, rest, err := f.Open(raw)
		if len(rest) > 0 || len(payload) > len(raw) || len(payload) > 0 && &payload[0] != &raw[0] {
			t.Fatalf("payload of %d bytes and rest of %d out of %d, or not where they should be", len(payload), len(rest), len(raw))
		}
		s.payload += string(payload)
		due := f.Due()
		reply := f.Reply(nil)
		if due != (len(reply) > 0) || f.Due() {
			t.Fatalf("due before the reply %x: %v, after it: %v", reply, due, f.Due())
		}
		s.replies += controlsIn(t, f.role, reply)
		s.end = endOf(t, err)
	}
	s.within = f.EOF() != io.EOF
	return s
}

func endOf(t testing.TB, err error) string {
	t.Helper()
	var e *Error
	var c CloseError
	switch {
	case err == nil:
		return ""
	case err == io.EOF:
		return "EOF"
	case errors.As(err, &c):
		return fmt.Sprint("closed ", uint16(c))
	case errors.As(err, &e) && e.Err != nil:
		return fmt.Sprint(e.Code)
	}
	t.Fatalf("the error %v", err)
	return ""
}

// controlsIn reads control frames that role has sent.
func controlsIn(t testing.TB, role Role, b []byte) (s string) {
	t.Helper()
	for r := bytes.NewReader(b); r.Len() > 0; {
		h, err := gobwas.ReadHeader(r)
		if err != nil || !h.OpCode.IsControl() || gobwas.CheckHeader(h, gobwas.StateServerSide<<(1-role)) != nil || h.Length > int64(r.Len()) {
			t.Fatalf("sent %x: %+v, %v", b, h, err)
		}
		p := make([]byte, h.Length)
		_, _ = io.ReadFull(r, p)
		gobwas.Cipher(p, h.Mask, 0)
		s += fmt.Sprintf("%x:%s;", byte(h.OpCode), p)
	}
	return s
}

func whole(left int) int { return left }
func single(int) int     { return 1 }

// reference reads the same with everything in memory, by gobwas/ws's reader, and answers each ping.
func reference(role Role, b []byte) (s seen) {
	r := bytes.NewReader(b)
	state := gobwas.StateServerSide << role
	broken := func(code uint16) seen {
		s.end = fmt.Sprint(code)
		s.replies += fmt.Sprintf("8:%s;", []byte{byte(code >> 8), byte(code)})
		return s
	}
	for {
		left := r.Len()
		if left >= 2 { // gobwas would wait for the whole header before it judges
			first := b[len(b)-left:]
			h := gobwas.Header{
				Fin: first[0]&0x80 != 0, Rsv: first[0] >> 4 & 7, OpCode: gobwas.OpCode(first[0] & 15),
				Masked: first[1]&0x80 != 0, Length: int64(first[1] & 0x7f),
			}
			if gobwas.CheckHeader(h, state) != nil {
				return broken(1002)
			}
			if h.OpCode == gobwas.OpText {
				return broken(1003)
			}
			if h.Length == 127 && left >= 10 && first[2]&0x80 != 0 {
				return broken(1002)
			}
		}
		h, err := gobwas.ReadHeader(r)
		if err != nil {
			s.within = left > 0 || state.Fragmented()
			return s
		}
		payload, _ := io.ReadAll(io.LimitReader(r, h.Length))
		gobwas.Cipher(payload, h.Mask, 0)
		cut := int64(len(payload)) < h.Length
		if !h.OpCode.IsControl() {
			s.payload += string(payload)
			if state = state.Clear(gobwas.StateFragmented); !h.Fin {
				state = state.Set(gobwas.StateFragmented)
			}
		}
		if cut {
			s.within = true
			return s
		}
		switch h.OpCode {
		case gobwas.OpPing:
			s.replies += fmt.Sprintf("a:%s;", payload)
		case gobwas.OpClose:
			if len(payload) > 0 {
				code, text := gobwas.ParseCloseFrameData(payload)
				registered := code >= 1012 && code <= 1014 // younger than the library
				if len(payload) == 1 || code >= 5000 || !registered && gobwas.CheckCloseFrameData(code, "") != nil {
					return broken(1002)
				}
				if !utf8.ValidString(text) {
					return broken(1007)
				}
				if s.end = "EOF"; role == Client && code != 1000 && code != 1001 {
					s.end = fmt.Sprint("closed ", uint16(code))
				}
				s.replies += fmt.Sprintf("8:%s;", payload[:2])
				return s
			}
			s.end = "EOF"
			s.replies += "8:;"
			return s
		}
	}
}
