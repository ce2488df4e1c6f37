package edge

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/limpet-mesh/limpet/edge/relay"
)

// processors is how many this process had when it began; who raises GOMAXPROCS for loops that wait in system calls adds none.
var processors = min(runtime.GOMAXPROCS(0), runtime.NumCPU())

// loops are the epoll loops of a server, as many as its governor wants. It, or whoever runs where there is none, alone adds and retires them.
type loops struct {
	srv      *Server
	governor governor

	// Of Run.
	ctx     context.Context
	running *sync.WaitGroup
	fail    func(error)

	mu       sync.Mutex
	working  []*loop // those that accept
	retiring []*loop
	past     time.Duration // Busy of those that have ended
}

// loop is one of them.
type loop struct {
	*relay.Loop
	seen time.Duration // of Busy, at the governor's last look
}

// newLoops makes as many as there are at first: number of them, which stay so many, or, if that is zero, one of one to as many as there are processors.
func newLoops(s *Server, number int) (*loops, error) {
	f := &loops{srv: s, governor: governor{least: number, most: number}}
	if number == 0 {
		f.governor = governor{least: 1, most: processors}
	}
	for range f.governor.least {
		l, err := f.make()
		if err != nil {
			return nil, err
		}
		f.working = append(f.working, l)
	}
	return f, nil
}

func (f *loops) make() (*loop, error) {
	l, err := relay.NewLoop(relay.LoopConfig{Shared: new(ciphers)})
	if err != nil {
		return nil, err
	}
	return &loop{Loop: l}, nil
}

// begin starts the loops, until ctx ends. One that fails calls fail.
func (f *loops) begin(ctx context.Context, running *sync.WaitGroup, fail func(error)) {
	f.ctx, f.running, f.fail = ctx, running, fail
	for _, l := range f.working {
		f.run(l)
	}
}

// run runs a loop until ctx ends or it has retired.
func (f *loops) run(l *loop) {
	f.running.Go(func() {
		if err := l.Run(f.ctx); err != nil {
			f.fail(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if i := slices.Index(f.retiring, l); i >= 0 {
			f.retiring = slices.Delete(f.retiring, i, i+1)
			f.past += l.Busy()
		}
	})
}

// govern begins to change the number of loops with their load, and to even them out, where there is anything to change.
func (f *loops) govern() {
	if f.governor.most > 1 {
		f.running.Go(func() { f.governor.govern(f.ctx, f) })
	}
}

// listen makes all loops accept from a listener.
func (f *loops) listen(ln *listener) error {
	if err := ln.share(); err != nil {
		return err
	}
	for _, l := range f.working {
		if err := ln.attach(l.Loop); err != nil {
			return err
		}
	}
	return nil
}

// number is how many there are, those included that retire.
func (f *loops) number() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.working) + len(f.retiring)
}

// makeRoom has each loop end a silent session, if it finds one, for somebody who was turned away and will come again.
func (f *loops) makeRoom() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.working {
		l.MakeRoom()
	}
	for _, l := range f.retiring {
		l.MakeRoom()
	}
}

// busy is for how long all loops together have not waited, since there are any.
func (f *loops) busy() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := f.past
	for _, l := range f.working {
		sum += l.Busy()
	}
	for _, l := range f.retiring {
		sum += l.Busy()
	}
	return sum
}

// loads implements fleet.
func (f *loops) loads(elapsed time.Duration) []load {
	all := make([]load, 0, len(f.working)+1)
	for _, l := range f.working {
		busy := l.Busy()
		all = append(all, load{min(1, (busy-l.seen).Seconds()/elapsed.Seconds()), l.Sessions()})
		l.seen = busy
	}
	f.mu.Lock()
	retiring := slices.Clone(f.retiring)
	f.mu.Unlock()
	for _, l := range retiring { // some of its sessions may have become able to move
		l.Retire(f.working[leastBusy(all, -1)].Loop)
	}
	return all
}

// grow implements fleet.
func (f *loops) grow(mean float64) bool {
	n := len(f.working)
	l, err := f.make()
	if err != nil {
		f.srv.log.Warn().Err(err).Int("loops", n).Msg("no room for another loop; trying again")
		return false
	}
	f.mu.Lock()
	f.working = append(f.working, l)
	f.mu.Unlock()
	f.run(l)
	for _, ln := range f.srv.listening() {
		if err := ln.attach(l.Loop); err != nil && f.ctx.Err() == nil {
			f.srv.log.Warn().Err(err).Str("listener", ln.name).Int("loops", n+1).Msg("a loop accepts nobody from a listener")
		}
	}
	f.srv.log.Info().Str("edge", f.srv.conf.ID).Int("loops", n+1).Float64("busy", mean).Msg("another loop")
	return true
}

// shrink implements fleet.
func (f *loops) shrink(retires, heir int) {
	n := len(f.working)
	l, to := f.working[retires], f.working[heir]
	f.mu.Lock()
	f.working = slices.Delete(slices.Clone(f.working), retires, retires+1)
	f.retiring = append(f.retiring, l)
	f.mu.Unlock()
	for _, ln := range f.srv.listening() {
		ln.detach(l.Loop)
	}
	l.Retire(to.Loop)
	f.srv.log.Info().Str("edge", f.srv.conf.ID).Int("loops", n-1).Int("sessions", l.Sessions()).Msg("a loop retires")
}

// give implements fleet.
func (f *loops) give(all []transfer) {
	for _, t := range all {
		f.srv.log.Debug().Str("edge", f.srv.conf.ID).Int("sessions", t.sessions).Int("from", t.from).Int("to", t.to).Msg("sessions change their loop")
		f.working[t.from].Give(f.working[t.to].Loop, t.sessions)
	}
}
