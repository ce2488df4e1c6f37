package realtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// ledger is what a pool of counting brokers has seen, by client ID.
type ledger struct {
	mu       sync.Mutex
	accepted map[string][]string // brokers that answered with CONNACK, in order
	live     map[string][]string // brokers where the client is connected
}

// countingBroker answers CONNECT and PINGREQ, keeps its sessions in memory, takes sessions over as MQTT says, and writes all of it down.
type countingBroker struct {
	id     string
	ln     net.Listener
	ledger *ledger
	wg     sync.WaitGroup

	mu       sync.Mutex
	conns    map[string]net.Conn
	all      map[net.Conn]bool
	sessions map[string]bool
	closed   bool
}

// countingBrokers starts n of them, c1 to cn, in this process.
func countingBrokers(t testing.TB, n int) ([]*broker, *ledger) {
	t.Helper()
	l := &ledger{accepted: map[string][]string{}, live: map[string][]string{}}
	var all []*broker
	for i := range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b := &countingBroker{
			id: fmt.Sprintf("c%d", i+1), ln: ln, ledger: l,
			conns: map[string]net.Conn{}, all: map[net.Conn]bool{}, sessions: map[string]bool{},
		}
		b.wg.Go(b.run)
		t.Cleanup(b.close)
		all = append(all, &broker{id: b.id, address: ln.Addr().String()})
	}
	return all, l
}

func (b *countingBroker) run() {
	for {
		c, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		if b.closed {
			c.Close()
		}
		b.all[c] = true
		b.mu.Unlock()
		b.wg.Go(func() {
			b.serve(c)
			c.Close()
			b.mu.Lock()
			delete(b.all, c)
			b.mu.Unlock()
		})
	}
}

func (b *countingBroker) close() {
	b.ln.Close()
	b.mu.Lock()
	b.closed = true
	for c := range b.all {
		c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *countingBroker) serve(c net.Conn) {
	r := bufio.NewReader(c)
	kind, body, err := readPacket(r)
	if err != nil || kind>>4 != 1 {
		return
	}
	id, version, clean, err := parseConnect(body)
	if err != nil {
		return
	}
	present := b.enter(id, clean, c)
	ack := []byte{0x20, 2, present, 0}
	if version == 5 {
		ack = []byte{0x20, 3, present, 0, 0}
	}
	if _, err := c.Write(ack); err == nil {
		for {
			kind, _, err := readPacket(r)
			if err != nil || kind>>4 == 14 {
				break
			}
			if kind>>4 == 12 {
				c.Write([]byte{0xd0, 0})
			}
		}
	}
	b.leave(id, c)
}

// enter makes c the one connection of a client ID [MQTT-3.1.4-3], and says whether it has a session.
func (b *countingBroker) enter(id string, clean bool, c net.Conn) (present byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.conns[id]; old != nil {
		old.Close()
	} else {
		b.ledger.mu.Lock()
		b.ledger.live[id] = append(b.ledger.live[id], b.id)
		b.ledger.mu.Unlock()
	}
	b.conns[id] = c
	if b.sessions[id] && !clean {
		present = 1
	}
	b.sessions[id] = !clean
	b.ledger.mu.Lock()
	b.ledger.accepted[id] = append(b.ledger.accepted[id], b.id)
	b.ledger.mu.Unlock()
	return present
}

func (b *countingBroker) leave(id string, c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns[id] != c {
		return // taken over
	}
	delete(b.conns, id)
	b.ledger.mu.Lock()
	defer b.ledger.mu.Unlock()
	if rest := without(b.ledger.live[id], b.id); len(rest) > 0 {
		b.ledger.live[id] = rest
	} else {
		delete(b.ledger.live, id)
	}
}

func without(list []string, one string) (rest []string) {
	for _, s := range list {
		if s != one {
			rest = append(rest, s)
		}
	}
	return rest
}

// homes lists the brokers that have accepted a client ID, each once.
func (l *ledger) homes(id string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, b := range l.accepted[id] {
		out = append(without(out, b), b)
	}
	return out
}

// judge returns the one broker of each client ID that begins with prefix, and those IDs that had more than one.
func (l *ledger) judge(prefix string) (home map[string]string, split []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	home = map[string]string{}
	for id, brokers := range l.accepted {
		if !strings.HasPrefix(id, prefix) {
			continue
		}
		home[id] = brokers[0]
		if rest := without(brokers, brokers[0]); len(rest) > 0 {
			split = append(split, fmt.Sprintf("%s at %v", id, brokers))
		}
	}
	return home, split
}

var errPacket = errors.New("malformed packet")

// readPacket reads one MQTT packet of at most a megabyte.
func readPacket(r *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, nil, err
		}
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 21 {
			return 0, nil, errPacket
		}
	}
	if length > 1<<20 {
		return 0, nil, errPacket
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r, body)
	return kind, body, err
}

// parseConnect takes what the tests look at from the body of a CONNECT of MQTT 3.1.1 or 5.
func parseConnect(b []byte) (id string, version byte, clean bool, err error) {
	if len(b) < 12 || string(b[2:6]) != "MQTT" {
		return "", 0, false, errPacket
	}
	version, clean = b[6], b[7]&2 != 0
	b = b[10:]
	if version == 5 {
		n, used := binary.Uvarint(b)
		if used <= 0 || uint64(len(b)-used) < n {
			return "", 0, false, errPacket
		}
		b = b[used+int(n):]
	}
	if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
		return "", 0, false, errPacket
	}
	return string(b[2 : 2+binary.BigEndian.Uint16(b)]), version, clean, nil
}

// appendConnect writes a CONNECT of MQTT 3.1.1 without credentials or Will, keep-alive off.
func appendConnect(b []byte, id string, clean bool) []byte {
	flags := byte(0)
	if clean {
		flags = 2
	}
	b = append(b, 0x10)
	b = binary.AppendUvarint(b, uint64(12+len(id)))
	b = append(b, 0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 0)
	return append(append(b, byte(len(id)>>8), byte(len(id))), id...)
}
