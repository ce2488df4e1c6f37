package registry

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// The numbers of a Committer.
const (
	// commitLanes is how many transactions are under way at a time: enough to hide the store's round trip, too few to
	// crowd it. A key has its lane, so it is never in two of them.
	commitLanes = 4
	// commitBytes bounds one transaction: etcd refuses requests above 1.5 MiB (--max-request-bytes).
	commitBytes = 1 << 20
	// commitTimeout is how long an answer may take before the outcome counts as unknown. A slow store is not an absent one.
	commitTimeout = 10 * time.Second

	commitBackoffMin = 100 * time.Millisecond
	commitBackoffMax = 5 * time.Second

	defaultMaxQueue      = 1 << 18
	defaultMaxQueueBytes = 128 << 20
	defaultFlushTimeout  = 5 * time.Second
)

// CommitterConfig is what a Committer needs.
type CommitterConfig struct {
	Store  Store
	Bus    Bus    // tells the other edges what was committed; nil: they wait for their watches
	Cache  *Cache // learns what was committed, or found instead, ahead of its watch; nil: likewise
	Logger zerolog.Logger

	MaxQueue      int           // writes that wait or are under way, at most; 0 = 262,144
	MaxQueueBytes int           // their size; 0 = 128 MiB
	FlushTimeout  time.Duration // how long Run goes on writing after its context has ended; 0 = 5 s
}

// Committer writes affinities behind the clients' backs, in groups: while a transaction is under way, the next one gathers.
//
//	Submit ──▶ lane 1..4, by key ──▶ at most 127 writes, 1 MiB ──▶ Store.Commit ──▶ cache, bus ──▶ done
//	                  ▲                                               │
//	                  └── an outage: back to the front, with backoff ─┘
//
// Of one key, writes are made in order, and the newest takes the place of one that still waits. What could not
// be written during an outage is written after it, guarded as it was. Where the outcome of a try is not known, the next try
// recognises its own record.
type Committer struct {
	conf  CommitterConfig
	seed  maphash.Seed
	lanes [commitLanes]lane

	held, heldBytes   atomic.Int64               // writes without a fate
	flying            atomic.Int64               // those of them that are in a transaction
	counts            [Refused + 1]atomic.Uint64 // results, by status
	commits, failures atomic.Uint64

	mu          sync.Mutex
	finished    []finished    // results that have not been told
	tell        chan struct{} // holds a token while there may be some
	outstanding int           // submitted, and not told yet
	idle        chan struct{} // closed when outstanding becomes 0; nil while nobody waits
	err         error         // of the last try that failed, nil after one that did not
}

type finished struct {
	done   func(Result)
	result Result
}

// NewCommitter returns a committer without work. Nothing is written before Run.
func NewCommitter(conf CommitterConfig) *Committer {
	if conf.MaxQueue <= 0 {
		conf.MaxQueue = defaultMaxQueue
	}
	if conf.MaxQueueBytes <= 0 {
		conf.MaxQueueBytes = defaultMaxQueueBytes
	}
	if conf.FlushTimeout <= 0 {
		conf.FlushTimeout = defaultFlushTimeout
	}
	c := &Committer{conf: conf, seed: maphash.MakeSeed(), tell: make(chan struct{}, 1)}
	for i := range c.lanes {
		c.lanes[i].init(c)
	}
	return c
}

// Submit has w written, and done called once with its fate, on a goroutine of Run: done must not block. It may be nil. Submit
// never waits. The fates beside those of Store.Commit:
//
//   - Superseded: a newer write of the key took its place before it was tried, or before it could be tried again.
//   - Dropped: too many writes wait already, or Run has ended (then done is called by Submit itself). The record is as it
//     was: whoever keeps it alive submits again when it is due for its refresh, or at the client's next connect.
//   - Refused: the store says that it will never take this write.
func (c *Committer) Submit(w Write, done func(Result)) {
	c.mu.Lock()
	c.outstanding++
	c.mu.Unlock()
	p := &pending{write: w, done: done, size: writeSize(&w)}
	if open := c.lanes[maphash.String(c.seed, w.Key)%commitLanes].add(p); !open {
		c.counts[Dropped].Add(1)
		c.told([]finished{{done, Result{Status: Dropped}}})
	}
}

// writeSize estimates what a write takes in a transaction: names are escaped, and the key stands in the value too when it is long.
func writeSize(w *Write) int {
	a := &w.Affinity
	return 256 + 3*min(len(w.Key), 256) + len(w.Key) + len(a.Broker) + len(a.Home) + len(a.Writer) + len(a.Reason) + len(a.Extra) + 128*len(w.Facts)
}

// Run writes until ctx ends, and then for FlushTimeout at most what is left; it returns nil when every fate has been told.
// It is called once.
func (c *Committer) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var lanes sync.WaitGroup
	for i := range c.lanes {
		lanes.Go(func() { c.lanes[i].run(life, ctx.Done()) })
	}
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() { c.tellAll(done) })

	<-ctx.Done()
	flush := time.AfterFunc(c.conf.FlushTimeout, end)
	lanes.Wait()
	flush.Stop()
	close(done)
	telling.Wait()
	if n := c.counts[Dropped].Load(); n > 0 {
		c.conf.Logger.Warn().Uint64("dropped", n).Msg("affinities were not written")
	}
	return nil
}

// hold counts a write that waits from now on.
func (c *Committer) hold(p *pending) {
	c.held.Add(1)
	c.heldBytes.Add(int64(p.size))
}

// full reports whether there is no room for another write. Several that ask at the same moment may all find the last place.
func (c *Committer) full(p *pending) bool {
	return c.held.Load() >= int64(c.conf.MaxQueue) || c.heldBytes.Load()+int64(p.size) > int64(c.conf.MaxQueueBytes)
}

// release gives its room back, and settles its fate.
func (c *Committer) release(p *pending, r Result) {
	c.held.Add(-1)
	c.heldBytes.Add(-int64(p.size))
	c.finish(p, r)
}

// finish settles the fate of a write.
func (c *Committer) finish(p *pending, r Result) {
	c.counts[r.Status].Add(1)
	c.mu.Lock()
	c.finished = append(c.finished, finished{p.done, r})
	c.mu.Unlock()
	select {
	case c.tell <- struct{}{}:
	default:
	}
}

// tellAll tells fates until there is nobody left to settle any.
func (c *Committer) tellAll(done <-chan struct{}) {
	for {
		over := false
		select {
		case <-c.tell:
		case <-done:
			over = true
		}
		c.mu.Lock()
		fates := c.finished
		c.finished = nil
		c.mu.Unlock()
		c.told(fates)
		if over {
			return
		}
	}
}

// told calls those who wait for these fates.
func (c *Committer) told(fates []finished) {
	for _, f := range fates {
		if f.done != nil {
			f.done(f.result)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outstanding -= len(fates); c.outstanding == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// Idle returns once every write that was submitted has had its fate told, or with ctx's error.
func (c *Committer) Idle(ctx context.Context) error {
	c.mu.Lock()
	if c.outstanding == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// announce tells cache and bus of a record that stands; commit: because it was committed here.
func (c *Committer) announce(w *Write, a Affinity, revision int64, commit bool) {
	a.Revision = revision
	n := Notice{Pool: w.Pool, Key: w.Key, Affinity: a, Revision: revision}
	if c.conf.Cache != nil {
		c.conf.Cache.Note(n)
	}
	if commit && c.conf.Bus != nil {
		_ = c.conf.Bus.Publish(Message{Notice: &n}) // what the bus loses the watch brings
	}
}

// tried notes the outcome of a transaction, for Stats and for the log, which tells of an outage once.
func (c *Committer) tried(err error) {
	c.commits.Add(1)
	if err != nil {
		c.failures.Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.err == nil {
		c.conf.Logger.Warn().Err(err).Int64("queued", c.held.Load()).Msg("affinities cannot be written")
	} else if err == nil && c.err != nil {
		c.conf.Logger.Info().Int64("queued", c.held.Load()).Msg("affinities are written again")
	}
	c.err = err
}

// CommitterStats is what a Committer has done and has to do.
type CommitterStats struct {
	Queued, QueuedBytes int    // writes without a fate, and their size
	InFlight            int    // those of them that are in a transaction now
	Error               string // why the last transaction failed, "" if it did not

	Commits, Failures uint64 // transactions tried, and those without an answer
	// Fates of writes: see Status.
	Committed, Conflicts, Stale, Superseded, Dropped, Refused uint64
}

// Stats is a picture of now; its numbers need not fit each other to the last write.
func (c *Committer) Stats() CommitterStats {
	s := CommitterStats{
		Queued: int(c.held.Load()), QueuedBytes: int(c.heldBytes.Load()), InFlight: int(c.flying.Load()),
		Commits: c.commits.Load(), Failures: c.failures.Load(),
		Committed: c.counts[Committed].Load(), Conflicts: c.counts[Conflict].Load(), Stale: c.counts[Stale].Load(),
		Superseded: c.counts[Superseded].Load(), Dropped: c.counts[Dropped].Load(), Refused: c.counts[Refused].Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		s.Error = c.err.Error()
	}
	return s
}
