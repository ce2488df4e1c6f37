package fault

import (
	"fmt"
	"strings"
)

// meant is the end of an error's sentence: the word that was probably meant, if there is one.
func meant(word string, set []string) string {
	if near := nearest(word, set); near != "" {
		return fmt.Sprintf(": did you mean %q?", near)
	}
	return ""
}

// nearest returns the member of set that word most resembles, or "" if it resembles none: at most a third of its letters,
// but always one, may be wrong.
func nearest(word string, set []string) string {
	const long = 64 // no word of ours is, and the time is quadratic
	if len(word) > long {
		return ""
	}
	best, least := "", max(1, len(word)/3)+1
	for _, member := range set {
		if d := distance([]rune(strings.ToLower(word)), []rune(strings.ToLower(member))); d < least && d < len(member) {
			best, least = member, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their neighbour to make b of a (optimal string alignment).
func distance(a, b []rune) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range a {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range b {
			replace := last[j]
			if a[i] != b[j] {
				replace++
			}
			row[j+1] = min(replace, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
