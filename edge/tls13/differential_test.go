package tls13

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// A scenario is a sequence of records, written down as bytes: an operation and its two arguments each.
const (
	opData = iota
	opPadded
	opEmpty
	opUpdate
	opTorn // a KeyUpdate in two pieces
	opAnswer
	opCanceled
	opTicket
	opJoined // two messages in one record
	opForged
	opAlert
	opType
	opHandshake
	opLong
	opClose
	ops
)

// play makes the records of one operation, as the peer with r's keys would.
func play(r *Records, op, x, y byte) (wire []byte) {
	n := int(x)<<6 | int(y)
	update := func() {
		r.cache.drop(&r.out)
		r.out.next(r.suite)
	}
	switch op % ops {
	case opData:
		return craft(r, typeApplication, random(n+1, uint64(n)), 0)
	case opPadded:
		return craft(r, typeApplication, random(int(x), uint64(n)), int(y)*3)
	case opEmpty:
		return craft(r, typeApplication, nil, int(y))
	case opUpdate:
		defer update()
		return craft(r, typeHandshake, []byte{typeKeyUpdate, 0, 0, 1, x & 1}, int(y))
	case opTorn:
		msg := []byte{typeKeyUpdate, 0, 0, 1, x & 1}
		defer update()
		cut := 1 + int(y)%4
		wire = craft(r, typeHandshake, msg[:cut], 0)
		return append(wire, craft(r, typeHandshake, msg[cut:], 0)...)
	case opAnswer: // half a KeyUpdate, and then something else
		wire = craft(r, typeHandshake, []byte{typeKeyUpdate, 0, 0}, 0)
		return append(wire, craft(r, typeApplication, []byte{x}, 0)...)
	case opCanceled:
		return craft(r, typeAlert, []byte{1 + x&1, alertUserCanceled}, int(y))
	case opTicket:
		return craft(r, typeHandshake, ticket(int(x)), int(y))
	case opJoined:
		if !r.is(isClient) { // towards a client
			msgs := append(ticket(int(x)), ticket(int(y))...)
			cut := (int(x)*256 + int(y)) % len(msgs)
			if cut == 0 {
				return craft(r, typeHandshake, msgs, 0)
			}
			wire = craft(r, typeHandshake, msgs[:cut], 0)
			return append(wire, craft(r, typeHandshake, msgs[cut:], 0)...)
		}
		return craft(r, typeHandshake, []byte{typeKeyUpdate, 0, 0, 1, 0, typeKeyUpdate, 0, 0, 1, 0}, 0)
	case opForged:
		wire = craft(r, typeApplication, random(n+1, 1), 0)
		wire[headerSize+(int(x)*256+int(y))%(len(wire)-headerSize)] ^= 1 << (x & 7)
		return wire
	case opAlert:
		return craft(r, typeAlert, []byte{2, x}, 0)
	case opType:
		return craft(r, x, random(int(y), 2), 0)
	case opHandshake:
		if x == typeNewSessionTicket { // one that is malformed inside is skipped by us, and refused by crypto/tls
			return craft(r, typeHandshake, ticket(int(y)), 0)
		}
		return craft(r, typeHandshake, append([]byte{x, 0, 0, y}, make([]byte, y)...), 0)
	case opLong:
		return craft(r, typeApplication, make([]byte, maxPlaintext-2+int(x&3)), int(y&1))
	default:
		return craft(r, typeAlert, []byte{1, alertCloseNotify}, 0)
	}
}

// ticket is a well-formed NewSessionTicket (RFC 8446 §4.6.1).
func ticket(n int) []byte {
	body := append(make([]byte, 8), 1, 0, byte((n+1)>>8), byte(n+1))
	body = append(body, make([]byte, n+1)...)
	body = append(body, 0, 0)
	return append([]byte{typeNewSessionTicket, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

// differ plays a scenario to a tls.Conn and to Records of the same keys, and says where they differ.
func differ(t testing.TB, asClient bool, scenario []byte) error {
	a, b := memPipe()
	defer func() { _ = a.Close() }()
	w := &wire{conn: a, client: asClient, capture: true}
	ours, theirs := tls.Server(w, w.watch(serverConfig())), tls.Client(b, clientConfig())
	if asClient {
		ours, theirs = tls.Client(w, w.watch(clientConfig())), tls.Server(b, serverConfig())
	}
	done := make(chan error, 1)
	go func() { done <- theirs.Handshake() }()
	h, err := w.handshake(context.Background(), ours)
	if err := errors.Join(err, <-done); err != nil || h.Records == nil {
		t.Fatal(err, h)
	}
	records := h.Records
	cache := new(Cache)
	records.Bind(cache)
	// The tls.Conn that was cut off goes on over memory, and the two have one state.
	w.mode = inMemory
	std := &Stdlib{conn: ours, wire: w}
	peer, err := New(Secrets{
		Suite: h.State.CipherSuite, Client: !asClient, ReadSeq: records.out.seq,
		Read: records.out.secret[:records.suite.secretSize()], Write: records.in.secret[:records.suite.secretSize()],
	})
	if err != nil {
		t.Fatal(err)
	}
	peer.Bind(new(Cache))
	for i := 0; len(scenario) >= 3; i++ {
		op := scenario[0] % ops
		in := play(peer, op, scenario[1], scenario[2])
		step := fmt.Sprintf("step %d, operation %d %d %d", i, op, scenario[1], scenario[2])
		scenario = scenario[3:]
		p1, rest1, err1 := records.Open(bytes.Clone(in))
		p2, rest2, err2 := std.Open(bytes.Clone(in))
		if !bytes.Equal(p1, p2) || (len(rest1) != len(rest2) && err1 == nil) {
			return fmt.Errorf("%s: payload %d and %d bytes, rest %d and %d", step, len(p1), len(p2), len(rest1), len(rest2))
		}
		if (err1 == nil) != (err2 == nil) || (err1 == io.EOF) != (err2 == io.EOF) {
			return fmt.Errorf("%s: errors %v and %v", step, err1, err2)
		}
		r1, r2 := records.Reply(nil), std.Reply(nil)
		if err1 == nil && !bytes.Equal(r1, r2) {
			return fmt.Errorf("%s: replies %x and %x", step, r1, r2)
		}
		if err1 != nil {
			if (len(r1) > 0) != (len(r2) > 0) {
				return fmt.Errorf("%s (%v): replies %x and %x", step, err1, r1, r2)
			}
			// In the answer to a KeyUpdate with something behind it, crypto/tls changes its key before it says so. Which
			// alert a malformed message gets is the one thing that may differ.
			same := op == opForged || op == opLong || op == opAnswer || op == opClose || op == opAlert
			if same && !bytes.Equal(r1, r2) {
				return fmt.Errorf("%s: %v and %v: alerts %x and %x", step, err1, err2, r1, r2)
			}
			return nil
		}
		out := []byte{byte(i)}
		if s1, s2 := records.Seal(nil, out), std.Seal(nil, out); !bytes.Equal(s1, s2) {
			return fmt.Errorf("%s: records %x and %x", step, s1, s2)
		}
	}
	if e1, e2 := records.End(nil), std.End(nil); !bytes.Equal(e1, e2) {
		return fmt.Errorf("the end: %x and %x", e1, e2)
	}
	return nil
}

// TestAsCryptoTLS plays random scenarios to both.
func TestAsCryptoTLS(t *testing.T) {
	forSuites(t, func(t *testing.T, id uint16) {
		only(t, id)
		roles(t, func(t *testing.T, asClient bool) {
			n := 150
			if raceEnabled {
				n = 15
			}
			for seed := range n {
				rng := rand.New(rand.NewPCG(uint64(seed), 1))
				var scenario []byte
				for range rng.IntN(40) {
					op := rng.IntN(opTicket) // mostly what goes on
					switch {
					case seed%5 == 0: // and carries nothing
						op = []int{opEmpty, opUpdate, opTorn, opCanceled}[rng.IntN(4)]
					case op == opAnswer || rng.IntN(20) == 0:
						op = rng.IntN(ops)
					}
					scenario = append(scenario, byte(op), byte(rng.Uint32()), byte(rng.Uint32()))
				}
				if err := differ(t, asClient, scenario); err != nil {
					t.Fatalf("seed %d: %v\n%v", seed, err, scenario)
				}
			}
		})
	})
}

// FuzzAsCryptoTLS lets Records and a tls.Conn read the same records.
func FuzzAsCryptoTLS(f *testing.F) {
	for op := range byte(ops) {
		f.Add(op%2 == 0, []byte{opData, 1, 2, op, 1, 1, opUpdate, 1, 0, op, 3, 0, opClose, 0, 0})
	}
	f.Fuzz(func(t *testing.T, asClient bool, scenario []byte) {
		if err := differ(t, asClient, scenario[:min(len(scenario), 300)]); err != nil {
			t.Fatal(err)
		}
	})
}
