package registry

import (
	"encoding/binary"
	"hash/maphash"
	"iter"
	"math/bits"
	"unsafe"
)

// records is a map from keys to packed affinities that the garbage collector need not look into, however many there are: slots of numbers, and
// chunks of bytes in which each record lies beside its key. A record takes 24 bytes, its key's, and 11 to 22 of slots.
//
//	slot:   24 bits of the key's hash | 24 bits: number of the chunk, from 1 | 16 bits: where in the chunk; 0 = empty
//	record: revision 8 | text 4, 0 = deleted | written 4 | expires 4 | length of the key 4 | key
//
// Slots are probed one by one from the place that the first bits of the hash name, so they are in the order of their hashes but for the last
// steps, and growing needs to look at nothing else. It is not safe for concurrent use where one of the users writes.
type records struct {
	seed   maphash.Seed // of the hashes
	slots  []uint64     // a power of two of them, or none
	used   int
	chunks []chunk
	gone   []uint32 // numbers of chunks that are no more
	open   uint32   // number of the chunk that takes new records; 0: none yet
	bytes  int      // of all chunks
	hand   int      // slot to evict next
}

// A chunk's bytes are written once, except for the head of a record that is there. It is dropped as a whole.
type chunk struct {
	b    []byte
	live int // bytes of records that are not deleted
}

const (
	recordHead = 24
	chunkLeast = 512
	chunkMost  = 1 << placeBits
	placeBits  = 16
	chunkBits  = 24
	hashBits   = 24
	slotsLeast = 8
	hashMask   = (1<<hashBits - 1) << (64 - hashBits)
)

// packed is a record as it lies in a chunk.
type packed []byte

func (p packed) revision() int64  { return int64(binary.LittleEndian.Uint64(p)) }
func (p packed) text() uint32     { return binary.LittleEndian.Uint32(p[8:]) }
func (p packed) written() uint32  { return binary.LittleEndian.Uint32(p[12:]) }
func (p packed) expires() uint32  { return binary.LittleEndian.Uint32(p[16:]) }
func (p packed) size() int        { return recordHead + int(binary.LittleEndian.Uint32(p[20:])) }
func (p packed) setText(n uint32) { binary.LittleEndian.PutUint32(p[8:], n) }

func (p packed) set(revision int64, text, written, expires uint32) {
	binary.LittleEndian.PutUint64(p, uint64(revision))
	binary.LittleEndian.PutUint32(p[8:], text)
	binary.LittleEndian.PutUint32(p[12:], written)
	binary.LittleEndian.PutUint32(p[16:], expires)
}

// key is p's, without a copy: it stays what it is, and keeps its chunk in memory.
func (p packed) key() string {
	n := p.size() - recordHead
	if n == 0 {
		return ""
	}
	return unsafe.String(&p[recordHead], n)
}

// number is that of a slot's chunk.
func number(slot uint64) uint32 { return uint32(slot>>placeBits) & (1<<chunkBits - 1) }

// at is the record that a slot names.
func (r *records) at(slot uint64) packed {
	b := r.chunks[number(slot)-1].b[slot&(1<<placeBits-1):]
	return b[:packed(b).size():packed(b).size()]
}

// home is the first slot for a hash, of which a slot has the bits that count.
func (r *records) home(hash uint64) int {
	return int(hash & hashMask >> (64 - bits.Len(uint(len(r.slots)-1))))
}

// find returns the record of a key, nil if there is none, and its slot, or the one that it would have.
func (r *records) find(hash uint64, key string) (int, packed) {
	if len(r.slots) == 0 {
		return 0, nil
	}
	for i := r.home(hash); ; i = (i + 1) & (len(r.slots) - 1) {
		slot := r.slots[i]
		if slot == 0 {
			return i, nil
		}
		if (slot^hash)&hashMask == 0 {
			if p := r.at(slot); p.key() == key {
				return i, p
			}
		}
	}
}

// get returns the record of a key, nil if there is none. It is valid until the next write.
func (r *records) get(hash uint64, key string) packed {
	_, p := r.find(hash, key)
	return p
}

// add makes room for a key that is not there, and returns it: for the caller to set.
func (r *records) add(hash uint64, key string) packed {
	if 4*(r.used+1) > 3*len(r.slots) {
		r.resize(max(slotsLeast, 2*len(r.slots)))
	}
	i, _ := r.find(hash, key)
	place, p := r.reserve(recordHead + len(key))
	binary.LittleEndian.PutUint32(p[20:], uint32(len(key)))
	copy(p[recordHead:], key)
	r.slots[i] = hash&hashMask | place
	r.used++
	return p
}

// reserve takes n bytes of a chunk, and returns where they are, as a slot says it. A large record has a chunk of its own.
func (r *records) reserve(n int) (place uint64, p packed) {
	var number uint32
	if n > chunkMost/8 {
		number = r.newChunk(n)
	} else {
		for r.open == 0 || cap(r.chunks[r.open-1].b)-len(r.chunks[r.open-1].b) < n {
			full := r.open
			r.open = r.newChunk(max(n, min(max(r.bytes/4, chunkLeast), chunkMost)))
			r.thin(full) // which may fill the new one
		}
		number = r.open
	}
	c := &r.chunks[number-1]
	at := len(c.b)
	c.b = c.b[:at+n]
	c.live += n
	return uint64(number)<<placeBits | uint64(at), packed(c.b[at : at+n : at+n])
}

// newChunk returns the number of another chunk.
func (r *records) newChunk(size int) uint32 {
	r.bytes += size
	c := chunk{b: make([]byte, 0, size)}
	if n := len(r.gone); n > 0 {
		number := r.gone[n-1]
		r.gone = r.gone[:n-1]
		r.chunks[number-1] = c
		return number
	}
	r.chunks = append(r.chunks, c)
	return uint32(len(r.chunks))
}

// thin drops a chunk of which less than half is live, and copies that half into another one.
func (r *records) thin(number uint32) {
	if number == 0 || number == r.open || 2*r.chunks[number-1].live >= len(r.chunks[number-1].b) {
		return
	}
	b := r.chunks[number-1].b
	for at := 0; at < len(b); {
		p := packed(b[at:])
		p = p[:p.size()]
		if p.text() != 0 {
			i, _ := r.find(maphash.String(r.seed, p.key()), p.key())
			place, q := r.reserve(len(p))
			copy(q, p)
			r.slots[i] = r.slots[i]&hashMask | place
		}
		at += len(p)
	}
	r.bytes -= cap(b)
	r.chunks[number-1] = chunk{}
	r.gone = append(r.gone, number)
}

// remove deletes the record of a slot.
func (r *records) remove(i int) {
	number := number(r.slots[i])
	p := r.at(r.slots[i])
	p.setText(0)
	r.chunks[number-1].live -= len(p)
	if r.used--; r.used == 0 {
		*r = records{seed: r.seed}
		return
	}
	// Whoever was pushed beyond this slot moves up, so that no search meets a gap.
	mask := len(r.slots) - 1
	for j := (i + 1) & mask; r.slots[j] != 0; j = (j + 1) & mask {
		if home := r.home(r.slots[j]); (j-home)&mask >= (j-i)&mask {
			r.slots[i] = r.slots[j]
			i = j
		}
	}
	r.slots[i] = 0
	if len(r.slots) > slotsLeast && 8*r.used < len(r.slots) {
		r.resize(len(r.slots) / 2)
	}
	r.thin(number)
}

// resize makes it n slots.
func (r *records) resize(n int) {
	old := r.slots
	r.slots = make([]uint64, n)
	for _, slot := range old {
		if slot == 0 {
			continue
		}
		i := r.home(slot)
		for r.slots[i] != 0 {
			i = (i + 1) & (n - 1)
		}
		r.slots[i] = slot
	}
}

// any returns the slot of some record; another one each time. There must be one.
func (r *records) any() int {
	for {
		if r.hand++; r.hand >= len(r.slots) {
			r.hand = 0
		}
		if r.slots[r.hand] != 0 {
			return r.hand
		}
	}
}

// all are the records, in no order. Nothing may be written meanwhile.
func (r *records) all() iter.Seq[packed] {
	return func(yield func(packed) bool) {
		for _, slot := range r.slots {
			if slot != 0 && !yield(r.at(slot)) {
				return
			}
		}
	}
}
