package registry

import "maps"

// Apply returns the state after changes, which bring it to revision. s is not touched, and the maps that no change
// concerns are shared with it. Affinities are none of a State's business: they are skipped.
// If nothing but the revision would differ, s itself is returned, so that a pointer tells whether routing must look anew.
// A nil s is the empty state.
func (s *State) Apply(changes []Change, revision int64) *State {
	var next State
	if s != nil {
		next = *s
	}
	var fresh [KindLeader + 1]bool // kinds whose map is already next's own
	touched := s == nil
	for i := range changes {
		c := &changes[i]
		if c.Kind == KindAffinity || c.Kind == 0 || c.Kind > KindLeader {
			continue
		}
		touched = true
		first := !fresh[c.Kind]
		fresh[c.Kind] = true
		ref := BrokerRef{Pool: c.PoolName, Broker: c.Name}
		switch c.Kind {
		case KindPool:
			set(&next.Pools, first, c.Deleted, c.Name, c.Pool)
		case KindAdmin:
			set(&next.Admin, first, c.Deleted, ref, c.Admin)
		case KindVerdict:
			set(&next.Verdicts, first, c.Deleted, ref, c.Verdict)
		case KindPin:
			set(&next.Pins, first, c.Deleted, PinRef{Pool: c.PoolName, Key: c.Name}, c.Broker)
		case KindEdge:
			set(&next.Edges, first, c.Deleted, c.Name, c.Edge)
		case KindHealth:
			set(&next.Health, first, c.Deleted, c.Name, c.Health)
		case KindLeader:
			if !c.Deleted {
				next.Leader = c.Name
			} else if c.Name == "" || c.Name == next.Leader {
				// An edge that resigned after another had taken over ends only its own lead.
				next.Leader = ""
			}
		}
	}
	if !touched {
		return s
	}
	next.Revision = revision
	return &next
}

// set writes one entry of a map that may be shared: the first time, the map is copied.
func set[K comparable, V any](m *map[K]V, first, deleted bool, k K, v V) {
	if first {
		if *m = maps.Clone(*m); *m == nil {
			*m = make(map[K]V)
		}
	}
	if deleted {
		delete(*m, k)
		return
	}
	(*m)[k] = v
}
