//go:build linux

package gauge

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestCPU(t *testing.T) {
	me := []int{os.Getpid()}
	before, err := CPU(me)
	if err != nil {
		t.Fatal(err)
	}
	for used := time.Duration(0); used < 60*time.Millisecond; { // of CPU, however long that takes
		now, err := Clock(me[0])
		if err != nil {
			t.Fatal(err)
		}
		used = now - before.Clock
	}
	after, err := CPU(me)
	if err != nil {
		t.Fatal(err)
	}
	// Ticks are 10 ms, rounded down for user and system each.
	if u := after.Sub(before); u.Clock < 60*time.Millisecond || u.Ticks < 30*time.Millisecond || u.Programs < 50*time.Millisecond || u.Machine < 30*time.Millisecond {
		t.Errorf("60 ms of work: %+v", u)
	}
}

// TestTheDeadAreNotForgotten: what a child used that has ended is still in the sum.
func TestTheDeadAreNotForgotten(t *testing.T) {
	before, err := CPU(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	after, err := CPU(nil)
	if err != nil {
		t.Fatal(err)
	}
	used := c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	if got := after.Sub(before).Programs; got < used-3*tick { // ticks of four sums are rounded down
		t.Errorf("%v, of which the child alone used %v", got, used)
	}
}

func TestTree(t *testing.T) {
	c := exec.Command("sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	tree, err := Tree(os.Getpid())
	if err != nil || !slices.Contains(tree, c.Process.Pid) || !slices.Contains(tree, os.Getpid()) {
		t.Errorf("%v %v, without %d", tree, err, c.Process.Pid)
	}
	if tree, err := Tree(c.Process.Pid); err != nil || len(tree) != 1 {
		t.Errorf("%v %v", tree, err)
	}
}

func TestMemory(t *testing.T) {
	rss, err := RSS([]int{os.Getpid()})
	if err != nil || rss < 1<<20 {
		t.Errorf("%d bytes, %v", rss, err)
	}
	if kernel, err := Kernel(); err != nil || kernel < 1<<20 {
		t.Errorf("%d bytes, %v", kernel, err)
	}
	if free, err := Available(); err != nil || free < 1<<20 {
		t.Errorf("%d bytes, %v", free, err)
	}
}
