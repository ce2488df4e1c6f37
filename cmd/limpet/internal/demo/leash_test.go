package demo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testSupervisor(t *testing.T) *supervisor {
	t.Helper()
	dir, err := os.MkdirTemp("", "leash") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := newSupervisor("/no/such/limpet", dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// within waits for something that must happen.
func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s: not within a minute", what)
	}
}

// A process that somebody started in a dead one's place is the demo's until either lets go.
func TestLeash(t *testing.T) {
	s := testSupervisor(t)
	c := s.add(&child{name: "e1"})
	changes := make(chan struct{}, 10)
	s.onChange(func() { changes <- struct{}{} })

	ctx, release, err := Leash(t.Context(), s.leashPath(), "e1")
	if err != nil {
		t.Fatal(err)
	}
	within(t, "adoption", changes)
	if n := <-s.news; n.child != c || n.pid != os.Getpid() || n.how != "" || c.pid() != os.Getpid() {
		t.Errorf("adopted: %+v, pid %d", n, c.pid())
	}
	if l, ours := c.take(os.Getpid() + 1); l != nil {
		t.Errorf("a second process was adopted (ours: %v) while the first lives", ours)
	}
	if ctx.Err() != nil {
		t.Error("the leash has ended")
	}
	release()
	within(t, "its end", changes)
	if n := <-s.news; n.how == "" || c.pid() != 0 {
		t.Errorf("ended: %+v, pid %d", n, c.pid())
	}

	// A name that nobody has.
	stranger, release, err := Leash(t.Context(), s.leashPath(), "e9")
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the stranger's end", stranger.Done())
	release()

	// The demo ends.
	again, release, err := Leash(t.Context(), s.leashPath(), "e1")
	if err != nil {
		t.Fatal(err)
	}
	within(t, "adoption", changes)
	if err := s.close(); err != nil {
		t.Error(err)
	}
	within(t, "the end of the demo", again.Done())
	release()
	if _, _, err := Leash(t.Context(), s.leashPath(), "e1"); !errors.Is(err, ErrNoDemo) {
		t.Errorf("a leash to a demo that is gone: %v", err)
	}
}

func TestDirectoryOfALongName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := newSupervisor("limpet", dir); !errors.Is(err, errLongName) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("%v: want what to do", err)
	}
}

func TestChildThatCannotStart(t *testing.T) {
	s := testSupervisor(t)
	c := s.add(&child{name: "e1"})
	if err := c.run(bound(t)); err == nil || c.pid() != 0 {
		t.Errorf("%v, pid %d", err, c.pid())
	}
	c.stop() // there is nothing to stop
	c.kill()
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// A demo that failed leaves its logs and says where; one that did not leaves nothing.
func TestTidy(t *testing.T) {
	fill := func() string {
		dir := filepath.Join(t.TempDir(), "demo")
		for _, d := range []string{dir, filepath.Join(dir, "logs"), filepath.Join(dir, "data")} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range []string{"server.key", "logs/e1.log", "data/db"} {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, clean := range []error{nil, errInterrupted, errUnread} {
		dir := fill()
		if err := tidy(dir, clean); !errors.Is(err, clean) {
			t.Errorf("%v became %v", clean, err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%v: something is left: %v", clean, err)
		}
	}
	dir := fill()
	err := tidy(dir, errBroken)
	left, _ := os.ReadDir(dir)
	_, log := os.Stat(filepath.Join(dir, "logs", "e1.log"))
	if !errors.Is(err, errBroken) || len(left) != 1 || log != nil {
		t.Errorf("%v; left: %v, %v", err, left, log)
	}
}
