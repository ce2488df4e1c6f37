package tls13

import (
	"crypto/tls"
	"encoding/binary"
	"io"
)

// Sizes of RFC 8446 §5.1 and §5.2.
const (
	headerSize    = 5
	maxPlaintext  = 1 << 14
	maxCiphertext = maxPlaintext + 256

	// MaxRest bounds the rest that Open leaves: a record but its last byte, of TLS 1.2 in the case of Stdlib, of 1.3 2 KB less.
	MaxRest = headerSize + maxPlaintext + 2048 - 1
)

const (
	legacyVersion = 0x0303 // of all records behind the hello messages (RFC 8446 §5.1)

	// maxUseless is how many records and messages in a row may carry nothing for us; as in crypto/tls.
	maxUseless = 16
	// maxTicket bounds a NewSessionTicket, which is skipped; as in crypto/tls.
	maxTicket = 1 << 16
	// minTicket is one with an empty nonce, no ticket and no extensions.
	minTicket = 13
	// updateAfter is how many records are written under one key. RFC 8446 §5.5 allows AES-GCM 2^24.5 full ones.
	updateAfter = 1 << 23
)

// Content types (RFC 8446 §5.1) and handshake types (§4).
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23

	typeNewSessionTicket = 4
	typeKeyUpdate        = 24
	keyUpdateHeader      = 4 // type and length; one byte follows
)

const (
	isClient   = 1 << iota // we are the client
	readEnded              // Open has returned an error
	writeEnded             // close_notify or a fatal alert was written, or is owed
	owesAlert              // Reply has to write alert
	owesUpdate             // Reply has to write a KeyUpdate: the peer asks for it
	asksUpdate             // Reply has to ask for a KeyUpdate: the peer's key is old
)

// Secrets is what a handshake leaves for the record layer.
type Secrets struct {
	Suite  uint16 // tls.TLS_AES_128_GCM_SHA256 and so on
	Client bool   // we are the client
	// Read and Write are the application traffic secrets of the peer and of us (RFC 8446 §7.1): 32 bytes, with SHA-384 48.
	Read, Write []byte
	// ReadSeq and WriteSeq number the next records under these secrets.
	ReadSeq, WriteSeq uint64
}

// Records is the record layer of one TLS 1.3 connection after its handshake. It is not safe for concurrent use, and must not be
// copied: two copies would use the same nonces.
type Records struct {
	in, out half
	cache   *Cache
	skip    uint32                // bytes of a NewSessionTicket that are still to come
	head    [keyUpdateHeader]byte // of a handshake message that is not whole
	held    uint8                 // bytes in head
	suite   suite
	flags   uint8
	alert   uint8 // to be written
	useless uint8 // records and messages in a row without use
}

// New starts with what a handshake has left. The secrets are copied.
func New(s Secrets) (*Records, error) {
	id, err := suiteOf(s.Suite)
	if err != nil {
		return nil, err
	}
	if n := id.secretSize(); len(s.Read) != n || len(s.Write) != n {
		return nil, ErrSuite
	}
	r := &Records{suite: id}
	if s.Client {
		r.flags |= isClient
	}
	copy(r.in.secret[:], s.Read)
	copy(r.out.secret[:], s.Write)
	r.in.derive(id)
	r.out.derive(id)
	r.in.seq, r.out.seq = s.ReadSeq, s.WriteSeq
	return r, nil
}

// Bind says where ciphers are kept from now on, and takes them out of where they were. Without a Cache (nil, and at first) each
// record sets up its own. A session that changes its loop: Bind(nil) in the old one, Bind in the new one.
func (r *Records) Bind(c *Cache) {
	r.cache.drop(&r.in)
	r.cache.drop(&r.out)
	r.cache = c
}

func (r *Records) is(flag uint8) bool { return r.flags&flag != 0 }

// Open takes apart raw: what the socket brought, behind the rest that the last Open left. It returns the payload, moved together
// within raw, which is overwritten, and the rest: a piece of a record that is not whole, in raw behind the payload. An error ends
// reading for good: io.EOF after the peer's close_notify, else an *Error; payload that came before it is valid. A socket that ends
// without close_notify is the caller's to judge: many peers do.
func (r *Records) Open(raw []byte) (payload, rest []byte, err error) {
	if r.is(readEnded) {
		return nil, nil, ErrClosed
	}
	payload, rest, err = r.open(raw)
	return payload[:len(payload):len(payload)], rest, err // an append to it must not meet the rest
}

func (r *Records) open(raw []byte) (payload, rest []byte, err error) {
	rest = raw
	for len(rest) >= headerSize {
		n := int(binary.BigEndian.Uint16(rest[3:]))
		switch {
		case rest[0] != typeApplication: // also change_cipher_spec (RFC 8446 §5)
			err = r.refuse(alertUnexpectedMessage, "record is not protected")
		case binary.BigEndian.Uint16(rest[1:]) != legacyVersion:
			err = r.refuse(alertProtocolVersion, "record has a foreign version")
		case n > maxCiphertext:
			err = r.refuse(alertRecordOverflow, "record is longer than allowed")
		}
		if err != nil {
			return payload, nil, err
		}
		if len(rest) < headerSize+n {
			break
		}
		data, kind, err := r.decrypt(rest[:headerSize+n])
		if err == nil && kind != typeHandshake && (r.held > 0 || r.skip > 0) {
			err = r.refuse(alertUnexpectedMessage, "record inside of a handshake message") // RFC 8446 §5.1
		}
		if err != nil {
			return payload, nil, err
		}
		rest = rest[headerSize+n:]
		switch kind {
		case typeApplication:
			if len(data) == 0 {
				err = r.wasted()
				break
			}
			r.useless = 0
			if payload == nil {
				payload = data // where it is: nothing to move
			} else {
				payload = append(payload, data...) // to the left, within raw
			}
		case typeAlert:
			err = r.heard(data)
		case typeHandshake:
			err = r.handshake(data)
		default:
			err = r.refuse(alertUnexpectedMessage, "record has an unknown type")
		}
		if err != nil {
			return payload, nil, err
		}
	}
	return payload, rest, nil
}

// decrypt opens a whole record in place, and takes off type and padding (RFC 8446 §5.2, §5.4).
func (r *Records) decrypt(record []byte) (data []byte, kind byte, err error) {
	e := r.cache.get(&r.in, r.suite)
	sealed := record[headerSize:]
	data, err = e.aead.Open(sealed[:0], r.in.nonce(&e.nonce), sealed, record[:headerSize])
	if err != nil {
		return nil, 0, r.refuse(alertBadRecordMAC, "record is forged or damaged")
	}
	if len(data) > maxPlaintext+1 {
		return nil, 0, r.refuse(alertRecordOverflow, "record holds more than allowed")
	}
	if r.in.seq++; r.in.seq == updateAfter {
		r.flags |= asksUpdate
	}
	i := len(data) - 1
	for i >= 0 && data[i] == 0 {
		i--
	}
	if i < 0 {
		return nil, 0, r.refuse(alertUnexpectedMessage, "record has no type")
	}
	return data[:i], data[i], nil
}

// heard judges an alert (RFC 8446 §6).
func (r *Records) heard(data []byte) error {
	if len(data) != 2 {
		return r.refuse(alertUnexpectedMessage, "alert is torn")
	}
	switch data[1] {
	case alertCloseNotify:
		r.flags |= readEnded
		return io.EOF
	case alertUserCanceled: // close_notify will follow
		return r.wasted()
	}
	// The level is of no meaning (RFC 8446 §6): what is not about closing is fatal. It is not answered.
	r.flags = r.flags&^(owesUpdate|asksUpdate) | readEnded | writeEnded
	return &Error{Alert: tls.AlertError(data[1]), Remote: true}
}

// handshake takes a record of handshake messages: pieces of one, or several (RFC 8446 §5.1).
func (r *Records) handshake(data []byte) error {
	if len(data) == 0 {
		return r.refuse(alertUnexpectedMessage, "handshake record is empty")
	}
	for len(data) > 0 {
		switch {
		case r.skip > 0:
			n := min(len(data), int(r.skip))
			data = data[n:]
			if r.skip -= uint32(n); r.skip == 0 {
				if err := r.wasted(); err != nil {
					return err
				}
			}
		case r.held < keyUpdateHeader:
			n := copy(r.head[r.held:], data)
			r.held += uint8(n)
			data = data[n:]
			if err := r.header(); err != nil {
				return err
			}
		default:
			if err := r.update(data); err != nil {
				return err
			}
			data = data[1:]
		}
	}
	return nil
}

// header judges the first bytes of a message as soon as they are there.
func (r *Records) header() error {
	isTicket := r.head[0] == typeNewSessionTicket && r.is(isClient)
	if r.head[0] != typeKeyUpdate && !isTicket {
		// Also CertificateRequest: we never offer post_handshake_auth (RFC 8446 §4.6.2).
		return r.refuse(alertUnexpectedMessage, "handshake message is out of place")
	}
	if r.held < keyUpdateHeader {
		return nil
	}
	n := binary.BigEndian.Uint32(r.head[:]) & 0xff_ff_ff
	switch {
	case !isTicket && n != 1, isTicket && n < minTicket:
		return r.refuse(alertDecodeError, "handshake message has a wrong length")
	case n > maxTicket:
		return r.refuse(alertInternalError, "session ticket is too long")
	case isTicket:
		r.held, r.skip = 0, n
	}
	return nil
}

// update follows the peer to its next key (RFC 8446 §4.6.3); data is what is left of the record.
func (r *Records) update(data []byte) error {
	if len(data) > 1 {
		return r.refuse(alertUnexpectedMessage, "data behind KeyUpdate") // RFC 8446 §5.1
	}
	if data[0] > 1 {
		return r.refuse(alertIllegalParameter, "KeyUpdate is neither an answer nor a question")
	}
	r.held = 0
	if err := r.wasted(); err != nil {
		return err
	}
	if data[0] == 1 && !r.is(writeEnded) {
		r.flags |= owesUpdate
	}
	r.cache.drop(&r.in)
	r.in.next(r.suite)
	return nil
}

// wasted counts what came and carried nothing: each costs us work, and too many in a row are an attack.
func (r *Records) wasted() error {
	if r.useless++; r.useless > maxUseless {
		return r.refuse(alertUnexpectedMessage, "too many records in a row that carry nothing")
	}
	return nil
}

// refuse ends the connection with an alert, which Reply will write.
func (r *Records) refuse(alert uint8, why string) error {
	if !r.is(writeEnded) {
		r.alert = alert
		r.flags |= owesAlert
	}
	r.flags |= readEnded | writeEnded
	return &Error{Alert: tls.AlertError(alert), Why: why}
}
