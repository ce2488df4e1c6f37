package edge

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// The table against a map.
func TestTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	table := newTable()
	type tableKey struct{ pool, key string }
	in := map[*client]tableKey{}
	pools := []*listener{{pool: "p"}, {pool: "q"}} // which share hashes
	for range 20_000 {
		if rnd.IntN(2) == 0 {
			c := &client{ln: pools[rnd.IntN(2)], key: fmt.Sprint(rnd.IntN(20))}
			table.add(c)
			in[c] = tableKey{c.ln.pool, c.key}
		} else {
			for c := range in {
				table.remove(c)
				delete(in, c)
				break
			}
		}
		if rnd.IntN(100) > 0 {
			continue
		}
		if table.count() != len(in) {
			t.Fatalf("counts %d of %d", table.count(), len(in))
		}
		all := map[*client]bool{}
		table.each(func(c *client) { all[c] = true })
		for i := range 40 {
			k := tableKey{pools[i%2].pool, fmt.Sprint(i / 2)}
			table.find(k.pool, k.key, func(c *client) {
				if in[c] != k || !all[c] {
					t.Fatalf("found a client of %v under %v", in[c], k)
				}
				delete(all, c)
			})
		}
		if len(all) > 0 {
			t.Fatalf("%d clients are not found by their key", len(all))
		}
	}
	for c := range in {
		table.remove(c)
	}
	for i := range table.shards {
		if n := len(table.shards[i].byHash); n > 0 {
			t.Errorf("%d keys are left", n)
		}
	}
}
