package broker

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fakePeer is the far end of a broker's link, by hand.
type fakePeer struct {
	t *testing.T
	b *Broker
	net.Listener
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
}

// withFakePeer starts b1, whose only peer is a fake one.
func withFakePeer(t *testing.T) (*Broker, *fakePeer) {
	t.Helper()
	p := &fakePeer{t: t, Listener: listen(t)}
	address := p.Addr().String()
	p.Listener.Close() // so that Start need not wait for it
	p.b = single(t, func(c *Config) {
		c.LinkListen, c.Peers = "127.0.0.1:0", map[string]string{"fake": address}
	})
	eventually(t, func() (problem string) {
		var err error
		if p.Listener, err = net.Listen("tcp", address); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Cleanup(func() { p.Listener.Close() })
	return p.b, p
}

// greet accepts the broker's link as a peer that has everything up to last.
func (p *fakePeer) greet(last uint64) {
	p.t.Helper()
	conn, err := p.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	p.use(conn)
	if kind, body, err := readFrame(p.r, maxFrame); err != nil || kind != frameHello {
		p.t.Fatalf("%d %q %v", kind, body, err)
	}
	p.send(frameWelcome, welcome{name: "fake", incarnation: 1, last: last}.encode())
}

// call dials the broker's link address.
func (p *fakePeer) call() {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.b.LinkAddr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	p.use(conn)
}

func (p *fakePeer) use(conn net.Conn) {
	p.conn, p.r, p.w = conn, bufio.NewReader(conn), bufio.NewWriter(conn)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *fakePeer) send(kind byte, parts ...[]byte) {
	p.t.Helper()
	if err := errors.Join(writeFrame(p.w, kind, parts...), p.w.Flush()); err != nil {
		p.t.Fatal(err)
	}
}

// hello greets the broker and returns how much it has of this incarnation.
func (p *fakePeer) hello(incarnation uint64) (last uint64) {
	p.t.Helper()
	p.call()
	p.send(frameHello, hello{name: "fake", incarnation: incarnation}.encode())
	_, body, err := readFrame(p.r, maxFrame)
	if err != nil {
		p.t.Fatal(err)
	}
	w, err := decodeWelcome(body)
	if err != nil || w.name != "b1" || w.incarnation != p.b.incarnation {
		p.t.Fatalf("%+v, %v", w, err)
	}
	return w.last
}

// acked reads until the broker has acknowledged this number, which must be the highest.
func (p *fakePeer) acked(want uint64) {
	p.t.Helper()
	p.send(framePing)
	for seq := uint64(0); seq != want; {
		kind, body, err := readFrame(p.r, maxFrame)
		if err == nil && kind == frameAck {
			seq, _, err = decodeSequence(body)
		}
		if err != nil || seq > want {
			p.t.Fatalf("%d acknowledged, want %d (%v)", seq, want, err)
		}
	}
}

func TestReceiverRemembersItsPeers(t *testing.T) {
	b, peer := withFakePeer(t)
	s := connect3(t, b, "s")
	s.subscribe("t", 1)
	publish := func(seq uint64, payload string) {
		m := &message{topic: "t", payload: []byte(payload), qos: 1}
		peer.send(frameMessage, uint64Bytes(seq), m.encode(nil))
	}
	if last := peer.hello(1); last != 0 {
		t.Fatalf("a stranger has sent %d", last)
	}
	publish(1, "a")
	publish(2, "b")
	publish(2, "twice")
	publish(5, "c") // 3 and 4 were dropped
	peer.acked(5)
	if last := peer.hello(1); last != 5 {
		t.Errorf("%d remembered", last)
	}
	publish(5, "thrice")
	publish(6, "d")
	peer.acked(6)
	if last := peer.hello(2); last != 0 { // restarted
		t.Errorf("%d remembered of a new incarnation", last)
	}
	publish(1, "e")
	peer.send(frameMessage, uint64Bytes(2), (&message{topic: "$SYS/forged"}).encode(nil)) // skipped, and acknowledged: again it would be no better
	publish(3, "f")
	peer.acked(3)
	s.receives("t a", "t b", "t c", "t d", "t e", "t f")
}

// A peer that takes messages and never acknowledges delays one answer, not every one. One that says nothing at all is
// given up, and gets what it has not acknowledged when it is back.
func TestPeerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b, peer := withFakePeer(t)
	peer.greet(0)
	linked(t, b)
	p := connect3(t, b, "p")
	for i := range 50 {
		p.publish("t", fmt.Sprint(i+1), 1, false)
	}
	q := b.links["fake"].backlog
	q.mu.Lock()
	up, late := q.up, q.late
	q.mu.Unlock()
	if up && !late {
		t.Error("the peer is still waited for")
	}
	if kept := b.Peers()[0].Kept; kept != 50 {
		t.Errorf("%d kept", kept)
	}
	peer.greet(20) // the broker has come back by itself
	for i := range 30 {
		kind, body, err := readFrame(peer.r, maxFrame)
		for err == nil && (kind == frameRetained || kind == frameSynced || kind == framePing) {
			kind, body, err = readFrame(peer.r, maxFrame)
		}
		if err != nil || kind != frameMessage {
			t.Fatalf("%d, %v", kind, err)
		}
		seq, body, _ := decodeSequence(body)
		if m, err := decodeMessage(body); err != nil || seq != uint64(21+i) || string(m.payload) != fmt.Sprint(seq) {
			t.Fatalf("%d %+v, %v; want %d", seq, m, err, 21+i)
		}
	}
	peer.send(frameAck, uint64Bytes(50))
	eventually(t, func() string {
		if kept := b.Peers()[0].Kept; kept > 0 {
			return fmt.Sprintf("%d kept", kept)
		}
		return ""
	})
}

func TestLinkRefuses(t *testing.T) {
	b, peer := withFakePeer(t)
	good := hello{name: "fake", incarnation: 1}.encode()
	for name, speak := range map[string]func(){
		"a stranger":             func() { peer.send(frameHello, hello{name: "mallory", incarnation: 1}.encode()) },
		"no greeting":            func() { peer.send(framePing) },
		"HTTP":                   func() { _, _ = peer.conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")) },
		"a frame above bounds":   func() { _, _ = peer.conn.Write([]byte{0xff, 0xff, 0xff, 0xff, frameHello}) },
		"an unknown frame":       func() { peer.send(frameHello, good); peer.send(99) },
		"a message not retained": func() { peer.send(frameHello, good); peer.send(frameRetained, (&message{topic: "t"}).encode(nil)) },
		"a short message":        func() { peer.send(frameHello, good); peer.send(frameMessage, []byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			peer.t = t
			peer.call()
			speak()
			for {
				if kind, _, err := readFrame(peer.r, maxFrame); err != nil {
					break
				} else if kind != frameWelcome {
					t.Fatalf("answered with %d", kind)
				}
			}
		})
	}
	if n := len(b.retained.shared()); n != 0 {
		t.Errorf("%d retained", n)
	}
}

// A broker that is killed right after it acknowledged has lost nothing for subscribers elsewhere.
func TestKilledAfterPuback(t *testing.T) {
	links := [2]net.Listener{listen(t), listen(t)}
	linkAddress := links[0].Addr().String()
	links[0].Close()
	b2, err := start(Config{Name: "b2", Peers: map[string]string{"b1": linkAddress}, Logger: logger(t)}, listen(t), links[1])
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, b2)
	s := connect3(t, b2, "s")
	s.subscribe("t", 1)

	var want []string
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{"b1", "127.0.0.1:0", linkAddress, "b2=" + b2.LinkAddr().String()}, ","))
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		address, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		address = strings.TrimSpace(address)
		waitForLink(t, address)
		p := dialAddress(t, address)
		p.connect("p", cleanFlag)
		p.write(packet(0x32, str("t"), id(1), "last words"))
		p.expect(packet(0x40, id(1)))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		want = append(want, "t last words")
		s.receives(want...)
	}
}

// waitForLink reads a broker's status until its link is up.
func waitForLink(t *testing.T, address string) {
	t.Helper()
	p := dialAddress(t, address)
	p.connect("status", cleanFlag)
	p.subscribe(1, "$SYS/broker/peers/b2", 0)
	for {
		head, body, err := p.read()
		if err != nil || head>>4 != 3 {
			t.Fatalf("%#x %q %v", head, body, err)
		}
		if strings.Contains(string(body), `"up":true`) {
			return
		}
	}
}
