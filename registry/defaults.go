package registry

import "time"

// The numbers of a pool, together: each is what a zero field means.
const (
	DefaultRehomeReplicated = 2 * time.Second
	DefaultRehomeLocal      = 60 * time.Second
	DefaultTTL              = 168 * time.Hour // MQTT 3 sessions have no expiry of their own: a week offline
	DefaultMaxTTL           = 720 * time.Hour // "never" must not fill the store with the dead
	DefaultConnectTimeout   = 10 * time.Second
	DefaultDialTimeout      = 3 * time.Second
	DefaultProbeInterval    = 2 * time.Second
	DefaultProbeTimeout     = 2 * time.Second
	DefaultRise             = 2
	DefaultFall             = 3
	MaxWeight               = 1000
)

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// RehomeDelay is how long recorded keys wait for a broker that is down.
func (p *Pool) RehomeDelay() time.Duration {
	if p.Sessions == SessionsReplicated {
		return or(p.RehomeAfter, DefaultRehomeReplicated)
	}
	return or(p.RehomeAfter, DefaultRehomeLocal)
}

// RecordTTL is how long the record of a session with the given expiry outlives its connection.
// Negative expiry: an MQTT 3 session, which has none.
func (p *Pool) RecordTTL(expiry time.Duration) time.Duration {
	if expiry < 0 {
		expiry = or(p.TTL, DefaultTTL)
	}
	return min(expiry, or(p.MaxTTL, DefaultMaxTTL))
}

// ConnectDeadline bounds CONNECT to CONNACK over all brokers tried.
func (p *Pool) ConnectDeadline() time.Duration { return or(p.ConnectTimeout, DefaultConnectTimeout) }

// DialDeadline bounds one broker's dial.
func (p *Pool) DialDeadline() time.Duration { return or(p.DialTimeout, DefaultDialTimeout) }

// Resolved returns p with every zero field replaced by its default.
func (p Probe) Resolved() Probe {
	p.Kind = or(p.Kind, ProbeMQTT)
	p.Interval = or(p.Interval, DefaultProbeInterval)
	p.Timeout = or(p.Timeout, DefaultProbeTimeout)
	p.Rise = or(p.Rise, DefaultRise)
	p.Fall = or(p.Fall, DefaultFall)
	return p
}

// Share is the broker's weight, at least 1.
func (b *Broker) Share() int { return min(or(b.Weight, 1), MaxWeight) }

// Over is the broker's transport.
func (b *Broker) Over() Transport { return or(b.Transport, TransportTCP) }

// Broker returns the pool's broker with that ID, or nil.
func (p *Pool) Broker(id string) *Broker {
	for i := range p.Brokers {
		if p.Brokers[i].ID == id {
			return &p.Brokers[i]
		}
	}
	return nil
}
