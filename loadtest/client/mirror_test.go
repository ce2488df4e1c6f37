package client

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// mirror is a broker for measuring: it accepts every client and sends each PUBLISH back to the one that sent it, at the same QoS and under
// the same packet ID. It allocates nothing per message, so that what is counted in its process is the client's.
type mirror struct {
	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func startMirror(t testing.TB) *mirror {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := newMirror(ln)
	t.Cleanup(m.stop)
	return m
}

func newMirror(ln net.Listener) *mirror {
	m := &mirror{ln: ln, conns: map[net.Conn]struct{}{}}
	m.wg.Go(m.accept)
	return m
}

func (m *mirror) addr() netip.AddrPort { return m.ln.Addr().(*net.TCPAddr).AddrPort() }

func (m *mirror) stop() {
	m.ln.Close()
	m.mu.Lock()
	m.closed = true
	for c := range m.conns {
		c.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *mirror) accept() {
	for {
		c, err := m.ln.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		if m.closed {
			c.Close()
		} else {
			m.conns[c] = struct{}{}
			m.wg.Go(func() { m.serve(c) })
		}
		m.mu.Unlock()
	}
}

func (m *mirror) serve(c net.Conn) {
	defer func() {
		c.Close()
		m.mu.Lock()
		delete(m.conns, c)
		m.mu.Unlock()
	}()
	r := mqtt.Reader{Version: mqtt.V5}
	defer r.Release()
	in, out := make([]byte, 4<<10), make([]byte, 0, 8<<10)
	var p mqtt.Packet
	for {
		n, err := c.Read(in)
		if err != nil {
			return
		}
		out = out[:0]
		for b, ok := in[:n], true; ok; {
			if b, ok, err = r.Next(b, &p); err != nil {
				return
			}
			if !ok {
				break
			}
			switch p.Kind {
			case mqtt.CONNECT:
				out = append(out, 0x20, 3, 0, 0, 0)
			case mqtt.PUBLISH:
				if p.Publish.QoS == 1 {
					out = mqtt.AppendAck(out, mqtt.V5, mqtt.PUBACK, p.ID, 0)
				} else if p.Publish.QoS == 2 {
					out = mqtt.AppendAck(out, mqtt.V5, mqtt.PUBREC, p.ID, 0)
				}
				out = append(out, p.Raw...)
			case mqtt.PUBREL:
				out = mqtt.AppendAck(out, mqtt.V5, mqtt.PUBCOMP, p.ID, 0)
			case mqtt.PUBREC:
				out = mqtt.AppendAck(out, mqtt.V5, mqtt.PUBREL, p.ID, 0)
			case mqtt.PINGREQ:
				out = append(out, 0xd0, 0)
			case mqtt.DISCONNECT:
				return
			}
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

const mirrorEnv = "LIMPET_CLIENT_TEST_MIRROR"

// mirrorMain is a process of its own with a mirror in it: it says its address, and lives until its input ends.
func mirrorMain() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	m := newMirror(ln)
	fmt.Println(m.addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	m.stop()
}

// spawnMirror starts such a process for the time of a test.
func spawnMirror(t testing.TB) netip.AddrPort {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mirrorEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	at, err := netip.ParseAddrPort(line[:len(line)-1])
	if err != nil {
		t.Fatal(err)
	}
	return at
}
