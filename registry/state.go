package registry

import (
	"cmp"
	"maps"
)

// Apply returns the state after changes, which bring it to revision. s is not touched, and the maps that no change
// concerns are shared with it. Affinities are none of a State's business: they are skipped.
// If nothing but the revision would differ, s itself is returned, so that a pointer tells whether routing must look anew; after a
// KindPrune too it should, since a Cache then ends State.Former.
// A nil s is the empty state.
func (s *State) Apply(changes []Change, revision int64) *State {
	var next State
	if s != nil {
		next = *s
	}
	var fresh [KindPrune + 1]bool // kinds whose map is already next's own; 0: Unreadable
	touched := s == nil
	for i := range changes {
		c := &changes[i]
		if c.Kind == KindAffinity || c.Kind == 0 || c.Kind > KindPrune {
			continue
		}
		touched = true
		ref := BrokerRef{Pool: c.PoolName, Broker: c.Name}
		about := Subject{c.Kind, c.PoolName, c.Name}
		if _, was := next.Unreadable[about]; was || c.Unreadable != "" {
			set(&next.Unreadable, !fresh[0], c.Unreadable == "", about, Unreadable{c.Revision, c.Unreadable})
			fresh[0] = true
		}
		if c.Unreadable != "" {
			if next.keep(about, &next, !fresh[c.Kind]) {
				fresh[c.Kind] = true
			}
			continue
		}
		first := !fresh[c.Kind]
		fresh[c.Kind] = true
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

// keep has what before knew of something that does not read stand in s, at the revision of what does not read: so a guarded write
// may rest on it until something else is stored. first is set's; keep reports whether it called that.
func (s *State) keep(about Subject, before *State, first bool) bool {
	ref, revision := BrokerRef{about.Pool, about.Name}, s.Unreadable[about].Revision
	switch about.Kind {
	case KindPool:
		p := before.Pools[about.Name]
		if p == nil {
			return false
		}
		kept := *p
		kept.Revision = revision
		set(&s.Pools, first, false, about.Name, &kept)
	case KindAdmin:
		set(&s.Admin, first, false, ref, Admin{cmp.Or(before.Admin[ref].State, AdminUnknown), revision})
	case KindVerdict:
		v := before.Verdicts[ref]
		v.Revision = revision
		set(&s.Verdicts, first, false, ref, v)
	case KindPin:
		pin := PinRef{about.Pool, about.Name}
		broker, pinned := before.Pins[pin]
		if !pinned {
			return false
		}
		set(&s.Pins, first, false, pin, broker)
	}
	return true
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

// without returns s without the pools that the store has said something about, by changes that brought it to stored; nil if none is
// left, or s is. What does not read says nothing.
func (s *State) without(changes []Change, stored *State) *State {
	if s == nil {
		return nil
	}
	next := s
	end := func(name string) {
		if next == s {
			next = &State{Pools: maps.Clone(s.Pools), Admin: s.Admin, Pins: s.Pins}
		}
		delete(next.Pools, name)
	}
	for i := range changes {
		switch c := &changes[i]; {
		case c.Kind == KindPool && c.Unreadable == "" && next.Pools[c.Name] != nil:
			end(c.Name)
		case c.Kind == KindPrune:
			for name := range next.Pools {
				if _, spoilt := stored.Unreadable[Subject{Kind: KindPool, Name: name}]; !spoilt {
					end(name)
				}
			}
		}
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
	stands := func(pool string) bool { return former.Pools[pool] != nil && s.Pools[pool] == nil }
	for name, p := range former.Pools {
		if !stands(name) {
			continue
		}
		if about := (Subject{Kind: KindPool, Name: name}); s.Unreadable[about] != (Unreadable{}) {
			next.keep(about, former, false)
		} else {
			next.Pools[name], next.Former[name] = p, true
		}
	}
	if next.Admin = maps.Clone(s.Admin); next.Admin == nil {
		next.Admin = make(map[BrokerRef]Admin)
	}
	for ref, a := range former.Admin {
		if now, said := next.Admin[ref]; (!said || now.State == AdminUnknown) && stands(ref.Pool) {
			next.Admin[ref] = Admin{a.State, now.Revision}
		}
	}
	if next.Pins = maps.Clone(s.Pins); next.Pins == nil {
		next.Pins = make(map[PinRef]string)
	}
	for ref, broker := range former.Pins {
		if _, said := next.Pins[ref]; !said && stands(ref.Pool) {
			next.Pins[ref] = broker
		}
	}
	return &next
}

// set writes one entry of a map that may be shared: the first time, the map is copied.
func set[K comparable, V any](m *map[K]V, first, deleted bool, k K, v V) {
	if first || *m == nil {
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
