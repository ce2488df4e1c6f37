//go:build !unix

package loadtest

import "os/exec"

// setGroup: there are no groups.
func setGroup(*exec.Cmd) {}
