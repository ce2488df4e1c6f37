package tls13

import (
	"encoding/binary"
	"fmt"
	"io"
)

// stateVersion is the first byte of a state.
//
//	0        1      2      3      4        5     6..9  10..13  14..21   22..29    30..
//	version  suite  flags  alert  useless  held  head  skip    in.seq   out.seq   in.secret, out.secret: 32 or 48 bytes each
const (
	stateVersion = 1
	stateFixed   = 30
)

// AppendState appends all there is to know about the connection to b: 94 bytes, 126 with SHA-384. They are secret, and are good for
// one heir: as soon as there is one, r must not be used any more, or the two would use the same nonces.
func (r *Records) AppendState(b []byte) []byte {
	b = append(b, stateVersion, byte(r.suite), r.flags, r.alert, r.useless, r.held)
	b = append(b, r.head[:]...)
	b = binary.BigEndian.AppendUint32(b, r.skip)
	b = binary.BigEndian.AppendUint64(b, r.in.seq)
	b = binary.BigEndian.AppendUint64(b, r.out.seq)
	n := r.suite.secretSize()
	b = append(b, r.in.secret[:n]...)
	return append(b, r.out.secret[:n]...)
}

// ReadState makes of the bytes that AppendState wrote a Records that goes on where that one was, without a Cache; what follows
// them in b is returned.
func ReadState(b []byte) (r *Records, rest []byte, err error) {
	if len(b) < stateFixed || b[0] != stateVersion {
		return nil, nil, ErrState
	}
	id, err := suiteOf(0x1300 | uint16(b[1]))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	n := id.secretSize()
	if len(b) < stateFixed+2*n {
		return nil, nil, ErrState
	}
	r = &Records{suite: id, flags: b[2], alert: b[3], useless: b[4], held: b[5]}
	copy(r.head[:], b[6:10])
	r.skip = binary.BigEndian.Uint32(b[10:])
	if r.held > keyUpdateHeader || r.skip > maxTicket {
		return nil, nil, ErrState
	}
	copy(r.in.secret[:], b[stateFixed:][:n])
	copy(r.out.secret[:], b[stateFixed+n:][:n])
	r.in.derive(id)
	r.out.derive(id)
	r.in.seq = binary.BigEndian.Uint64(b[14:])
	r.out.seq = binary.BigEndian.Uint64(b[22:])
	return r, b[stateFixed+2*n:], nil
}

// Wipe overwrites secrets and keys and lets go of the ciphers. After it nothing is read or written.
func (r *Records) Wipe() {
	r.Bind(nil)
	*r = Records{suite: r.suite, flags: readEnded | writeEnded}
}

const redacted = "tls13.Records(redacted)"

// Format keeps secrets out of whatever is printed.
func (Records) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// Format keeps secrets out of whatever is printed.
func (Secrets) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "tls13.Secrets(redacted)") }
