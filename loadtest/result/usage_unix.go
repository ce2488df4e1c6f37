//go:build unix

package result

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func readUsage() usage {
	var u usage
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		u.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
		u.peak = int64(ru.Maxrss)
		if runtime.GOOS != "darwin" && runtime.GOOS != "ios" {
			u.peak <<= 10 // kilobytes; getrusage(2) of macOS says bytes
		}
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		u.limits = int64(min(uint64(limit.Cur), maxCount/mergeable))
	}
	// /dev/fd is /proc/self/fd on Linux; one of its entries is the one that reads it.
	if d, err := os.Open("/dev/fd"); err == nil {
		if names, err := d.Readdirnames(-1); err == nil {
			u.descriptors = int64(len(names) - 1)
		}
		_ = d.Close()
	}
	// proc(5): total and resident pages. Elsewhere the peak has to do.
	u.rss = u.peak
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(statm)); len(fields) > 1 {
			if pages, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				u.rss = pages * int64(os.Getpagesize())
			}
		}
	}
	return u
}
