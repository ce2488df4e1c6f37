//go:build linux

// Package gauge reads from /proc what processes and the machine have used.
//
//	before, err := gauge.CPU(pids)
//	…
//	after, err := gauge.CPU(pids)
//	used := after.Sub(before) // used.Clock: all threads of pids, in nanoseconds
//
// The CPU of a process is read twice, from sources that need not agree: its CPU clock, which counts nanoseconds of all threads, also of those that
// have ended, and utime+stime of /proc/PID/stat, in ticks of 10 ms. Usage also tells what happened beside: in other programs, in the kernel's own threads
// and in interrupts, where a proxy could hide work.
//
// The busy times of /proc/stat are not used: they are sampled by the timer's tick, and a process that wakes between ticks and sleeps again is not
// seen there at all. Its idle times are measured, and all that is not idle was busy.
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
	Clock    time.Duration `json:"clock"`    // of the processes, by their CPU clocks
	Ticks    time.Duration `json:"ticks"`    // of the same, by /proc/PID/stat
	Programs time.Duration `json:"programs"` // of all processes of the machine, also of those that have ended
	Kernel   time.Duration `json:"kernel"`   // of the kernel's threads
	Machine  time.Duration `json:"machine"`  // of everything: interrupts that came while nothing ran, too
	Steal    time.Duration `json:"steal"`    // taken by other virtual machines
}

// Sub returns what was used between o and u.
func (u Usage) Sub(o Usage) Usage {
	return Usage{
		Clock: u.Clock - o.Clock, Ticks: u.Ticks - o.Ticks, Programs: u.Programs - o.Programs, Kernel: u.Kernel - o.Kernel, Machine: u.Machine - o.Machine, Steal: u.Steal - o.Steal,
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
	u.Programs, u.Kernel, err = everybody()
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
	waited time.Duration // of children that have ended
	kernel bool          // a thread of the kernel
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
	if len(fields) < 15 {
		return s, fmt.Errorf("gauge: /proc/%d/stat: %q", pid, text)
	}
	s.parent, _ = strconv.Atoi(fields[1])
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	waitedUser, _ := strconv.ParseInt(fields[13], 10, 64)
	waitedSystem, _ := strconv.ParseInt(fields[14], 10, 64)
	s.cpu, s.waited, s.kernel = time.Duration(user+system)*tick, time.Duration(waitedUser+waitedSystem)*tick, flags&kernelFlag != 0
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

// everybody is the CPU time of all processes, and of the kernel's threads. A process that ends gives what it used to its parent, as that of a child
// that was waited for: so the sum does not lose it.
func everybody() (programs, kernel time.Duration, err error) {
	all, err := processes()
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range all {
		s, err := readStat(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		clock, err := Clock(pid)
		if err != nil {
			clock = s.cpu
		}
		if s.kernel {
			kernel += clock
		} else {
			programs += clock + s.waited
		}
	}
	return programs, kernel, nil
}

// machine is the busy time of all processors since some beginning, and what was stolen from them.
func machine() (busy, steal time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("gauge: %w", err)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, 0, fmt.Errorf("gauge: %w", err)
	}
	lines := strings.Split(string(text), "\n")
	fields := strings.Fields(lines[0]) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, 0, fmt.Errorf("gauge: /proc/stat begins with %q", lines[0])
	}
	processors := 0
	for _, l := range lines[1:] {
		if strings.HasPrefix(l, "cpu") {
			processors++
		}
	}
	var n [9]int64
	for i := 1; i < len(n); i++ {
		n[i], _ = strconv.ParseInt(fields[i], 10, 64)
	}
	steal = time.Duration(n[8]) * tick
	return time.Duration(ts.Nano())*time.Duration(processors) - time.Duration(n[4]+n[5])*tick - steal, steal, nil
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

// Kernel is what the kernel has allocated for objects of its own (sockets are most of them in a proxy), page tables and stacks, in bytes. It is more exact
// than Available, which moves with what every program does.
func Kernel() (sum int64, err error) {
	for _, name := range []string{"Slab:", "PageTables:", "KernelStack:"} {
		n, err := kilobytes("/proc/meminfo", name)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

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
