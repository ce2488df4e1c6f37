package demo

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What a demo that was killed with -9 has left goes with the next demo. A directory is one of those only if all of this holds:
//
//	it has the name and the permissions of a demo's, and is this user's;
//	its file owner names this machine: a temporary directory may be shared with others, where a socket cannot be asked from here;
//	nobody listens at its leash. The demo listens from before it writes owner until after it has begun to tidy up, frozen or not,
//	and then its leash is no longer there.
const (
	dirPrefix  = "limpet-demo-"
	ownerFile  = "owner"
	askLeashes = time.Second
)

// sign says whose the directory of a demo that listens at its leash is.
func sign(dir string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), []byte(host+"\n"), 0o600)
}

// sweep removes what killed demos have left in the directory for temporary files, and returns their directories. What cannot be
// removed is left for the next time.
func sweep(temp string) (removed []string) {
	entries, err := os.ReadDir(temp)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		dir := filepath.Join(temp, e.Name())
		if strings.HasPrefix(e.Name(), dirPrefix) && abandoned(dir) && remove(dir) == nil {
			removed = append(removed, dir)
		}
	}
	return removed
}

func abandoned(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 || !mine(info) {
		return false
	}
	host, err := os.Hostname()
	if err != nil {
		return false
	}
	owner, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil || string(owner) != host+"\n" {
		return false
	}
	leash := filepath.Join(dir, leashName)
	if info, err := os.Lstat(leash); err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.DialTimeout("unix", leash, askLeashes)
	if err == nil {
		_ = c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) // connect(2): no-one listening
}

// remove removes a directory, last of all what tells whose it is: a process of the demo may still be on its way out.
func remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != ownerFile && name != leashName {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}
