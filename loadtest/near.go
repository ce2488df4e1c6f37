package loadtest

import (
	"fmt"
	"strings"
)

// among lists the members of a closed set.
func among(set []string) string {
	if len(set) == 1 {
		return set[0]
	}
	return "one of " + strings.Join(set, ", ")
}

// meant is the end of an error's sentence: what was probably meant, if anything was.
func meant(s string, set []string) string {
	if near := nearest(s, set); near != "" {
		return fmt.Sprintf(": did you mean %q?", near)
	}
	return ""
}

// nearest returns the member of set that was probably meant by s, or "". Case, '-' and '_' do not count; one typing error in three
// characters does not either, nor an ending that is missing or too much.
func nearest(s string, set []string) string {
	fold := strings.NewReplacer("-", "", "_", "", " ", "")
	s = fold.Replace(strings.ToLower(s))
	if len(s) > 64 {
		return ""
	}
	best, least := "", len(s)/3
	for _, m := range set {
		word := fold.Replace(m)
		d := distance(s, word)
		if min(len(s), len(word)) >= 3 && (strings.HasPrefix(s, word) || strings.HasPrefix(word, s)) {
			d = min(d, 1)
		}
		if d < least || d == least && best == "" {
			best, least = m, d
		}
	}
	if least >= len(s) {
		return ""
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of neighbours from a to b (optimal string alignment).
func distance(a, b string) int {
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
