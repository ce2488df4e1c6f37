package registry

import (
	"math"
	"time"
)

const (
	// LeaseSlack is how much longer than its session's expiry a record is kept: time to notice, for an edge whose store is
	// away or whose clock is wrong, that a record must be written again.
	LeaseSlack = 30 * time.Minute

	// ExpiryGrace is how far past its Expires a record must be before anybody takes it for gone: clocks differ.
	ExpiryGrace = 10 * time.Minute

	// ExpiryNever is the expiry of an MQTT 5 session that never ends by itself.
	ExpiryNever = time.Duration(math.MaxInt64)

	// ExpiryOfPool is the expiry of an MQTT 3 session that is kept: the protocol has none, so the pool's ttl decides.
	ExpiryOfPool = time.Duration(-1)
)

// ExpiryMQTT3 is the expiry of a session of MQTT 3.1 or 3.1.1: those of clean session end with their connection
// [MQTT-3.1.2-6], the others are kept for as long as the server likes.
func ExpiryMQTT3(cleanSession bool) time.Duration {
	if cleanSession {
		return 0
	}
	return ExpiryOfPool
}

// ExpiryMQTT5 is the expiry of an MQTT 5 session by its Session Expiry Interval, which is 0 where it is absent
// (MQTT 5 §3.1.2.11.2; also of CONNACK, §3.2.2.3.2, and DISCONNECT, §3.14.2.2.2).
func ExpiryMQTT5(seconds uint32) time.Duration {
	if seconds == math.MaxUint32 {
		return ExpiryNever
	}
	return time.Duration(seconds) * time.Second
}

// Lifetime is how long the record of one session must live. The rules:
//
//	the record outlives the connection by  TTL = the session's expiry, at most the pool's max_ttl
//	it is written with a lease of          2 × (TTL + LeaseSlack)
//	while the client is connected it is written again when TTL + LeaseSlack remain: after half the lease
//	so at any moment of the connection at least TTL remains, and a disconnect needs no write
//
// A session of expiry 0 leaves nothing to come home to, and has no record.
type Lifetime struct{ TTL time.Duration }

// Lifetime returns the lifetime of a record in this pool, for a session with that expiry (ExpiryMQTT3, ExpiryMQTT5).
func (p *Pool) Lifetime(expiry time.Duration) Lifetime { return Lifetime{TTL: p.RecordTTL(expiry)} }

// Recorded reports whether there is to be a record at all.
func (l Lifetime) Recorded() bool { return l.TTL > 0 }

// Lease is what a write asks of the store (Write.Lease).
func (l Lifetime) Lease() time.Duration { return 2 * (l.TTL + LeaseSlack) }

// Expires is when a record that is written now may go (Affinity.Expires), to the second.
func (l Lifetime) Expires(now time.Time) time.Time { return now.Add(l.Lease()).Truncate(time.Second) }

// RefreshIn is how long from now a record that may go at expires needs no other write, for a client that stays connected;
// 0 = write it now: it is too old, or was written for a session that ends earlier. A record without an end needs none.
//
// It answers for all of a session's events: at CONNACK (another edge may have written the record last week, or
// a second ago), at a refresh, and at a DISCONNECT that sets another expiry.
func (l Lifetime) RefreshIn(expires, now time.Time) time.Duration {
	if expires.IsZero() {
		return math.MaxInt64
	}
	return max(0, expires.Sub(now)-l.TTL-LeaseSlack)
}
