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
			unreadable := c.Unreadable != ""
			if unreadable || next.Unreadable != nil {
				set(&next.Unreadable, true, !unreadable, c.Name, Unreadable{c.Revision, c.Unreadable})
			}
			if fresh[c.Kind] = !first || !unreadable; !unreadable { // else the pool stands as it was
				set(&next.Pools, first, c.Deleted, c.Name, c.Pool)
			}
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

// former returns the configuration in s, as what stands where a store that has replaced this one says nothing. Revisions of one
// store mean nothing in another: there these pools are absent.
func (s *State) former() *State {
	f := &State{Pools: make(map[string]*Pool, len(s.Pools)), Admin: make(map[BrokerRef]Admin, len(s.Admin)), Pins: s.Pins}
	for name, p := range s.Pools {
		was := *p
		was.Revision = 0
		f.Pools[name] = &was
	}
	for ref, a := range s.Admin {
		f.Admin[ref] = Admin{State: a.State}
	}
	return f
}

// without returns s without the pools that the store has said something about, by changes; nil if none is left, or s is.
func (s *State) without(changes []Change) *State {
	if s == nil {
		return nil
	}
	next := s
	for i := range changes {
		c := &changes[i]
		if c.Kind != KindPool || c.Unreadable != "" || next.Pools[c.Name] == nil {
			continue
		}
		if next == s {
			next = &State{Pools: maps.Clone(s.Pools), Admin: s.Admin, Pins: s.Pins}
		}
		delete(next.Pools, c.Name)
	}
	if len(next.Pools) == 0 {
		return nil
	}
	return next
}

// over returns s with the pools of a former store, and what operators wanted of them there.
func (s *State) over(former *State) *State {
	if former == nil {
		return s
	}
	next := *s
	next.Former = make(map[string]bool, len(former.Pools))
	if next.Pools = maps.Clone(s.Pools); next.Pools == nil {
		next.Pools = make(map[string]*Pool, len(former.Pools))
	}
	for name, p := range former.Pools {
		if next.Pools[name] == nil {
			next.Pools[name], next.Former[name] = p, true
		}
	}
	if next.Admin = maps.Clone(s.Admin); next.Admin == nil {
		next.Admin = make(map[BrokerRef]Admin)
	}
	for ref, a := range former.Admin {
		if _, said := next.Admin[ref]; !said && next.Former[ref.Pool] {
			next.Admin[ref] = a
		}
	}
	if next.Pins = maps.Clone(s.Pins); next.Pins == nil {
		next.Pins = make(map[PinRef]string)
	}
	for ref, broker := range former.Pins {
		if _, said := next.Pins[ref]; !said && next.Former[ref.Pool] {
			next.Pins[ref] = broker
		}
	}
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
