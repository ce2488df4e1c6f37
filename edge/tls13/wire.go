package tls13

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A wire is the net.Conn under a tls.Conn. During the handshake it stands before the socket, and sees to it that the tls.Conn is
// given no byte behind the record it is reading. Afterwards the socket is the caller's: then the wire is either cut, or it is memory.
type wire struct {
	conn net.Conn // as long as the handshake runs
	mode wireMode

	// Handshake, reading.
	buf  *[4096]byte
	read []byte  // of buf: not given out yet
	head [5]byte // of the record that is being given out
	have int     // bytes of head
	need int     // bytes of the record behind its head

	// Handshake, keys.
	client  bool
	capture bool
	secrets [2]secret // of the client and of the server
	odd     string    // why the records cannot be taken over
	sent    []byte    // what was written since our secret is known

	// Memory.
	in  []byte // given out by Read
	out []byte // grown by Write
}

type secret struct {
	b [maxSecret]byte
	n int
}

type wireMode uint8

const (
	onSocket wireMode = iota
	isCut
	inMemory
)

var (
	errCut = errors.New("tls13: the connection is not this tls.Conn's any more")

	// errMore is a net.Error that is temporary: the tls.Conn does not remember it, and can read on later.
	errMore net.Error = moreError{}
)

type moreError struct{}

func (moreError) Error() string   { return "tls13: no more input" }
func (moreError) Timeout() bool   { return true }
func (moreError) Temporary() bool { return true }

// maxSent bounds what a handshake writes under its last keys, certificates included. More is not kept: the tls.Conn stays.
const maxSent = 1 << 16

var bufs = sync.Pool{New: func() any { return new([4096]byte) }}

// Read gives out no more than the rest of the record that is being read.
func (w *wire) Read(p []byte) (int, error) {
	if w.mode == isCut {
		return 0, errCut
	}
	if w.mode == inMemory {
		if len(w.in) == 0 {
			return 0, errMore
		}
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	if len(w.read) == 0 {
		if w.buf == nil {
			w.buf = bufs.Get().(*[4096]byte)
		}
		n, err := w.conn.Read(w.buf[:])
		if n == 0 {
			return 0, err
		}
		w.read = w.buf[:n] // an error will come again
	}
	n := w.need
	if n == 0 {
		n = len(w.head) - w.have
	}
	n = copy(p[:min(n, len(p))], w.read)
	if w.need > 0 {
		w.need -= n
	} else if w.have += copy(w.head[w.have:], w.read[:n]); w.have == len(w.head) {
		w.need, w.have = int(binary.BigEndian.Uint16(w.head[3:])), 0
	}
	w.read = w.read[n:]
	return n, nil
}

// Write passes on what the tls.Conn has to say, and keeps what may be a record under the last keys.
func (w *wire) Write(p []byte) (int, error) {
	switch w.mode {
	case isCut:
		return 0, errCut
	case inMemory:
		w.out = append(w.out, p...)
		return len(p), nil
	}
	if w.own().n > 0 && w.odd == "" {
		if len(w.sent)+len(p) > maxSent {
			w.odd = "long handshake"
		} else {
			w.sent = append(w.sent, p...)
		}
	}
	return w.conn.Write(p)
}

// own is the secret of what we write.
func (w *wire) own() *secret {
	if w.client {
		return &w.secrets[0]
	}
	return &w.secrets[1]
}

// peers is the secret of what we read.
func (w *wire) peers() *secret {
	if w.client {
		return &w.secrets[1]
	}
	return &w.secrets[0]
}

// rest ends reading: it returns what was read and not given out.
func (w *wire) rest() []byte {
	rest := bytes.Clone(w.read)
	if w.buf != nil {
		clear(w.buf[:]) // it may hold the start of the payload
		bufs.Put(w.buf)
	}
	w.buf, w.read = nil, nil
	return rest
}

// count tells how many records were sent under our application traffic secret: those that open with it, which must be the last
// ones. r has that secret for writing.
func (w *wire) count(r *Records) (n uint64, ok bool) {
	aead := r.suite.aead(r.out.key[:r.suite.keySize()])
	var nonce [ivSize]byte
	scratch := make([]byte, 0, 2048)
	sent := w.sent
	for len(sent) >= headerSize {
		size := headerSize + int(binary.BigEndian.Uint16(sent[3:]))
		if len(sent) < size {
			return 0, false
		}
		record := sent[:size]
		sent = sent[size:]
		if record[0] != typeApplication {
			if n > 0 {
				return 0, false
			}
			continue // ServerHello, change_cipher_spec
		}
		r.out.seq = n
		opened, err := aead.Open(scratch, r.out.nonce(&nonce), record[headerSize:], record[:headerSize])
		scratch = opened[:0]
		switch {
		case err == nil:
			n++
		case n > 0:
			return 0, false
		}
	}
	return n, len(sent) == 0
}

// forget overwrites the secrets, which the Records have by now, or nobody needs.
func (w *wire) forget() {
	w.secrets = [2]secret{}
	clear(w.sent)
	w.sent = nil
}

// Close is what tls.Conn calls when the context of a handshake ends.
func (w *wire) Close() error {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.Close()
}

// NetConn returns the connection below, for those who look at tls.ClientHelloInfo.Conn; nil after the handshake.
func (w *wire) NetConn() net.Conn { return w.conn }

func (w *wire) LocalAddr() net.Addr {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.LocalAddr()
}

func (w *wire) RemoteAddr() net.Addr {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.RemoteAddr()
}

func (w *wire) SetDeadline(t time.Time) error {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.SetDeadline(t)
}

func (w *wire) SetReadDeadline(t time.Time) error {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.SetReadDeadline(t)
}

func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.mode != onSocket {
		return nil
	}
	return w.conn.SetWriteDeadline(t)
}

// keyLog is a tls.Config.KeyLogWriter that takes the secrets of one connection.
type keyLog struct {
	wire *wire
	next io.Writer // of the configuration; nil = none
}

// Write takes one line: a label, the client's random, the secret; both in hexadecimal.
func (k keyLog) Write(line []byte) (int, error) {
	label, values, _ := bytes.Cut(line, []byte(" "))
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		k.wire.learn(0, values)
	case "SERVER_TRAFFIC_SECRET_0":
		k.wire.learn(1, values)
	}
	if k.next != nil {
		return k.next.Write(line)
	}
	return len(line), nil
}

func (w *wire) learn(which int, values []byte) {
	s := &w.secrets[which]
	_, value, _ := bytes.Cut(bytes.TrimSuffix(values, []byte("\n")), []byte(" "))
	if n := hex.DecodedLen(len(value)); s.n > 0 || n == 0 || n > maxSecret {
		w.odd = "key log"
		return
	}
	var err error
	if s.n, err = hex.Decode(s.b[:], value); err != nil {
		w.odd = "key log"
	}
}

// watch returns config with a key log of this connection's own.
func (w *wire) watch(config *tls.Config) *tls.Config {
	config = config.Clone()
	config.KeyLogWriter = keyLog{w, config.KeyLogWriter}
	return config
}
