package ledger

import "math"

// maxAbsences is how many absences of one client are kept for judging lateness. What happened before the oldest of them counts as
// absence too: nothing is called late that may not be.
const maxAbsences = 32

// absences are the times at which somebody was not connected, in order.
type absences struct {
	spans []span
	known int64 // before it nothing is known any more
}

type span struct{ from, to int64 }

// ongoing ends an absence that has not ended.
const ongoing = math.MaxInt64

func (a *absences) gone() bool {
	return len(a.spans) > 0 && a.spans[len(a.spans)-1].to == ongoing
}

func (a *absences) leave(at int64) {
	if a.gone() {
		return
	}
	if len(a.spans) == maxAbsences {
		a.known = a.spans[0].to
		copy(a.spans, a.spans[1:])
		a.spans = a.spans[:maxAbsences-1]
	}
	a.spans = append(a.spans, span{at, ongoing})
}

func (a *absences) back(at int64) {
	if a.gone() {
		a.spans[len(a.spans)-1].to = at
	}
}

// lifeStart returns when the last connection that ended began, or the one that lasts if none has ended: 0 for the first.
func (a *absences) lifeStart() int64 {
	if n := len(a.spans); n > 1 {
		return a.spans[n-2].to
	}
	return a.known
}

// waited is how much of [from, to] both were connected.
func waited(a, b *absences, from, to int64) int64 {
	from = max(from, a.known, b.known)
	left := int64(0)
	i, j := 0, 0
	for from < to { // from moves over the absences of both, merged
		next := span{to, to}
		switch {
		case i < len(a.spans) && (j >= len(b.spans) || a.spans[i].from <= b.spans[j].from):
			next = a.spans[i]
			i++
		case j < len(b.spans):
			next = b.spans[j]
			j++
		}
		if next.from > from {
			left += min(next.from, to) - from
		}
		from = max(from, next.to)
	}
	return left
}
