// Package near finds the word that was probably meant by one that is not known, for error messages.
//
//	fmt.Errorf("expected %s, found %q%s", near.Among(verbs), verb, near.Meant(verb, verbs))
//	// expected one of start, stop, found "strat": did you mean "start"?
//
// It compares by edit distance. It refuses to guess where little is alike, and to read what is longer than any word of ours.
package near

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Among lists the members of a closed set.
func Among(set []string) string {
	if len(set) == 1 {
		return set[0]
	}
	return "one of " + strings.Join(set, ", ")
}

// Meant is the end of an error's sentence: what was probably meant, if anything was.
func Meant(s string, set []string) string {
	if word := Of(s, set); word != "" {
		return fmt.Sprintf(": did you mean %q?", word)
	}
	return ""
}

// Of returns the member of set that was probably meant by s, or "". Case, '-', '_' and blanks do not count; one typing error in three
// letters, and always one, does not either, nor an ending that is missing or too much.
func Of(s string, set []string) string {
	if len(s) > longest {
		return ""
	}
	fold := strings.NewReplacer("-", "", "_", "", " ", "")
	s = fold.Replace(strings.ToLower(s))
	best, least := "", max(1, utf8.RuneCountInString(s)/3)+1
	for _, member := range set {
		word := fold.Replace(strings.ToLower(member))
		d := Distance(s, word)
		if min(len(s), len(word)) >= 3 && (strings.HasPrefix(s, word) || strings.HasPrefix(word, s)) {
			d = min(d, 1)
		}
		if d < least && d < len(word) && d < len(s) {
			best, least = member, d
		}
	}
	return best
}

// longest bounds what is compared, in bytes: no word of ours is longer, and the time grows with the square.
const longest = 64

// Distance is the number of letters to insert, delete, replace or swap with their neighbour to make b of a (optimal string alignment).
func Distance(from, to string) int {
	a, b := []rune(from), []rune(to)
	var before []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
