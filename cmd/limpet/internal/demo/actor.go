package demo

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// stepTimeout bounds what one client does in one step of the story: far more than it takes.
const stepTimeout = 10 * time.Second

// nameTopic is where each broker of the demo says its name.
const nameTopic = "$SYS/broker/name"

// place is an edge, and a way to reach it.
type place struct {
	edge int
	over transport
}

func (p place) String() string { return fmt.Sprintf("%s %-4s", edgeName(p.edge), p.over) }

// actor is a client of the story: one client ID, which comes and goes.
type actor struct {
	id      string
	version byte
	clean   bool // its session ends with the connection
	layout  *layout
	roots   *x509.CertPool

	mu      sync.Mutex
	conn    *conn // the latest; nil before the first
	at      place // of conn
	home    string
	inbox   []string      // payloads, but those that came under nameTopic
	changed chan struct{} // closed, and replaced, when home or inbox change
}

func (a *actor) topic() string { return "story/" + a.id }

// protocol is the version for people.
func (a *actor) protocol() string {
	if a.version == mqtt5 {
		return "5"
	}
	return "3.1.1"
}

// receive is called by the connection's reader.
func (a *actor) receive(m message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.topic == nameTopic {
		a.home = m.payload
	} else {
		a.inbox = append(a.inbox, m.payload)
	}
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// await waits until ok, which is called with a locked, says so.
func (a *actor) await(ctx context.Context, what string, ok func() bool) error {
	for {
		a.mu.Lock()
		if ok() {
			a.mu.Unlock()
			return nil
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed, c := a.changed, a.conn
		a.mu.Unlock()
		select {
		case <-changed:
		case <-c.done:
			return fmt.Errorf("%w while it waited for %s: %w", errGone, what, c.err)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("waited in vain for %s", what)
			}
			return ctx.Err()
		}
	}
}

// come connects at a place, and tells whether the session was there.
func (a *actor) come(ctx context.Context, at place) (present bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	rw, err := dial(ctx, at.over, a.layout.edges[at.edge].of(at.over), a.roots)
	if err != nil {
		return false, fmt.Errorf("at %s: %w", at, err)
	}
	c, present, err := connect(ctx, rw, hello{a.id, a.version, a.clean}, a.receive)
	if err != nil {
		return false, fmt.Errorf("at %s: %w", at, err)
	}
	a.mu.Lock()
	a.conn, a.at = c, at
	a.mu.Unlock()
	return present, nil
}

// settle subscribes to what the story needs, and learns which broker it is at.
func (a *actor) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	a.mu.Lock()
	a.home = ""
	a.mu.Unlock()
	if err := a.current().subscribe(ctx, nameTopic, a.topic()); err != nil {
		return err
	}
	return a.await(ctx, "the broker's name", func() bool { return a.home != "" })
}

// comeHome connects at a place and checks that the session, and so the broker, is the one that it had.
func (a *actor) comeHome(ctx context.Context, at place) error {
	before := a.broker()
	present, err := a.come(ctx, at)
	if err != nil {
		return err
	}
	if !present {
		err = fmt.Errorf("at %s: Session Present 0", at)
	}
	if settling := a.settle(ctx); settling != nil {
		return errors.Join(err, fmt.Errorf("at %s: %w", at, settling))
	}
	if now := a.broker(); now != before {
		err = errors.Join(err, fmt.Errorf("at %s: on broker %s, its session is on %s", at, now, before))
	}
	return err
}

// leave disconnects in order.
func (a *actor) leave() {
	if c := a.current(); c != nil {
		c.leave()
	}
}

// tell publishes, and waits for the acknowledgement.
func (a *actor) tell(ctx context.Context, to *actor, payload string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return a.current().publish(ctx, to.topic(), payload)
}

// hear waits for a message.
func (a *actor) hear(ctx context.Context, payload string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return a.await(ctx, fmt.Sprintf("message %q", payload), func() bool { return slices.Contains(a.inbox, payload) })
}

func (a *actor) current() *conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn
}

func (a *actor) broker() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.home
}

func (a *actor) where() place {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at
}

// take empties the inbox.
func (a *actor) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	got := a.inbox
	a.inbox = nil
	return got
}
