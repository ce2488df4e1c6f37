package demo

import (
	"fmt"
	"strings"
	"sync"
)

// claim is a sentence of the story that is proven, case by case, or broken.
type claim struct {
	says string

	mu     sync.Mutex
	cases  int
	broken []string // by whom, and how
}

// prove takes in the outcome of one case.
func (c *claim) prove(who string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cases++
	if err != nil {
		c.broken = append(c.broken, who+": "+err.Error())
	}
}

// held reports whether there was something to prove, and all of it held.
func (c *claim) held() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cases > 0 && len(c.broken) == 0
}

// brokenShown bounds the cases that a summary lists.
const brokenShown = 5

// lines is the claim in the summary.
func (c *claim) lines(s *screen) []string {
	held := c.held()
	c.mu.Lock()
	defer c.mu.Unlock()
	verdict := s.green("held   ")
	switch {
	case c.cases == 0:
		verdict = s.red("untold ")
	case !held:
		verdict = s.red("broken ")
	}
	out := []string{fmt.Sprintf("%s%s %3d of %-3d  %s", indent, verdict, c.cases-len(c.broken), c.cases, c.says)}
	for i, b := range c.broken {
		if i == brokenShown {
			out = append(out, fmt.Sprintf("%s          and %d more", indent, len(c.broken)-i))
			break
		}
		out = append(out, indent+"          "+strings.ReplaceAll(b, "\n", " "))
	}
	return out
}
