package registry_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/limpet-mesh/limpet/registry"
)

func TestLifetime(t *testing.T) {
	const day = 24 * time.Hour
	short := &registry.Pool{TTL: time.Hour, MaxTTL: 2 * time.Hour}
	for _, c := range []struct {
		name    string
		pool    *registry.Pool
		expiry  time.Duration
		ttl     time.Duration
		lease   time.Duration
		refresh time.Duration // after a write
	}{
		{"MQTT 3, clean", &registry.Pool{}, registry.ExpiryMQTT3(true), 0, time.Hour, 30 * time.Minute},
		{"MQTT 3, kept", &registry.Pool{}, registry.ExpiryMQTT3(false), 7 * day, 14*day + time.Hour, 7*day + 30*time.Minute},
		{"MQTT 3, kept, pool's ttl", short, registry.ExpiryMQTT3(false), time.Hour, 3 * time.Hour, 90 * time.Minute},
		{"MQTT 5, absent or 0", &registry.Pool{}, registry.ExpiryMQTT5(0), 0, time.Hour, 30 * time.Minute},
		{"MQTT 5, 60 s", &registry.Pool{}, registry.ExpiryMQTT5(60), time.Minute, 62 * time.Minute, 31 * time.Minute},
		{"MQTT 5, 60 s, pool's ttl is MQTT 3's", short, registry.ExpiryMQTT5(60), time.Minute, 62 * time.Minute, 31 * time.Minute},
		{"MQTT 5, an hour", &registry.Pool{}, registry.ExpiryMQTT5(3600), time.Hour, 3 * time.Hour, 90 * time.Minute},
		{"MQTT 5, never", &registry.Pool{}, registry.ExpiryMQTT5(math.MaxUint32), 30 * day, 60*day + time.Hour, 30*day + 30*time.Minute},
		{"MQTT 5, almost never", &registry.Pool{}, registry.ExpiryMQTT5(math.MaxUint32 - 1), 30 * day, 60*day + time.Hour, 30*day + 30*time.Minute},
		{"MQTT 5, above max_ttl", short, registry.ExpiryMQTT5(86400), 2 * time.Hour, 5 * time.Hour, 150 * time.Minute},
	} {
		l := c.pool.Lifetime(c.expiry)
		now := time.Unix(1_800_000_000, 0)
		if l.TTL != c.ttl || l.Lease() != c.lease || l.Recorded() != (c.ttl > 0) {
			t.Errorf("%s: TTL %v, lease %v, recorded %v; want %v, %v, %v", c.name, l.TTL, l.Lease(), l.Recorded(), c.ttl, c.lease, c.ttl > 0)
		}
		if got := l.RefreshIn(l.Expires(now), now); got != c.refresh {
			t.Errorf("%s: refresh in %v, want %v", c.name, got, c.refresh)
		}
	}
}

func TestRefreshIn(t *testing.T) {
	pool := &registry.Pool{}
	minute, hour := pool.Lifetime(time.Minute), pool.Lifetime(time.Hour)
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		name    string
		l       registry.Lifetime
		expires time.Time
		want    time.Duration
	}{
		{"written by another edge a while ago", minute, minute.Expires(now.Add(-20 * time.Minute)), 11 * time.Minute},
		{"due", minute, minute.Expires(now.Add(-31 * time.Minute)), 0},
		{"overdue", minute, minute.Expires(now.Add(-50 * time.Minute)), 0},
		{"expired", minute, now.Add(-time.Hour), 0},
		{"a DISCONNECT that asks for more", hour, minute.Expires(now), 0},
		{"a DISCONNECT that asks for less", minute, hour.Expires(now), 149 * time.Minute},
		{"a record without an end", hour, time.Time{}, math.MaxInt64},
	} {
		if got := c.l.RefreshIn(c.expires, now); got != c.want {
			t.Errorf("%s: refresh in %v, want %v", c.name, got, c.want)
		}
	}
}

// Promise 6: whenever a client disconnects, its record outlives its session, by more than clocks differ.
func TestRecordOutlivesSession(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 1))
	for range 2000 {
		l := (&registry.Pool{}).Lifetime(time.Duration(1+rnd.IntN(86400)) * time.Second)
		now := time.Unix(1_800_000_000, rnd.Int64N(int64(time.Second)))
		expires := l.Expires(now)
		skew := time.Duration(rnd.IntN(121)-60) * time.Second // of the edge that wrote it, to the one that reads it
		// The client stays for some refreshes, each of which the store takes late, and leaves at some moment.
		leave := now.Add(time.Duration(rnd.Int64N(int64(4 * l.Lease()))))
		for {
			next := now.Add(l.RefreshIn(expires.Add(skew), now)).Add(time.Duration(rnd.IntN(60)) * time.Second)
			if next.After(leave) {
				break
			}
			now, expires = next, l.Expires(next)
		}
		if left := expires.Sub(leave); left < l.TTL {
			t.Fatalf("expiry %v: %v remain at the disconnect", l.TTL, left)
		}
	}
}
