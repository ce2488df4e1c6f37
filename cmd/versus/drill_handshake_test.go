//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A newcomer makes full TLS 1.3 handshakes (RFC 8446) at the least cost to itself: X25519, AES-128-GCM and a P-256 certificate that it does not look
// at. Its key pair and its ClientHello are always the same, so that of a handshake's four operations on curves it does one, and the server three.
type newcomer struct {
	key   *ecdh.PrivateKey
	hello []byte // a handshake message
}

// Types of records, and of handshake messages (RFC 8446 §5.1, §4).
const (
	recordCipherSpec  = 20
	recordHandshake   = 22
	recordApplication = 23
	messageHello      = 2
	messageFinished   = 20
)

var errHandshake = errors.New("handshake")

func newNewcomer() (*newcomer, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	var extensions []byte
	add := func(kind uint16, body ...byte) {
		extensions = binary.BigEndian.AppendUint16(extensions, kind)
		extensions = binary.BigEndian.AppendUint16(extensions, uint16(len(body)))
		extensions = append(extensions, body...)
	}
	add(10, 0, 2, 0, 0x1d)                                                        // supported_groups: x25519
	add(13, 0, 2, 4, 3)                                                           // signature_algorithms: ecdsa_secp256r1_sha256
	add(43, 2, 3, 4)                                                              // supported_versions: TLS 1.3
	add(45, 1, 1)                                                                 // psk_key_exchange_modes: psk_dhe_ke, or a server issues no ticket
	add(51, append([]byte{0, 36, 0, 0x1d, 0, 32}, key.PublicKey().Bytes()...)...) // key_share
	body := append([]byte{3, 3}, make([]byte, 32)...)                             // legacy_version, random
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)                                   // no session ID; TLS_AES_128_GCM_SHA256; no compression
	body = binary.BigEndian.AppendUint16(body, uint16(len(extensions)))
	body = append(body, extensions...)
	return &newcomer{key, append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)}, nil
}

// record puts the header of a plain record before b.
func record(kind byte, b []byte) []byte {
	return append([]byte{kind, 3, 3, byte(len(b) >> 8), byte(len(b))}, b...)
}

// traffic is one direction under one key.
type traffic struct {
	aead     cipher.AEAD
	iv       []byte
	sequence uint64
}

func trafficOf(secret []byte) (*traffic, error) {
	block, err := aes.NewCipher(expand(secret, "key", nil, 16))
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &traffic{aead: aead, iv: expand(secret, "iv", nil, 12)}, err
}

func (t *traffic) nonce() []byte {
	nonce := bytes.Clone(t.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^t.sequence)
	t.sequence++
	return nonce
}

// seal returns a record that holds b.
func (t *traffic) seal(kind byte, b []byte) []byte {
	n := len(b) + 1 + t.aead.Overhead()
	header := []byte{recordApplication, 3, 3, byte(n >> 8), byte(n)}
	return t.aead.Seal(header, t.nonce(), append(bytes.Clone(b), kind), header)
}

// open returns what a record holds, without padding, which nobody here sends.
func (t *traffic) open(header, b []byte) (kind byte, content []byte, err error) {
	content, err = t.aead.Open(nil, t.nonce(), b, header)
	if err != nil || len(content) == 0 {
		return 0, nil, fmt.Errorf("%w: a record that does not open", errHandshake)
	}
	return content[len(content)-1], content[:len(content)-1], nil
}

// expand is HKDF-Expand-Label (RFC 8446 §7.1).
func expand(secret []byte, label string, context []byte, length int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(6+len(label)))
	info = append(append(info, "tls13 "+label...), byte(len(context)))
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, context...)), length)
	if err != nil {
		panic(err) // of a length that no caller asks for
	}
	return out
}

func extract(salt, secret []byte) []byte {
	out, err := hkdf.Extract(sha256.New, secret, salt)
	if err != nil {
		panic(err)
	}
	return out
}

var (
	zeros    = make([]byte, sha256.Size)
	nothing  = sha256.Sum256(nil)
	earliest = expand(extract(nil, zeros), "derived", nothing[:], sha256.Size)
)

// shakeHands makes one handshake on c, and returns once the server has confirmed it by a ticket. out is the client's direction from then on.
func (n *newcomer) shakeHands(c net.Conn) (out *traffic, err error) {
	if _, err := c.Write(record(recordHandshake, n.hello)); err != nil {
		return nil, err
	}
	said := sha256.New() // the transcript
	said.Write(n.hello)
	r := &records{c: c}
	hello, err := r.plain()
	if err != nil {
		return nil, err
	}
	share, err := serverShare(hello)
	if err != nil {
		return nil, err
	}
	said.Write(hello)
	public, err := ecdh.X25519().NewPublicKey(share)
	if err != nil {
		return nil, err
	}
	shared, err := n.key.ECDH(public)
	if err != nil {
		return nil, err
	}
	secret := extract(earliest, shared)
	sofar := said.Sum(nil)
	mine := expand(secret, "c hs traffic", sofar, sha256.Size)
	theirs, err := trafficOf(expand(secret, "s hs traffic", sofar, sha256.Size))
	if err != nil {
		return nil, err
	}
	for flight := []byte(nil); ; {
		header, body, err := r.next()
		if err != nil {
			return nil, err
		}
		kind, content, err := theirs.open(header, body)
		if err != nil || kind != recordHandshake {
			return nil, fmt.Errorf("%w: a record of type %d: %x %v", errHandshake, kind, content, err)
		}
		said.Write(content)
		flight = append(flight, content...)
		if ended(flight) {
			break
		}
	}
	sofar = said.Sum(nil)
	mac := hmac.New(sha256.New, expand(mine, "finished", nil, sha256.Size))
	mac.Write(sofar)
	finish, err := trafficOf(mine)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(finish.seal(recordHandshake, mac.Sum([]byte{messageFinished, 0, 0, sha256.Size}))); err != nil {
		return nil, err
	}
	master := extract(expand(secret, "derived", nothing[:], sha256.Size), zeros)
	// A ticket is longer than an alert, which is all that could come instead.
	if _, body, err := r.next(); err != nil || len(body) < 50 {
		return nil, fmt.Errorf("%w: no ticket, but %d bytes: %v", errHandshake, len(body), err)
	}
	return trafficOf(expand(master, "c ap traffic", sofar, sha256.Size))
}

// ended reports whether the last of the handshake messages in b is a whole Finished.
func ended(b []byte) bool {
	for len(b) >= 4 {
		n := 4 + (int(b[1])<<16 | int(b[2])<<8 | int(b[3]))
		if len(b) < n {
			return false
		}
		if b[0] == messageFinished {
			return true
		}
		b = b[n:]
	}
	return false
}

// serverShare finds the key share in a ServerHello (RFC 8446 §4.1.3).
func serverShare(b []byte) ([]byte, error) {
	const fixed = 4 + 2 + 32
	if len(b) < fixed+1 || b[0] != messageHello || len(b) < fixed+1+int(b[fixed])+5 {
		return nil, fmt.Errorf("%w: no ServerHello: %x", errHandshake, b)
	}
	for b = b[fixed+1+int(b[fixed])+5:]; len(b) >= 4; {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			break
		}
		if binary.BigEndian.Uint16(b) == 51 && n == 4+4+32 {
			return b[8:n], nil
		}
		b = b[n:]
	}
	return nil, fmt.Errorf("%w: no key share", errHandshake)
}

// records reads whole records.
type records struct {
	c    io.Reader
	buf  [8 << 10]byte
	b    []byte // of buf: read and not yet asked for
	used int
}

// next returns the next record that is no ChangeCipherSpec, until the call after it.
func (r *records) next() (header, body []byte, err error) {
	for {
		r.b, r.used = r.b[r.used:], 0
		for len(r.b) < 5 || len(r.b) < 5+int(binary.BigEndian.Uint16(r.b[3:])) {
			have := copy(r.buf[:], r.b)
			n, err := r.c.Read(r.buf[have:])
			r.b = r.buf[:have+n]
			if err != nil || n == 0 {
				return nil, nil, fmt.Errorf("%w: after %d bytes of a record: %v", errHandshake, have, err)
			}
		}
		r.used = 5 + int(binary.BigEndian.Uint16(r.b[3:]))
		if r.b[0] != recordCipherSpec {
			return r.b[:5], r.b[5:r.used], nil
		}
	}
}

func (r *records) plain() ([]byte, error) {
	header, body, err := r.next()
	if err == nil && header[0] != recordHandshake {
		err = fmt.Errorf("%w: answered with a record of type %d: %x", errHandshake, header[0], body)
	}
	return body, err
}

// stormed is what a storm has seen since it was asked last.
type stormed struct {
	Handshakes int64  `json:"handshakes"` // complete
	Failed     int64  `json:"failed"`
	Error      string `json:"error,omitempty"` // of one that failed
}

// storm is a child of these tests: `storm ADDRESS WIDTH`. From "begin" to "stop" there are always WIDTH handshakes under way, and each connection is
// reset when its handshake is complete, so that no port has to wait.
func storm(args []string, in io.Reader, out, stderr io.Writer) int {
	width, err := strconv.Atoi(args[1])
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	n, err := newNewcomer()
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	var done, failed atomic.Int64
	var last atomic.Pointer[string]
	one := func(ctx context.Context) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", args[0])
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = n.shakeHands(c)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
		switch {
		case err == nil:
			done.Add(1)
		case ctx.Err() == nil:
			failed.Add(1)
			why := err.Error()
			last.Store(&why)
		}
	}
	var crowd sync.WaitGroup
	stop := func() {}
	serve(in, out, func(r request) (any, error) {
		switch r.Op {
		case "begin":
			ctx, cancel := context.WithCancel(context.Background())
			stop = cancel
			for range width {
				crowd.Go(func() {
					for ctx.Err() == nil {
						one(ctx)
					}
				})
			}
		case "stop":
			stop()
			crowd.Wait()
		}
		s := stormed{Handshakes: done.Swap(0), Failed: failed.Swap(0)}
		if why := last.Swap(nil); why != nil {
			s.Error = *why
		}
		return s, nil
	})
	stop()
	crowd.Wait()
	return 0
}

// TestNewcomer: crypto/tls takes the handshake for a whole one, and reads what comes behind it.
func TestNewcomer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := writeCertificate(file); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(file, file+".key")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		b := make([]byte, 5)
		if _, err := io.ReadFull(s, b); err != nil {
			got <- err.Error()
			return
		}
		got <- fmt.Sprintf("%s, complete %v, resumed %v", b, s.ConnectionState().HandshakeComplete, s.ConnectionState().DidResume)
	}()
	n, err := newNewcomer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	out, err := n.shakeHands(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"he", "llo"} {
		if _, err := c.Write(out.seal(recordApplication, []byte(s))); err != nil {
			t.Fatal(err)
		}
	}
	if s := <-got; s != "hello, complete true, resumed false" {
		t.Error(s)
	}
}

// BenchmarkNewcomer is a handshake against crypto/tls, both sides; -cpuprofile tells the shares.
func BenchmarkNewcomer(b *testing.B) {
	file := filepath.Join(b.TempDir(), "cert.pem")
	if err := writeCertificate(file); err != nil {
		b.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(file, file+".key")
	if err != nil {
		b.Fatal(err)
	}
	n, err := newNewcomer()
	if err != nil {
		b.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	for b.Loop() {
		near, far := net.Pipe()
		var server sync.WaitGroup
		server.Go(func() { _ = tls.Server(far, cfg).Handshake() })
		if _, err := n.shakeHands(near); err != nil {
			b.Fatal(err)
		}
		server.Wait()
		near.Close()
		far.Close()
	}
}
