package relay

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/limpet-mesh/limpet/edge/tls13"
)

// loopModes are the epoll driver's: plain, and with each kind of layers on the client's side, on the broker's, and on both.
func loopModes() (all []mode) {
	plain := wrapping{}
	all = append(all, loopMode("epoll", plain, plain))
	for _, w := range wrappings {
		all = append(all,
			loopMode("epoll, client "+w.String(), w, plain),
			loopMode("epoll, broker "+w.String(), plain, w),
			loopMode("epoll, both "+w.String(), w, w))
	}
	old := wrapping{tls: true, policy: tls13.Own, old: true}
	return append(all, loopMode("epoll, both "+old.String(), old, old))
}

func loopMode(name string, client, broker wrapping) mode {
	m := mode{name: name, client: client, broker: broker, target: plainTarget}
	if broker != (wrapping{}) {
		m.target = func(at netip.AddrPort, pause func()) Target { return *broker.target(at, nil, pause) }
	}
	m.relay = func(t testing.TB, r relayed) (netip.AddrPort, func() int) {
		ln := mustListen(t)
		t.Cleanup(func() { ln.Close() })
		if r.narrow {
			narrow(t, ln, unix.SO_SNDBUF, narrowBuffer) // inherited
		}
		loop := startLoop(t, new(ciphers), func(loop *Loop) (func(), error) {
			if client == (wrapping{}) {
				return loop.Listen(ln, r.limits, func(_, _ netip.AddrPort) (Owner, bool) { return r.owner(), false })
			}
			return loop.Open(ln, r.limits, r.door(client))
		})
		return ln.Addr().(*net.TCPAddr).AddrPort(), loop.held
	}
	return m
}

// held is how many bytes the loop's sessions keep: what waits to be written, pieces of records, and what was read before the CONNACK.
func (l *Loop) held() (n int) {
	done := make(chan struct{})
	if !l.send(mail{call: func() {
		defer close(done)
		for _, c := range l.conns {
			if c == nil {
				continue
			}
			ends := c.s.kept()
			n += cap(ends.Held) + cap(ends.First) + cap(ends.Tail)
			for side := range c.fd {
				if p := c.pend[side]; p != nil {
					n += cap(p.b)
				}
				if w := c.wrap[side]; w != nil {
					n += cap(w.rest)
				}
			}
		}
	}}) {
		return 0
	}
	<-done
	return n
}

// narrow sets the size of a socket's buffer.
func narrow(t testing.TB, c syscall.Conn, which, size int) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, which, size) })
}

// door welcomes r's clients with the layers of a wrapping.
func (r relayed) door(w wrapping) *testDoor {
	d := &testDoor{owner: r.owner, w: w, server: tls13.NewServer(testTLS(), w.policy), failed: r.failed}
	if r.pause != nil {
		d.pause = func(c net.Conn) { pauseFor(c, r.pause(c)) }
	}
	return d
}
