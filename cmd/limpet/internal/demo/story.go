package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// crowd bounds the clients that do something in the same moment.
	crowd = 16
	// queued is how many messages wait for each client.
	queued = 5
	// sceneTime is how long the crowd's comings are spread on a terminal.
	sceneTime = 1500 * time.Millisecond
)

// story is what the demo tells, and proves while it tells it.
type story struct {
	mesh   *mesh
	out    *screen
	cast   []*actor
	claims []*claim

	chapters int
	judge    time.Time // from when on the leader may say that a broker is down
}

// errBroken is returned by tell when not every claim held.
var errBroken = errors.New("demo: the story does not hold")

// tell tells all chapters. A broken claim does not end the story; a mesh that cannot be brought back up does.
func (s *story) tell(ctx context.Context, clients int) error {
	began := time.Now()
	for i := range clients {
		s.cast = append(s.cast, s.actor(fmt.Sprintf("c%02d", i+1), [...]byte{mqtt311, mqtt5}[i%2], false))
	}
	pulse := feel(ctx)
	defer pulse.stop()
	defer s.curtain()
	for _, chapter := range []func(context.Context) error{s.homecoming, s.withoutEtcd, s.withoutEdge, s.withoutBroker} {
		if err := chapter(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return s.summary(time.Since(began), pulse.stop())
}

// summary lists the claims.
func (s *story) summary(took, still time.Duration) error {
	s.out.line("")
	s.out.line("%s", s.out.bold(fmt.Sprintf("What was claimed, and what became of it (%s)", seconds(took))))
	broken := 0
	for _, c := range s.claims {
		s.out.lines(c.lines(s.out))
		if !c.held() {
			broken++
		}
	}
	if still > 0 {
		s.say("This machine stood still for %s meanwhile: the times are not the mesh's.", seconds(still))
	}
	if broken > 0 {
		return fmt.Errorf("%w: %d of %d claims are broken", errBroken, broken, len(s.claims))
	}
	return nil
}

// curtain sends everybody home.
func (s *story) curtain() {
	var all sync.WaitGroup
	for _, a := range s.cast {
		all.Go(a.leave)
	}
	all.Wait()
}

func (s *story) actor(id string, version byte, clean bool) *actor {
	return &actor{id: id, version: version, clean: clean, layout: s.mesh.layout, roots: s.mesh.pki.roots}
}

// chapter prints a heading and what it is about.
func (s *story) chapter(title string, about ...string) {
	s.chapters++
	s.out.line("")
	s.out.line("%s", s.out.bold(fmt.Sprintf("%d. %s", s.chapters, title)))
	for _, l := range about {
		s.say("%s", l)
	}
}

func (s *story) say(format string, args ...any) { s.out.line(indent+format, args...) }

// done says what has just happened, and how long it took.
func (s *story) done(since time.Time, format string, args ...any) {
	s.say("%s %s", fmt.Sprintf(format, args...), s.out.faint("("+seconds(time.Since(since))+")"))
}

// claims something, to be proven case by case.
func (s *story) claim(format string, args ...any) *claim {
	c := &claim{says: fmt.Sprintf(format, args...)}
	s.claims = append(s.claims, c)
	return c
}

// verdict says whether a claim held.
func (s *story) verdict(c *claim) {
	mark := s.out.green("✓")
	if !c.held() {
		mark = s.out.red("✗")
	}
	s.say("%s %s", mark, c.says)
}

// each has all actors do something, many at a time.
func each(actors []*actor, do func(i int, a *actor)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, crowd)
	for i, a := range actors {
		slots <- struct{}{}
		all.Go(func() {
			do(i, a)
			<-slots
		})
	}
	all.Wait()
}

// connected lists the actors that are there now.
func (s *story) connected() []*actor {
	var there []*actor
	for _, a := range s.cast {
		if c := a.current(); c != nil && c.alive() {
			there = append(there, a)
		}
	}
	return there
}

// anywhere is a random place, at an edge other than those.
func anywhere(not ...int) place {
	p := place{rand.N(edges), transports[rand.N(len(transports))]}
	for _, e := range not {
		if e == p.edge {
			return anywhere(not...)
		}
	}
	return p
}

// elsewhere is a random place that differs in edge and transport.
func elsewhere(from place) place {
	for {
		if p := anywhere(from.edge); p.over != from.over {
			return p
		}
	}
}

// bystanders are actors whose connections nothing may happen to.
type bystanders map[*actor]*conn

func watch(actors []*actor) bystanders {
	b := bystanders{}
	for _, a := range actors {
		b[a] = a.current()
	}
	return b
}

// prove checks that their connections live.
func (b bystanders) prove(c *claim) {
	for a, conn := range b {
		var err error
		if !conn.alive() {
			err = fmt.Errorf("at %s, on broker %s: connection closed: %w", a.where(), a.broker(), conn.err)
		}
		c.prove(a.id, err)
	}
}

// closing waits for a connection to end and tells how long after a moment it did.
func closing(ctx context.Context, c *conn, since time.Time, patience time.Duration) (time.Duration, error) {
	select {
	case <-c.done:
		return c.ended.Sub(since), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("still connected %s later", seconds(time.Since(since)))
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// seconds is a duration for people.
func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", max(d, 0).Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
