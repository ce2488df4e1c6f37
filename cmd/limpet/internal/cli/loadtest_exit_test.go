package cli

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/result"
)

// What a load test ends with, and what it says of that; by verb report, which judges as every other verb does.
func TestLoadtestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, behind bool) string {
		r := result.New()
		r.Verb, r.Counters[result.Connects], r.Counters[result.Errors] = "conn", 10, 3
		if behind {
			r.Generator.Behind, r.Generator.Reasons = true, []string{"7 of 9 events began late"}
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return write(t, filepath.Join(dir, name), string(text))
	}
	fine, late := file("fine.json", false), file("late.json", true)
	for _, c := range []struct {
		args string
		code int
		says string // somewhere in what is printed
	}{
		{fine, 0, "Nothing was asserted."},
		{fine + " --assert errors==3", 0, "ok      errors==3 (3)"},
		{fine + " --assert errors==0", 99, "errors==0"},
		{fine + " --assert errors==0 -o json", 99, "assertion errors==0 failed: "},
		{late, 4, "the generator fell behind its schedule: 7 of 9 events began late"},
		{late + " --allow-behind", 0, ""},
		{late + " --assert errors==0", 99, "errors==0"},
		{late + " --assert errors==0 --html " + dir + "/none/x.html", 2, "cannot create"},
		{fine + " " + dir + "/none.json", 1, "none.json: no such file or directory"},
	} {
		code, stdout, stderr := limpet(t, append([]string{"loadtest", "report"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("report %s: exit %d, want %d with %q:\n%s\n%s", c.args, code, c.code, c.says, stdout, stderr)
		}
	}
	// By how much.
	if _, stdout, _ := limpet(t, "loadtest", "report", fine, "--assert", "errors==0"); !strings.Contains(stdout, "FAILED  errors==0: errors is 3, 3 more than 0") {
		t.Errorf("a failed assertion does not say by how much:\n%s", stdout)
	}
}
