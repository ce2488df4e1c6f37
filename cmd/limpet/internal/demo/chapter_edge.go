package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// detection is how long a client may take to see that its edge is dead: over QUIC it is silence that tells, and this much more
// than it should be.
const detection = 2*quicIdle + 5*time.Second

// errNobody is returned where none of the clients is connected any more: the story cannot go on.
var errNobody = errors.New("demo: no client of the story is left")

// withoutEdge: an edge is killed; its clients go to the others.
func (s *story) withoutEdge(ctx context.Context) error {
	// The next chapter needs the leader's word, and one that has just started would wait for 10 s before it gives it.
	leader, err := s.mesh.leader(ctx)
	if err != nil {
		return err
	}
	victim, mine, others := s.busiest(func(a *actor) string { return edgeName(a.where().edge) }, leader)
	dead := slices.IndexFunc(s.mesh.edges[:], func(c *child) bool { return c.name == victim })
	if dead < 0 {
		return errNobody
	}
	s.chapter("Without "+victim, fmt.Sprintf("An edge keeps nothing that matters. %s is killed (-9) with %d clients on it.", victim, len(mine)),
		fmt.Sprintf("(Over QUIC a dead edge is only silent: clients notice after %.0f s.)", quicIdle.Seconds()))
	back := s.claim("edge killed: its clients come home at their first retry")
	untouched := s.claim("edge killed: the other edges' clients notice nothing")
	again := s.claim("edge back: it brings clients home as before")

	watched := watch(others)
	b := newBoard("", "MQTT", "was by", "noticed after", "back by", "home")
	for _, a := range mine {
		b.add(a.id, a.protocol(), a.where().String())
	}
	end := s.out.live(func() []string { return b.lines(s.out) })
	killed := time.Now()
	s.mesh.edges[dead].kill()
	each(mine, func(i int, a *actor) {
		after, err := closing(ctx, a.current(), killed, detection)
		if err == nil {
			to := anywhere(dead)
			b.set(i, 3, seconds(after), to.String())
			err = a.comeHome(ctx, to)
		}
		back.prove(a.id, err)
		b.set(i, 5, s.mark(a.broker(), err))
	})
	end()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	watched.prove(untouched)

	began := time.Now()
	if err := s.mesh.edges[dead].run(ctx); err != nil {
		return err
	}
	for _, a := range mine[:min(len(mine), len(transports))] {
		a.leave()
		at := elsewhere(a.where())
		at.edge = dead
		again.prove(a.id, a.comeHome(ctx, at))
	}
	s.done(began, "%s is back.", victim)
	for _, c := range []*claim{back, untouched, again} {
		s.verdict(c)
	}
	return nil
}

// mark is a cell that says how something went.
func (s *story) mark(text string, err error) string {
	if err != nil {
		return s.out.red(text + " ✗")
	}
	return s.out.green(text + " ✓")
}

// busiest finds what most of the connected actors have in common, other than spared, and parts them.
func (s *story) busiest(of func(*actor) string, spared string) (name string, with, without []*actor) {
	count := map[string]int{}
	there := s.connected()
	for _, a := range there {
		n := of(a)
		if n == spared {
			continue
		}
		if count[n]++; count[n] > count[name] || count[n] == count[name] && n < name {
			name = n
		}
	}
	for _, a := range there {
		if of(a) == name {
			with = append(with, a)
		} else {
			without = append(without, a)
		}
	}
	return name, with, without
}
