package failover

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// leader writes the mesh's verdicts while this edge leads.
type leader struct {
	mon *monitor
}

// run campaigns through a session, and rules while elected, until ctx ends or the session is lost.
func (l leader) run(ctx context.Context, session registry.Session) {
	log := l.mon.log.With().Str("edge", l.mon.edge).Logger()
	for wait := retryMin; ; {
		lead, err := session.Campaign(ctx)
		if err == nil {
			log.Info().Msg("elected leader")
			err = l.rule(ctx, lead)
			log.Info().AnErr("reason", err).Msg("leader no longer")
			resign, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
			if err := lead.Resign(resign); err != nil {
				log.Debug().Err(err).Msg("not resigned: the session ends it")
			}
			cancel()
			wait = retryMin
		} else if ctx.Err() == nil {
			log.Debug().Err(err).Msg("campaign failed")
		}
		select {
		case <-ctx.Done():
			return
		case <-session.Lost():
			return
		case <-time.After(wait/2 + rand.N(wait/2)):
			wait = min(2*wait, retryMax)
		}
	}
}

// sentence is a verdict to be written, or with remove, one to be removed.
type sentence struct {
	ref     registry.BrokerRef
	verdict registry.Verdict
	remove  bool
	base    int64 // revision of the stored verdict that it was decided on
}

// errDeposed says that another leads, or nobody knows.
var errDeposed = errors.New("failover: leadership lost")

// rule writes verdicts until ctx ends or this edge leads no longer. It always returns an error.
func (l leader) rule(ctx context.Context, lead registry.Leadership) error {
	// A written verdict is decided on again once the watch has brought it, or another (or must have long ago).
	type writ struct {
		base  int64
		until time.Time
	}
	written := make(map[registry.BrokerRef]writ)
	tick := time.NewTicker(turnEvery)
	defer tick.Stop()
	for {
		for _, s := range l.mon.sentences(time.Now()) {
			if w, ok := written[s.ref]; ok && w.base == s.base && time.Now().Before(w.until) {
				continue
			}
			err := l.execute(ctx, lead, s)
			if errors.Is(err, registry.ErrNotLeader) {
				return err
			}
			written[s.ref] = writ{base: s.base, until: time.Now().Add(writeTimeout)}
			if err != nil {
				break // the store is slow or away: the next turn tries again what still holds
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lead.Lost():
			return errDeposed
		case <-l.mon.judge:
		case <-tick.C:
		}
	}
}

func (l leader) execute(ctx context.Context, lead registry.Leadership, s sentence) error {
	call, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	log := l.mon.log.With().Str("edge", l.mon.edge).Str("pool", s.ref.Pool).Str("broker", s.ref.Broker).Logger()
	if s.remove {
		err := lead.DeleteVerdict(call, s.ref)
		log.Info().AnErr("error", err).Msg("verdict removed")
		return err
	}
	err := lead.PutVerdict(call, s.ref, s.verdict)
	log.Warn().AnErr("error", err).Str("verdict", string(s.verdict.State)).Str("reason", s.verdict.Reason).Msg("verdict")
	return err
}

// sentences lists what is to be written now: nothing, unless the State is current and shows this edge as the leader, so that
// it holds all that the leader before has written.
func (m *monitor) sentences(now time.Time) []sentence {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	if s == nil || !m.current || s.Leader != m.edge {
		return nil
	}
	settled := now.Sub(m.since) >= m.settle
	var out []sentence
	for name, pool := range s.Pools {
		for i := range pool.Brokers {
			ref := registry.BrokerRef{Pool: name, Broker: pool.Brokers[i].ID}
			stood := s.Verdicts[ref]
			b := m.votes.Count(ref, now)
			b.Complete = settled
			v := b.Decide(stood, pool.RehomeDelay(), now)
			// A verdict that does not read is written anew, as what stood before; if this edge has seen nothing before, once it may judge.
			_, spoilt := s.Unreadable[registry.Subject{Kind: registry.KindVerdict, Pool: name, Name: ref.Broker}]
			if v == stood && !spoilt || !settled && (v.State == "" || v.State == registry.BrokerDown && !isDown(stood)) {
				continue
			}
			out = append(out, sentence{ref: ref, verdict: v, remove: v.State == "", base: stood.Revision})
		}
	}
	for ref, stood := range s.Verdicts {
		if pool := s.Pools[ref.Pool]; pool == nil || pool.Broker(ref.Broker) == nil {
			out = append(out, sentence{ref: ref, remove: true, base: stood.Revision})
		}
	}
	return out
}
