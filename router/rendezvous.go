package router

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// Weighted rendezvous hashing: broker b draws u(key, b), uniform in (0, 1), and the highest
// weight / -ln(u) wins. -ln(u)/weight is exponentially distributed with rate weight, and of several
// such numbers the one with rate w is the smallest with probability w / Σw: just its share.
//
// The one subtle point: every edge must find the same winner, on every CPU. Floating point does not
// promise that (the compiler may fuse a multiplication and an addition, math.Log is assembly on some
// systems), and a last bit that differs would split a key between two edges. So -log2(u) is computed in
// fixed point, and two scores are compared by multiplying crosswise in 128 bits instead of dividing.

// fracBits is the precision of -log2 in fixed point: 1.0 is 1<<fracBits.
const fracBits = 48

// tableBits sets how finely log2 is tabulated between two powers of two. Linear interpolation is off by
// less than 3e-6 then, far below what a share of the keys could show.
const tableBits = 8

// negLog2Table holds -log2 of i+256 / 512 for i = 0..256: from 1.0 down to 0.
var negLog2Table = makeNegLog2Table()

// makeNegLog2Table computes the table bit by bit: squaring y doubles log2(y), and whether the square
// reaches 2 is the logarithm's next binary digit.
func makeNegLog2Table() (t [1<<tableBits + 1]uint64) {
	for i := range 1 << tableBits {
		y := uint64(1<<tableBits+i) << (63 - tableBits) // 1.0 is 1<<63; y is in [1, 2)
		log := uint64(0)
		for range fracBits {
			hi, lo := bits.Mul64(y, y) // 1.0 is 1<<62 in hi
			log <<= 1
			if hi>>63 == 1 {
				log, y = log|1, hi
			} else {
				y = hi<<1 | lo>>63
			}
		}
		t[i] = 1<<fracBits - log
	}
	return t // the last entry, -log2(1), is 0
}

// negLog2 returns -log2(x / 2^64) in fixed point. The lowest bit of x does not count: 0 has no logarithm.
func negLog2(x uint64) uint64 {
	x |= 1
	zeros := bits.LeadingZeros64(x)
	x <<= zeros                                                                // in [2^63, 2^64): u·2^zeros is in [1/2, 1)
	i := x >> (63 - tableBits) & (1<<tableBits - 1)                            // the bits after the leading one choose the entry,
	step, _ := bits.Mul64(negLog2Table[i]-negLog2Table[i+1], x<<(tableBits+1)) // those after them the place on the way to the next
	return uint64(zeros)<<fracBits + negLog2Table[i] - step
}

// mix is the finaliser of SplitMix64 in David Stafford's variant 13: every bit of x moves every bit of the result.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hash is what a key or a broker's ID contributes to a draw.
func hash(s string) uint64 { return xxhash.Sum64String(s) }

// A seat is a broker's part in a placement.
type seat struct {
	seed   uint64 // hash of the broker's ID
	weight uint64 // at least 1
	member *member
}

// A draw is the score of one seat for one key. Smaller -log2(u) per weight is better.
type draw struct {
	cost uint64 // -log2(u)
	seat *seat  // nil: nobody has drawn yet
}

// beats reports whether d is better than e. Equal draws go to the smaller broker ID.
func (d draw) beats(e draw) bool {
	if e.seat == nil {
		return true
	}
	dHi, dLo := bits.Mul64(d.cost, e.seat.weight) // d.cost/d.weight < e.cost/e.weight, without dividing
	eHi, eLo := bits.Mul64(e.cost, d.seat.weight)
	if dHi != eHi {
		return dHi < eHi
	}
	if dLo != eLo {
		return dLo < eLo
	}
	return d.seat.member.broker.ID < e.seat.member.broker.ID
}

// place returns the best seat for a key, and the best one that avoid does not name. Either may be nil.
func place(seats []seat, keyHash uint64, avoid []string) (first, best *seat) {
	var f, b draw
	for i := range seats {
		s := &seats[i]
		d := draw{cost: negLog2(mix(keyHash ^ s.seed)), seat: s}
		if d.beats(f) {
			f = d
		}
		if d.beats(b) && !contains(avoid, s.member.broker.ID) {
			b = d
		}
	}
	return f.seat, b.seat
}

func contains(ids []string, id string) bool {
	for _, s := range ids {
		if s == id {
			return true
		}
	}
	return false
}
