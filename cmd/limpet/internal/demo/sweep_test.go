package demo

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// left is a directory as a killed demo leaves it.
func left(t *testing.T, temp, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(temp, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newSupervisor("/no/such/limpet", dir)
	if err != nil {
		t.Fatal(err)
	}
	s.socket.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "data", "etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "etcd", "db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Of all that is in the directory for temporary files, what killed demos left goes, and nothing else.
func TestSweep(t *testing.T) {
	temp, err := os.MkdirTemp("", "sweep") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	gone := []string{left(t, temp, "limpet-demo-1"), left(t, temp, "limpet-demo-2")}

	var stay []string
	change := func(name string, fn func(dir string) error) {
		t.Helper()
		dir := left(t, temp, name)
		if err := fn(dir); err != nil {
			t.Fatal(err)
		}
		stay = append(stay, dir)
	}
	change("limpet-other", func(string) error { return nil })
	change("limpet-demo-kept-logs", func(dir string) error { return os.Remove(filepath.Join(dir, leashName)) })
	change("limpet-demo-starting", func(dir string) error { return os.Remove(filepath.Join(dir, ownerFile)) })
	change("limpet-demo-elsewhere", func(dir string) error {
		return os.WriteFile(filepath.Join(dir, ownerFile), []byte("another-machine\n"), 0o600)
	})
	change("limpet-demo-open", func(dir string) error { return os.Chmod(dir, 0o755) })
	change("limpet-demo-file", func(dir string) error {
		if err := os.Remove(filepath.Join(dir, leashName)); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, leashName), nil, 0o600)
	})
	change("aside", func(dir string) error { return os.Symlink(dir, filepath.Join(temp, "limpet-demo-link")) })
	stay = append(stay, filepath.Join(temp, "limpet-demo-link"))

	alive := filepath.Join(temp, "limpet-demo-alive")
	if err := os.Mkdir(alive, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newSupervisor("/no/such/limpet", alive)
	if err != nil {
		t.Fatal(err)
	}
	stay = append(stay, alive)

	if got := sweep(temp); !slices.Equal(got, gone) {
		t.Errorf("removed %v, want %v", got, gone)
	}
	for _, dir := range gone {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for _, dir := range stay {
		if _, err := os.Stat(filepath.Join(dir, "logs")); err != nil {
			t.Errorf("%s was touched: %v", dir, err)
		}
	}
	if got := sweep(temp); len(got) != 0 {
		t.Errorf("removed %v", got)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if got := sweep(temp); len(got) != 0 {
		t.Errorf("removed %v, whose demo is tidying up", got)
	}
}
