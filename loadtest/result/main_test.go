package result

import (
	"flag"
	"os"
	"testing"
)

// A result is some megabytes of histograms: thirty draws of a property take a second, and every run draws others.
func TestMain(m *testing.M) {
	flag.Parse()
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() == checks.DefValue {
		if err := flag.Set("rapid.checks", "30"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
