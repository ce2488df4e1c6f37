package mqtt

import (
	"fmt"
	"sync"
)

// Reader splits a stream into packets. Its zero value reads with the zero Version, which is right for a CONNACK of 3.x alone: set Version.
//
// It is used by one goroutine at a time.
type Reader struct {
	Version Version
	Max     int // bytes of the largest packet; 0 = DefaultMax

	partial *[]byte // the packet at hand, while a part of it is missing
	used    bool    // the last packet was read from partial, which is to be given back
}

// partials holds the buffers of cut packets: at a high rate every read of a socket cuts one.
var partials = sync.Pool{New: func() any { return new(make([]byte, 0, 512)) }}

const keepPartial = 64 << 10 // larger buffers are not kept

// Next reads the next packet from in into p and returns what follows it. ok is false when in holds no whole packet any more: then its rest
// is kept, and the next call continues with what the socket gives next. The slices in p point into in or into the Reader; they are good until the next call.
//
// After an error the stream has no meaning any more; Release ends the Reader.
func (r *Reader) Next(in []byte, p *Packet) (rest []byte, ok bool, err error) {
	if r.used {
		r.Release()
	}
	if r.partial != nil {
		return r.resume(in, p)
	}
	if len(in) == 0 {
		return nil, false, nil
	}
	size, err := r.size(in)
	if err != nil {
		return in, false, err
	}
	if size == 0 || len(in) < size {
		r.partial = partials.Get().(*[]byte)
		*r.partial = append(*r.partial, in...)
		return nil, false, nil
	}
	return in[size:], true, p.parse(r.Version, in[:size])
}

// resume goes on with a packet whose first bytes are in r.partial.
func (r *Reader) resume(in []byte, p *Packet) (rest []byte, ok bool, err error) {
	size, err := r.size(*r.partial)
	for err == nil && size == 0 && len(in) > 0 { // the fixed header itself is cut
		*r.partial = append(*r.partial, in[0])
		in = in[1:]
		size, err = r.size(*r.partial)
	}
	if err != nil || size == 0 {
		return in, false, err
	}
	n := min(size-len(*r.partial), len(in))
	*r.partial = append(*r.partial, in[:n]...)
	if len(*r.partial) < size {
		return nil, false, nil
	}
	r.used = true
	return in[n:], true, p.parse(r.Version, *r.partial)
}

// Release gives up what the Reader holds of a cut packet. The Reader may then read another stream.
func (r *Reader) Release() {
	if r.partial != nil && cap(*r.partial) <= keepPartial {
		*r.partial = (*r.partial)[:0]
		partials.Put(r.partial)
	}
	r.partial, r.used = nil, false
}

// Pending reports whether a packet is cut: bytes of it came, and bytes of it are missing.
func (r *Reader) Pending() bool { return r.partial != nil && !r.used }

// size is the size of the packet that b begins with, or 0 while its fixed header is not complete.
func (r *Reader) size(b []byte) (int, error) {
	if k := Kind(b[0] >> 4); k == 0 || k != PUBLISH && b[0]&15 != fixedFlags[k] {
		return 0, fmt.Errorf("%w: first byte %#02x", ErrMalformed, b[0]) // [MQTT-2.1.3-1]
	}
	length, shift := 0, 0
	for i := 1; i < len(b); i++ {
		length |= int(b[i]&0x7f) << shift
		shift += 7
		if b[i] < 0x80 {
			size := 1 + i + length
			bound := r.Max
			if bound == 0 {
				bound = DefaultMax
			}
			if size > bound {
				return 0, fmt.Errorf("%w: %v of %d bytes, the bound is %d", ErrTooLarge, Kind(b[0]>>4), size, bound)
			}
			return size, nil
		}
		if i == 4 {
			return 0, fmt.Errorf("%w: Remaining Length longer than four bytes", ErrMalformed) // §1.5.5
		}
	}
	return 0, nil
}
