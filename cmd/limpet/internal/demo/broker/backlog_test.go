package broker

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A receiver that remembers how far it got, over connections that break anywhere, receives everything once, in order.
func TestBacklogDeliversOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newBacklog(1 << 20)
		var (
			added, received int
			last            uint64   // the receiver's memory
			flying          []uint64 // sent, not yet received
			connected       bool
		)
		actions := map[string]func(*rapid.T){
			"add": func(*rapid.T) {
				added++
				q.add(fmt.Append(nil, added), true)
			},
			"connect": func(t *rapid.T) {
				if connected {
					t.Skip("connected")
				}
				if err := q.connected(last); err != nil {
					t.Fatal(err)
				}
				connected = true
			},
			"break": func(t *rapid.T) {
				if !connected {
					t.Skip("not connected")
				}
				q.disconnected()
				connected, flying = false, nil
			},
			"send": func(t *rapid.T) {
				if !connected {
					t.Skip("not connected")
				}
				if seq, body, ok := q.next(); ok {
					if string(body) != fmt.Sprint(seq) {
						t.Fatalf("message %s has number %d", body, seq)
					}
					flying = append(flying, seq)
				}
			},
			"receive": func(t *rapid.T) {
				if len(flying) == 0 {
					t.Skip("nothing is under way")
				}
				seq := flying[0]
				flying = flying[1:]
				if seq <= last {
					return
				}
				if seq != last+1 {
					t.Fatalf("%d follows %d", seq, last)
				}
				last = seq
				received++
			},
			"acknowledge": func(t *rapid.T) {
				if !connected {
					t.Skip("not connected")
				}
				if err := q.acknowledged(last); err != nil {
					t.Fatal(err)
				}
			},
		}
		t.Repeat(actions)
		if !connected {
			actions["connect"](t)
		}
		for received < added {
			for len(flying) == 0 {
				actions["send"](t)
			}
			actions["receive"](t)
		}
		actions["acknowledge"](t)
		if _, kept, dropped := q.info(); kept != 0 || dropped != 0 || q.bytes != 0 {
			t.Fatalf("%d kept, %d dropped, %d bytes", kept, dropped, q.bytes)
		}
	})
}

func TestBacklogDropsTheOldest(t *testing.T) {
	q := newBacklog(100)
	for i := range 15 {
		q.add([]byte(strings.Repeat("x", 9)+string(rune('a'+i))), true)
	}
	if _, kept, dropped := q.info(); kept != 10 || dropped != 5 || !q.takeLost() || q.takeLost() {
		t.Fatalf("%d kept, %d dropped", kept, dropped)
	}
	if err := q.connected(0); err != nil {
		t.Fatal(err)
	}
	if seq, body, _ := q.next(); seq != 6 || body[9] != 'f' {
		t.Errorf("%d %s is the first", seq, body)
	}
	q.add(make([]byte, 200), true) // even if it alone is above the bound
	if _, kept, _ := q.info(); kept != 1 {
		t.Errorf("%d kept", kept)
	}
}

func TestBacklogKeepsNoQoS0ForThoseAway(t *testing.T) {
	q := newBacklog(100)
	q.add([]byte("away"), false)
	if _, kept, _ := q.info(); kept != 0 {
		t.Error("kept for a peer that is away")
	}
	if err := q.connected(0); err != nil {
		t.Fatal(err)
	}
	q.add(make([]byte, 50), false)
	q.add(make([]byte, 50), false) // half the bound is for what must arrive
	if _, kept, dropped := q.info(); kept != 1 || dropped != 1 {
		t.Errorf("%d kept, %d dropped", kept, dropped)
	}
}

func TestBacklogWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newBacklog(1 << 20)
		over := func(done <-chan struct{}) bool {
			select {
			case <-done:
				return true
			default:
				return false
			}
		}
		if q.add([]byte("x"), true) != nil {
			t.Error("waits for a peer that is away")
		}
		if err := q.connected(0); err != nil {
			t.Fatal(err)
		}
		a, b, c := q.add([]byte("a"), true), q.add([]byte("b"), true), q.add([]byte("c"), true)
		for range 4 {
			q.next()
		}
		if err := q.acknowledged(3); err != nil {
			t.Fatal(err)
		}
		if !over(a) || !over(b) || over(c) {
			t.Errorf("after the acknowledgement of b: %v %v %v", over(a), over(b), over(c))
		}
		q.markLate()
		if q.add([]byte("d"), true) != nil {
			t.Error("waits for a late peer")
		}
		time.Sleep(2 * ackWait)
		q.next()
		if err := q.acknowledged(4); err != nil { // c, long ago
			t.Fatal(err)
		}
		if q.add([]byte("e"), true) != nil {
			t.Error("waits for a peer that is still late")
		}
		q.next()
		if err := q.acknowledged(6); err != nil { // e, just now
			t.Fatal(err)
		}
		f := q.add([]byte("f"), true)
		if f == nil {
			t.Fatal("does not wait for a peer that is quick again")
		}
		q.disconnected()
		if !over(f) {
			t.Error("waits for a peer that is gone")
		}
		if err := q.connected(99); err == nil {
			t.Error("a peer may claim what was never sent")
		}
	})
}
