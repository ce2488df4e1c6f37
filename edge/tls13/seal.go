package tls13

import (
	"encoding/binary"
	"slices"
)

// Overhead is what a record of up to 16,384 bytes takes besides its payload.
const Overhead = headerSize + 1 + tagSize

// Seal appends p as records to dst. Before it goes what Reply owes, so that a KeyUpdate that is asked for comes ahead of the
// payload. After End, after an alert, or for an empty p it appends nothing more. p must not overlap dst.
func (r *Records) Seal(dst, p []byte) []byte {
	dst = r.Reply(dst)
	if r.is(writeEnded) || len(p) == 0 {
		return dst
	}
	records := (len(p) + maxPlaintext - 1) / maxPlaintext
	dst = slices.Grow(dst, len(p)+records*Overhead)
	for len(p) > 0 {
		n := min(len(p), maxPlaintext)
		if r.out.seq >= updateAfter {
			dst = r.appendUpdate(dst, false)
		}
		dst = r.appendRecord(dst, typeApplication, p[:n])
		p = p[n:]
	}
	return dst
}

// Reply appends what we have to say ourselves: a KeyUpdate, or the alert behind the error that Open has returned.
func (r *Records) Reply(dst []byte) []byte {
	if r.flags&(owesAlert|owesUpdate|asksUpdate) == 0 {
		return dst
	}
	if r.is(owesAlert) {
		r.flags &^= owesAlert | owesUpdate | asksUpdate
		const fatal = 2
		return r.appendRecord(dst, typeAlert, []byte{fatal, r.alert})
	}
	// One update answers any number of questions, and an answer must not ask (RFC 8446 §4.6.3): so it is two.
	if r.is(owesUpdate) {
		dst = r.appendUpdate(dst, false)
	}
	if r.is(asksUpdate) {
		dst = r.appendUpdate(dst, true)
	}
	r.flags &^= owesUpdate | asksUpdate
	return dst
}

// End appends close_notify, once; then nothing more is written. Reading goes on.
func (r *Records) End(dst []byte) []byte {
	dst = r.Reply(dst)
	if r.is(writeEnded) {
		return dst
	}
	r.flags |= writeEnded
	const warning = 1
	return r.appendRecord(dst, typeAlert, []byte{warning, alertCloseNotify})
}

// appendUpdate appends a KeyUpdate and goes on to our next key.
func (r *Records) appendUpdate(dst []byte, ask bool) []byte {
	msg := [keyUpdateHeader + 1]byte{typeKeyUpdate, 0, 0, 1}
	if ask {
		msg[keyUpdateHeader] = 1
	}
	dst = r.appendRecord(dst, typeHandshake, msg[:])
	r.cache.drop(&r.out)
	r.out.next(r.suite)
	return dst
}

// appendRecord appends one record (RFC 8446 §5.2).
func (r *Records) appendRecord(dst []byte, kind byte, p []byte) []byte {
	at := len(dst)
	dst = append(dst, typeApplication, legacyVersion>>8, legacyVersion&0xff, 0, 0)
	binary.BigEndian.PutUint16(dst[at+3:], uint16(len(p)+1+tagSize))
	dst = append(dst, p...)
	dst = append(dst, kind)
	e := r.cache.get(&r.out, r.suite)
	header, inner := dst[at:at+headerSize], dst[at+headerSize:]
	sealed := e.aead.Seal(inner[:0], r.out.nonce(&e.nonce), inner, header)
	r.out.seq++
	if cap(inner) >= len(sealed) {
		return dst[:at+headerSize+len(sealed)] // in place
	}
	return append(dst[:at+headerSize], sealed...)
}
