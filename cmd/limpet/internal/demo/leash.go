package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The leash: a process of the demo connects to a socket in the demo's directory, which is the user's alone, says "NAME PID\n",
// and then only waits for the end of the connection. It comes when the demo lets go, or is gone itself, however it died.
const (
	leashName    = "leash"
	leashHello   = 64 // bytes at most
	leashTimeout = 5 * time.Second
)

func (s *supervisor) leashPath() string { return filepath.Join(s.dir, leashName) }

// ErrNoDemo is what a process of a demo that is gone is told.
var ErrNoDemo = errors.New("demo: the demo that this process belongs to is gone")

// Leash ties this process to the demo whose leash path is: the context ends when the demo does. release lets go.
func Leash(ctx context.Context, path, name string) (leashed context.Context, release func(), err error) {
	c, err := (&net.Dialer{Timeout: leashTimeout}).DialContext(ctx, "unix", path)
	if err == nil {
		_, err = fmt.Fprintf(c, "%s %d\n", name, os.Getpid())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w (%w)", ErrNoDemo, err)
	}
	leashed, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		_, _ = io.Copy(io.Discard, c)
		cancel()
	})
	return leashed, func() {
		_ = c.Close()
		waiting.Wait()
	}, nil
}

// keepLeashes accepts leashes until the socket is closed.
func (s *supervisor) keepLeashes() {
	for {
		c, err := s.socket.Accept()
		if err != nil {
			return // closed; nothing else befalls a socket that nobody but us can reach
		}
		s.mu.Lock()
		if s.closed {
			_ = c.Close()
		} else {
			s.leashes[c] = struct{}{}
			s.wg.Go(func() { s.keepLeash(c) })
		}
		s.mu.Unlock()
	}
}

// keepLeash holds one leash until either side lets go.
func (s *supervisor) keepLeash(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		s.mu.Lock()
		delete(s.leashes, conn)
		s.mu.Unlock()
	}()
	name, pid, err := readLeashHello(conn)
	if err != nil {
		return
	}
	s.mu.Lock()
	c := s.children[name]
	s.mu.Unlock()
	if c == nil {
		return
	}
	l, ours := c.adopt(pid)
	if l == nil {
		return
	}
	_, _ = io.Copy(io.Discard, conn)
	if !ours {
		s.ended(c, l, "ended")
	}
}

func readLeashHello(conn net.Conn) (name string, pid int, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(leashTimeout)); err != nil {
		return "", 0, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, leashHello)).ReadString('\n')
	if err != nil {
		return "", 0, err
	}
	if _, err := fmt.Sscanf(line, "%s %d", &name, &pid); err != nil {
		return "", 0, err
	}
	return name, pid, conn.SetReadDeadline(time.Time{})
}

// adopt says which life a process is: the one that the demo started (ours), or a new one, which somebody else has
// started in its place. It is nil where the child lives already.
func (c *child) adopt(pid int) (l *life, ours bool) {
	if l := c.now(); l != nil && l.process.Pid != pid {
		select {
		case <-l.done:
		case <-time.After(leashTimeout): // it may have been killed just now
			return nil, false
		}
	}
	l, ours = c.take(pid)
	if l != nil && !ours {
		c.sup.change()
		c.sup.tell(notice{child: c, pid: pid})
	}
	return l, ours
}

func (c *child) take(pid int) (l *life, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != nil && !c.life.over() {
		if c.life.process.Pid == pid {
			return c.life, true
		}
		return nil, false
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, false
	}
	c.life = &life{process: process, done: make(chan struct{})}
	return c.life, false
}
