package demo

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// homecoming: clients connect, leave, get messages while away, and come back by another edge and another transport.
func (s *story) homecoming(ctx context.Context) error {
	s.chapter("Home by any edge",
		fmt.Sprintf("%d clients with sessions connect by random edges, and leave. %d messages are", len(s.cast), queued),
		"queued for each. Each comes back by another edge and another transport: to",
		"the broker that has them? (Brokers tell their names in "+nameTopic+".)")
	home := s.claim("home by another edge: same broker, Session Present")
	queue := s.claim("queued messages delivered: all %d, in order, once", queued)

	b := newBoard("", "MQTT", "left by", "back by", "home", "msgs")
	b.table.tight = true
	for _, a := range s.cast {
		b.add(a.id, a.protocol())
	}
	began := time.Now()
	end := s.out.live(func() []string { return b.lines(s.out) })
	left := make([]error, len(s.cast))
	each(s.cast, func(i int, a *actor) {
		s.pace(ctx, i)
		left[i] = s.begin(ctx, i, a, b)
	})
	s.mail(ctx, left)
	each(s.cast, func(i int, a *actor) {
		s.pace(ctx, i)
		if left[i] != nil {
			home.prove(a.id, left[i])
			return
		}
		to := elsewhere(a.where())
		b.set(i, 3, to.String())
		err := a.comeHome(ctx, to)
		home.prove(a.id, err)
		if err != nil {
			b.set(i, 4, s.out.red(a.broker()+" ✗"))
			return
		}
		b.set(i, 4, s.out.green(a.broker()+" ✓"))
		err = a.read(ctx)
		queue.prove(a.id, err)
		if err != nil {
			b.set(i, 5, s.out.red("✗"))
			return
		}
		b.set(i, 5, fmt.Sprintf("%d/%d", queued, queued))
	})
	end()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.done(began, "All have left and come back.")
	s.verdict(home)
	s.verdict(queue)
	return nil
}

// pace keeps a scene from being over before a person has seen it. The time is not lost: the last chapter has to wait anyway.
func (s *story) pace(ctx context.Context, i int) {
	if s.out.size == nil {
		return
	}
	select {
	case <-time.After(sceneTime / time.Duration(len(s.cast)) * time.Duration(min(i, crowd))):
	case <-ctx.Done():
	}
}

// begin connects a client for the first time, and sends it away again.
func (s *story) begin(ctx context.Context, i int, a *actor, b *board) error {
	at := anywhere()
	at.over = transports[i%len(transports)] // each in turn
	b.set(i, 2, at.String())
	present, err := a.come(ctx, at)
	if err != nil {
		return err
	}
	if present {
		return fmt.Errorf("at %s: Session Present 1 for a client that was never seen", at)
	}
	if err := a.settle(ctx); err != nil {
		return fmt.Errorf("at %s: %w", at, err)
	}
	b.set(i, 4, a.broker())
	a.leave()
	return nil
}

// mail publishes the queued messages, through every edge, in order for each client.
func (s *story) mail(ctx context.Context, left []error) {
	post := make([]*actor, edges)
	for i := range post {
		post[i] = s.actor(fmt.Sprintf("post-%d", i+1), mqtt5, true)
	}
	each(post, func(i int, p *actor) {
		_, err := p.come(ctx, place{i, overTCP})
		defer p.leave()
		for j := i; j < len(s.cast); j += len(post) {
			for n := 1; n <= queued && err == nil; n++ {
				err = p.tell(ctx, s.cast[j], strconv.Itoa(n))
			}
			if err != nil && left[j] == nil {
				left[j] = fmt.Errorf("messages could not be published: %w", err)
			}
		}
	})
}

// read checks what was queued for a client. Its own message, published now, comes last: nothing can follow then.
func (a *actor) read(ctx context.Context) error {
	const last = "last"
	if err := a.tell(ctx, a, last); err != nil {
		return err
	}
	if err := a.hear(ctx, last); err != nil {
		return fmt.Errorf("%w; it got %q", err, a.take())
	}
	var want []string
	for n := 1; n <= queued; n++ {
		want = append(want, strconv.Itoa(n))
	}
	if got := a.take(); !slices.Equal(got, append(want, last)) {
		return fmt.Errorf("it got %q", got)
	}
	return nil
}
