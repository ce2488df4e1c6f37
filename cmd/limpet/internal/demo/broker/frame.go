package broker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// A link is one TCP connection; the broker that dials sends messages, the one that accepts acknowledges them.
// Frames are: length 4 (of what follows), kind 1, body. Numbers are big-endian.
//
//	→ hello     magic 4, version 1, sender's name, incarnation 8
//	← welcome   receiver's name, incarnation 8, last sequence received of this sender's incarnation 8
//	→ retained  a message of the sender's retained store, kept but not delivered
//	→ synced    that was the whole store         ← synced   it is stored
//	→ message   sequence 8, message              ← ack      last sequence published here 8 (cumulative)
//	→ ping                                       ← ack
const (
	frameHello byte = iota + 1
	frameWelcome
	frameRetained
	frameSynced
	frameMessage
	frameAck
	framePing
)

const (
	linkMagic   = 0x4c44424c
	linkVersion = 1
)

var errFrame = errors.New("broker: malformed frame on a link")

// readFrame reads one frame of at most limit bytes. Memory grows with the bytes that arrive, not with the
// length that is claimed.
func readFrame(r *bufio.Reader, limit int) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 1 || length > uint32(limit) {
		return 0, nil, errFrame
	}
	n := int(length) - 1
	body = make([]byte, 0, min(n, 64<<10))
	for len(body) < n {
		if len(body) == cap(body) {
			body = slices.Grow(body, 1)
		}
		m, err := io.ReadFull(r, body[len(body):min(cap(body), n)])
		body = body[:len(body)+m]
		if err != nil {
			return 0, nil, err
		}
	}
	return head[4], body, nil
}

// writeFrame writes one frame whose body is the given parts.
func writeFrame(w *bufio.Writer, kind byte, parts ...[]byte) error {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(n))
	head[4] = kind
	_, err := w.Write(head[:])
	for _, p := range parts {
		if err == nil {
			_, err = w.Write(p)
		}
	}
	return err
}

func uint64Bytes(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// hello is the first frame of a link, welcome the answer.
type hello struct {
	name        string
	incarnation uint64
}

func (h hello) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, linkMagic)
	b = append(b, linkVersion)
	b = appendString(b, h.name)
	return binary.BigEndian.AppendUint64(b, h.incarnation)
}

func decodeHello(b []byte) (h hello, err error) {
	r := reader{b: b}
	magic, version := r.uint32(), r.byte()
	h.name, h.incarnation = r.string(), r.uint64()
	if r.short || len(r.b) > 0 || magic != linkMagic || version != linkVersion {
		return hello{}, errFrame
	}
	return h, nil
}

type welcome struct {
	name        string
	incarnation uint64
	last        uint64
}

func (w welcome) encode() []byte {
	b := appendString(nil, w.name)
	b = binary.BigEndian.AppendUint64(b, w.incarnation)
	return binary.BigEndian.AppendUint64(b, w.last)
}

func decodeWelcome(b []byte) (w welcome, err error) {
	r := reader{b: b}
	w.name, w.incarnation, w.last = r.string(), r.uint64(), r.uint64()
	if r.short || len(r.b) > 0 {
		return welcome{}, errFrame
	}
	return w, nil
}

// decodeSequence splits a sequence number off a body.
func decodeSequence(b []byte) (seq uint64, rest []byte, err error) {
	if len(b) < 8 {
		return 0, nil, errFrame
	}
	return binary.BigEndian.Uint64(b), b[8:], nil
}
