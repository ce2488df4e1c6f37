package demo

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// supervisor starts the demo's processes and sees to it that none outlives it. Each hangs on a leash: a connection to a socket
// in the demo's directory, at whose end it leaves (leash.go). A process that somebody has killed, and starts again with its
// command, comes to the same socket and is the demo's again.
type supervisor struct {
	exe  string // limpet itself
	dir  string
	logs string

	launches chan func()
	socket   net.Listener
	wg       sync.WaitGroup
	news     chan notice

	mu       sync.Mutex
	changed  func() // called when a process came or went
	children map[string]*child
	leashes  map[net.Conn]struct{}
	closed   bool
}

// notice tells of a process that came or went without the demo's doing.
type notice struct {
	child *child
	pid   int
	how   string // it ended; "" = it is back
}

// socketName is how long the name of a socket may be everywhere: 104 bytes with a NUL on some systems, 108 on Linux.
const socketName = 103

var errLongName = errors.New("demo: the temporary directory's name is too long")

func newSupervisor(exe, dir string) (*supervisor, error) {
	s := &supervisor{
		exe: exe, dir: dir, logs: filepath.Join(dir, "logs"),
		launches: make(chan func()), news: make(chan notice, 64), changed: func() {},
		children: map[string]*child{}, leashes: map[net.Conn]struct{}{},
	}
	if err := os.Mkdir(s.logs, 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.socket, err = net.Listen("unix", s.leashPath()); err != nil {
		if len(s.leashPath()) > socketName {
			err = fmt.Errorf("%w: set TMPDIR to a directory of a shorter name (%w)", errLongName, err)
		}
		return nil, err
	}
	if err := sign(dir); err != nil {
		return nil, errors.Join(err, s.socket.Close())
	}
	s.wg.Go(s.launcher)
	s.wg.Go(s.keepLeashes)
	return s, nil
}

// add makes a child, which does not run yet.
func (s *supervisor) add(c *child) *child {
	c.sup = s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.children[c.name] = c
	return c
}

// launcher starts processes, all from one thread, which lives as long as the supervisor: on Linux a child is told to end when
// the thread that started it does (prctl(2), PR_SET_PDEATHSIG), and Go's threads come and go.
func (s *supervisor) launcher() {
	runtime.LockOSThread()
	for f := range s.launches {
		f()
	}
}

func (s *supervisor) launch(start func() error) error {
	result := make(chan error, 1)
	s.launches <- func() { result <- start() }
	return <-result
}

// ended notes the end of a process.
func (s *supervisor) ended(c *child, l *life, how string) {
	l.how = how
	close(l.done)
	s.change()
	s.tell(notice{c, l.process.Pid, how})
}

// onChange has fn called, one way or the other on many goroutines, when a process came or went.
func (s *supervisor) onChange(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = fn
}

func (s *supervisor) change() {
	s.mu.Lock()
	fn := s.changed
	s.mu.Unlock()
	fn()
}

func (s *supervisor) tell(n notice) {
	select {
	case s.news <- n:
	default: // nobody reads them
	}
}

// close lets go of every leash, and returns when all that the supervisor started has ended. The children were stopped before.
func (s *supervisor) close() error {
	err := s.socket.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.leashes {
		_ = c.Close() // the other side may have been quicker
	}
	s.mu.Unlock()
	close(s.launches)
	s.wg.Wait()
	return err
}
