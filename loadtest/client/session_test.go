package client

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/limpet-mesh/limpet/loadtest/mqtt"
)

// TestSessionAgainstModel compares the flights with a plain list.
func TestSessionAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s session
		s.lastID = rapid.Uint16().Draw(t, "lastID")
		var model []flight
		check := func() {
			got := slices.Clone(s.flights[s.head:])
			if !slices.Equal(got, model) {
				t.Fatalf("flights %v, want %v", got, model)
			}
			for i, f := range model {
				if got := s.find(f.id) - s.head; got != i {
					t.Fatalf("ID %d found at %d, want %d", f.id, got, i)
				}
			}
			if id := s.lastID + 1; !slices.ContainsFunc(model, func(f flight) bool { return f.id == id }) && s.find(id) >= 0 {
				t.Fatalf("ID %d found, nobody has it", id)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				id := s.newID()
				if id == 0 || slices.ContainsFunc(model, func(f flight) bool { return f.id == id }) {
					t.Fatalf("ID %d is in use", id)
				}
				f := flight{token: rapid.Uint64().Draw(t, "token"), id: id, await: rapid.SampledFrom([]mqtt.Kind{mqtt.PUBACK, mqtt.PUBREC, mqtt.SUBACK}).Draw(t, "await")}
				s.add(f)
				model = append(model, f)
			},
			"skip": func(t *rapid.T) { // as if all IDs between had come and gone
				if len(model) > 0 && !s.lapped {
					first, gap := s.flights[s.head].id, rapid.IntRange(0, 65_535).Draw(t, "gap")
					for range gap {
						next := s.lastID + 1
						if next == first {
							return
						}
						s.lastID = next
					}
				}
			},
			"acknowledge": func(t *rapid.T) {
				if len(model) > 0 {
					i := rapid.IntRange(0, len(model)-1).Draw(t, "i")
					s.remove(s.find(model[i].id))
					model = slices.Delete(model, i, i+1)
				}
			},
			"acknowledge the first": func(*rapid.T) {
				if len(model) > 0 {
					s.remove(s.find(model[0].id))
					model = slices.Delete(model, 0, 1)
				}
			},
			"lose the connection": func(*rapid.T) {
				isPublish := func(f *flight) bool { return f.isPublish() }
				lost := s.drop(func(f *flight) bool { return !isPublish(f) })
				var want []uint64
				model = slices.DeleteFunc(model, func(f flight) bool {
					if !f.isPublish() {
						want = append(want, f.token)
					}
					return !f.isPublish()
				})
				if !slices.Equal(lost, want) {
					t.Fatalf("lost %v, want %v", lost, want)
				}
			},
			"": func(*rapid.T) { check() },
		})
	})
}

// TestAllIDs: when all packet IDs are in use there is none, and one that comes free is found.
func TestAllIDs(t *testing.T) {
	var s session
	for range 65_535 {
		id := s.newID()
		if id == 0 {
			t.Fatalf("none after %d", len(s.flights))
		}
		s.add(flight{id: id, await: mqtt.PUBACK})
	}
	if id := s.newID(); id != 0 {
		t.Fatalf("ID %d, all are in use", id)
	}
	s.remove(s.find(7))
	if id := s.newID(); id != 7 {
		t.Fatalf("ID %d, only 7 is free", id)
	}
}
