package registry

import (
	"context"
	"time"
)

// A Store keeps a mesh's facts. It decides: what it does not hold is not so.
// Every implementation passes registrytest.TestStore. Methods may be called from any goroutine.
// An error that wraps ErrUnavailable says that nothing is known of the outcome.
type Store interface {
	// Watch brings the reader from revision from (0: nothing known) to the present and keeps it there,
	// until ctx ends (its error is returned) or the watch breaks; it always returns an error. With from 0 it lists first:
	// batches with List set, all of one Revision, the last of them with Done; an empty store too has its Done.
	// After that (with another from: at once), changes in order of revision, never half a transaction. And progress: once the
	// reader has caught up, and then at least every 500 ms while the store is in reach, whether things change or not, an
	// empty batch whose Revision was the store's own a moment ago: nothing up to it is still under way.
	// fn runs on the watch's goroutine; an error of fn ends the watch and is returned.
	// History that is gone is ErrCompacted; a from that the store has not reached is ErrReset. So is, once and whatever from is,
	// a store that took the place of the one that was watched before.
	Watch(ctx context.Context, from int64, fn func(Batch) error) error

	// Get reads one affinity past every cache. A record that is absent is Affinity{}, with no error.
	Get(ctx context.Context, pool, key string) (Affinity, error)

	// Commit writes affinities. Results are in the order of the writes; each write succeeds or fails by itself.
	// The error is about all of them: ErrUnavailable (the outcome is unknown), or another (nothing was written: a key twice
	// in ws, more than MaxCommit writes, an invalid pool name).
	Commit(ctx context.Context, ws []Write) ([]Result, error)

	// PutPool creates (guard 0) or replaces (guard = the revision replaced) a pool's configuration.
	// ErrConflict if the guard does not hold.
	PutPool(ctx context.Context, p *Pool, guard int64) error
	// DeletePool removes a pool's configuration, guarded likewise.
	DeletePool(ctx context.Context, name string, guard int64) error
	// Prune says that the pools which this store holds are all there are. Who still knows others, of a store that this one replaced
	// (State.Former), ends them once the watch has told of it (KindPrune). A listing tells of the last one.
	Prune(ctx context.Context) error
	// SetAdmin records what the operator wants of a broker: AdminReady, AdminDraining or AdminOut; state "" forgets it.
	SetAdmin(ctx context.Context, ref BrokerRef, s AdminState) error
	// SetPin ties a key to a broker; broker "" unties it.
	SetPin(ctx context.Context, ref PinRef, broker string) error

	// Join registers an edge under a lease of its own (TTL 10 s) and keeps it alive in the background until the session is closed.
	// Join itself does not wait longer than ctx.
	Join(ctx context.Context, e Edge) (Session, error)

	// Close ends everything that the store started; sessions that are still open end by their TTL.
	Close() error
}

// MaxCommit bounds the writes of one Commit: etcd's default of 128 operations a transaction (--max-txn-ops), less one.
const MaxCommit = 127

// SessionTTL is how long an edge that vanished stays registered.
const SessionTTL = 10 * time.Second

// Batch is what Watch tells.
type Batch struct {
	Revision int64 // where these changes bring the reader
	List     bool  // part of a listing: build it aside
	Done     bool  // the listing is complete: swap it in
	Changes  []Change
}

// Write is one guarded write of an affinity.
type Write struct {
	Pool, Key string
	Affinity  Affinity // zero (no Broker) = delete
	// Guard is the revision of the record that is replaced or deleted; 0 = create if absent
	// (and a delete with Guard 0 is Committed where nothing is to be deleted).
	Guard int64
	// Lease is how long the store must keep the record at least if nobody writes it again; it may be kept a quarter longer,
	// rounded up to whole seconds. 0 = until it is deleted.
	Lease time.Duration
	// Facts must still stand at their revisions, else Stale.
	Facts []Fact
}

// Result is the fate of one Write.
type Result struct {
	Status Status
	// Revision is that of the write when Committed; else a revision of the store at which the refusal held:
	// a cache that has reached it knows why.
	Revision int64
	Found    Affinity // the record that stands, when Conflict; zero if it is gone
}

// Status of a Result.
type Status uint8

const (
	Committed Status = iota + 1
	Conflict         // the guard does not hold: Found stands instead. Also where a fact has changed besides
	Stale            // the guard holds but a fact has changed: the View is old; wait for the watch and route again

	// A Committer answers these too, a Store never.

	Superseded // a newer write of the same key took its place in the queue
	Dropped    // the queue was full, or the Committer ended first: submit again when the record is due for its refresh
	Refused    // the store will never take this write
)

// String returns a fixed lower-case name, fit for a metric label.
func (s Status) String() string {
	switch s {
	case Committed:
		return "committed"
	case Conflict:
		return "conflict"
	case Stale:
		return "stale"
	case Superseded:
		return "superseded"
	case Dropped:
		return "dropped"
	case Refused:
		return "refused"
	}
	return "unknown"
}

// Session is an edge's presence in the store, on a lease.
type Session interface {
	// Lost is closed once the lease is gone, by Close too: join again.
	Lost() <-chan struct{}
	// Report stores this edge's view of the brokers.
	Report(ctx context.Context, h Health) error
	// Campaign blocks until this edge leads, ctx ends or the session is lost (ErrSessionLost).
	Campaign(ctx context.Context) (Leadership, error)
	// Close leaves in order: the registration is first marked Leaving, then the lease is revoked, in two revisions.
	Close(ctx context.Context) error
}

// Leadership is a won election. Its writes are guarded by the election key: an edge that was deposed can write nothing.
type Leadership interface {
	// Lost is closed once this edge leads no longer, as far as it can know by itself.
	Lost() <-chan struct{}
	// PutVerdict writes a broker's verdict; ErrNotLeader if another leads.
	PutVerdict(ctx context.Context, ref BrokerRef, v Verdict) error
	// DeleteVerdict removes the verdict on a broker that is no longer configured.
	DeleteVerdict(ctx context.Context, ref BrokerRef) error
	// Resign gives the leadership up; Lost is closed then. The session stays.
	Resign(ctx context.Context) error
}

// A Bus hurries facts between edges. It decides nothing: every message may be lost, doubled, late or forged.
// Every implementation passes registrytest.TestBus.
type Bus interface {
	// Publish sends m to every other edge, best effort, and never waits for the network. The bus sets m.From.
	// An error says that m went nowhere: it is malformed, the bus is closed, or what waits for the server is full.
	Publish(m Message) error
	// Subscribe calls fn for every message of other edges, on the bus's goroutine: fn must not block. cancel may be called once,
	// not from fn; fn is not called after it has returned. Nobody can say when a server has heard of a new subscription.
	Subscribe(fn func(Message)) (cancel func(), err error)
	// Connected reports whether the bus reaches its server now.
	Connected() bool
	// Close flushes for a moment and ends all subscriptions.
	Close() error
}

// Message is what edges tell each other. Exactly one pointer is set.
type Message struct {
	From   string // edge id
	Notice *Notice
	Health *Health
	Doubt  *BrokerRef // a dial or probe of this broker failed: everybody, probe it now
}

// Notice hurries a committed affinity. It routes provisionally until the watch reaches its revision.
type Notice struct {
	Pool, Key string
	Affinity  Affinity // no Broker = deleted
	Revision  int64
}
