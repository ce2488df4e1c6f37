package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

const (
	closedWithin = time.Second     // clients of a dead broker
	backWithin   = 5 * time.Second // on another one, from their first retry
	retryEvery   = 200 * time.Millisecond
	lureEvery    = 50 * time.Millisecond
	// servesWithin bounds the wait for a broker that is back to get a new key.
	servesWithin = 15 * time.Second
)

// withoutBroker: a broker is killed; its clients wait for it, and are re-placed when it does not come back in time.
func (s *story) withoutBroker(ctx context.Context) error {
	victim, mine, others := s.busiest((*actor).broker, "")
	dead := slices.IndexFunc(s.mesh.brokers[:], func(c *child) bool { return c.name == victim })
	if dead < 0 {
		return errNobody
	}
	s.chapter("Without " + victim)
	if err := s.awaitJudge(ctx); err != nil {
		return err
	}
	s.say("%s is killed (-9) with %d sessions, which are in its memory only. Its", victim, len(mine))
	s.say("clients are held off for 2 s, in case it comes back (rehome_after); then")
	s.say("other brokers take them, and tell them that their sessions are gone.")
	closed := s.claim("broker killed: its clients are disconnected within %.0f s", closedWithin.Seconds())
	back := s.claim("broker killed: on another within %.0f s, Session Present 0", backWithin.Seconds())
	untouched := s.claim("broker killed: the other brokers' clients notice nothing")
	newKeys := s.claim("broker back: new clients are placed on it")
	stay := s.claim("broker back: who was re-placed stays, session intact")

	watched := watch(others)
	b := newBoard("", "MQTT", "was on", "closed after", "refused", "back after", "now on", "session")
	for _, a := range mine {
		b.add(a.id, a.protocol(), victim)
	}
	end := s.out.live(func() []string { return b.lines(s.out) })
	killed := time.Now()
	s.mesh.brokers[dead].kill()
	each(mine, func(i int, a *actor) {
		after, err := closing(ctx, a.current(), killed, stepTimeout)
		if err == nil && after > closedWithin {
			err = fmt.Errorf("after %s", seconds(after))
		}
		closed.prove(a.id, err)
		b.set(i, 3, seconds(after))
		back.prove(a.id, s.rehome(ctx, a, victim, i, b))
	})
	end()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	watched.prove(untouched)

	began := time.Now()
	if err := s.mesh.brokers[dead].run(ctx); err != nil {
		return err
	}
	tried, err := s.lure(ctx, victim)
	newKeys.prove(fmt.Sprintf("%d new clients", tried), err)
	s.done(began, "%s is back; the %s of the new clients is its own.", victim, ordinal(tried))
	each(mine, func(_ int, a *actor) {
		if c := a.current(); !c.alive() {
			stay.prove(a.id, fmt.Errorf("connection closed: %w", c.err))
			return
		}
		a.leave()
		stay.prove(a.id, a.comeHome(ctx, elsewhere(a.where())))
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, c := range []*claim{closed, back, untouched, newKeys, stay} {
		s.verdict(c)
	}
	return nil
}

// awaitJudge waits until whoever leads the mesh may say that a broker is down: a leader lets a session's time pass first, so
// that it has heard every edge.
func (s *story) awaitJudge(ctx context.Context) error {
	if earliest := s.mesh.whole.Add(registry.SessionTTL); s.judge.Before(earliest) {
		s.judge = earliest
	}
	if time.Until(s.judge) <= 0 {
		return nil
	}
	began := time.Now()
	end := s.out.live(func() []string {
		waited := seconds(time.Since(began))
		return []string{indent + s.out.faint(fmt.Sprintf("Patience: a new leader hears all edges for %.0f s before it judges ... %s", registry.SessionTTL.Seconds(), waited))}
	})
	defer end()
	select {
	case <-time.After(time.Until(s.judge)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rehome has a client try again and again, by random edges, until some broker takes it.
func (s *story) rehome(ctx context.Context, a *actor, victim string, row int, b *board) error {
	began := time.Now()
	var present bool
	for refused := 0; ; refused++ {
		b.set(row, 4, fmt.Sprintf("%d×", refused))
		var err error
		if present, err = a.come(ctx, anywhere()); err == nil {
			break
		}
		if time.Since(began) > 3*backWithin {
			b.set(row, 5, s.out.red("never"))
			return fmt.Errorf("not back after %s: %w", seconds(time.Since(began)), err)
		}
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	took := time.Since(began)
	err := a.settle(ctx)
	switch {
	case took > backWithin:
		err = errors.Join(err, fmt.Errorf("back after %s", seconds(took)))
	case present:
		err = errors.Join(err, errors.New("told Session Present 1, though its session is gone"))
	case err == nil && a.broker() == victim:
		err = fmt.Errorf("on broker %s, which is dead", victim)
	}
	session := map[bool]string{false: "new", true: "present"}[present]
	b.set(row, 5, seconds(took), s.mark(a.broker(), err), session)
	return err
}

// lure connects new clients until one is placed on a broker, and returns how many it took.
func (s *story) lure(ctx context.Context, name string) (tried int, err error) {
	ctx, cancel := context.WithTimeout(ctx, servesWithin)
	defer cancel()
	tick := time.NewTicker(lureEvery)
	defer tick.Stop()
	for {
		tried++
		a := s.actor(fmt.Sprintf("new-%d", tried), mqtt5, true)
		if _, err = a.come(ctx, anywhere()); err == nil {
			err = a.settle(ctx)
			a.leave()
		}
		switch {
		case err != nil:
			return tried, err
		case a.broker() == name:
			return tried, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return tried, fmt.Errorf("none was placed on %s within %s", name, seconds(servesWithin))
		}
	}
}

// ordinal is "1st", "2nd".
func ordinal(n int) string {
	suffix := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprintf("%d%s", n, suffix)
}
