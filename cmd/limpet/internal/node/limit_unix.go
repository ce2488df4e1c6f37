//go:build unix

package node

import "golang.org/x/sys/unix"

// descriptorLimit is how many descriptors this process may have; the Go runtime has raised the soft limit to the hard one.
func descriptorLimit() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<30 {
		return 0
	}
	return int(r.Cur)
}
