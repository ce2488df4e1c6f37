package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

func TestDemoRefuses(t *testing.T) {
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{codeUsage, "one of --once, --idle", []string{"demo", "--once", "--idle"}},
		{codeUsage, "--clients: expected 9 to 500, found 8", []string{"demo", "--clients", "8"}},
		{codeUsage, "--standalone: expected with --idle", []string{"demo", "--standalone", "--once"}},
		{codeUsage, "unknown flag", []string{"demo", "--onec"}},
		{codeUsage, "expected no argument", []string{"demo", "now"}},
		{codeFailed, "--state: ", []string{"demo", "--once", "--state", filepath.Join(t.TempDir(), "no", "state")}},
		{codeUsage, "at least 1 arg", []string{"demo-child"}},
		{codeFailed, "is gone", []string{"demo-child", "--leash", filepath.Join(t.TempDir(), "leash"), "--", "version"}},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), c.args, &stdout, &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) || stdout.Len() > 0 {
			t.Errorf("%q: exit %d, want %d; it says %q, want %q; stdout %q", c.args, code, c.code, &stderr, c.want, &stdout)
		}
	}
}
