package failover

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

// attach tells where reports go from now on; nil = nowhere.
func (m *monitor) attach(s registry.Session) {
	m.mu.Lock()
	m.session = s
	m.sessions++
	m.mu.Unlock()
	kick(m.write)
}

// report writes this edge's judgements to the store: each change, and all of them to each new session.
func (m *monitor) report(ctx context.Context) {
	var written uint64 // Seq that the session holds
	sessions, wait := 0, retryMin
	for {
		m.mu.Lock()
		session, h := m.session, m.own
		if sessions != m.sessions {
			sessions, written, wait = m.sessions, 0, retryMin
		}
		m.mu.Unlock()

		var retry <-chan time.Time
		if session != nil && h.Seq > written {
			call, cancel := context.WithTimeout(ctx, writeTimeout)
			err := session.Report(call, h)
			cancel()
			if err == nil {
				written, wait = h.Seq, retryMin
			} else if ctx.Err() == nil {
				m.log.Debug().Err(err).Str("edge", m.edge).Msg("health not written")
				retry = time.After(wait/2 + rand.N(wait/2))
				wait = min(2*wait, retryMax)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-m.write:
		case <-retry:
		}
	}
}

// publish hurries this edge's report over the bus: on change, when the bus is back, and, while the store is away, now and then, so
// that the others know who is there. Only tend calls it.
func (m *monitor) publish(own registry.Health, current bool, now time.Time) {
	if m.bus == nil {
		return
	}
	if m.cancel == nil {
		cancel, err := m.bus.Subscribe(m.hear)
		if err != nil {
			m.log.Debug().Err(err).Str("edge", m.edge).Msg("bus not subscribed")
			return
		}
		m.cancel = cancel
	}
	was := m.connected
	m.connected = m.bus.Connected()
	repeat := !was || !current && now.Sub(m.publishedAt) >= repeatEvery
	if !m.connected || own.Seq == m.published && !repeat {
		return
	}
	if m.bus.Publish(registry.Message{From: m.edge, Health: &own}) == nil {
		m.published, m.publishedAt = own.Seq, now
	}
}

// tell makes every other edge probe a broker. What is lost is told again by the reports that follow.
func (m *monitor) tell(ref registry.BrokerRef) {
	if m.bus == nil {
		return
	}
	if err := m.bus.Publish(registry.Message{From: m.edge, Doubt: &ref}); err != nil {
		m.log.Debug().Err(err).Str("edge", m.edge).Str("pool", ref.Pool).Str("broker", ref.Broker).Msg("doubt not told")
	}
}

// hear takes in what the bus brings: reports, and doubts, which may be anybody's and cost at most a probe.
func (m *monitor) hear(msg registry.Message) {
	if msg.From == m.edge {
		return
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case msg.Doubt != nil:
		m.doubt(*msg.Doubt, now)
	case msg.Health != nil && msg.Health.Edge == msg.From:
		for _, ref := range m.votes.Hear(*msg.Health, now) {
			m.doubt(ref, now)
		}
		kick(m.turn)
	}
}
