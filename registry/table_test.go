package registry

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

func (t *table) dump() map[PinRef]Affinity {
	all := make(map[PinRef]Affinity)
	t.differ(newTable(t.seed, 1), func(pool, key string, a Affinity) { all[PinRef{pool, key}] = a })
	return all
}

// get reads as a cache does.
func (t *table) get(pool, key string) Affinity {
	a, _ := t.lookup(pool, key)
	return a
}

func TestTableKeepsEveryField(t *testing.T) {
	tab := newTable(maphash.MakeSeed(), 100)
	now := time.Unix(1_800_000_000, 0)
	for i, a := range []Affinity{
		{Broker: "b1"},
		{Broker: "b2", Home: "b1", Writer: "e1", Written: now, Expires: now.Add(time.Hour), Reason: "rehomed", Revision: 1 << 60, Extra: []byte("x")},
		{Broker: "b2", Revision: 3}, // and no Extra any more
	} {
		tab.put("p", "k", &a)
		if got := tab.get("p", "k"); !reflect.DeepEqual(got, a) {
			t.Errorf("record %d: got %+v, want %+v", i, got, a)
		}
	}
	far := Affinity{Broker: "b1", Written: time.Unix(-1, 0), Expires: time.Unix(1<<33, 0)}
	tab.put("p", "far", &far)
	if got := tab.get("p", "far"); !got.Written.IsZero() || !got.Expires.IsZero() {
		t.Errorf("times that do not fit: %v and %v, want none", got.Written, got.Expires)
	}
}

// A table is a map: whatever is done to both, they hold the same, and their differences are those of maps.
func TestTableAgainstMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	seed := maphash.MakeSeed()
	var before *table
	var beforeModel map[PinRef]Affinity
	for round := range 20 {
		tab, model := newTable(seed, 1000), make(map[PinRef]Affinity)
		for range 300 {
			ref := PinRef{fmt.Sprintf("p%d", rnd.IntN(3)), fmt.Sprintf("key-%d", rnd.IntN(80))}
			if rnd.IntN(3) == 0 {
				tab.remove(ref.Pool, ref.Key)
				delete(model, ref)
				continue
			}
			a := Affinity{Broker: fmt.Sprintf("b%d", rnd.IntN(5)), Revision: int64(rnd.IntN(3) + 1)}
			tab.put(ref.Pool, ref.Key, &a)
			model[ref] = a
		}
		if got := tab.dump(); !reflect.DeepEqual(got, model) {
			t.Fatalf("round %d: the table holds %v, the map %v", round, got, model)
		}
		if n := tab.count.Load(); int(n) != len(model) || tab.evicted.Load() {
			t.Fatalf("round %d: count %d of %d, evicted %v", round, n, len(model), tab.evicted.Load())
		}
		if before != nil {
			got := make(map[PinRef]Affinity)
			tab.differ(before, func(pool, key string, a Affinity) { got[PinRef{pool, key}] = a })
			want := make(map[PinRef]Affinity)
			for ref, a := range model {
				if !reflect.DeepEqual(beforeModel[ref], a) {
					want[ref] = a
				}
			}
			for ref := range beforeModel {
				if _, ok := model[ref]; !ok {
					want[ref] = Affinity{}
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("round %d: differences %v, want %v", round, got, want)
			}
		}
		before, beforeModel = tab, maps.Clone(model)
	}
}

func TestTableBound(t *testing.T) {
	const limit = 500
	tab := newTable(maphash.MakeSeed(), limit)
	for i := range limit {
		tab.put("p", fmt.Sprint(i), &Affinity{Broker: "b", Extra: []byte("x")})
	}
	if tab.evicted.Load() {
		t.Error("evicted at the bound")
	}
	tab.put("p", "0", &Affinity{Broker: "c"}) // no new one
	if tab.evicted.Load() {
		t.Error("evicted by a replacement")
	}
	for i := range 5 * limit {
		tab.put("p", fmt.Sprint(i), &Affinity{Broker: "b", Extra: []byte("x")})
		if n := tab.count.Load(); n > limit {
			t.Fatalf("%d entries, at most %d", n, limit)
		}
	}
	if !tab.evicted.Load() || len(tab.dump()) != int(tab.count.Load()) {
		t.Errorf("evicted %v, %d entries counted, %d there", tab.evicted.Load(), tab.count.Load(), len(tab.dump()))
	}
}
