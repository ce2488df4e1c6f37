package tls13

import (
	"testing"

	"pgregory.net/rapid"
)

// held tells how many ciphers there are, and fails if one is there twice or at a place that its owner does not know.
func held(t interface{ Fatalf(string, ...any) }, c *Cache) (n int) {
	seen := map[*half]bool{}
	check := func(e *entry) {
		if e.owner == nil {
			return
		}
		n++
		if seen[e.owner] || c.at(e.owner.slot) != e {
			t.Fatalf("a cipher is kept at a wrong place")
		}
		seen[e.owner] = true
	}
	for i := range c.ring {
		check(&c.ring[i])
	}
	for i := range c.main {
		check(&c.main[i])
	}
	return n
}

func TestCacheKeepsTheBusy(t *testing.T) {
	var c Cache
	s := suite(aes128GCM)
	busy, others := make([]half, 1000), make([]half, 2*probation)
	for round := range 2 { // each is pushed out of the ring by the others, and is missed again at once
		for i := range busy {
			c.get(&busy[i], s)
		}
		for i := range probation {
			c.get(&others[round*probation+i], s)
		}
	}
	before := make([]*entry, len(busy))
	for i := range busy {
		if before[i] = c.at(busy[i].slot); before[i].owner != &busy[i] || busy[i].slot < probation {
			t.Fatalf("connection %d has no place of its own", i)
		}
	}
	// Thousands that speak once a while do not disturb them.
	rare := make([]half, 5000)
	for i := range rare {
		c.get(&rare[i], s)
	}
	for i := range busy {
		if c.get(&busy[i], s) != before[i] {
			t.Fatalf("connection %d was pushed out", i)
		}
	}
	if n := held(t, &c); n > len(busy)+probation {
		t.Fatalf("%d ciphers", n)
	}
	for tick, want := range []int{len(busy) + probation, 0} {
		if n := c.Tick(); n != want {
			t.Fatalf("tick %d: %d ciphers, want %d", tick, n, want)
		}
	}
	if c.main != nil || c.ring != nil {
		t.Fatal("memory is kept for nothing")
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c Cache
	all := make([]half, maxMain+1000)
	for range 2 {
		for i := range all {
			c.get(&all[i], chacha20)
		}
	}
	if n := held(t, &c); n > maxMain+probation {
		t.Fatalf("%d ciphers", n)
	}
}

// TestCacheGivesTheRightCipher: whatever the order of use, drops and ticks.
func TestCacheGivesTheRightCipher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		caches := []*Cache{{}, {}}
		var ends [400][2]*Records
		bound := map[int]int{}
		for range rapid.IntRange(1, 600).Draw(t, "steps") {
			i := rapid.IntRange(0, len(ends)-1).Draw(t, "connection")
			if ends[i][0] == nil {
				secrets := [2][]byte{random(32, uint64(2*i)), random(32, uint64(2*i+1))}
				ends[i][0], _ = New(Secrets{Suite: 0x1303, Read: secrets[0], Write: secrets[1]})
				ends[i][1], _ = New(Secrets{Suite: 0x1303, Read: secrets[1], Write: secrets[0], Client: true})
				ends[i][0].Bind(caches[0])
			}
			server, client := ends[i][0], ends[i][1]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				caches[bound[i]].Tick()
			case 1:
				bound[i] = 1 - bound[i]
				server.Bind(nil)
				server.Bind(caches[bound[i]])
			case 2:
				if _, _, err := client.Open(server.appendUpdate(nil, false)); err != nil {
					t.Fatal(err)
				}
			default:
				if _, _, err := client.Open(server.Seal(nil, []byte("x"))); err != nil {
					t.Fatal(err)
				}
				if _, _, err := server.Open(client.Seal(nil, []byte("x"))); err != nil {
					t.Fatal(err)
				}
			}
		}
		held(t, caches[0])
		held(t, caches[1])
	})
}
