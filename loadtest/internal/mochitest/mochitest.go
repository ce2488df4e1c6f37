// Package mochitest starts a mochi broker for a test, and ends it without the two faults that mochi 2.7.9 has there: its Close may deadlock
// with a client that leaves meanwhile, since it takes a read lock twice, and it races with one that has only just been accepted, since that
// one adds itself to the group that Close waits for.
package mochitest

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// Start returns a broker with an inline client, and where it listens. Without a hook it lets nobody in. It ends with the test, as soon as
// its clients are gone, or after 10 s.
func Start(t testing.TB, hooks ...mochi.Hook) (*mochi.Server, netip.AddrPort) {
	t.Helper()
	server := mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	for _, h := range hooks {
		if err := server.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door := &counted{Listener: ln, ended: make(chan struct{})}
	if err := errors.Join(server.AddListener(listeners.NewNet("tcp", door)), server.Serve()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		<-door.ended
		for end := time.Now().Add(10 * time.Second); door.open.Load() > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		server.Close()
	})
	return server, ln.Addr().(*net.TCPAddr).AddrPort()
}

// counted knows how many of its connections the broker has not closed yet. The broker's last act for one is to close it.
type counted struct {
	net.Listener
	open  atomic.Int64
	ended chan struct{} // closed with the first Accept that fails, which is the broker's last
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		close(c.ended)
		return nil, err
	}
	c.open.Add(1)
	return &countedConn{Conn: conn, of: c}, nil
}

type countedConn struct {
	net.Conn
	of     *counted
	closed atomic.Bool
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	if c.closed.CompareAndSwap(false, true) {
		c.of.open.Add(-1)
	}
	return err
}
