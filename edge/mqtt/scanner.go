package mqtt

import (
	"encoding/binary"
	"errors"
)

// Scanner knows where packets begin and end in one direction of a connection. It reads fixed headers and counts the rest.
// The zero value stands before the first packet. It is a plain value of eight bytes: copy it, compare it, store it
// (MarshalBinary) and go on elsewhere.
//
//	between packets ──first byte──▶ header ──last byte of remaining length──▶ body ──last byte──▶ between packets
//	       ▲                                            │ remaining length 0
//	       └────────────────────────────────────────────┘
type Scanner struct {
	left  uint32 // in a body: its bytes still to come; in a header: the remaining length as far as it is read
	first byte   // first byte of the packet that the scanner is in or has left last; 0 = no packet yet
	// state is between, inBody, or the number of header bytes read, 1 to 4.
	state uint8
	fresh bool // the byte scanned last completed a fixed header
}

const (
	between = 0
	inBody  = 5
)

// Event tells what happened in the bytes that Step consumed. It is a set of bits: a packet without a body is Header|End.
type Event uint8

// The events. Body is the absence of the other two: bytes inside a packet, or of a header that is still incomplete.
const (
	Body   Event = 0
	Header Event = 1 // the last byte consumed completed a fixed header
	End    Event = 2 // the last byte consumed ended a packet
)

var (
	errScanType   = &Error{Kind: BadPacketType, Detail: "packet type 0"}
	errScanLength = &Error{Kind: BadRemainingLength, Detail: "more than four bytes"}
)

// Boundary reports whether the scanner stands between packets.
func (s *Scanner) Boundary() bool { return s.state == between }

// AtHeader reports whether the byte scanned last completed a fixed header: nothing of the body has been
// scanned, or there is none (then Boundary is true as well).
func (s *Scanner) AtHeader() bool { return s.fresh }

// Type is that of the packet that the scanner is in or, between packets, of the packet that ended last; 0 before the first.
func (s *Scanner) Type() PacketType { return PacketType(s.first >> 4) }

// Flags are the lower four bits of that packet's first byte.
func (s *Scanner) Flags() byte { return s.first & 0x0F }

// Remaining is the number of body bytes still to come, 0 while the header is incomplete.
func (s *Scanner) Remaining() uint32 {
	if s.state != inBody {
		return 0
	}
	return s.left
}

// Step consumes bytes from p up to the next event, n ≥ 1 of them unless p is empty.
// The error is an *Error of kind BadPacketType or BadRemainingLength. Then n counts the bytes before the one that is
// wrong and the scanner stays there: the rest of the stream has no packets.
func (s *Scanner) Step(p []byte) (n int, ev Event, err error) {
	if len(p) == 0 {
		return 0, Body, nil
	}
	s.fresh = false
	if s.state != inBody {
		return s.header(p)
	}
	if uint64(len(p)) < uint64(s.left) {
		s.left -= uint32(len(p))
		return len(p), Body, nil
	}
	n, s.left, s.state = int(s.left), 0, between
	return n, End, nil
}

// header reads on in a fixed header. p is not empty.
func (s *Scanner) header(p []byte) (n int, ev Event, err error) {
	for n < len(p) {
		c := p[n]
		switch {
		case s.state == between:
			if c < 0x10 { // MQTT 5 §2.1.2: type 0 is forbidden
				return n, Body, errScanType
			}
			s.first, s.left, s.state = c, 0, 1
			n++
			continue
		case s.state == 4 && c >= 0x80: // the fourth byte of the length announces a fifth
			return n, Body, errScanLength
		}
		s.left |= uint32(c&0x7F) << (7 * (s.state - 1))
		s.state++
		n++
		if c < 0x80 {
			s.fresh = true
			if s.left == 0 {
				s.state = between
				return n, Header | End, nil
			}
			s.state = inBody
			return n, Header, nil
		}
	}
	return n, Body, nil
}

// Skip is Step over many packets at once: it consumes p and tells how many packets ended in it. It stops behind a fixed header
// whose packet type is in stop (bit 1<<type), so that the caller can look at that packet. That may be at the very end of p
// and the packet may be without a body, so ask AtHeader:
//
//	n, ended, err := s.Skip(p, 1<<mqtt.DISCONNECT)
//	if s.AtHeader() && s.Type() == mqtt.DISCONNECT { // p[:n] ends with its header
//
// Errors are those of Step; n and ended count what came before.
func (s *Scanner) Skip(p []byte, stop uint16) (n, ended int, err error) {
	for n < len(p) {
		s.fresh = false
		if s.state == between && n+1 < len(p) && p[n] >= 0x10 && p[n+1] < 0x80 {
			// Nearly every header is two bytes long and at hand.
			s.first, s.left = p[n], uint32(p[n+1])
			s.fresh = true
			n += 2
			if s.left == 0 {
				ended++
			} else {
				s.state = inBody
			}
		} else if s.state != inBody {
			m, ev, err := s.header(p[n:])
			n += m
			if err != nil {
				return n, ended, err
			}
			if ev&End != 0 {
				ended++
			}
		}
		if s.fresh && stop>>s.Type()&1 != 0 {
			return n, ended, nil
		}
		if s.state != inBody {
			continue
		}
		rest := len(p) - n
		if rest == 0 {
			break
		}
		s.fresh = false
		if uint64(rest) < uint64(s.left) {
			s.left -= uint32(rest)
			return len(p), ended, nil
		}
		n += int(s.left)
		s.left, s.state = 0, between
		ended++
	}
	return n, ended, nil
}

// scannerSize is the length of a Scanner's binary form: first byte, state (and 0x80 for a fresh header), left.
const scannerSize = 6

// ErrScannerState is returned by UnmarshalBinary for bytes that no scanner wrote.
var ErrScannerState = errors.New("mqtt: not the state of a scanner")

// AppendBinary appends the scanner's state, six bytes. The error is always nil.
func (s Scanner) AppendBinary(b []byte) ([]byte, error) {
	state := s.state
	if s.fresh {
		state |= 0x80
	}
	b = append(b, s.first, state)
	return binary.BigEndian.AppendUint32(b, s.left), nil
}

// MarshalBinary returns the scanner's state, six bytes. The error is always nil.
func (s Scanner) MarshalBinary() ([]byte, error) { return s.AppendBinary(nil) }

// UnmarshalBinary restores what MarshalBinary wrote. It refuses states that no stream of packets leads to.
func (s *Scanner) UnmarshalBinary(b []byte) error {
	if len(b) != scannerSize {
		return ErrScannerState
	}
	t := Scanner{first: b[0], state: b[1] &^ 0x80, fresh: b[1]&0x80 != 0, left: binary.BigEndian.Uint32(b[2:])}
	ok := false
	switch {
	case t == Scanner{}:
		ok = true
	case t.first < 0x10:
	case t.state == between:
		ok = t.left == 0
	case t.state == inBody:
		ok = t.left > 0 && t.left <= MaxRemainingLength
	case t.state < inBody:
		ok = !t.fresh && t.left>>(7*(t.state-1)) == 0
	}
	if !ok {
		return ErrScannerState
	}
	*s = t
	return nil
}
