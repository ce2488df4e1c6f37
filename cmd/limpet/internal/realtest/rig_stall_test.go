package realtest

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// link is a TCP connection to a server that the test can stall: connections stay, and nothing goes through them.
type link struct {
	to string // address
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	stalled chan struct{} // closed when bytes may go on; nil while they may
	conns   map[net.Conn]bool
	closed  bool
}

// newLink starts a link to the server of a URL, and returns the URL of the link.
func newLink(t testing.TB, url string) (*link, string) {
	t.Helper()
	scheme, to, _ := strings.Cut(url, "://")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{to: to, ln: ln, conns: map[net.Conn]bool{}}
	l.wg.Go(l.run)
	t.Cleanup(l.close)
	return l, scheme + "://" + ln.Addr().String()
}

func (l *link) run() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(c) })
	}
}

func (l *link) serve(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer s.Close()
	if !l.hold(c, s) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(c, s) })
	both.Go(func() { l.pump(s, c) })
	both.Wait()
	l.mu.Lock()
	delete(l.conns, c)
	delete(l.conns, s)
	l.mu.Unlock()
}

func (l *link) hold(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = true
	}
	return !l.closed
}

func (l *link) pump(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		wait := l.stalled
		l.mu.Unlock()
		if wait != nil {
			<-wait
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// stall holds every byte back from now on, release lets them go.
func (l *link) stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled == nil {
		l.stalled = make(chan struct{})
	}
}

func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled != nil {
		close(l.stalled)
		l.stalled = nil
	}
}

func (l *link) close() {
	l.ln.Close()
	l.release()
	l.mu.Lock()
	l.closed = true
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}
