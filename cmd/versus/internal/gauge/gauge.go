//go:build linux

// Package gauge reads from /proc what processes and the machine have used.
//
//	before, err := gauge.CPU(pids)
//	…
//	after, err := gauge.CPU(pids)
//	used := after.Sub(before) // used.Clock: all threads of pids, in nanoseconds
//
// The CPU of a process is read twice, from sources that need not agree: its CPU clock, which counts nanoseconds of all threads, also of those that
// have ended, and utime+stime of /proc/PID/stat, in ticks of 10 ms. Machine and Kernel tell what happened beside: all busy time of the
// machine, and that of the kernel's own threads, in which a proxy could hide work.
//
// What it does not know: the softirq work that one process does for another's packets is charged to whoever ran at the time.
package gauge

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go knows.
const tick = 10 * time.Millisecond

// Usage is CPU time since some beginning: only differences mean something.
type Usage struct {
	Clock   time.Duration `json:"clock"`   // of the processes, by their CPU clocks
	Ticks   time.Duration `json:"ticks"`   // of the same, by /proc/PID/stat
	Machine time.Duration `json:"machine"` // of everything on the machine, by /proc/stat, without idle, iowait and steal
	Kernel  time.Duration `json:"kernel"`  // of the kernel's threads
	Steal   time.Duration `json:"steal"`   // taken by other virtual machines
}

// Sub returns what was used between o and u.
func (u Usage) Sub(o Usage) Usage {
	return Usage{
		Clock: u.Clock - o.Clock, Ticks: u.Ticks - o.Ticks, Machine: u.Machine - o.Machine, Kernel: u.Kernel - o.Kernel, Steal: u.Steal - o.Steal,
	}
}

// CPU reads what pids and the machine have used so far.
func CPU(pids []int) (u Usage, err error) {
	for _, pid := range pids {
		clock, err := Clock(pid)
		if err != nil {
			return u, err
		}
		u.Clock += clock
		s, err := readStat(pid)
		if err != nil {
			return u, err
		}
		u.Ticks += s.cpu
	}
	if u.Machine, u.Steal, err = machine(); err != nil {
		return u, err
	}
	u.Kernel, err = kernelThreads()
	return u, err
}

// Clock is the CPU time of all threads of pid, also of those that have ended.
func Clock(pid int) (time.Duration, error) {
	var ts unix.Timespec
	// The clock of another process: clock_getcpuclockid(3), MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of linux/posix-timers.h.
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("gauge: CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

type stat struct {
	parent int
	cpu    time.Duration
	kernel bool // a thread of the kernel
}

// kernelFlag is PF_KTHREAD of linux/sched.h.
const kernelFlag = 0x00200000

// readStat reads /proc/PID/stat (proc_pid_stat(5)).
func readStat(pid int) (s stat, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, fmt.Errorf("gauge: %w", err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name before may have spaces; state is fields[0]
	if len(fields) < 13 {
		return s, fmt.Errorf("gauge: /proc/%d/stat: %q", pid, text)
	}
	s.parent, _ = strconv.Atoi(fields[1])
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	s.cpu, s.kernel = time.Duration(user+system)*tick, flags&kernelFlag != 0
	return s, nil
}

func processes() ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			all = append(all, pid)
		}
	}
	return all, nil
}

// Tree is pid and its descendants.
func Tree(pid int) ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	parents := map[int]int{}
	for _, p := range all {
		if s, err := readStat(p); err == nil { // else it has ended
			parents[p] = s.parent
		}
	}
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		for p, parent := range parents {
			if parent == tree[i] {
				tree = append(tree, p)
			}
		}
	}
	slices.Sort(tree)
	return tree, nil
}

func kernelThreads() (sum time.Duration, err error) {
	all, err := processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range all {
		if s, err := readStat(pid); err == nil && s.kernel {
			sum += s.cpu
		}
	}
	return sum, nil
}

func machine() (busy, steal time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("gauge: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, 0, fmt.Errorf("gauge: /proc/stat begins with %q", first)
	}
	var n [9]int64
	for i := 1; i < len(n); i++ {
		n[i], _ = strconv.ParseInt(fields[i], 10, 64)
	}
	return time.Duration(n[1]+n[2]+n[3]+n[6]+n[7]) * tick, time.Duration(n[8]) * tick, nil
}

// RSS is the resident memory of pids, in bytes.
func RSS(pids []int) (sum int64, err error) {
	for _, pid := range pids {
		n, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Rss:")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// Available is what the kernel believes could be given to new programs, in bytes: sockets count against it.
func Available() (int64, error) { return kilobytes("/proc/meminfo", "MemAvailable:") }

// kilobytes finds a line such as "Rss:   12 kB".
func kilobytes(file, name string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, fmt.Errorf("gauge: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == name {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("gauge: %s has no line %q", file, name)
}
