package tls13

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	maxSecret = 48 // SHA-384
	maxKey    = 32 // AES-256, ChaCha20
	ivSize    = 12 // RFC 8446 §5.3, for all suites
	tagSize   = 16 // of all suites
)

// A suite is one of TLS 1.3's cipher suites (RFC 8446 §B.4): the low byte of its number.
type suite uint8

const (
	aes128GCM = suite(tls.TLS_AES_128_GCM_SHA256 & 0xff)
	aes256GCM = suite(tls.TLS_AES_256_GCM_SHA384 & 0xff)
	chacha20  = suite(tls.TLS_CHACHA20_POLY1305_SHA256 & 0xff)
)

func suiteOf(id uint16) (suite, error) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256:
		return suite(id & 0xff), nil
	}
	return 0, fmt.Errorf("%w: %s", ErrSuite, tls.CipherSuiteName(id))
}

func (s suite) secretSize() int {
	if s == aes256GCM {
		return sha512.Size384
	}
	return sha256.Size
}

func (s suite) keySize() int {
	if s == aes128GCM {
		return 16
	}
	return 32
}

// aead makes the cipher of a key. It fails only where FIPS 140-3 mode forbids a nonce of ours: Handshake keeps away from it.
func (s suite) aead(key []byte) cipher.AEAD {
	var a cipher.AEAD
	var err error
	if s == chacha20 {
		a, err = chacha20poly1305.New(key)
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			a, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		panic("tls13: " + err.Error())
	}
	return a
}

// expander is what HKDF-Expand turns a secret into (RFC 5869 §2.3).
func (s suite) expander(secret []byte) hash.Hash {
	if s == aes256GCM {
		return hmac.New(sha512.New384, secret)
	}
	return hmac.New(sha256.New, secret)
}

// expand is HKDF-Expand-Label with an empty context, into dst (RFC 8446 §7.1). All that is wanted here is no longer than one hash:
// then HKDF-Expand is a single HMAC.
func expand(mac hash.Hash, dst []byte, label string) {
	const prefix = "tls13 "
	info := make([]byte, 0, 32)
	info = append(info, 0, byte(len(dst)), byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, 0, 1) // the length of the context, the number of the block
	mac.Reset()
	_, _ = mac.Write(info)
	out := mac.Sum(make([]byte, 0, maxSecret))
	copy(dst, out)
	clear(out)
}

// A half is one direction of a connection.
type half struct {
	seq    uint64 // of the next record under this key
	secret [maxSecret]byte
	key    [maxKey]byte
	iv     [ivSize]byte
	slot   uint16 // where a Cache put the AEAD, if it is still there
	missed uint16 // the Cache's epoch when it was not
}

// derive makes key and iv from the secret (RFC 8446 §7.3).
func (h *half) derive(s suite) {
	mac := s.expander(h.secret[:s.secretSize()])
	expand(mac, h.key[:s.keySize()], "key")
	expand(mac, h.iv[:], "iv")
}

// next replaces the secret by its successor (RFC 8446 §7.2).
func (h *half) next(s suite) {
	secret := h.secret[:s.secretSize()]
	expand(s.expander(secret), secret, "traffic upd")
	h.derive(s)
	h.seq = 0
}

// nonce is that of the next record (RFC 8446 §5.3).
func (h *half) nonce(dst *[ivSize]byte) []byte {
	*dst = h.iv
	tail := dst[ivSize-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.seq)
	return dst[:]
}
