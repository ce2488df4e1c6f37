package near

import (
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		set  string
		want map[string]string
	}{
		{"random round-robin session-present", map[string]string{
			"randm": "random", "RANDOM": "random", "roundrobin": "round-robin", "round": "round-robin", "session": "session-present",
			"x": "", "": "", "entirely else": "", strings.Repeat("r", 100): "",
		}},
		{"kill freeze at for broker", map[string]string{
			"kil": "kill", "klil": "kill", "Kill": "kill", "frieze": "freeze", "fr": "for", "q": "", "ta": "at", "för": "for", "brokers": "broker", "b": "",
			"entirely": "", strings.Repeat("kill", 100): "",
		}},
	} {
		for word, want := range c.want {
			if got := Of(word, strings.Fields(c.set)); got != want {
				t.Errorf("of %s: %q for %q, want %q", c.set, got, word, want)
			}
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {"für", "fur", 1}, {"ca", "abc", 3}} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestWords(t *testing.T) {
	if got := Among([]string{"a"}) + Among([]string{"a", "b"}) + Meant("kil", []string{"kill"}) + Meant("x", []string{"kill"}); got != `aone of a, b: did you mean "kill"?` {
		t.Error(got)
	}
}
