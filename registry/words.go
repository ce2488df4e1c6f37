package registry

import (
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
)

// words keeps what the records of a table say in words, each text once, for as long as a record says it. Its number stands in the records.
// Whoever has hold of a record that says it may read it without a lock.
type words struct {
	texts [32 - firstWords]atomic.Pointer[[]atomic.Pointer[recordText]] // of 64, 128, 256, … : none ever moves

	mu      sync.Mutex
	numbers map[recordText]uint32
	uses    []int // by number
	free    []uint32
}

// firstWords is the bits of the numbers of the first texts.
const firstWords = 6

// word finds a number's place: number 0 is nobody's.
func word(number uint32) (segment int, at uint32) {
	n := number + 1<<firstWords
	segment = bits.Len32(n) - 1 - firstWords
	return segment, n - 1<<(segment+firstWords)
}

// text is what a number stands for.
func (w *words) text(number uint32) *recordText {
	segment, at := word(number)
	return (*w.texts[segment].Load())[at].Load()
}

// take returns the number of a text that one more record says.
func (w *words) take(t recordText) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, known := w.numbers[t]; known {
		w.uses[n]++
		return n
	}
	if w.numbers == nil {
		w.numbers, w.uses = make(map[recordText]uint32), make([]int, 1)
	}
	var n uint32
	if last := len(w.free) - 1; last >= 0 {
		n, w.free = w.free[last], w.free[:last]
	} else {
		n = uint32(len(w.uses))
		w.uses = append(w.uses, 0)
	}
	own := &recordText{strings.Clone(t.broker), strings.Clone(t.home), strings.Clone(t.writer), strings.Clone(t.reason), strings.Clone(t.extra)}
	segment, at := word(n)
	if w.texts[segment].Load() == nil {
		texts := make([]atomic.Pointer[recordText], 1<<(segment+firstWords))
		w.texts[segment].Store(&texts)
	}
	(*w.texts[segment].Load())[at].Store(own)
	w.numbers[*own], w.uses[n] = n, 1
	return n
}

// leave is told that a record does not say a text any more.
func (w *words) leave(n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.uses[n]--; w.uses[n] > 0 {
		return
	}
	segment, at := word(n)
	place := &(*w.texts[segment].Load())[at]
	delete(w.numbers, *place.Load())
	place.Store(nil)
	w.free = append(w.free, n)
}
