package registry

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"testing"
)

// whole checks what must hold of records at any time, and that they are those of the model.
func (r *records) whole(t *testing.T, model map[string]int64) {
	t.Helper()
	if r.used != len(model) {
		t.Fatalf("%d records, want %d", r.used, len(model))
	}
	seen, live, bytes := 0, 0, 0
	for p := range r.all() {
		if want, known := model[p.key()]; !known || p.revision() != want || p.text() == 0 {
			t.Fatalf("%.20q has revision %d of text %d, want %d (%v)", p.key(), p.revision(), p.text(), want, known)
		}
		seen++
		live += len(p)
	}
	for number, c := range r.chunks {
		bytes += cap(c.b)
		live -= c.live
		if uint32(number+1) != r.open && 2*c.live < len(c.b) {
			t.Fatalf("chunk %d: %d bytes of %d are live", number+1, c.live, len(c.b))
		}
	}
	if seen != len(model) || live != 0 || bytes != r.bytes {
		t.Fatalf("%d of %d records seen; %d bytes live that no chunk has; %d bytes in chunks, %d counted", seen, len(model), live, bytes, r.bytes)
	}
	for key := range model {
		if p := r.get(maphash.String(r.seed, key), key); p == nil || p.key() != key {
			t.Fatalf("%.20q is not found", key)
		}
	}
}

// records against a map: keys of all lengths, some in crowds, that come, change and go, down to none and up again.
func TestRecordsAgainstMap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		r := records{seed: maphash.MakeSeed()}
		model := make(map[string]int64)
		key := func() string {
			i := rnd.IntN(3000)
			switch {
			case i == 0:
				return ""
			case i < 4:
				return strings.Repeat("long", 16_000) + fmt.Sprint(i)
			case i < 40:
				return strings.Repeat("x", i*200) + fmt.Sprint(i)
			}
			return fmt.Sprint("device-", i)
		}
		for step := range 30_000 {
			k := key()
			hash := maphash.String(r.seed, k)
			i, p := r.find(hash, k)
			if _, known := model[k]; known != (p != nil) {
				t.Fatalf("seed %d, step %d: %.20q: found %v, want %v", seed, step, k, p != nil, known)
			}
			growing := step/5000%2 == 0
			switch {
			case rnd.IntN(100) < map[bool]int{true: 20, false: 80}[growing]:
				if p != nil {
					r.remove(i)
					delete(model, k)
				}
			case rnd.IntN(100) == 0 && r.used > 0:
				i = r.any()
				k = strings.Clone(r.at(r.slots[i]).key())
				r.remove(i)
				delete(model, k)
			default:
				if p == nil {
					p = r.add(hash, k)
				}
				p.set(int64(step)-5, uint32(step+1), 1, 2)
				model[k] = int64(step) - 5
			}
			if step%3000 == 0 {
				r.whole(t, model)
			}
		}
		r.whole(t, model)
		for k := range model {
			i, _ := r.find(maphash.String(r.seed, k), k)
			r.remove(i)
			delete(model, k)
		}
		r.whole(t, model)
		if len(r.chunks)+len(r.slots) > 0 {
			t.Errorf("nothing is left, in %d chunks and %d slots", len(r.chunks), len(r.slots))
		}
	}
}

// Keys whose hashes are all the same, or next to the end of the slots, are found all the same.
func TestRecordsThatCollide(t *testing.T) {
	t.Parallel()
	for _, hash := range []uint64{0, 1 << 40, hashMask} {
		var r records
		for i := range 200 {
			r.add(hash, fmt.Sprint(i)).set(int64(i), 1, 0, 0)
		}
		for i := range 200 {
			if p := r.get(hash, fmt.Sprint(i)); p == nil || p.revision() != int64(i) {
				t.Fatalf("hash %x: %d is not found", hash, i)
			}
		}
		for i := 0; i < 140; i += 3 { // no chunk becomes thin: the seed is not that of these hashes
			slot, _ := r.find(hash, fmt.Sprint(i))
			r.remove(slot)
		}
		for i := range 200 {
			if p := r.get(hash, fmt.Sprint(i)); (p == nil) != (i < 140 && i%3 == 0) {
				t.Fatalf("hash %x: %d, deleted or not: %v", hash, i, p)
			}
		}
	}
}

// A key that somebody holds stays what it was, whatever becomes of its record.
func TestRecordsLetKeysBe(t *testing.T) {
	t.Parallel()
	r := records{seed: maphash.MakeSeed()}
	var held []string
	for i := range 5000 {
		key := fmt.Sprint("key-", i)
		p := r.add(maphash.String(r.seed, key), key)
		p.set(1, 1, 0, 0)
		held = append(held, p.key())
	}
	for i := range 4990 {
		slot, _ := r.find(maphash.String(r.seed, held[i]), held[i])
		r.remove(slot)
	}
	for i := range 5000 {
		key := fmt.Sprint("other", i)
		r.add(maphash.String(r.seed, key), key).set(1, 1, 0, 0)
	}
	for i, key := range held {
		if want := fmt.Sprint("key-", i); key != want {
			t.Fatalf("%q, want %q", key, want)
		}
	}
}

// A text has one number for as long as anything says it, and its number is free then.
func TestWords(t *testing.T) {
	t.Parallel()
	var w words
	text := func(i int) recordText { return recordText{broker: fmt.Sprint("b", i), reason: "placement"} }
	numbers := make(map[uint32]bool)
	for range 2 {
		for i := range 1000 {
			n := w.take(text(i))
			numbers[n] = true
			if got := *w.text(n); got != text(i) || n == 0 {
				t.Fatalf("number %d is %v, want %v", n, got, text(i))
			}
		}
	}
	if len(numbers) != 1000 {
		t.Errorf("%d numbers for 1000 texts", len(numbers))
	}
	for range 2 {
		for n := range numbers {
			if w.text(n) == nil {
				t.Fatalf("number %d is gone while it is said", n)
			}
			w.leave(n)
		}
	}
	if len(w.numbers) != 0 || len(w.free) != 1000 {
		t.Errorf("%d texts are kept, %d numbers are free", len(w.numbers), len(w.free))
	}
	if n := w.take(text(0)); !numbers[n] {
		t.Errorf("number %d is new though others are free", n)
	}
}
