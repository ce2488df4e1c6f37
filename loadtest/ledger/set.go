package ledger

import (
	"slices"
	"sort"
)

// A run is a range of numbers, both ends included.
type run struct {
	from, to uint64
	at       int64 // when a number above the hole below from first came: when that hole was noticed
}

// A set of numbers: runs in order, with holes between them.
type set []run

// find returns the index of the first run that ends at n or above.
func (s set) find(n uint64) int {
	if len(s) > 0 && s[len(s)-1].to < n { // nearly always
		return len(s)
	}
	return sort.Search(len(s), func(i int) bool { return s[i].to >= n })
}

func (s set) has(n uint64) bool {
	i := s.find(n)
	return i < len(s) && s[i].from <= n
}

// max is 0 for the empty set.
func (s set) max() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].to
}

// add reports whether n is new.
func (s *set) add(n uint64, at int64) bool {
	runs := *s
	i := runs.find(n)
	if i < len(runs) && runs[i].from <= n {
		return false
	}
	below := i > 0 && runs[i-1].to+1 == n
	above := i < len(runs) && runs[i].from == n+1
	switch {
	case below && above:
		runs[i-1].to = runs[i].to
		*s = slices.Delete(runs, i, i+1)
	case below:
		runs[i-1].to = n
	case above:
		runs[i].from = n
	default:
		if i < len(runs) {
			at = runs[i].at // the hole that n lies in was noticed then
		}
		*s = slices.Insert(runs, i, run{n, n, at})
	}
	return true
}

// addRange adds all numbers of a range.
func (s *set) addRange(from, to uint64) {
	if from > to {
		return
	}
	runs := *s
	i := runs.find(max(from, 1) - 1) // a run that ends just below from joins
	j := i
	for j < len(runs) && runs[j].from <= to+1 {
		from, to = min(from, runs[j].from), max(to, runs[j].to)
		j++
	}
	*s = slices.Replace(runs, i, j, run{from: from, to: to})
}

// cut forgets all numbers below floor.
func (s *set) cut(floor uint64) {
	runs := *s
	i := runs.find(floor)
	runs = slices.Delete(runs, 0, i)
	if len(runs) > 0 {
		runs[0].from = max(runs[0].from, floor)
	}
	*s = runs
}

// within calls fn for the ranges of s in [from, to].
func (s set) within(from, to uint64, fn func(from, to uint64)) {
	for _, r := range s[s.find(from):] {
		if r.from > to {
			return
		}
		fn(max(r.from, from), min(r.to, to))
	}
}

// holes calls fn for the ranges of [from, to] that are not in s, with the time at which the hole was noticed: 0 if nothing above it
// ever came.
func (s set) holes(from, to uint64, fn func(from, to uint64, noticed int64)) {
	for _, r := range s[s.find(from):] {
		if r.from > to {
			if from <= to {
				fn(from, to, r.at)
			}
			return
		}
		if r.from > from {
			fn(from, r.from-1, r.at)
		}
		from = r.to + 1
	}
	if from <= to {
		fn(from, to, 0)
	}
}
